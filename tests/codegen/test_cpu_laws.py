"""Generated kernels compute what the reference does: as plain Python and compiled, in float64 and float32."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.expression import dim_symbol
from chainrule.ir.graph import Dim, Graph
from chainrule.ir.program import Program
from chainrule.reference import evaluate, updated
from chainrule.schedule import schedule
from tests.codegen.graphs import GRAPHS
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.schedule.graphs import A, B, Builder

BOUNDS = {"float64": 1e-12, "float32": 2e-5}  # relative to the tensor's largest element


@cache
def made(name: str) -> tuple[Graph, Program]:
    graph = GRAPHS[name]()
    return graph, schedule(graph, training=True)


def wanted(graph: Graph, values: dict[str, np.ndarray], program: Program) -> dict[str, np.ndarray]:
    """What each output's and each store's buffer holds after the step."""
    with np.errstate(all="ignore"):
        found = evaluate(graph, values)
    outputs = {buffer: found[name] for name, buffer in program.outputs}
    return {**outputs, **updated(graph, found)}


def assert_agrees(got: dict[str, np.ndarray], want: dict[str, np.ndarray], element: str) -> None:
    for name, right in want.items():
        if right.dtype.kind == "f":
            finite = right[np.isfinite(right)]
            scale = max(np.max(np.abs(finite), initial=0), 1e-3)
            np.testing.assert_allclose(
                got[name], right, rtol=BOUNDS[element], atol=BOUNDS[element] * scale, err_msg=name
            )
        else:
            np.testing.assert_array_equal(got[name], right, err_msg=name)


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_plain_python_agrees_with_the_reference(name, batch):
    graph, program = made(name)
    values = drawn(graph, {"batch": batch})
    want = wanted(graph, values, program)
    assert_agrees(run_plain(program, {"batch": batch}, values, "float64"), want, "float64")


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_kernels_agree_with_the_reference(name, element):
    graph, program = made(name)
    for batch in (0, 1, 3, 70):
        values = {k: v.astype(element).astype(v.dtype) for k, v in drawn(graph, {"batch": batch}, batch).items()}
        want = wanted(graph, values, program)
        assert_agrees(run_compiled(program, {"batch": batch}, values, element), want, element)


def products() -> Graph:
    """A matrix product and its gradients, every extent known at run time only."""
    names = ("batch", "depth", "width")
    g = Builder(**dict(zip("nij", map(dim_symbol, names), strict=True)))
    for name, letters in (("x", "ni"), ("w", "ij"), ("y", "nj")):
        g.input(name, letters)
    g.formula("z nj", ["x ni", "w ij"], A * B, over="i")
    g.formula("x_bar ni", ["y nj", "w ij"], A * B / 3, over="j")
    g.formula("w_bar ij", ["x ni", "y nj"], A * B, over="n")
    return g.graph("products", ("z", "x_bar", "w_bar"), tuple(map(Dim, names)))


PRODUCTS = schedule(products(), training=True)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (9, 17, 40), (70, 65, 130)])
def test_products_of_any_size_agree_with_the_reference(shape):
    sizes = dict(zip(("batch", "depth", "width"), shape, strict=True))
    graph = products()
    values = drawn(graph, sizes)
    want = wanted(graph, values, PRODUCTS)
    for element in BOUNDS:
        assert_agrees(run_compiled(PRODUCTS, sizes, values, element), want, element)
    if max(shape) < 50:
        assert_agrees(run_plain(PRODUCTS, sizes, values, "float64"), want, "float64")


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(0, 9), name=st.sampled_from(sorted(GRAPHS)), seed=st.integers(0, 99))
def test_compiled_and_plain_python_agree(batch, name, seed):
    graph, program = made(name)
    values = drawn(graph, {"batch": batch}, seed)
    plain, compiled = (run(program, {"batch": batch}, values, "float64") for run in (run_plain, run_compiled))
    stored = [b.name for b in program.buffers if b.space in ("param", "state")]
    results = [*(buffer for _, buffer in program.outputs), *stored]
    assert_agrees(compiled, {name: plain[name] for name in results}, "float64")
