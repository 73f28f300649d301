"""A tensor that is defined by itself: its value, its gradient by the implicit function theorem, to second order."""

from dataclasses import replace

import numpy as np
import pytest

from chainrule.check import check_gradients
from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward, primitives
from chainrule.errors import SourceError
from chainrule.ir.validate import validate
from chainrule.lang import elaborate, load_graph, parse, print_graph
from chainrule.optimize import eliminate, settle
from chainrule.reference import evaluate
from tests.schedule.laws import assert_law

HEAD = """
model m:
    dim n
    input v[n, 3]
    param W[3, 3] ~ orthogonal(0.5)
"""
DEQ = """    fixed_point z[i < n, j < 3] from 0 within 1e-13 steps 200:
        z[i, j] = tanh(sum[k] z[i, k] * W[k, j] + v[i, j])
    loss = sum[i, j] z[i, j]^2 * v[i, j]
"""
TABLE = {
    "tanh": DEQ,
    "two statements": """    fixed_point z[i < n, j < 3] from 1 within 1e-13 steps 200:
        a[i, j] = sum[k] z[i, k] * W[k, j]
        z[i, j] = sin(a[i, j] + v[i, j]) / 2 + z[i, 2 - j] / 4
    loss = sum[i, j] z[i, j]^3 * v[i, j] + sum[i, j] a[i, j]
""",
    "one number": """    fixed_point z from 1 within 1e-14 steps 100:
        z = cos(z) * W[0, 0] / 2 + mean(v)
    loss = z^2
""",
    "used by another": """    fixed_point y[j < 3] from 0 within 1e-13 steps 200:
        y[j] = cos(y[j]) * W[0, j] / 2
    fixed_point z[i < n, j < 3] from 0 within 1e-13 steps 200:
        z[i, j] = tanh(sum[k] z[i, k] * W[k, j] / 2 + v[i, j]) * y[j]
    loss = sum[i, j] z[i, j]^2 + sum(y)
""",
}
UNROLLED = """    z = 0 * v
    repeat 60:
        z[i, j] = tanh(sum[k] z[i, k] * W[k, j] + v[i, j])
    loss = sum[i, j] z[i, j]^2 * v[i, j]
"""


def values_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"v": rng.normal(size=(n, 3)), "W": np.linalg.qr(rng.normal(size=(3, 3)))[0] / 2}


def derived(text, passes=IMPROVE):
    graph = run(replace(load_graph(HEAD + text), outputs=("loss",)), PREPARE)
    found = backward(graph, "loss", ["W", "v"])
    joint = replace(found.graph, outputs=("loss", *found.gradients.values()))
    return run(joint, passes), found.gradients


@pytest.mark.parametrize("name", TABLE)
def test_a_fixed_point_satisfies_its_equation(name):
    graph = load_graph(HEAD + TABLE[name])
    found = evaluate(graph, values_of(4))
    np.testing.assert_allclose(found["z"], found["z.next"], atol=1e-12)
    assert found["z.residual"] <= 1e-12


