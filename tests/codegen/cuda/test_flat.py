"""Maps over one flat index: every shape is one kernel, any length is done, and what would do it wrong is noticed."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.codegen.cuda import teams
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import symbol_of
from chainrule.codegen.cuda.team import Spread
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.compiler import derive, program
from chainrule.ir.expression import dim_symbol
from chainrule.ir.graph import Dim, Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.codegen.cuda.programs import ARCH, run_on_gpu
from tests.codegen.running import drawn
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.cuda.ptx import PTXError
from tests.schedule.graphs import A, B, Builder

MODEL = """model shapes():
    dim batch
    input x[batch, 64]
    h = tanh(linear(x, 130))
    z = tanh(linear(h, 33))
    loss = mean[n, k] z[n, k]
"""


def step_of(optimizer: str, **arguments: float) -> Program:
    options = Options(
        "train", optimizer=optimizer, arguments=tuple(arguments.items()), target=f"cuda:{ARCH}", sizes=(("batch", 512),)
    )
    return program(derive(Source(MODEL, "shapes.graph"), options), options)


@cache
def maps() -> tuple[Graph, Program]:
    """y = x * x - w over [batch, 3, 5], in one kernel of which nothing is known but the length."""
    g = Builder(n=dim_symbol("batch"), i=3, j=5)
    g.input("x", "nij")
    g.input("w", "nij")
    g.formula("y nij", ["x nij", "w nij"], A * A - B)
    graph = g.graph("maps", ("y",), (Dim("batch"),))
    return graph, schedule(graph, training=False, sizes={"batch": 4096}, machine=GPU)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        ("sgd", {}),
        ("momentum", {"decay": 0.1}),
        ("nesterov", {}),
        ("adam", {}),
        ("adamw", {}),
        ("adamw", {"clip": 1.0}),
    ],
)
def test_an_optimizer_is_one_kernel_for_all_parameters(optimizer: str, arguments: dict[str, float]) -> None:
    """Of a weight and a bias, of any length; all its formulas of a parameter are in it."""
    made, written = printed(step_of(optimizer, **arguments), "float32")
    updates = [s for k, s in zip(made.kernels, written, strict=True) if k.name.endswith(".next")]
    assert len(updates) == 4 and len({symbol_of(s.job, ARCH) for s in updates}) == 1
    assert "load4" in updates[0].text and "length" in updates[0].text
    lengths = [int(size) for s in updates for size in s.sizes]
    assert sorted(lengths) == [33, 130, 33 * 130, 64 * 130]


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 17, 1023])
def test_maps_of_any_length_agree_with_the_reference(batch: int, element: str) -> None:
    graph, made = maps()
    assert [s.text.count("load4") for s in printed(made, "float32")[1]] == [3]  # imported, and two arrays
    values = {k: v.astype(element).astype(v.dtype) for k, v in drawn(graph, {"batch": batch}).items()}
    assert_agrees(run_on_gpu(made, {"batch": batch}, values, element), wanted(graph, values, made), element)


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(0, 300))
def test_no_length_is_special(batch: int) -> None:
    test_maps_of_any_length_agree_with_the_reference(batch, "float32")


@pytest.mark.parametrize("turns", ["groups", "length"])
def test_too_few_and_too_many_turns_are_noticed(turns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, made = maps()
    made = Program(**vars(made))  # printed anew
    written = teams.write_row

    def write_row(spread: Spread, count: int, w: CudaWriter) -> None:
        written(spread, count, w)
        w.lines[:] = [line.replace("length - 3 * groups", turns) for line in w.lines]

    monkeypatch.setattr(teams, "write_row", write_row)
    values = drawn(graph, {"batch": 5})
    want = wanted(graph, values, made)
    with pytest.raises((AssertionError, PTXError)):
        assert_agrees(run_on_gpu(made, {"batch": 5}, values, "float32"), want, "float32")


def test_a_map_that_reads_elsewhere_is_not_flat() -> None:
    """A transposed operand, or one that is broadcast."""
    for read in ("x ji", "v j"):
        g = Builder(i=64, j=64)
        g.input(*read.split())
        g.formula("y ij", [read], A * A)
        made = schedule(g.graph("elsewhere", ("y",), ()), training=False, machine=GPU)
        assert all("length" not in s.text for s in printed(made, "float32")[1])
