"""Products' tiles, in every precision: factors are rounded once, sums are exact but for the order of adding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import mapping
from chainrule.codegen.cuda.device import TILES
from chainrule.ir.expression import slot
from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program
from chainrule.schedule import schedule
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.cuda.test_fragments import ROUNDED
from tests.codegen.test_cpu_laws import products
from tests.schedule.graphs import Builder

A, B = slot(0), slot(1)
MACHINE = replace(GPU, serial_ns=0.0, tiny_ns=0.0)  # no product is too small for a kernel of many blocks
PRECISIONS = ("float32", "tf32", "bf16")


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    return ROUNDED[precision](x.astype(np.float32)).astype(np.float64) if precision in ROUNDED else x


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}


def graph_of(left: str, right: str, **extents: Any) -> Graph:
    """``z[n, j] = sum[i] x w / 3``, the operands' axes in a given order, for each b if that is one of them."""
    g = Builder(**extents)
    g.input("x", left)
    g.input("w", right)
    g.formula("z " + ("b" if "b" in left else "") + "nj", [f"x {left}", f"w {right}"], A * B / 3, over="i")
    return g.graph("product", ("z",), ())


def assert_multiplies(
    left: str, right: str, extents: dict[str, int], precision: str, program: Program | None = None, seed: int = 0
) -> None:
    """On the interpreter, a product is that of the rounded operands, to the float32 of its sums."""
    graph = graph_of(left, right, **extents)
    program = program or schedule(graph, training=False, machine=MACHINE)
    values = drawn({"x": tuple(extents[c] for c in left), "w": tuple(extents[c] for c in right)}, seed)
    found = run_on_gpu(program, {}, values, "float32", precision=precision)
    x, w = (rounded(values[name], precision) for name in "xw")
    out = ("b" if "b" in left else "") + "nj"
    want = np.einsum(f"{left},{right}->{out}", x, w) / 3
    bound = np.einsum(f"{left},{right}->{out}", abs(x), abs(w)) / 3 * 2**-22 + 1e-30
    got = found[program.outputs[0][1]]
    assert np.all(abs(got - want) <= bound * (2 + np.sqrt(extents["i"]))), abs(got - want).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_multiplies_in_every_precision(
    tile: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "TILES", (tile,))
    down, across = tile
    for left, right, extents in (
        ("ni", "ij", {"n": down, "i": 64, "j": across}),
        ("in", "ji", {"n": down + 4, "i": 36, "j": across + 12}),
        ("ni", "ji", {"n": down - 3, "i": 35, "j": across + 1}),
    ):
        assert_multiplies(left, right, extents, precision)


@settings(max_examples=20, deadline=None)
@given(
    left=st.sampled_from(["ni", "in", "bni", "nbi", "ibn"]),
    right=st.sampled_from(["ij", "ji"]),
    sizes=st.tuples(*[st.integers(9, 40)] * 2, st.integers(16, 70), st.integers(1, 3)),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 99),
)
def test_products_of_any_shape_and_order_of_axes(left, right, sizes, precision, seed) -> None:
    extents = dict(zip("njib", sizes, strict=True))
    if "b" in left:
        right = f"b{right}"
    assert_multiplies(left, right, {c: extents[c] for c in {*left, *right}}, precision, seed=seed)


UNKNOWN = schedule(products(), training=False, machine=MACHINE)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (9, 17, 40), (70, 65, 130)])
def test_products_of_sizes_that_are_known_at_run_time(shape: tuple[int, int, int], precision: str) -> None:
    sizes = dict(zip(("batch", "depth", "width"), shape, strict=True))
    n, i, j = shape
    values = drawn({"x": (n, i), "w": (i, j), "y": (n, j)})
    found = run_on_gpu(UNKNOWN, sizes, values, "float32", precision=precision)
    x, w, y = (rounded(values[name], precision) for name in "xwy")
    for name, want in (("z", x @ w), ("x_bar", y @ w.T / 3), ("w_bar", x.T @ y)):
        got = found[dict(UNKNOWN.outputs)[name]]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
