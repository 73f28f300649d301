"""The gradient check finds what is wrong, and is not misled by kinks."""

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule.check import check_gradients
from chainrule.derive import backward
from chainrule.ir.formula import Formula
from tests.formulas import W_, X, formula, graph, i, n, positive, x0, x1

NET = graph(
    formula("h n<N", "i<4", x0 * x1, X[n, i], W_[i]),
    formula("loss", "n<N", positive(x0) ** 2 + positive(x0), type(X)("h")[n]),
    inputs="x N 4, W 4",
)


def checked(change=lambda f: f, values=None):
    derivation = backward(NET, "loss", ["W", "x"])
    nodes = tuple(change(f) for f in derivation.graph.nodes)
    rng = np.random.default_rng(0)
    values = values or {"x": rng.normal(size=(5, 4)), "W": rng.normal(size=4)}
    return check_gradients(NET, replace(derivation.graph, nodes=nodes), derivation.gradients, "loss", values)


def test_right_gradients_pass_to_nine_digits():
    report = checked()
    assert report.passed
    assert report.worst < 1e-9
    # 8 directions and as many elements, or all that there are, of each tensor
    assert len(report.comparisons) == 8 + 4 + 8 + 8


@pytest.mark.parametrize("factor", [-1, 2, 0])
def test_a_wrong_gradient_is_found(factor):
    def wrong(f: Formula) -> Formula:
        return replace(f, body=factor * f.body) if f.out == "W_bar" else f

    report = checked(wrong)
    assert not report.passed
    assert {c.tensor for c in report.comparisons if c.error > 1e-3} == {"W"}


def test_a_kink_is_reported_and_is_no_error():
    values = {"x": np.zeros((5, 4)), "W": np.ones(4)}
    report = checked(values=values)
    assert report.kinks > 0
    assert report.passed


def test_what_is_marked_stop_is_held():
    stopped = tuple(replace(f, stop=f.out == "h") for f in NET.nodes)
    values = {"x": np.ones((5, 4)), "W": np.ones(4)}
    twice = formula("twice", "n<N", x0 * x1, type(X)("h")[n], X[n, sp.S.Zero])
    net = replace(NET, nodes=(*stopped[:1], twice), outputs=("twice",))
    derivation = backward(net, "twice", ["x"])
    assert check_gradients(net, derivation.graph, derivation.gradients, "twice", values).passed
    free = replace(net, nodes=(NET.nodes[0], twice))
    assert not check_gradients(free, derivation.graph, derivation.gradients, "twice", values).passed


def test_nan_does_not_pass():
    values = {"x": np.full((5, 4), np.nan), "W": np.ones(4)}
    assert not checked(values=values).passed
