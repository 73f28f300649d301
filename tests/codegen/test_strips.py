"""Loops over short rows run in strips of rows, with the same results; loops over long ones do not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import sympy as sp

from chainrule.codegen import strips
from chainrule.codegen.cpu import sources
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.graph import Graph
from chainrule.ir.program import Buffer, Kernel, Loop, Program, Range, Statement
from chainrule.schedule import schedule
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.schedule.graphs import cross_entropy, layer_norm, mlp

GRAPHS = {
    "cross entropy": lambda: cross_entropy(),
    "rows of three": lambda: cross_entropy(k=3),
    "layer norm": lambda: layer_norm(k=6),
    "rows in blocks": lambda: layer_norm(4096 + 3, 6),
}


@cache
def made(name: str) -> tuple[Graph, Program]:
    graph = GRAPHS[name]()
    return graph, schedule(graph, training=True)


def text_of(program: Program, element="float32") -> str:
    return "".join(source.text for source in sources(program, element=element).values())


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("name", GRAPHS)
def test_strips_compute_what_the_reference_does(name, element):
    graph, program = made(name)
    assert "for strip in range(" in text_of(program, element)
    for batch in (0, 1, 15, 16, 37) if name != "rows in blocks" else (1,):
        values = {k: v.astype(element).astype(v.dtype) for k, v in drawn(graph, {"batch": batch}, batch).items()}
        want = wanted(graph, values, program)
        assert_agrees(run_compiled(program, {"batch": batch}, values, element), want, element)


@pytest.mark.parametrize("name", ["rows of three", "layer norm"])
def test_plain_python_runs_strips_too(name):
    graph, program = made(name)
    values = drawn(graph, {"batch": 19})
    assert_agrees(run_plain(program, {"batch": 19}, values, "float64"), wanted(graph, values, program), "float64")


def test_rows_that_fill_vectors_stay_rows():
    for graph in (cross_entropy(k=64), layer_norm(k=1024), mlp(9, 24, 32)):
        assert "strip" not in text_of(schedule(graph, training=True))


I, J, N, M = sp.symbols("i j n m", integer=True, nonnegative=True)


def rows(*steps: Statement | Loop, **shapes: tuple[sp.Expr, ...]) -> tuple[Kernel, dict[str, Buffer]]:
    """A kernel that does `steps` for each of 64 rows i; tensors that are not given are numbers of each row."""
    buffers = {name: Buffer(name, shape, DType.FLOAT, "arena") for name, shape in shapes.items()}
    local = (Buffer("s", (), DType.FLOAT, "scratch"),)
    kernel = Kernel("k", (Loop(Range(I, sp.S.Zero, sp.Integer(64)), steps),), local)
    return kernel, {**buffers, "s": local[0]}


def inner(*steps: Statement) -> Loop:
    return Loop(Range(J, sp.S.Zero, sp.Integer(5)), steps)


START = Statement(Access("s", ()), sp.S.Zero)
ADD = Statement(Access("s", ()), sp.exp(slot(0)), (Access("x", (I, J)),), reduce=Reduce.SUM)
LOG = Statement(Access("y", (I,)), sp.log(slot(0)), (Access("s", ()),))
SHAPES = {"x": (sp.Integer(64), sp.Integer(5)), "y": (sp.Integer(64),)}


def is_cut(*steps: Statement | Loop) -> bool:
    kernel, buffers = rows(*steps, **SHAPES)
    return strips.stripped(kernel, buffers, 16)[0].body != kernel.body


def test_rows_that_may_meet_are_not_cut():
    assert is_cut(START, inner(ADD), LOG)
    assert not is_cut(inner(ADD), LOG)  # a sum that goes on from row to row, and is read
    before = replace(LOG, reads=(Access("y", (I - 1,)),))
    assert not is_cut(START, inner(ADD), before)
    assert not is_cut(START, inner(ADD), replace(LOG, target=Access("y", (sp.S.Zero,))))
    assert not is_cut(START, inner(ADD), replace(LOG, where=(sp.Ne(I, 3),)))
    assert not is_cut(START, inner(replace(ADD, reads=(Access("x", (I + 1, J), sp.S.Zero),))), LOG)
    assert not is_cut(LOG)


def test_steps_share_a_loop_where_each_tensor_has_one_place():
    elsewhere = Statement(Access("x", (I, J)), slot(0), (Access("x", (I, sp.S.Zero)),))
    here = Statement(Access("x", (I, J)), slot(0) * 2, (Access("x", (I, J)),))
    assert strips.fit([ADD, here]) and not strips.fit([here, elsewhere]) and not strips.fit([elsewhere])


@pytest.mark.parametrize("wrong", ["starts_anew", "keeps_to_its_row"])
def test_the_laws_catch_rows_that_are_mixed_up(monkeypatch, wrong):
    """A sum over rows that is taken for a row's own, rows that meet."""
    monkeypatch.setattr(strips, wrong, lambda *given: True)
    assert (
        is_cut(inner(ADD), LOG)
        if wrong == "starts_anew"
        else is_cut(START, inner(ADD), replace(LOG, target=Access("y", (sp.S.Zero,))))
    )


def test_the_laws_catch_rows_that_are_left_out(monkeypatch):
    graph, program = GRAPHS["cross entropy"](), None
    monkeypatch.setattr(strips, "fills", lambda *given: True)
    program = schedule(graph, training=True)
    values = drawn(graph, {"batch": 19})
    with pytest.raises(AssertionError):
        assert_agrees(run_plain(program, {"batch": 19}, values, "float64"), wanted(graph, values, program), "float64")
