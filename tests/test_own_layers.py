"""Layers that nobody has thought of: small formulas drawn at random, as a user would write them into a model's text.

Sums, windows, choices, gathers, recurrences and functions of elements, one feeding the next. What is derived from them
must agree with differences of the loss as written, and what kernels compute with the equations.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from chainrule.api.model import Model
from chainrule.compiler import derive
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.source import Source

# an example compiles for seconds: a failing one is shown as it was drawn
QUICK = {"phases": [Phase.explicit, Phase.generate]}
BOUNDS = {"float32": 2e-4, "float64": 1e-10}  # relative to the tensor's greatest element
T, C = 5, 3

HEAD = """\
layer own(x[n, t, c], at[t]):
    param w[3] ~ normal(0.6)
    param W[c, c] ~ normal(0.6)
    param g[c] ~ normal(1)
"""
TAIL = f"""\

model drawn:
    dim n
    input x[n, {T}, {C}]
    input v[n, {T}, {C}]
    input at[{T}] : index {T}
    y = own(x, at)
    loss = mean[n, t, c] y[n, t, c] * v[n, t, c]
"""

ELEMENTS = (  # A and B are elements [n, t, c] of what was made before, or functions of such
    "tanh(A)",
    "(A * B)",
    "(A - 0.5 * B)",
    "A / (1 + B^2)",
    "sin(A) * g[c]",
    "sqrt(1 + A^2)",
    "log(1 + exp(A))",
    "exp(-A^2)",
    "(erf(A) + g[c] * B)",
    "max(A, B)",
    "max(A, 0)",
    "abs(A) * B",
    "clip(A, -1, 1)",
    "silu(A)",
)
STATEMENTS = (  # A, B and D are tensors made before; SELF is the one that is being made
    "ELEMENT",
    "sum[r < 3] A[n, t + r - 1, c; 0] * w[r]",
    "sum[r < 2] A[n, t - 2 * r, c; 0] * B[n, t, c]",
    "max[r < 3] A[n, t + r - 1, c; -9]",
    "A[n, 2 * t, c; 0.5]",
    "A[n, size(t) - 1 - t, c]",
    "A[n, (t + 1) % size(t), c] * B[n, t, c]",
    "A[n, t // 2, c] * w[t % 3]",
    "A[n, at[t], c]",
    "sum[s where at[s] == t] A[n, s, c]",
    "sum[k] A[n, t, k] * W[k, c]",
    "sum[s where s <= t] A[n, s, c] * B[n, t, c]",
    "(sum[s] A[n, s, c] * B[n, s, c]) * D[n, t, c]",
    "A[n, t, c] - max[k] A[n, t, k]",
    "A[n, t, c] / (1 + sum[k] A[n, t, k]^2)",
    "exp(A[n, t, c]) / sum[k] exp(A[n, t, k])",
    "prod[k] (1.5 + 0.1 * A[n, t, k])",
    "(A[n, t, c] - mean[s] A[n, s, c]) / sqrt(0.1 + mean[s] B[n, s, c]^2)",
    "if A[n, t, c] > B[n, t, c] then ELEMENT else D[n, t, c]",
    "if t % 2 == 0 then ELEMENT else A[n, t, c] * g[c]",
    "if c < 2 and t > 0 then A[n, t - 1, c + 1; 0] else B[n, t, c]",
    "if t == 0 then A[n, 0, c] else ELEMENT",
    "tanh(A[n, t, c] + 0.5 * SELF[n, t - 1, c; 0])",
    "w[0] * SELF[n, t - 1, c; 1] + tanh(A[n, t, c])",
    "(sum[k] A[n, t, k] * W[k, c]) + 0.3 * SELF[n, t + 1, c; 0]",
)


@st.composite
def layers(draw):
    """The text of a model with a layer of two to five statements, the later ones reading the earlier."""
    known, lines = ["x"], []
    for k in range(draw(st.integers(2, 5))):
        before = st.sampled_from([*known, known[-1], known[-1]])  # the last one most often
        law = draw(st.sampled_from(STATEMENTS))
        if "ELEMENT" in law:
            law = law.replace("ELEMENT", element(draw, before))
        law = re.sub(r"\b[ABD]\b", lambda _, before=before: draw(before), law.replace("SELF", f"a{k}"))
        lines.append(f"    a{k}[n, t < {T}, c < {C}] = {law}\n")
        known.append(f"a{k}")
    return HEAD + "".join(lines) + TAIL


def element(draw, before, depth=2):
    """A function of elements of tensors made before, or of another such function."""

    def filled(_):
        inner = depth > 1 and draw(st.integers(0, 2)) == 0
        return element(draw, before, depth - 1) if inner else f"{draw(before)}[n, t, c]"

    return re.sub(r"\b[AB]\b", filled, draw(st.sampled_from(ELEMENTS)))


@cache
def derived(text):
    """The source of a text, its gradients as they are compiled, and values of a seed to look at them with."""
    source = Source(text, "drawn.graph")
    compiled = derive(source, Options("gradient"))
    rng = np.random.default_rng(0)
    values = {p.tensor.name: rng.normal(size=[int(e) for e in p.tensor.shape]) for p in compiled.written.params}
    n = 3
    values |= {"x": rng.normal(size=(n, T, C)), "v": rng.normal(size=(n, T, C)), "at": rng.integers(0, T, T)}
    return source, compiled, values


def slope(loss, h):
    """The derivative at 0 of a function of one number, by four of its values."""
    return (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)


@settings(max_examples=40, **QUICK)
@given(text=layers(), seed=st.integers(0, 99))
def test_a_drawn_layer_s_gradients_agree_with_differences(text, seed):
    _, compiled, values = derived(text)
    rng = np.random.default_rng(seed)
    params = [name for name, array in values.items() if name in compiled.gradients]
    along = {name: rng.normal(size=values[name].shape) for name in params}

    def loss(h):
        moved = {name: values[name] + h * along[name] for name in params}
        return float(evaluate(compiled.written, {**values, **moved})["loss"])

    wide, near = slope(loss, 1e-4), slope(loss, 3e-5)
    assume(abs(wide - near) < 1e-8 * max(1, abs(near)))  # else there is a kink between
    found = evaluate(compiled.graph, values)
    total = sum(float(np.sum(found[compiled.gradients[name]] * along[name])) for name in params)
    assert total == pytest.approx(near, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("dtype", BOUNDS)
@settings(max_examples=5, **QUICK)
@given(text=layers())
def test_a_drawn_layer_s_kernels_compute_its_equations(text, dtype):
    source, compiled, values = derived(text)
    values = {name: value if name == "at" else value.astype(dtype).astype("float64") for name, value in values.items()}
    wanted = evaluate(compiled.derived, values)
    model = Model(source)
    model.dtype = dtype
    model.params.update({name: values[name] for name in compiled.gradients})
    loss, gradients = model.gradients(x=values["x"], v=values["v"], at=values["at"])
    found = {"loss": loss, **{compiled.gradients[name]: gradient for name, gradient in gradients.items()}}
    for name, value in found.items():
        scale = max(np.abs(wanted[name]).max(initial=0), 1e-2)
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=BOUNDS[dtype] * scale, err_msg=name)


def test_a_wrong_derivative_is_noticed(monkeypatch):
    backward, vjp = (import_module(f"chainrule.derive.{name}") for name in ("backward", "vjp"))
    right = vjp.derivative
    monkeypatch.setattr(vjp, "derivative", lambda body, x: 2 * right(body, x))
    for kept in (derived, backward._vjp):
        kept.cache_clear()
    with pytest.raises(AssertionError):
        test_a_drawn_layer_s_gradients_agree_with_differences()
    for kept in (derived, backward._vjp):
        kept.cache_clear()
