"""Rules of the language that need the whole way to be seen: values and gradients together."""

from dataclasses import replace

import numpy as np
import pytest

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.lang import load_graph
from chainrule.reference import evaluate

X = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])


def found(*statements):
    """Every tensor of a model of x[n, 3] and, as x_bar, the gradient of its loss."""
    head = "model m:\n    dim n\n    input x[n, 3]\n"
    graph = load_graph(head + "".join(f"    {line}\n" for line in statements))
    graph = replace(graph, outputs=tuple(dict.fromkeys((*graph.outputs, "loss"))))
    joint = backward(run(graph, PREPARE), "loss", ["x"]).graph
    joint = run(replace(joint, outputs=(*graph.outputs, "x_bar")), IMPROVE)
    with np.errstate(all="ignore"):
        return evaluate(joint, {"x": X})


@pytest.mark.parametrize("distance", [["r[n] = sqrt(sum[i] x[n, i]^2)"], ["d[n] = sum[i] x[n, i]^2", "r = sqrt(d)"]])
def test_the_root_of_a_sum_of_squares_has_gradient_0_at_0(distance):
    np.testing.assert_allclose(found(*distance, "loss = sum(r)")["x_bar"], [[0, 0, 0], [0.6, 0, 0.8]], rtol=1e-15)


def test_a_fully_masked_softmax_row_is_0_and_sends_nothing():
    masked = "s[n, k] = if n < 1 then -inf else x[n, k]"
    result = found(masked, "p = softmax(s)", "loss = sum[n, k] p[n, k] * k", "output p")
    assert np.array_equal(result["p"][0], [0, 0, 0])
    assert result["p"][1].sum() == pytest.approx(1)
    assert np.array_equal(result["x_bar"][0], [0, 0, 0])
    assert np.all(np.isfinite(result["x_bar"]))


def test_not_of_a_comparison_is_the_opposite_one_which_nan_fails_too():
    result = found("z = log(x - 1)", "output b[n, i] : bool = not (z[n, i] > 0)", "loss = sum(x)")
    assert result["b"].tolist() == [[False, False, False], [False, False, False]]
