"""Reverse mode over graphs: names, accumulation, seeds, and derivatives of derivatives."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import sympy as sp

from chainrule.derive import backward
from chainrule.derive.backward import _vjp
from chainrule.errors import ChainruleError
from chainrule.ir.expression import Select, dim_symbol
from chainrule.ir.formula import DType
from chainrule.ir.text import equation_text
from chainrule.ir.validate import validate
from chainrule.optimize import eliminate, expand_reductions, stabilize
from chainrule.reference import evaluate
from tests.formulas import W_, B, T, X, Z, draw_values, formula, graph, i, int1, j, k, n, o, x0, x1, x2

N = dim_symbol("N")

MLP = graph(
    formula("z n<N o<5", "i<4", x0 * x1, X[n, i], W_[i, o]),
    formula("h n<N o<5", "", sp.tanh(x0 + x1), Z[n, o], B[o]),
    formula("l n<N o<3", "i<5", x0 * x1, T("h")[n, i], T("V")[i, o]),
    formula("s n<N", "k<3", sp.exp(x0), T("l")[n, k]),
    formula("e n<N", "", sp.log(x0) - x2, T("s")[n], T("label")[n], T("l")[n, int1]),
    formula("loss", "n<N", x0 / N, T("e")[n]),
    inputs="x N 4, label N : 3, W 4 5, b 5, V 5 3",
)


def texts(g, *names):
    return [equation_text(eliminate(g).producers[name]) for name in names]


def test_the_backward_pass_of_a_linear_layer_is_two_products():
    g = graph(formula("y n<N o<3", "i<4", x0 * x1, X[n, i], W_[i, o]), inputs="x N 4, W 4 3, g N 3")
    found = backward(g, {"y": "g"}, ["x", "W"])
    assert found.gradients == {"x": "x_bar", "W": "W_bar"}
    assert texts(found.graph, "x_bar", "W_bar") == [
        "x_bar[n, i] = sum[o] W[i, o] * g[n, o]",
        "W_bar[i, o] = sum[n] x[n, i] * g[n, o]",
    ]


def test_contributions_are_added_up():
    g = graph(formula("a n<N", "", sp.sin(x0), X[n]), formula("y", "n<N", x0 * x1, X[n], T("a")[n]), inputs="x N")
    found = backward(g, "y", ["x"])
    validate(found.graph)
    assert texts(found.graph, "x_bar") == ["x_bar[n] = x_bar_1[n] + x_bar_2[n]"]
    x = np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(evaluate(found.graph, {"x": x})["x_bar"], np.sin(x) + x * np.cos(x), rtol=1e-14)


def test_what_the_loss_does_not_reach_has_a_gradient_of_zeros():
    g = graph(formula("y", "n<N", x0, X[n]), inputs="x N, W 3 N")
    found = backward(g, "y", ["W"])
    assert texts(found.graph, found.gradients["W"]) == ["W_bar[p0, p1] = 0"]


def test_nothing_is_built_where_the_derivative_is_zero():
    step = formula("a n<N", "", Select(x0 > 0, sp.S.One, sp.S.Zero), X[n])
    g = graph(step, formula("y", "n<N", x0 * x1, T("a")[n], X[n]), inputs="x N")
    assert [f.out for f in backward(g, "y", ["x"]).graph.nodes[2:]] == ["y_bar", "x_bar"]


def test_no_cotangent_passes_through_stop_or_integers():
    g = graph(
        formula("a n<N", "", x0**2, X[n], stop=True),
        formula("c n<N", "", sp.Integer(2), dtype=DType.INT),
        formula("y", "n<N", x0 * x1, T("a")[n], X[n]),
        inputs="x N",
    )
    found = backward(g, "y", ["x"])
    np.testing.assert_array_equal(evaluate(found.graph, {"x": np.array([3.0])})["x_bar"], [9])


def test_a_gradient_may_be_taken_by_a_tensor_in_between():
    found = backward(MLP, "loss", ["h"])
    assert found.gradients["h"] == "h_bar"
    assert "x_bar" not in found.graph.tensors


def test_several_outputs_take_cotangents_of_any_shape():
    g = graph(formula("a n<N", "", x0**2, X[n]), formula("b n<N", "", x0 * 3, T("a")[n]), inputs="x N, u N, v N")
    found = backward(g, {"a": "u", "b": "v"}, ["x"])
    values = {"x": np.array([2.0, 5.0]), "u": np.array([1.0, 10.0]), "v": np.array([1.0, -1.0])}
    np.testing.assert_allclose(
        evaluate(found.graph, values)["x_bar"], 2 * values["x"] * (values["u"] + 3 * values["v"])
    )


def test_names_that_are_taken_are_numbered():
    once = backward(graph(formula("y", "n<N", x0**3, X[n]), inputs="x N"), "y", ["x"]).graph
    total = formula("t", "n<N", x0, T("x_bar")[n])
    twice = backward(replace(once, nodes=(*once.nodes, total)), "t", ["x"])
    assert twice.gradients == {"x": "x_bar2"}
    np.testing.assert_allclose(evaluate(twice.graph, {"x": np.array([2.0, -1.0])})["x_bar2"], [12, -6])


@pytest.mark.parametrize(
    ("of", "wrt", "message"),
    [
        ("los", ["W"], "graph example has no tensor 'los': did you mean 'loss'?"),
        ("e", ["W"], "e has 1 axes: give its cotangent, or sum it to one number"),
        ("loss", ["label"], "label is int: only float tensors have gradients"),
        ({"e": "x"}, ["W"], "the cotangent x has another shape than e"),
    ],
)
def test_what_has_no_gradient_is_an_error(of, wrt, message):
    with pytest.raises(ChainruleError, match=message.replace("?", r"\?")):
        backward(MLP, of, wrt)


def test_every_step_is_traced_with_its_rule():
    found = backward(MLP, "loss", ["W", "b"])
    assert {step.rule for step in found.trace} == {"seed", "vjp", "accumulate"}
    made = {f.out for step in found.trace for f in step.after}
    assert made == {f.out for f in found.graph.nodes} - {f.out for f in MLP.nodes}
    assert all(f.origin.rule and f.origin.formula for step in found.trace for f in step.after)


def test_equal_layers_are_derived_once():
    layers, x = [], "x"
    for layer in range(12):
        layers.append(formula(f"h{layer} n<N o<4", "i<4", sp.tanh(x0) * x1, T(x)[n, i], T(f"W{layer}")[i, o]))
        x = f"h{layer}"
    g = graph(
        *layers,
        formula("loss", "n<N o<4", x0, T(x)[n, o]),
        inputs="x N 4" + "".join(f", W{layer} 4 4" for layer in range(12)),
    )
    _vjp.cache_clear()
    backward(g, "loss", [f"W{layer}" for layer in range(12)])
    assert _vjp.cache_info().misses == 3


def test_gradients_of_a_networlayeragree_with_differences_to_second_order():
    """The gradient of |d loss / d W|² by every parameter, against central differences in long doubles."""
    g = expand_reductions(stabilize(MLP))
    first = backward(g, "loss", ["W", "b", "V"])
    norm = formula("norm", "i<4 j<5", x0**2, T(first.gradients["W"])[i, j])
    joint = replace(eliminate(first.graph), outputs=("norm",))
    joint = replace(joint, nodes=(*joint.nodes, norm))
    validate(joint)
    second = backward(joint, "norm", ["W", "b", "V"])
    validate(second.graph)
    values = draw_values(MLP, {"N": 3}, 0)
    for of, names in ((first, "loss"), (second, "norm")):
        result = evaluate(of.graph, values)
        for name in ("W", "b", "V"):
            v = np.random.default_rng(1).normal(size=values[name].shape)
            h = np.longdouble(1e-4)

            def at(step, name=name, of=of, names=names, v=v):
                moved = {**values, name: values[name] + np.longdouble(step) * v}
                return evaluate(of.graph, moved, dtype=np.longdouble)[names]

            slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
            assert np.sum(result[of.gradients[name]] * v) == pytest.approx(float(slope), rel=1e-10)


@pytest.mark.parametrize("sabotage", ["a contribution skipped", "a contribution twice"])
def test_a_wrong_accumulation_is_noticed(monkeypatch, sabotage):
    g = graph(formula("a n<N", "", sp.sin(x0), X[n]), formula("y", "n<N", x0 * x1, X[n], T("a")[n]), inputs="x N")
    module = import_module("chainrule.derive.backward")
    right = module._accumulate

    def wrong(work, name):
        if name in work.sent and len(work.sent[name]) > 1:
            sent = work.sent[name]
            work.sent[name] = sent[1:] if sabotage == "a contribution skipped" else [*sent, sent[0]]
        return right(work, name)

    monkeypatch.setattr(module, "_accumulate", wrong)
    x = np.array([0.3, -1.0])
    found = evaluate(backward(g, "y", ["x"]).graph, {"x": x})["x_bar"]
    assert not np.allclose(found, np.sin(x) + x * np.cos(x))
