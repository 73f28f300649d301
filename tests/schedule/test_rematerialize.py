"""What is computed again gives the same, less is kept, and no other choice would cost less."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, combinations

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.errors import ChainruleError
from chainrule.ir.graph import Graph, Update
from chainrule.ir.program import Program, accesses, leaves
from chainrule.ir.validate_program import validate_program
from chainrule.schedule import schedule
from chainrule.schedule.cost import Sizes
from chainrule.schedule.kernels import Planner, planner_of
from chainrule.schedule.liveness import Liveness, in_order_of, kernels_before, lean, order_of
from chainrule.schedule.rematerialize import Kept, cut, rematerialize
from chainrule.schedule.task import Task
from chainrule.schedule.work import Work, in_order, outputs_of, work_of
from tests.schedule.graphs import BATCH, A, B, Builder, C
from tests.schedule.laws import assert_law, values_of
from tests.schedule.strategies import graphs
from tests.schedule.test_schedule import GRAPHS, cut_everything

LARGE = {"batch": 4096}


@pytest.fixture
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    everything(monkeypatch)


def everything(patch: pytest.MonkeyPatch) -> None:
    """Every byte counts, however few there are, and products are computed again as well, whether or not that helps."""

    def costly(work: Work, planner: Planner, sizes: Sizes, price: float, little: int) -> tuple[Work, Planner]:
        again = rematerialize(work, planner, 8.0)
        again = replace(again, tasks=tuple(in_order(again.tasks)))
        return again, lean(planner_of(again.tasks, again.tensors, sizes), outputs_of(again))

    patch.setattr("chainrule.schedule.rematerialize.SMALL", 1)
    patch.setattr("chainrule.schedule.liveness.NEAR", 0)
    patch.setattr("chainrule.schedule.scheduling.cheapest", costly)


def deep(layers: int, width: int = 64) -> Graph:
    """Layers forward and backward, each a kernel, for all rows make the mean that the next one needs; the maps could be
    computed again."""
    g = Builder(n=BATCH, i=width, j=width)
    g.input("h0", "ni")
    for k in range(layers):
        g.param(f"W{k}", "ij")
        g.formula(f"m{k} i", [f"h{k} ni"], A / 1000, over="n")
        g.formula(f"g{k} ni", [f"h{k} ni", f"m{k} i"], A - B)
        g.formula(f"z{k} nj", [f"g{k} ni", f"W{k} ij"], A * B, over="i")
        g.formula(f"h{k + 1} ni", [f"z{k} ni"], sp.tanh(A))
    g.formula(f"h{layers}_bar ni", [f"h{layers} ni"], A)
    for k in reversed(range(layers)):
        g.formula(f"d{k} i", [f"h{k + 1}_bar ni"], A / 1000, over="n")
        g.formula(f"z{k}_bar ni", [f"h{k + 1}_bar ni", f"z{k} ni", f"d{k} i"], A * sp.cos(B) + C)
        g.formula(f"W{k}_bar ij", [f"h{k} ni", f"z{k}_bar nj"], A * B, over="n")
        g.formula(f"W{k}_new ij", [f"W{k} ij", f"W{k}_bar ij"], A - B / 10)
        g.updates.append(Update(f"W{k}", f"W{k}_new"))
        if k:
            g.formula(f"h{k}_bar ni", [f"z{k}_bar nj", f"W{k} ij"], A * B, over="j")
    return g.graph("deep", (f"h{layers}_bar",))


def kept_of(graph: Graph, sizes: dict[str, int]) -> tuple[Work, Kept]:
    typical = Sizes(graph, sizes)
    work = work_of(graph, typical)
    planner = lean(planner_of(work.tasks, work.tensors, typical), outputs_of(work))
    return work, Kept(work, Liveness(planner, outputs_of(work)))


@pytest.mark.usefixtures("everything_counts")
@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_computed_again_is_the_same(name: str) -> None:
    program = schedule(GRAPHS[name], training=True, sizes=LARGE)
    validate_program(program)
    for batch in (0, 1, 5):
        assert_law(GRAPHS[name], {"batch": batch}, program=program, blocks=reversed)


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), n=st.integers(0, 3), m=st.integers(0, 3), cuts=st.booleans(), seed=st.integers(0, 9))
def test_random_graphs_keep_the_law_whatever_is_computed_again(
    graph: Graph, n: int, m: int, cuts: bool, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        everything(patch)
        if cuts:
            cut_everything(patch)
        program = schedule(graph, training=True, sizes={"n": 1000, "m": 1000})
    validate_program(program)
    assert_law(graph, {"n": n, "m": m}, program=program, blocks=reversed, seed=seed)


def arena(program: Program) -> set[str]:
    return {buffer.name for buffer in program.buffers if buffer.space == "arena"}


def test_maps_are_computed_again_and_products_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "chainrule.schedule.scheduling.in_place", lambda program, *_: program
    )  # names in the arena tell
    graph = deep(4)
    program = schedule(graph, training=True, sizes={"batch": 1 << 16})
    again = {f for kernel in program.kernels for f in kernel.formulas if f.endswith("_again")}
    assert again and all(f.startswith("h") for f in again)
    assert {"z0", "z1", "z2"} <= arena(program) and not any(name.endswith("_again") for name in arena(program))
    assert_law(graph, {"batch": 2}, program=program)


def test_little_is_kept_as_it_is() -> None:
    program = schedule(deep(6), training=True, sizes={"batch": 64})
    assert not any(f.endswith("_again") for kernel in program.kernels for f in kernel.formulas)


def test_the_cut_costs_no_more_than_any_other_choice() -> None:
    _, kept = kept_of(deep(4), {"batch": 1 << 14})
    late = [t for t in range(len(kept.tasks)) if kept.is_late(t)]
    free = [t for t in range(len(kept.tasks)) if not kept.is_late(t) and kept.may_repeat(t)]

    def cost(again: frozenset[int], price: float) -> float:
        read = {p for t in (*late, *again) for p in sources(kept, t) if not kept.is_late(p)} - again
        saved = (t for t in read if kept.tasks[t].out not in kept.live.outputs)
        return price * sum(kept.live.bytes[t] for t in saved) + sum(map(kept.time, again))

    choices = chain.from_iterable(combinations(free, k) for k in range(len(free) + 1))
    every = [frozenset(choice) for choice in choices]
    assert len(every) >= 2**6
    for price in (0.01, 0.1, 0.4, 2.0, 100.0):
        found = cost(frozenset(cut(kept, price, set())), price)
        assert found <= min(cost(again, price) for again in every) * (1 + 1e-6)


def sources(kept: Kept, t: int) -> list[int]:
    names = {read.tensor for read in kept.tasks[t].reads}
    return [kept.producers[name] for name in names if name in kept.producers]


def test_a_budget_is_kept_or_named_in_the_error() -> None:
    graph, sizes = deep(6), {"batch": 1 << 14}
    usual, least = (
        most_of(schedule(graph, training=True, sizes=sizes, memory=megabytes << 20), sizes) for megabytes in (1000, 50)
    )
    assert least <= 50 << 20 < usual
    with pytest.raises(ChainruleError, match="budget is 1,000"):
        schedule(graph, training=True, sizes=sizes, memory=1000)


def test_a_larger_budget_computes_less_again() -> None:
    graph, sizes = deep(12), {"batch": 1 << 14}
    programs = [schedule(graph, training=True, sizes=sizes, memory=megabytes << 20) for megabytes in (70, 80, 90, 100)]
    counts = [sum(f.endswith("_again") for kernel in p.kernels for f in kernel.formulas) for p in programs]
    assert all(more > less > 0 for more, less in itertools.pairwise(counts))
    for program, megabytes in zip(programs, (70, 80, 90, 100), strict=True):
        assert most_of(program, sizes) <= megabytes << 20
        values = {name: value / 8 for name, value in values_of(graph, {"batch": 2}).items()}  # tame over twelve layers
        assert_law(graph, {"batch": 2}, program=program, values=values)


def most_of(program: Program, sizes: dict[str, int]) -> int:
    """The bytes that are kept during the kernel that keeps most."""
    names = {sp.Symbol(name, integer=True, nonnegative=True): size for name, size in sizes.items()}
    for dim in program.dims:
        if dim.definition is not None:
            names[sp.Symbol(dim.name, integer=True, nonnegative=True)] = dim.definition.subs(names)
    count = [0] * len(program.kernels)
    touched = [
        {access.tensor for leaf in leaves(kernel.body) for access in (*accesses(leaf)[0], accesses(leaf)[1])}
        for kernel in program.kernels
    ]
    for buffer in program.buffers:
        uses = [k for k, tensors in enumerate(touched) if buffer.name in tensors]
        if buffer.space == "arena" and uses:
            size = 4 * int(sp.Mul(*buffer.shape).subs(names))
            for k in range(uses[0], uses[-1] + 1):
                count[k] += size
    return max(count)


@pytest.mark.parametrize("name", GRAPHS)
def test_an_order_that_frees_memory_keeps_what_must_come_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_everything(monkeypatch)
    _, kept = kept_of(GRAPHS[name], LARGE)
    ordered = in_order_of(kept.planner, order_of(kept.live))
    for k, needed in enumerate(kernels_before(ordered)):
        assert all(p < k for p in needed)
    assert sorted(order_of(kept.live)) == list(range(len(kept.planner.drafts)))


def without_waits(tasks: Sequence[Task]) -> list[Task]:
    return in_order([replace(task, after=None) for task in tasks])


def test_without_what_it_waits_for_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, sizes = deep(6), {"batch": 1 << 14}
    good = most_of(schedule(graph, training=True, sizes=sizes), sizes)
    monkeypatch.setattr("chainrule.schedule.scheduling.in_order", without_waits)
    assert most_of(schedule(graph, training=True, sizes=sizes), sizes) > good


def test_nothing_is_computed_again_from_what_is_overwritten_before() -> None:
    """The copy of y would have to come before p's update, which v waits for, and after what v reads beside y."""
    g = Builder(n=BATCH, i=64)
    g.input("x", "ni")
    g.param("p", "i")
    g.formula("y ni", ["x ni", "p i"], sp.exp(A * B))
    g.formula("s i", ["y ni"], A, over="n")
    g.formula("p_new i", ["s i", "p i"], A + B)
    g.formula("u ni", ["x ni", "p_new i"], A * B)
    g.formula("v i", ["u ni", "y ni"], A * B, over="n")
    g.updates.append(Update("p", "p_new"))
    graph = g.graph("overwritten", ("v",))
    _, kept = kept_of(graph, LARGE)
    assert not kept.may_repeat(next(t for t, task in enumerate(kept.tasks) if task.out == "y"))
    assert_law(graph, {"batch": 5}, program=schedule(graph, training=True, sizes=LARGE))
