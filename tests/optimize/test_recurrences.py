"""The law of every pass on recurrences, forward and backward, and each pass sabotaged once on them."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.ir.formula import Formula
from chainrule.ir.primitive import Primitive
from chainrule.ir.validate import IllegalGraph
from chainrule.lang import load_graph
from chainrule.optimize import eliminate, expand_reductions, specialize
from chainrule.reference import evaluate

cse_pass, inline_pass = (import_module(f"chainrule.optimize.{name}") for name in ("cse", "inline"))

HEAD = """
model m:
    dim batch, time
    input x[batch, time, 3]
    input k[batch, time] : index 3
    param U[3, 3] ~ orthogonal
    param b[3] ~ zeros
"""

TABLE = {
    "tanh": """
        h[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t - 1, i; 0] * U[i, j] + b[j])
    """,
    "backwards, relu": """
        h[n < batch, t < time, j < 3] = max(x[n, t, j] + sum[i] h[n, t + 1, i; 0] * U[i, j] + b[j], 0)
    """,
    "distance 2, start 1": """
        h[n < batch, t < time, j < 3] = x[n, t, j] * h[n, t - 2, j; 1] + b[j]
    """,
    "distances 1 and 2": """
        h[n < batch, t < time, j < 3] = b[j] * h[n, t - 1, j; 0] + x[n, t, j] * h[n, t - 2, 2 - j; -1]
    """,
    "a path through two axes": """
        h[n < batch, t < time, j < 3] = x[n, t, j] + b[j] * h[n, t - 1, j - 1; 0] + U[j, 0] * h[n, t, j - 1; 2]
    """,
    "max inside": """
        m[n < batch, t < time] = max[i] h[n, t - 1, i; 0] * b[i]
        h[n < batch, t < time, j < 3] = sin(x[n, t, j]) + m[n, t]
    """,
    "a sum of exponentials inside": """
        s[n < batch, t < time] = log(sum[i] exp(h[n, t - 1, i; 0] + b[i]))
        h[n < batch, t < time, j < 3] = x[n, t, j] + s[n, t]
    """,
    "softmax inside": """
        p = softmax(U)
        e[n < batch, t < time, j < 3] = exp(h[n, t - 1, j; 0])
        s[n < batch, t < time] = sum[j] e[n, t, j]
        h[n < batch, t < time, j < 3] = x[n, t, j] + p[j, 0] * e[n, t, j] / s[n, t]
    """,
    "where": """
        h[n < batch, t < time, j < 3] = b[j] + h[n, t - 1, j; 0] * x[n, t, j] where t % 2 == 0
    """,
    "a condition on what is carried": """
        h[n < batch, t < time, j < 3] = if h[n, t - 1, j; 0] > 0 then b[j] - x[n, t, j] else x[n, t, j] * b[j]
    """,
    "another constant outside": """
        h[n < batch, t < time, j < 3] = x[n, t, j] + b[j] * h[n, t - 1, (j + 1) % 3; 3] + h[n, t - 1, j; -2] / 4
    """,
    "stop inside": """
        stop s[n < batch, t < time, j < 3] = h[n, t - 1, j; 0] * b[j]
        h[n < batch, t < time, j < 3] = tanh(s[n, t, j] + b[j] * h[n, t - 1, j; 0] + x[n, t, j])
    """,
    "a gather inside": """
        g[n < batch, t < time, j < 3] = if j == 0 then h[n, t - 1, k[n, t]; 0] else h[n, t - 1, j; 1]
        h[n < batch, t < time, j < 3] = b[j] + x[n, t, j] * g[n, t, j]
    """,
    "mask": """
        a[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t - 1, i; 0] * U[i, j])
        h[n < batch, t < time, j < 3] = if k[n, t] > 0 then a[n, t, j] else h[n, t - 1, j; 0]
    """,
    "state and draws inside": """
        state m[3] = 2
        random u[n < batch, t < time] ~ normal
        h[n < batch, t < time, j < 3] = m[j] * h[n, t - 1, j; 0] + b[j] * u[n, t] + x[n, t, j]
    """,
    "training": """
        h[n < batch, t < time, j < 3] = x[n, t, j] + (if training then b[j] * h[n, t - 1, j; 0] else b[j])
    """,
    "two recurrences": """
        f[n < batch, t < time, j < 3] = tanh(f[n, t - 1, j; 0] * b[j] + x[n, t, j])
        h[n < batch, t < time, j < 3] = sigmoid(h[n, t + 1, j; 0] + f[n, t, j] * f[n, t - 1, j; 0])
    """,
    "equal lines": """
        f[n < batch, t < time, j < 3] = tanh(h[n, t - 1, j; 0] * b[j]) + x[n, t, j]
        g[n < batch, t < time, j < 3] = tanh(h[n, t - 1, j; 0] * b[j]) + x[n, t, j]
        h[n < batch, t < time, j < 3] = f[n, t, j] * g[n, t, j] / 4
    """,
    "through a shifted copy": """
        a[n < batch, t < time, j < 3] = h[n, t - 1, j; 2]
        h[n < batch, t < time, j < 3] = x[n, t, j] + b[j] * a[n, t - 1, j; 5] + a[n, t, j]
    """,
    "two accumulators": """
        f[n < batch, t < time, j < 3] = f[n, t - 1, j; 0] * b[j] + x[n, t, j]
        g[n < batch, t < time, j < 3] = g[n, t + 1, j; 0] * b[j] + x[n, t, j]
        h[n < batch, t < time, j < 3] = f[n, t, j] * g[n, t, j] + h[n, t - 1, j; 0]
    """,
    "three in a circle": """
        z[n < batch, t < time, g < 2, j < 3] = sum[i] h[n, t - 1, i; 0] * U[i, j] * (g + 1) + x[n, t, j]
        c[n < batch, t < time, j < 3] = sigmoid(z[n, t, 0, j]) * c[n, t - 1, j; 0] + tanh(z[n, t, 1, j])
        h[n < batch, t < time, j < 3] = tanh(c[n, t, j]) * b[j]
    """,
}


def written(name, training=True):
    text = HEAD + "\n".join(line[4:] for line in TABLE[name].split("\n"))
    text += "    loss = sum[n, t, j] h[n, t, j]^2 * x[n, t, j]\n"
    graph = specialize(load_graph(text), training=training)
    return replace(graph, outputs=("loss", "h"))


def values_of(name, sizes, seed):
    batch, time = sizes
    rng = np.random.default_rng(seed)
    values = {"x": rng.normal(size=(batch, time, 3)), "U": rng.normal(size=(3, 3)), "b": rng.normal(size=3)}
    values["k"] = rng.integers(0, 3, size=(batch, time))
    return values


def derived(graph):
    found = backward(graph, "loss", ["x", "U", "b"])
    return replace(found.graph, outputs=("loss", "h", *dict.fromkeys(found.gradients.values())))


DERIVED = {}


def graphs_of(name, training=True):
    """As written; after `PREPARE`; its derivative as defined; the derivative after every later pass."""
    if (name, training) not in DERIVED:
        graph = written(name, training)
        prepared = run(graph, PREPARE)
        defined = eliminate(derived(eliminate(expand_reductions(graph))))
        improved = [derived(prepared)]
        for step in IMPROVE:
            improved.append(run(improved[-1], (step,)))
        DERIVED[name, training] = graph, prepared, defined, improved
    return DERIVED[name, training]


def agree(found, expected, names, rtol=1e-9):
    for name, other in names:
        scale = np.abs(expected[other]).max(initial=1)
        np.testing.assert_allclose(found[name], expected[other], rtol=rtol, atol=1e-9 * scale)


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=3, deadline=None)
@given(sizes=st.tuples(st.integers(0, 2), st.integers(0, 4)), seed=st.integers(0, 99))
def test_every_pass_keeps_values_and_gradients_of_a_recurrence(name, sizes, seed):
    graph, prepared, defined, improved = graphs_of(name)
    values = values_of(name, sizes, seed)
    expected = evaluate(graph, values, seed=seed)
    agree(evaluate(prepared, values, seed=seed), expected, [("loss", "loss"), ("h", "h")])
    expected = evaluate(defined, values, seed=seed)
    before = improved[0]
    for after in improved[1:]:
        if after is not before:
            found = evaluate(after, values, seed=seed)
            agree(found, expected, zip(after.outputs, defined.outputs, strict=True))
        before = after


@pytest.mark.parametrize("name", [name for name in TABLE if name != "stop inside"])
def test_the_gradient_of_a_recurrence_is_its_slope(name):
    graph, _, _, improved = graphs_of(name)
    values, rng = values_of(name, (2, 4), 5), np.random.default_rng(6)
    found = evaluate(improved[-1], values)
    gradients = backward(run(graph, PREPARE), "loss", ["x", "U", "b"]).gradients
    for tensor, x_bar in gradients.items():
        along = rng.normal(size=values[tensor].shape)
        ends = [evaluate(graph, {**values, tensor: values[tensor] + e * along})["loss"] for e in (1e-6, -1e-6)]
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(np.sum(found[x_bar] * along), slope, rtol=1e-5, atol=1e-6 * np.abs(found["loss"]))


def test_eval_leaves_out_what_is_for_training():
    graph, _, _, improved = graphs_of("training", False)
    values = values_of("training", (2, 3), 0)
    expected = values["x"] + values["b"]
    np.testing.assert_allclose(evaluate(graph, values)["h"], expected)
    np.testing.assert_allclose(evaluate(improved[-1], values)["h"], expected)


def test_given_draws_stand_for_those_of_a_recurrence():
    graph, _, defined, improved = graphs_of("state and draws inside")
    name = next(node.out for node in graph.nodes if isinstance(node, Primitive))
    values = values_of("state and draws inside", (2, 3), 0)
    drawn = evaluate(graph, values, seed=3)
    again = evaluate(improved[-1], {**values, **{n.out: drawn[n.out] for n in graph.nodes if n.out == name}}, seed=3)
    agree(again, evaluate(defined, values, seed=3), zip(improved[-1].outputs, defined.outputs, strict=True))


SABOTAGE = {
    "a read that a condition kept inside": (inline_pass, "_readable", lambda g, graph: g, "mask"),
    "a guard's constant": (
        inline_pass, "_is_whole_copy", lambda g, graph: True, "through a shifted copy",
    ),
    "equal, but for what is carried": (cse_pass, "_nameless", lambda node: forgetful(node), "two accumulators"),
}  # fmt: skip


def forgetful(node):
    """A formula without the places that it reads."""
    if not isinstance(node, Formula):
        return node
    reads = tuple(replace(r, tensor="", indices=()) for r in node.reads)
    return (node.body, node.shape, tuple(r.outside for r in reads))


@pytest.mark.parametrize("broken", SABOTAGE)
def test_a_pass_that_breaks_a_recurrence_is_noticed(broken, monkeypatch):
    module, function, wrong, name = SABOTAGE[broken]
    graph = written(name)
    monkeypatch.setattr(module, function, wrong)

    def holds():
        improved = run(derived(run(graph, PREPARE)), IMPROVE)
        values = values_of(name, (2, 4), 0)
        defined = eliminate(derived(eliminate(expand_reductions(graph))))
        agree(
            evaluate(improved, values), evaluate(defined, values), zip(improved.outputs, defined.outputs, strict=True)
        )

    with pytest.raises((AssertionError, IndexError, IllegalGraph)):
        holds()
