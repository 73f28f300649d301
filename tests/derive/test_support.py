"""The branch that is not taken sends no gradient: not through calls, nor formulas of their own, nor products."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.ir.text import equation_text
from chainrule.lang import load_graph
from chainrule.reference import evaluate

X = np.array([1.0, 4.0, -1.0, 0.0])
backward_module = import_module("chainrule.derive.backward")
LN = "fn ln(x) = log(x)\n"

# what stands between u = s x and the loss, and the derivative of the loss by s at 1; what it reads of u is u > 0
CHOSEN = {
    "in the expression": ("y[n] = if u[n] > 0 then log(u[n]) else 0", 2.0),
    "by a call in it": ("y[n] = if u[n] > 0 then ln(u[n]) else 0", 2.0),
    "by a call before it": ("l = ln(u)\ny = if u > 0 then l else 0", 2.0),
    "by a statement": ("l[n] = sqrt(u[n])\ny[n] = if u[n] > 0 then l[n] else 0", 1.5),
    "in the else branch": ("l[n] = sqrt(u[n])\ny[n] = if u[n] <= 0 then 0 else l[n]", 1.5),
    "by where": ("l = ln(u)\ny[n] = l[n] where u[n] > 0", 2.0),
    "in a sum": ("l = ln(u)\ny = sum[n where u[n] > 0] l[n]", 2.0),
    "two formulas before": ("l = ln(u)\nk[n] = l[n]^3\ny[n] = if u[n] > 0 then k[n] else 0", 3 * np.log(4) ** 2),
    "by two choices": ("l = ln(u)\ny[n] = (if u[n] > 0 then l[n] else 0) + (if u[n] > 1 then 2 * l[n] else 0)", 4.0),
    "by two readers": ("l = ln(u)\na[n] = if u[n] > 0 then l[n] else 0\n"
                       "b = sum[n where u[n] > 1] l[n]\ny[n] = a[n] + b", 6.0),
    "after a product": ("l = ln(u)\nz[n, k < 3] = l[n] * k\nt[n] = sum[k] z[n, k] * w[k]\n"
                        "y[n] = if u[n] > 0 then t[n] else 0", 6.0),
    "an overflow": ("e[n] = exp(-1000 * u[n])\ny[n] = if u[n] > 0 then e[n] else u[n]", -1.0),
    "an argument of nan": ("l = ln(u)\nk = sin(l)\ny[n] = if u[n] > 0 then k[n] else 0", 1 + np.cos(np.log(4))),
}  # fmt: skip


HEAD = "model m:\n    dim n\n    input x[n]\n    param s ~ ones\n    param w[3] ~ ones\n    u[n] = x[n] * s\n"


def derived(statements, improve=IMPROVE):
    body = "".join(f"    {line}\n" for line in statements.split("\n"))
    graph = run(load_graph(f"{LN}{HEAD}{body}    loss = sum(y)\n"), PREPARE)
    found = backward(graph, "loss", ["s", "w"])
    return run(replace(found.graph, outputs=("s_bar", "w_bar")), improve)


def gradient(statements, improve=IMPROVE):
    with np.errstate(all="ignore"):
        return evaluate(derived(statements, improve), {"x": X, "s": np.array(1.0), "w": np.ones(3)})


@pytest.mark.parametrize("improve", [(), IMPROVE], ids=["derived", "improved"])
@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_not_chosen_sends_nothing(name, improve):
    statements, expected = CHOSEN[name]
    found = gradient(statements, improve)
    np.testing.assert_allclose(found["s_bar"], expected, rtol=1e-12)
    assert np.all(np.isfinite(found["w_bar"]))


def test_the_choice_moves_into_the_vjp():
    graph = derived("l[n] = log(u[n])\ny[n] = if u[n] > 0 then l[n] else 0")
    assert equation_text(graph.producers["u_bar"]) == "u_bar[n] = if u[n] > 0 then l_bar[n] / u[n] else 0"


@pytest.mark.parametrize("law", ["tanh(u[n])", "u[n]^2", "1 / sqrt(1 + u[n]^2)"])
def test_a_derivative_that_is_finite_is_not_chosen(law):
    graph = derived(f"l[n] = {law}\ny[n] = if u[n] > 0 then l[n] else 0")
    assert "if" not in equation_text(graph.producers["u_bar"])


def test_normalization_before_a_rectifier_is_not_chosen():
    text = "model m:\n    dim n\n    input x[n, 8]\n    y = relu(layer_norm(linear(x, 8)))\n    loss = sum(y)\n"
    found = backward(run(load_graph(text), PREPARE), "loss", ["y.linear.W"])
    chosen = [f.out for f in found.graph.nodes if f.origin.rule == "vjp" and "if" in equation_text(f)]
    assert chosen == ["y.layer_norm_bar"]


def test_without_the_choice_zero_meets_infinity(monkeypatch):
    monkeypatch.setattr(backward_module, "supports", lambda *_: {})
    assert np.isnan(gradient(CHOSEN["by a call before it"][0])["s_bar"])


def test_an_index_that_the_read_does_not_have_carries_no_choice():
    # the choice is by k, l has none: its cotangent is a sum over both branches, and finite where l is
    found = gradient("l = ln(u + 2)\nz[n, k < 3] = if k > 0 then l[n] * w[k] else 0\ny = sum(z)")
    np.testing.assert_allclose(found["s_bar"], np.sum(2 * X / (X + 2)), rtol=1e-12)
