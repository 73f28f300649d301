"""Optimizers do to a parameter what their papers say, step by step."""

import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.ir.validate import validate
from chainrule.lang import apply_optimizer, definitions, optimizer_names, optimizers
from chainrule.reference import evaluate, updated
from chainrule.source import Source
from tests.lang.texts import graph

TEXT = """
model m:
    dim n
    param W[3] ~ zeros
    param b ~ zeros
    input g[3]
    input h
    loss = sum(W) + b
"""
GRADIENTS = {"W": "g", "b": "h"}
W, B = np.array([1.0, -2.0, 0.5]), np.array(0.3)
STEPS = [(np.array([3.0, 0.0, -4.0]), np.array(1.0)), (np.array([0.5, 1.0, 2.0]), np.array(-2.0))]


def train(name, **arguments):
    """W and b after two steps."""
    made = apply_optimizer(graph(TEXT.replace("    dim n\n", "")), GRADIENTS, name, arguments)
    validate(made)
    stores = {"W": W, "b": B}
    for k, (g, h) in enumerate(STEPS):
        result = evaluate(made, {**stores, "g": g, "h": h}, training=True, step=k + 1)
        stores |= updated(made, result)
    return stores["W"], stores["b"]


def by_hand(rule, w, gradients):
    memory = {}
    for k, g in enumerate(gradients):
        w = rule(w, g, memory, k + 1)
    return w


def adam(rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, decay=0.0, apart=0.0):
    def rule(w, g, memory, step):
        g = g + decay * w
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
        return w * (1 - rate * apart) - rate * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)

    return rule


def heavy_ball(rate=0.1, beta=0.9, decay=0.0, ahead=False):
    def rule(w, g, memory, step):
        g = g + decay * w
        m = memory["m"] = beta * memory.get("m", 0) + g
        return w - rate * (g + beta * m if ahead else m)

    return rule


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [
        ("sgd", {}, heavy_ball(beta=0)),
        ("sgd", {"rate": 0.5, "decay": 0.1}, heavy_ball(0.5, 0, 0.1)),
        ("momentum", {}, heavy_ball()),
        ("momentum", {"beta": 0.5, "decay": 0.1}, heavy_ball(beta=0.5, decay=0.1)),
        ("nesterov", {"rate": 0.2}, heavy_ball(0.2, ahead=True)),
        ("adam", {"rate": 0.1}, adam(0.1)),
        ("adam", {"b1": 0.5, "decay": 0.1}, adam(b1=0.5, decay=0.1)),
        ("adamw", {}, adam(apart=0.01)),
        ("adamw", {"decay": 0.5, "eps": 1e-3}, adam(apart=0.5, eps=1e-3)),
    ],
)
def test_two_steps_are_the_papers(name, arguments, rule):
    w, b = train(name, **arguments)
    assert np.allclose(w, by_hand(rule, W, [g for g, _ in STEPS]), rtol=1e-12)
    assert np.allclose(b, by_hand(rule, B, [h for _, h in STEPS]), rtol=1e-12)


@pytest.mark.parametrize("clip", [0.5, 2.5, 100.0])
def test_clipping_scales_all_gradients_together(clip):
    w, b = train("sgd", rate=1.0, clip=clip)
    expected_w, expected_b = W, B
    for g, h in STEPS:
        scale = min(1.0, clip / np.sqrt((g**2).sum() + h**2))
        expected_w, expected_b = expected_w - scale * g, expected_b - scale * h
    assert np.allclose(w, expected_w)
    assert np.allclose(b, expected_b)


def test_states_and_scalars_have_their_names():
    made = apply_optimizer(graph(TEXT), GRADIENTS, "adam", {"rate": 0.25})
    assert [s.tensor.name for s in made.states] == ["adam.W.m", "adam.W.v", "adam.b.m", "adam.b.v"]
    assert [(s.name, s.default) for s in made.scalars] == [
        ("step", 1.0),
        ("rate", 0.25),
        ("b1", 0.9),
        ("b2", 0.999),
        ("eps", 1e-8),
    ]
    assert [u.store for u in made.updates] == ["adam.W.m", "adam.W.v", "W", "adam.b.m", "adam.b.v", "b"]


def test_what_is_not_asked_for_leaves_no_formula():
    assert len(apply_optimizer(graph(TEXT), GRADIENTS, "sgd", {}).nodes) == len(graph(TEXT).nodes) + 2


def test_unknown_names_have_a_way_out():
    with pytest.raises(ChainruleError, match="did you mean 'adam' or 'adamw'"):
        apply_optimizer(graph(TEXT), GRADIENTS, "adan")
    with pytest.raises(ChainruleError, match="did you mean 'rate'"):
        apply_optimizer(graph(TEXT), GRADIENTS, "sgd", {"rates": 1.0})
    assert optimizer_names() == ["adam", "adamw", "momentum", "nesterov", "sgd"]


OWN = """
fn half(x) = x / 2

optimizer sgd(w[*], g[*], step, rate = 0.1):
    w[*] <- w[*] - half(rate) * g[*] / step
"""


def test_a_models_own_optimizer_goes_before_the_librarys_and_calls_its_functions():
    known = definitions(Source(OWN + "\nmodel m:\n    dim n\n", "m.graph"))
    made = apply_optimizer(graph(TEXT), GRADIENTS, "sgd", {}, known)
    assert any("half" in node.out for node in made.nodes)
    with pytest.raises(ChainruleError, match="did you mean 'sgd'"):
        apply_optimizer(graph(TEXT), GRADIENTS, "sgdd", {}, known)


ALIKE = """
model m:
    param A[3] ~ zeros
    param B[3] ~ zeros
    param C[2, 3] ~ zeros
    param D[3] ~ zeros
    input a[3]
    input b[3]
    input c[2, 3]
    loss = sum(A) + sum(B) + sum(C) + sum(D)
"""


@pytest.mark.parametrize("arguments", [{}, {"clip": 1.0}, {"decay": 0.1}], ids=["plain", "clip", "decay"])
@pytest.mark.parametrize("name", optimizer_names())
def test_what_is_repeated_for_a_parameter_is_what_its_text_would_give(name, arguments, monkeypatch):
    of = {"A": "a", "B": "b", "C": "c", "D": "a"}  # D has A's gradient
    repeated = apply_optimizer(graph(ALIKE), of, name, arguments)
    monkeypatch.setattr(optimizers, "_repeated", lambda *_: False)
    anew = apply_optimizer(graph(ALIKE), of, name, arguments)
    assert repeated == anew
    assert [node.origin for node in repeated.nodes] == [node.origin for node in anew.nodes]
    assert [state.tensor.origin for state in repeated.states] == [state.tensor.origin for state in anew.states]
    assert [[i.name for i in f.indices] for f in repeated.nodes] == [[i.name for i in f.indices] for f in anew.nodes]
