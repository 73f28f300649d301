"""A buffer that takes another's memory changes no bit, and less is kept."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.graph import Graph
from chainrule.ir.program import Program
from chainrule.ir.validate_program import problems, validate_program
from chainrule.render.program import touched
from chainrule.schedule import in_place as module
from chainrule.schedule import schedule
from chainrule.schedule.cost import Sizes
from chainrule.schedule.in_place import Lives, in_place, overwriting
from tests.schedule.graphs import BATCH, A, B, Builder
from tests.schedule.interpret import interpret
from tests.schedule.laws import assert_law, values_of
from tests.schedule.strategies import graphs
from tests.schedule.test_rematerialize import deep, most_of
from tests.schedule.test_schedule import GRAPHS, cut_everything


def names(program: Program) -> set[str]:
    return {buffer.name for buffer in program.buffers if buffer.space == "arena"}


def pieces(graph: Graph) -> Program:
    """A kernel for each formula, so that all results are in the arena."""
    with pytest.MonkeyPatch.context() as patch:
        cut_everything(patch)
        return schedule(graph, training=True, sizes={"batch": 1000, "n": 1000, "m": 1000})


def everywhere(program: Program) -> Program:
    """All that may be overwritten is, whether or not that makes the most that is kept less."""
    lives = Lives.of(program, Sizes(Graph("", dims=program.dims)))
    results = {of for _, of in program.outputs}
    pairs = [pair for k, kernel in enumerate(program.kernels) for pair in lives.pairs(k, kernel, results)]
    return overwriting(program, dict(pairs))


def assert_same(graph: Graph, program: Program, sizes: dict[str, int]) -> None:
    values = values_of(graph, sizes)
    found, expected = (interpret(p, values, sizes, reversed) for p in (everywhere(program), program))
    assert all(np.array_equal(found[name], expected[name], equal_nan=True) for name in graph.outputs if name in found)


@pytest.mark.parametrize("name", GRAPHS)
def test_it_changes_no_bit(name: str) -> None:
    for program in (pieces(GRAPHS[name]), schedule(GRAPHS[name], training=True)):
        validate_program(everywhere(program))
        for batch in (0, 3):
            assert_same(GRAPHS[name], program, {"batch": batch})


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), n=st.integers(0, 3), m=st.integers(0, 3))
def test_it_changes_no_bit_of_random_graphs(graph: Graph, n: int, m: int) -> None:
    assert_same(graph, pieces(graph), {"n": n, "m": m})


def chain(law: str) -> Graph:
    """v, which the sum t keeps in a kernel of its own, is read for the last time where w is made."""
    g = Builder(i=BATCH, j=BATCH, k=BATCH)
    g.input("u", "ij")
    g.formula("v ij", ["u ij"], A / 64)
    g.formula("t ", ["v ij"], A, over="ij")
    if law == "product":
        g.formula("z ij", ["v ik", "v kj"], A * B, over="k")
        g.formula("w ij", ["z ij", "t "], A + B)
    elif law == "v ij later":
        g.formula("w ij", ["v ij", "t "], A + B)
        g.formula("z i", ["w ij", "v ij"], A * B, over="j")
    else:
        g.formula("w ij", [law, "t "], A + B)
    g.formula("s ", ["w ij"], A, over="ij")
    g.formula("y ij", ["w ij", "s "], A + B)
    return g.graph("chain", ("y", "z") if law == "v ij later" else ("y",))


def test_a_map_overwrites_what_it_is_made_of() -> None:
    program = pieces(chain("v ij"))
    assert names(program) - names(everywhere(program)) == {"w"}
    assert_same(chain("v ij"), program, {"batch": 5})


@pytest.mark.parametrize("law", ["v ji", "v ij later", "product"])
def test_what_others_still_read_is_not_overwritten(law: str) -> None:
    program = schedule(chain(law), training=True, sizes={"batch": 2000})
    assert any({"v", "w"} <= set(touched(kernel)[0]) | set(touched(kernel)[1]) for kernel in program.kernels)
    assert names(everywhere(program)) == names(program)


def test_a_result_is_written_where_the_caller_keeps_it() -> None:
    g = Builder(n=BATCH, i=64)
    g.input("u", "ni")
    g.formula("v ni", ["u ni"], A + 1)
    g.formula("w ni", ["v ni"], A * 2)
    program = pieces(g.graph("results", ("v", "w")))
    assert everywhere(program).buffers == program.buffers


def test_less_is_kept() -> None:
    sizes = {"batch": 1 << 16}
    program = schedule(deep(6), training=True, sizes=sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chainrule.schedule.scheduling.in_place", lambda program, *_: program)
        before = schedule(deep(6), training=True, sizes=sizes)
    assert most_of(program, sizes) < most_of(before, sizes)


def any_order(*_: object) -> bool:
    return True


def any_axis(_: object) -> dict[str, set[int]]:
    return defaultdict(lambda: {0})


def test_only_what_makes_the_most_less_is_overwritten() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chainrule.schedule.scheduling.in_place", lambda program, *_: program)
        program = schedule(deep(6), training=True, sizes={"batch": 1 << 16})
    sizes = Sizes(Graph("", dims=program.dims), {"batch": 1 << 16})
    most = max(Lives.of(program, sizes).counts(len(program.kernels)))
    assert in_place(program, sizes, most) == program
    assert names(everywhere(program)) < names(in_place(program, sizes)) < names(program)


@pytest.mark.parametrize(
    ("law", "rule", "broken"), [("v ij later", "_before", any_order), ("product", "own_axes", any_axis)]
)
def test_without_a_rule_the_law_is_broken(law: str, rule: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = schedule(chain(law), training=True, sizes={"batch": 2000})
    monkeypatch.setattr(module, rule, broken)
    assert is_noticed(chain(law), everywhere(program))


def is_noticed(graph: Graph, program: Program) -> bool:
    if list(problems(program)):
        return True
    try:
        assert_law(graph, {"batch": 70}, program=program, blocks=reversed)
    except AssertionError:
        return True
    return False
