"""Products' tiles, in every precision: factors are rounded once, sums are exact but for the order of adding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import panels, product, sums, tiles
from chainrule.codegen.cuda.device import TILES
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import compile_kernel
from chainrule.codegen.cuda.toolkit import disassembly, figures
from chainrule.ir.expression import slot
from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program
from chainrule.schedule import schedule
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.cuda.test_fragments import ROUNDED
from tests.codegen.test_cpu_laws import products
from tests.cuda.ptx import PTXError
from tests.schedule.graphs import Builder, convolution

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
    monkeypatch.setattr(tiles, "TILES", (tile,))
    down, across = tile
    for left, right, extents in (
        ("in", "ij", {"n": down + 4, "i": 36, "j": across + 12}),
        ("ni", "ji", {"n": down - 3, "i": 35, "j": across + 1}),
    ):
        assert_multiplies(left, right, extents, precision)


@settings(max_examples=12, deadline=None)
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


UNKNOWN = schedule(products(), training=False, machine=MACHINE, memory=1 << 30)  # a budget allows no one-block way


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


def convolved(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """y[n, o, h, w] = sum[c, r, s] x[n, c, h + r - 1, w + s - 1] k[o, c, r, s], x being 0 outside."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("nchwrs,ocrs->nohw", windows, k)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_padded_convolutions_and_their_gradients_are_products_too(precision: str) -> None:
    program = schedule(convolution(c=16, o=16, h=8), training=True, sizes={"batch": 64}, machine=MACHINE)
    values = drawn({"x": (2, 16, 8, 8), "y_bar": (2, 16, 8, 8), "K": (16, 16, 3, 3)})
    found = run_on_gpu(program, {"batch": 2}, values, "float32", precision=precision)
    x, y_bar, k = (rounded(values[name], precision) for name in ("x", "y_bar", "K"))
    turned = k[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    k_bar = np.einsum("nchwrs,nohw->ocrs", windows, y_bar)
    outputs = dict(program.outputs)
    np.testing.assert_allclose(found[outputs["y"]], convolved(x, k), atol=1e-4)
    np.testing.assert_allclose(found[outputs["x_bar"]], convolved(y_bar, turned), atol=1e-4)
    np.testing.assert_allclose(found["K"], values["K"] - k_bar / 8, atol=1e-4)


def sources_of(extents: dict[str, int], precision: Any, arch: str = "sm_90", element: Any = "float32") -> list[Any]:
    graph = graph_of("ni", "ij", **extents)
    return printed(schedule(graph, training=False, machine=MACHINE), element, precision, arch)[1]


def test_an_architecture_without_tensor_cores_for_it_rounds_nothing() -> None:
    plain, asked, old = (
        [s.text for s in sources_of({"n": 64, "i": 64, "j": 64}, *how)]
        for how in (("float32",), ("tf32",), ("tf32", "sm_75"))
    )
    assert plain == old != asked
    assert [s.text for s in sources_of({"n": 64, "i": 64, "j": 64}, "float32", element="float64")] != plain


# Registers of a thread: two blocks of the largest tiles fit a multiprocessor, more of the others.
CEILINGS = {
    (128, 128): {"float32": 128, "tf32": 128, "bf16": 128},
    (64, 64): {"float32": 80, "tf32": 112, "bf16": 128},
    (32, 64): {"float32": 80, "tf32": 96, "bf16": 112},
    (16, 16): {"float32": 64, "tf32": 80, "bf16": 96},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tile", CEILINGS)
def test_a_tile_s_machine_code(tile: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in registers, its accesses are wide, one barrier is met a panel, and known extents unroll nothing."""
    monkeypatch.setattr(tiles, "TILES", (tile,))
    (source,) = sources_of({"n": 1024, "i": 256, "j": 1024}, precision)
    cubin = compile_kernel(source.job, "sm_90").cubin
    found, code = figures(cubin), disassembly(cubin)
    assert found.local == found.doubles == 0
    assert set(found.loads) == {128}
    assert found.registers <= CEILINGS[tile][precision]
    assert code.count("BAR.SYNC") == 2
    assert found.instructions < 700
    if precision == "float32":
        assert "LDS.128" in code or tile[0] < 64
        assert "HMMA" not in code
    else:
        fragments = tile[0] * tile[1] // 256 * 32 // source.threads
        kind = {"tf32": "HMMA.1688.F32.TF32", "bf16": "HMMA.16816.F32.BF16"}[precision]
        assert code.count(kind) == 4 * fragments
        assert "LDS.128" in code and "STS.128" in code and "FFMA" not in code


def law(precision: str) -> None:
    assert_multiplies("ni", "ij", {"n": 64, "i": 100, "j": 64}, precision)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_quads_in_the_other_operand_s_order_are_noticed(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law(precision)
    store = panels._store_quads
    monkeypatch.setattr(panels, "_store_quads", lambda *args: store(*args[:5], not args[5], args[6]))
    with pytest.raises((AssertionError, PTXError)):
        law(precision)


def test_fragments_at_another_lane_s_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    places = sums._quads
    monkeypatch.setattr(sums, "_quads", lambda side, own, count, w: places(side, f"({own} + 2) % 16", count, w))
    with pytest.raises((AssertionError, PTXError)):
        law("tf32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_panel_that_is_stored_where_the_present_one_lies_is_noticed(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law(precision)
    store = panels.store_panel

    def stored(side: Any, form: Any, first: str, *rest: Any) -> None:
        store(side, form, "0" if first == "0" else "first", *rest)

    monkeypatch.setattr(product, "store_panel", stored)
    with pytest.raises((AssertionError, PTXError)):
        law(precision)
