"""Small networks are one kernel of one block where launches cost more than a grid saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.expression import dim_symbol
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program, alternatives
from chainrule.ir.validate_program import validate_program
from chainrule.ir.value import value
from chainrule.schedule import one_block, schedule
from chainrule.schedule.one_block import by_depth, touched
from tests.schedule.graphs import layer_norm, mlp
from tests.schedule.laws import assert_law
from tests.schedule.strategies import graphs

ALONE = replace(GPU, kernel_ns=1e9)
"""A machine whose launches cost so much that every step is one kernel."""


def chosen(program: Program, sizes: Mapping[str, int]) -> list[str]:
    known = {dim_symbol(name): size for name, size in sizes.items()}
    for dim in program.dims:
        if dim.definition is not None:
            known[dim_symbol(dim.name)] = int(value(dim.definition, known))
    return [k.name for k in program.kernels if value(k.when, known) > 0 and not value(k.unless, known) > 0]


def test_a_small_batch_is_one_kernel_and_a_large_one_many() -> None:
    program = schedule(mlp(64, 32, 32, 10), training=True, machine=GPU)
    validate_program(program)
    few, many = chosen(program, {"batch": 32}), chosen(program, {"batch": 100_000})
    assert len(few) == 1 and len(many) > 10 and not {*few} & {*many}
    assert [len(way) for way in alternatives(program.kernels)] == [1, len(many)]


def test_a_network_too_large_for_one_block_has_one_way() -> None:
    program = schedule(mlp(784, 1024, 1024, 10), training=True, machine=GPU)
    assert len(alternatives(program.kernels)) == 1 and program.kernels[0].when == 1


def test_a_budget_of_memory_leaves_no_second_way() -> None:
    program = schedule(mlp(5, 7, 3), training=True, memory=1 << 20, machine=GPU)
    assert len(alternatives(program.kernels)) == 1


def test_where_launches_cost_nothing_nothing_is_one_kernel() -> None:
    program = schedule(mlp(5, 7, 3), training=True, machine=replace(GPU, kernel_ns=0.0))
    assert len(alternatives(program.kernels)) == 1 < len(program.kernels)


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), n=st.integers(0, 5), m=st.integers(0, 5), seed=st.integers(0, 99))
def test_random_graphs_in_one_kernel_keep_the_law(graph, n, m, seed) -> None:
    program = schedule(graph, training=True, machine=ALONE)
    validate_program(program)
    assert len(chosen(program, {"n": n, "m": m})) == 1
    assert_law(graph, {"n": n, "m": m}, program=program, seed=seed)


def test_parts_stand_in_an_order_that_few_barriers_divide() -> None:
    program = schedule(mlp(64, 32, 32, 10), training=True, machine=ALONE)
    body = program.kernels[0].body
    variables = {b.name for b in program.kernels[0].locals if not b.shape}
    again, depths = by_depth(body, variables)
    assert tuple(again) == body
    assert max(depths) <= 11 and len(body) > 20
    for (k, a), (l, b) in pairwise(enumerate(body)):
        (_, wrote), (reads, writes) = touched(a), touched(b)
        assert depths[k] < depths[l] or not (wrote & (reads | writes)) - variables


def test_an_order_that_forgets_what_is_still_to_be_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = layer_norm()
    assert_law(graph, {"batch": 3}, program=schedule(graph, training=True, machine=ALONE))
    monkeypatch.setattr(one_block, "by_depth", lambda body, variables: (list(reversed(body)), [0] * len(body)))
    with pytest.raises((AssertionError, IndexError)):
        assert_law(graph, {"batch": 3}, program=schedule(graph, training=True, machine=ALONE))


def test_a_place_that_is_given_away_too_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_away(arrays, body, depths):
        first = {}
        return {b.name: f for b in arrays if (f := first.setdefault(b.shape, b.name)) != b.name}

    graph = mlp(5, 7, 3)
    monkeypatch.setattr(one_block, "reused", given_away)
    with pytest.raises(AssertionError):
        assert_law(graph, {"batch": 3}, program=schedule(graph, training=True, machine=ALONE))
