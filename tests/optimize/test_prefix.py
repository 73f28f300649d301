"""Sums and products of all up to a place: the same numbers, by a recurrence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule import compiler
from chainrule.derive import backward
from chainrule.ir.graph import Graph
from chainrule.ir.validate import validate
from chainrule.lang import load_graph
from chainrule.optimize import expand_reductions, prefix, specialize
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.schedule.laws import assert_law, values_of

HEAD = """
model m():
    dim batch, time
    input x[batch, time]
    input k[batch, time] : index 3
"""

TABLE = {
    "sum": "y[n, t < time] = sum[s where s <= t] x[n, s]",
    "sum of those before": "y[n, t < time] = sum[s where s < t] x[n, s]^2",
    "sum of those two before": "y[n, t < time] = sum[s where t >= s + 2] x[n, s]",
    "sum from here": "y[n, t < time] = sum[s where t <= s] x[n, s]",
    "sum of those after": "y[n, t < time] = sum[s where not s <= t] x[n, s]",
    "product": "y[n, t < time] = prod[s where s <= t] x[n, s]",
    "product of those after, some": "y[n, t < time] = prod[s where s > t and s > 1] (x[n, s] + 1)",
    "sum over two indices, one condition more": "y[j < 3, t < time] = sum[n, s where s <= t and k[n, s] == j] x[n, s]",
    "a function of all before": "y[n, t < time] = tanh(t * sum[s where s <= t] x[n, s])",
}


def graph_of(statement: str) -> Graph:
    return specialize(load_graph(HEAD + f"    {statement}\n    loss = mean(sin(y))\n"), training=True)


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9))
def test_a_prefix_is_a_recurrence_of_the_same_value(name: str, batch: int, time: int, seed: int) -> None:
    graph = graph_of(TABLE[name])
    found = prefix(graph)
    validate(found)
    assert any(found.is_recurrent(node.out) for node in found.nodes)
    values = values_of(graph, {"batch": batch, "time": time}, seed)
    wanted, new = evaluate(graph, values), evaluate(found, values)
    for tensor in graph.producers:
        np.testing.assert_allclose(new[tensor], wanted[tensor], rtol=1e-12, atol=1e-13, err_msg=tensor)


@pytest.mark.parametrize("name", TABLE)
def test_its_gradient_is_the_sums_own(name: str) -> None:
    graph = graph_of(TABLE[name])
    values = values_of(graph, {"batch": 2, "time": 4})
    values["x"][0, 1] = 0.0  # the product's derivative there is that of the others
    plain, stepped = (backward(expand_reductions(g), "loss", ("x",)) for g in (graph, prefix(graph)))
    a, b = (evaluate(d.graph, values)[d.gradients["x"]] for d in (plain, stepped))
    np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "statement",
    [
        "y[n, t < time] = sum[s where s <= t] x[n, s] * x[n, t]",
        "y[n, t < time] = sum[s where s <= t + 1] x[n, s]",
        "y[n, t < time] = sum[s where 2 * s <= t] x[n, s]",
        "y[n, t < time] = max[s where s <= t] x[n, s]",
    ],
)
def test_what_is_no_prefix_stays(statement: str) -> None:
    graph = graph_of(statement)
    assert prefix(graph) is graph


def test_its_program_keeps_the_law_and_is_linear() -> None:
    source = Source(HEAD + f"    {TABLE['sum']}\n    loss = mean(y^2)\n", "test.graph")
    graph = compiler.derive(source, Options("gradient", wrt=("x",))).graph
    for size in (0, 1, 5):
        assert_law(graph, {"batch": 3, "time": size}, program=schedule(graph, training=True))
    flops = sum(kernel.flops for kernel in schedule(graph, training=True).kernels)
    assert flops.subs(dict.fromkeys(flops.free_symbols, 1000)) < 100 * 1000**2
