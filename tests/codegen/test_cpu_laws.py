"""Generated kernels compute what the reference does: as plain Python and compiled, in float64 and float32."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from chainrule.ir.graph import Graph
from chainrule.ir.program import Program
from chainrule.reference import evaluate, updated
from chainrule.schedule import schedule
from tests.codegen.graphs import GRAPHS
from tests.codegen.running import drawn, run_compiled, run_plain

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
