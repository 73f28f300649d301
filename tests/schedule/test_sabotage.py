"""What the laws and the validator are worth: each rule of the scheduler, broken once, is noticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sympy as sp

from chainrule.ir.graph import Graph, Update
from chainrule.ir.program import Leaf, Loop, Program, Statement
from chainrule.ir.validate_program import problems
from chainrule.schedule import schedule
from chainrule.schedule.task import Task
from tests.schedule.graphs import A, Builder, cross_entropy, layer_norm, mlp
from tests.schedule.laws import assert_law

BATCH = {"batch": 5}
LARGE = {"batch": 10**5}


def is_noticed(graph: Graph, program: Program, sizes: dict[str, int] = BATCH) -> bool:
    """By the validator, or else by the law."""
    if list(problems(program)):
        return True
    try:
        assert_law(graph, sizes, program=program, blocks=reversed)
    except (AssertionError, IndexError):
        return True
    return False


def test_a_join_along_another_axis_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_pair(p: Task, t: Task) -> frozenset[Any]:
        return frozenset((a.symbol, j.symbol) for a in p.axes for j in t.indices)

    monkeypatch.setattr("chainrule.schedule.links._flow", any_pair)
    g = Builder(i=3, j=3)
    g.input("x", "ij")
    g.formula("y ij", ["x ij"], A * 2)
    g.formula("z ij", ["y ji"], A + 1)
    graph = g.graph("transposed", ("z",))
    assert is_noticed(graph, schedule(graph, training=True), {})


def test_a_join_before_the_sum_is_complete_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_early(p: Task, t: Task) -> frozenset[Any]:
        return frozenset((a.symbol, j.symbol) for a in p.indices for j in t.indices if a.extent == j.extent)

    monkeypatch.setattr("chainrule.schedule.links._flow", too_early)
    graph = layer_norm()
    assert is_noticed(graph, schedule(graph, training=True, sizes=LARGE))


def test_an_update_before_the_last_reader_is_noticed() -> None:
    g = Builder(i=3)
    g.param("p", "i")
    g.formula("y i", ["p i"], A + 1)
    g.formula("p_new i", ["p i"], A * 2)
    g.updates.append(Update("p", "p_new"))
    graph = g.graph("early", ("y",))
    program = assert_law(graph, {})
    (kernel,) = program.kernels
    (loop,) = kernel.body
    assert isinstance(loop, Loop)
    early = replace(kernel, body=(replace(loop, body=loop.body[::-1]),))
    assert is_noticed(graph, replace(program, kernels=(early,)), {})


def test_a_temporary_that_loses_an_axis_is_noticed_by_the_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.schedule.storage._prefix", lambda a, b: a)
    program = schedule(cross_entropy(), training=True, sizes=LARGE)
    assert any("keeps no axis" in problem for problem in problems(program))


def test_a_block_that_writes_into_another_s_row_is_noticed_by_the_validator() -> None:
    program = schedule(layer_norm(), training=True, sizes=LARGE)
    kernel = program.kernels[0]
    assert kernel.block is not None
    body = rewritten(kernel.body, {kernel.block.number: sp.S.Zero})
    wrong = replace(program, kernels=(replace(kernel, body=body), *program.kernels[1:]))
    assert any("two blocks" in problem for problem in problems(wrong))


def test_a_partial_row_that_is_not_added_is_noticed() -> None:
    graph = layer_norm()
    program = schedule(graph, training=True, sizes={"batch": 2000})
    kernel = program.kernels[1]
    wrong = replace(kernel, body=later_start(kernel.body))
    assert wrong != kernel
    assert is_noticed(graph, replace(program, kernels=(program.kernels[0], wrong)), {"batch": 60})


def test_a_missing_start_of_an_accumulator_is_noticed_by_the_validator() -> None:
    program = schedule(layer_norm(), training=True, sizes=LARGE)
    kernel = program.kernels[1]
    body = tuple(node for node in kernel.body if not clears(node))
    wrong = replace(program, kernels=(program.kernels[0], replace(kernel, body=body)))
    assert any("read before it is written" in problem for problem in problems(wrong))


def test_kernels_in_another_order_are_noticed_by_the_validator() -> None:
    program = schedule(mlp(784, 256, 10), training=True)
    assert not list(problems(program))
    assert list(problems(replace(program, kernels=program.kernels[::-1])))


def test_a_loop_symbol_out_of_place_is_noticed_by_the_validator() -> None:
    program = schedule(layer_norm(), training=True, sizes=LARGE)
    kernel = program.kernels[1]
    opened = tuple(node.body[0] if isinstance(node, Loop) else node for node in kernel.body)
    wrong = replace(program, kernels=(program.kernels[0], replace(kernel, body=opened)))
    assert any("no open loop" in problem for problem in problems(wrong))


def rewritten(body: tuple[Leaf, ...], names: dict[sp.Basic, sp.Basic]) -> tuple[Leaf, ...]:
    result: list[Leaf] = []
    for node in body:
        if isinstance(node, Loop):
            result.append(replace(node, body=rewritten(node.body, names)))
        elif isinstance(node, Statement):
            reads = tuple(read.renamed(names) for read in node.reads)
            result.append(replace(node, target=node.target.renamed(names), reads=reads))
        else:
            result.append(replace(node, target=node.target.renamed(names)))
    return tuple(result)


def later_start(body: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
    """Loops over parts that leave out the first."""
    result: list[Leaf] = []
    for node in body:
        if isinstance(node, Loop):
            start = sp.S.One if node.range.pretty == "part" else node.range.start
            node = replace(node, range=replace(node.range, start=start), body=later_start(node.body))
        result.append(node)
    return tuple(result)


def clears(node: Leaf) -> bool:
    while isinstance(node, Loop):
        node = node.body[0]
    return isinstance(node, Statement) and not node.reads
