"""Reverse mode through recurrences: the one rule gives a recurrence that runs the other way, to any order."""

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule.compiler import IMPROVE, run
from chainrule.derive import backward
from chainrule.ir.text import equation_text
from chainrule.ir.validate import validate
from chainrule.optimize import eliminate
from chainrule.reference import evaluate
from tests.formulas import T, X, formula, graph, j, k, n, t, x0, x1, x2

SIZES = {"x": (2, 4, 3), "U": (3, 3), "b": (3,)}


def recurrent(distance, law=sp.tanh):
    """h[n, t, j] = law(x[n, t, j] + sum[k] h[n, t - distance, k; 0] * U[k, j] + b[j]) and loss = sum h * x."""
    return graph(
        formula("s n<N t<L j<3", "k<3", x0 * x1, T("h", 0)[n, t - distance, k], T("U")[k, j]),
        formula("h n<N t<L j<3", "", law(x0 + x1 + x2), X[n, t, j], T("s")[n, t, j], T("b")[j]),
        formula("loss", "n<N t<L j<3", x0**2 * x1, T("h")[n, t, j], X[n, t, j]),
        inputs="x N L 3, U 3 3, b 3",
    )


def values_of(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SIZES.items()}


def difference(g, values, name, along, of="loss", eps=1e-6):
    """The derivative of `of` along a direction of one tensor, by central differences."""
    ends = [evaluate(g, {**values, name: values[name] + sign * eps * along})[of] for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * eps)


@pytest.mark.parametrize("distance", [1, 2, -1])
def test_the_gradient_of_a_recurrence_is_its_slope(distance):
    g = recurrent(distance)
    found = backward(g, "loss", ["x", "U", "b"])
    joint = eliminate(replace(found.graph, outputs=("loss", *found.gradients.values())))
    validate(joint)
    values = values_of()
    result = evaluate(joint, values)
    rng = np.random.default_rng(1)
    for name, x_bar in found.gradients.items():
        along = rng.normal(size=SIZES[name])
        np.testing.assert_allclose(np.sum(result[x_bar] * along), difference(g, values, name, along), rtol=1e-7)


def test_the_adjoint_recurrence_runs_the_other_way_and_products_fall_out_of_it():
    found = backward(recurrent(1), "loss", ["U", "b"])
    joint = run(replace(found.graph, outputs=("loss", *found.gradients.values())), IMPROVE)
    texts = {node.out: equation_text(node) for node in joint.nodes}
    circle = next(c for c in joint.components if any(node.out == "h_bar" for node in c) and len(c) > 1)
    assert not {"U_bar", "b_bar"} & {node.out for node in circle}
    assert "t + 1" in "".join(texts[node.out] for node in circle)
    assert texts["U_bar"] == "U_bar[k, j] = sum[n, t] h[n, t - 1, k; 0] * s_bar[n, t, j]"


def test_the_passes_keep_the_value_of_a_recurrence_and_of_its_gradient():
    found = backward(recurrent(1), "loss", ["x", "U", "b"])
    derived = replace(found.graph, outputs=("loss", *found.gradients.values()))
    values = values_of()
    defined, improved = evaluate(eliminate(derived), values), evaluate(run(derived, IMPROVE), values)
    for name in derived.outputs:
        np.testing.assert_allclose(improved[name], defined[name], rtol=1e-12)


def test_a_gradient_of_a_gradient_of_a_recurrence_is_its_slope():
    first = backward(recurrent(1), "loss", ["U"])
    u_bar = first.gradients["U"]
    g = eliminate(first.graph)
    with_v = replace(g, inputs=(*g.inputs, replace(g.tensors["U"], name="v")))
    second = backward(with_v, {u_bar: "v"}, ["U", "x"])
    joint = eliminate(replace(second.graph, outputs=tuple(second.gradients.values())))
    validate(joint)
    values, rng = values_of(), np.random.default_rng(2)
    v = rng.normal(size=(3, 3))
    result = evaluate(joint, {**values, "v": v})
    for name in ("U", "x"):
        along = rng.normal(size=SIZES[name])
        slope = np.sum(v * difference(g, values, name, along, of=u_bar))
        np.testing.assert_allclose(np.sum(result[second.gradients[name]] * along), slope, rtol=1e-6)


def test_a_carry_that_nothing_sends_to_has_a_cotangent_of_zeros():
    g = graph(
        formula("h t<L", "", x0 + x1, T("x")[t], T("h", 0)[t - 1]),
        formula("y", "t<L", x0, T("x")[t]),
        inputs="x L",
        outputs="y h",
    )
    found = backward(g, "y", ["x"])
    np.testing.assert_allclose(evaluate(eliminate(found.graph), {"x": np.ones(3)})["x_bar"], 1)