@pytest.mark.parametrize("name", TABLE)
def test_its_text_parses_again_with_its_gradient_too(name):
    graph = load_graph(HEAD + TABLE[name])
    assert elaborate(parse(print_graph(graph))) == graph
    joint, _ = derived(TABLE[name], (eliminate,))
    assert elaborate(parse(print_graph(joint))) == joint


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("settled", [False, True])
def test_its_gradient_is_the_slope(name, settled):
    joint, gradients = derived(TABLE[name], IMPROVE if settled else (eliminate,))
    values, rng = values_of(3), np.random.default_rng(1)
    found = evaluate(joint, values)
    plain = load_graph(HEAD + TABLE[name])
    for tensor, x_bar in gradients.items():
        along = rng.normal(size=values[tensor].shape)
        ends = [evaluate(plain, {**values, tensor: values[tensor] + e * along})["loss"] for e in (1e-5, -1e-5)]
        np.testing.assert_allclose(np.sum(found[x_bar] * along), (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_it_agrees_with_the_unrolled_run_and_its_gradient():
    values = values_of(3)
    found, unrolled = (
        (evaluate(joint, values), gradients) for joint, gradients in (derived(DEQ), derived(UNROLLED, (eliminate,)))
    )
    for x in ("W", "v"):
        np.testing.assert_allclose(found[0][found[1][x]], unrolled[0][unrolled[1][x]], rtol=1e-9)


def test_a_gradient_of_its_gradient_is_its_slope():
    graph = run(replace(load_graph(HEAD + DEQ), outputs=("loss",)), PREPARE)
    first = backward(graph, "loss", ["W"])
    w_bar = first.gradients["W"]
    once = eliminate(replace(first.graph, outputs=(w_bar,)))
    once = replace(once, inputs=(*once.inputs, replace(once.tensors["W"], name="d")))
    second = backward(once, {w_bar: "d"}, ["W", "v"])
    twice = run(replace(second.graph, outputs=tuple(second.gradients.values())), IMPROVE)
    values, rng = values_of(2), np.random.default_rng(1)
    values["d"] = rng.normal(size=(3, 3))
    result = evaluate(twice, values)
    for name in ("W", "v"):
        along = rng.normal(size=values[name].shape)
        ends = [evaluate(once, {**values, name: values[name] + e * along})[w_bar] for e in (1e-5, -1e-5)]
        slope = np.sum(values["d"] * (ends[0] - ends[1])) / 2e-5
        np.testing.assert_allclose(np.sum(result[second.gradients[name]] * along), slope, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_its_kernels_keep_the_law(n):
    joint, _ = derived(DEQ.replace("1e-13", "1e-9").replace("200", "60"))
    assert_law(joint, {"n": n}, values=values_of(n))


def test_it_stops_within_its_limits_and_what_did_not_converge_is_reported():
    loose = evaluate(load_graph(HEAD + DEQ.replace("1e-13", "0.1")), values_of(3))
    assert 0 < loose["z.residual"] <= 0.1
    short = evaluate(load_graph(HEAD + DEQ.replace("200", "2")), values_of(3))
    assert short["z.residual"] > 1e-4
    settled = evaluate(settle(load_graph(HEAD + DEQ.replace("1e-13", "0.1"))), values_of(3))
    np.testing.assert_array_equal(settled["z"], loose["z"])


def test_the_library_has_an_equilibrium_layer_whose_residual_a_model_may_read():
    text = "model m:\n    dim n\n    input x[n, 3]\n    z = deq(x, 2)\n    output left = z.residual * 1\n"
    graph = load_graph(text)
    rng = np.random.default_rng(0)
    values = {t.name: rng.normal(size=(4, 3)) for t in graph.inputs}
    values |= {p.tensor.name: rng.normal(size=[int(n) for n in p.tensor.shape]) / 4 for p in graph.params}
    found = evaluate(graph, values)
    v = values["x"] @ values["z.deq.v.linear.W"] + values["z.deq.v.linear.b"]
    np.testing.assert_allclose(found["z"], np.tanh(found["z"] @ values["z.deq.W"] + v), atol=2e-5)
    assert found["left"] <= 1e-5


def test_a_check_knows_how_far_a_fixed_point_was_found():
    text = DEQ.replace("1e-13", "1e-5")
    graph = run(replace(load_graph(HEAD + text), outputs=("loss",)), PREPARE)
    joint, gradients = derived(text)
    report = check_gradients(graph, joint, gradients, "loss", values_of(3), directions=2, elements=2)
    assert report.passed
    assert 1e-9 < report.worst < 1e-4


def test_a_wrong_rule_is_noticed(monkeypatch):
    def once(node, u, again):
        return replace(primitives.adjoint(node, u, again), steps=1)

    monkeypatch.setitem(backward.__globals__, "adjoint", once)
    with pytest.raises(AssertionError):
        test_its_gradient_is_the_slope("tanh", True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("    fixed_point z[i < n] from 0 within 1e-3 steps 5:\n        z[i] = v[i, 0]\n", "does not depend on itself"),
        ("    fixed_point z[i < n] from 0 within 1e-3 steps 5:\n        a[i] = z[i]\n", "does not say what 'z' is"),
        ("    fixed_point z[i < n] from 0 within 1e-3 steps 0:\n        z[i] = z[i] / 2\n", "0 steps?"),
        (
            "    fixed_point z[i < n] from 0 within 1e-3 steps 5:\n"
            "        h[i < n] = h[i - 1; 0] + z[i]\n        z[i] = h[i] / 9\n",
            "a recurrence inside a fixed point",
        ),
    ],
)
def test_what_is_no_fixed_point_is_an_error(text, problem):
    with pytest.raises(SourceError) as caught:
        validate(load_graph(HEAD + text))
    assert problem in str(caught.value)
