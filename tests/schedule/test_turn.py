"""Weights that a recurrence's backward steps read turned: turned once, outside; what moves with the steps is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chainrule import compiler
from chainrule.ir.graph import Graph
from chainrule.options import Options
from chainrule.schedule import schedule, turn, work
from chainrule.schedule.cost import Sizes
from chainrule.schedule.task import Task
from chainrule.source import Source
from tests.schedule.laws import assert_law
from tests.schedule.test_recurrence import LSTM

RECURRENT = """
model recurrent(hidden = 24):
    dim batch, time >= 1
    input x[batch, time, hidden]
    param U[hidden, hidden] ~ normal(0.1)
    h[n < batch, t < time, j < hidden] = tanh(x[n, t, j] + sum[k] h[n, t - 1, k; 0] * {read})
    loss = mean(h)
"""
SIZES = {"batch": 32, "time": 16}


def graph_of(text: str) -> Graph:
    return compiler.derive(Source(text, "test.graph"), Options("train", optimizer="sgd")).graph


def tasks_of(text: str) -> tuple[Task, ...]:
    graph = graph_of(text)
    return work.work_of(graph, Sizes(graph, SIZES)).tasks


def turned(text: str) -> list[Task]:
    return [task for task in tasks_of(text) if task.formula.origin.rule == "turn"]


@pytest.mark.parametrize("read", ["U[k, j]", "U[j, k]"])
def test_one_of_the_two_directions_reads_a_turned_copy_made_outside(read: str) -> None:
    (copy,) = turned(RECURRENT.format(read=read))
    assert copy.out == "U_turned"
    assert not copy.circles


def test_weights_of_all_gates_are_turned_for_the_backward_steps_alone() -> None:
    copies = {task.out: task.formula.shape for task in turned(LSTM)}
    assert copies == {"h.lstm.U_turned": (4, 8, 8)}


def test_what_moves_with_the_steps_is_not_turned() -> None:
    moving = RECURRENT.replace("param U[hidden, hidden] ~ normal(0.1)", "input V[time, hidden, hidden]")
    assert not turned(moving.format(read="V[t, j, k]"))


@pytest.mark.parametrize("sizes", [{"batch": 3, "time": 5}, {"batch": 1, "time": 1}, {"batch": 0, "time": 2}])
@pytest.mark.parametrize("read", ["U[k, j]", "U[j, k]"])
def test_a_step_with_turned_weights_keeps_the_law(read: str, sizes: dict[str, int]) -> None:
    graph = graph_of(RECURRENT.format(read=read))
    assert_law(graph, sizes, program=schedule(graph, training=True, sizes=SIZES))


def test_a_copy_that_is_not_turned_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = turn._copy

    def straight(of: str, order: turn.Order, tensors: dict) -> object:
        copy = whole(of, order, tensors)
        return replace(copy, reads=tuple(replace(r, indices=r.indices[::-1]) for r in copy.reads))

    monkeypatch.setattr(turn, "_copy", straight)
    graph = graph_of(RECURRENT.format(read="U[j, k]"))
    program = schedule(graph, training=True, sizes=SIZES)
    with pytest.raises(AssertionError):
        assert_law(graph, {"batch": 3, "time": 5}, program=program)
