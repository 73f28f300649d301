"""What is dear and the same along some axes is computed once: who gets a tensor of its own; no value changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule import compiler
from chainrule.ir.formula import Access
from chainrule.ir.graph import Graph
from chainrule.ir.text import equation_text
from chainrule.options import Options
from chainrule.schedule import factors, work
from chainrule.schedule.cost import Sizes
from chainrule.source import Source
from tests.schedule.laws import assert_law

MODEL = """
model m():
    dim batch
    input x[batch, 24]
    input s[24]
    input t[batch]
    y[n, c] = {law}
    loss = mean(y)
"""
LAWS = {
    "x[n, c] / sqrt(s[c]^2 + 2)": ["1 / sqrt(s[c]^2 + 2)"],
    "3 * x[n, c] * s[c] * exp(s[c])": ["3 * s[c] * exp(s[c])"],
    "x[n, c] * exp(s[c]) * tanh(t[n])": ["exp(s[c])", "tanh(t[n])"],
    "x[n, c] - t[n] - log(2 + t[n]^2)": ["-log(t[n]^2 + 2)"],
    "exp(s[c]) + exp(2 * x[n, c] * s[c])": ["exp(s[c])"],
    "if x[n, c] > 0 then x[n, c] * exp(t[n]) else 0": ["exp(t[n])"],
    "x[n, c] * s[c] + 2 * t[n]": [],
    "exp(x[n, c])": [],
    "sum[k < 24] tanh(s[k]) * x[n, k] * (if k < c then s[c] else 0)": ["tanh(s[k])"],
}


def graph_of(text: str, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return compiler.derive(Source(text, "test.graph"), Options("predict", outputs=outputs)).graph


def factors_of(graph: Graph) -> list[str]:
    tasks = work.work_of(graph, Sizes(graph, {"batch": 32})).tasks
    return [equation_text(task.formula).split(" = ")[1] for task in tasks if "_factor" in task.out]


@pytest.mark.parametrize("law", LAWS)
def test_what_is_dear_and_has_fewer_axes_is_computed_once(law: str) -> None:
    assert sorted(factors_of(graph_of(MODEL.format(law=law)))) == sorted(LAWS[law])


def test_two_formulas_share_what_is_equal() -> None:
    text = MODEL.format(law="x[n, c] * exp(s[c])") + "    z[n, c] = (x[n, c] - 1) * exp(s[c])\n"
    assert factors_of(graph_of(text, ("y", "z"))) == ["exp(s[c])"]


def test_what_few_elements_share_is_computed_for_each() -> None:
    graph = graph_of(MODEL.format(law="x[n, c] * exp(s[c])"))
    formulas = [f for f in graph.nodes if f.out == "y"]
    known: dict = {}
    (f,) = formulas
    assert factors.factored_out(f, dict(graph.tensors), Sizes(graph, {"batch": 7}), known) == f  # type: ignore[arg-type]


def test_a_read_that_only_its_condition_keeps_inside_stays_under_it() -> None:
    law = "if c > 0 then x[n, c] * exp(s[c - 1; 0]) else 0"
    assert factors_of(graph_of(MODEL.format(law=law)))  # it has a value outside
    graph = graph_of(MODEL.format(law=law))

    def unguarded(read: Access) -> Access:
        return replace(read, outside=None)

    nodes = tuple(replace(f, reads=tuple(map(unguarded, f.reads))) for f in graph.nodes)  # type: ignore[union-attr]
    assert not factors_of(replace(graph, nodes=nodes))


@settings(max_examples=25, deadline=None)
@given(law=st.sampled_from(sorted(LAWS)), batch=st.integers(0, 9), seed=st.integers(0, 99))
def test_factors_change_no_value(law: str, batch: int, seed: int) -> None:
    graph = graph_of(MODEL.format(law=law))
    assert_law(graph, {"batch": batch}, hint={"batch": 32}, seed=seed)


@pytest.mark.parametrize("batch", [2, 9])
def test_a_training_step_with_normalization_keeps_the_law(batch: int) -> None:
    text = "model m():\n    dim batch >= 1\n    input x[batch, 3, 4, 4]\n    loss = mean(tanh(batch_norm(x)))\n"
    graph = compiler.derive(Source(text, "test.graph"), Options("train", optimizer="sgd")).graph
    assert factors_of(graph)
    assert_law(graph, {"batch": batch}, hint={"batch": 32})


def test_a_factor_that_forgets_an_index_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = factors.moves_with
    monkeypatch.setattr(factors, "moves_with", lambda e, f: frozenset(sorted(right(e, f), key=str)[1:]))
    square = MODEL.replace("[batch", "[24").replace("    dim batch\n", "")
    graph = graph_of(square.format(law="x[n, c] * tanh(t[n] * s[c])"))
    with pytest.raises(AssertionError):
        assert_law(graph, {})
