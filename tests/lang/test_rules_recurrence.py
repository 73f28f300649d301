"""The rules of recurrences, one by one: statements that read themselves, or later ones, at another place."""

import numpy as np
import pytest

from chainrule.ir.recurrence import recurrence_of
from tests.lang.texts import error, formulas, graph, model, values

X = np.arange(12.0).reshape(3, 4) / 7

LSTM = """
layer lstm(x[n, t, i], out):
    param W[i, 4, out]   ~ glorot_uniform(each = 4)
    param U[out, 4, out] ~ orthogonal(each = 4)
    param b[4, out]      ~ zeros
    z[n, t, g < 4, j < out] = sum[i] x[n, t, i] * W[i, g, j] + sum[k] h[n, t - 1, k; 0] * U[k, g, j] + b[g, j]
    c[n, t, j < out] = sigmoid(z[n, t, 0, j]) * c[n, t - 1, j; 0] + sigmoid(z[n, t, 1, j]) * tanh(z[n, t, 2, j])
    h[n, t, j < out] = sigmoid(z[n, t, 3, j]) * tanh(c[n, t, j])

model forecast(hidden = 5):
    dim batch, time >= 1
    input x[batch, time, 3]
    h = lstm(x, hidden)
    last[n, j] = h[n, time - 1, j]
    loss = mean(last^2)
"""


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_a_statement_may_read_itself_at_an_earlier_place():
    text = model("h[i < n] = h[i - 1; 0] + x[i, 0]")
    np.testing.assert_allclose(values(text, {"x": X, "label": [0, 0, 0]})["h"], np.cumsum(X[:, 0]))
    assert formulas(text) == ["h[i < n] = h[i - 1; 0] + x[i, 0]"]


def test_or_at_a_later_place():
    text = model("h[i < n] = h[i + 1; 1] * x[i, 0]")
    np.testing.assert_allclose(values(text, {"x": X, "label": [0, 0, 0]})["h"], np.cumprod(X[::-1, 0])[::-1])


def test_or_two_places_back():
    text = model("f[i < 10] = f[i - 1; 1] + (if i == 1 then 1 else f[i - 2; 0])")
    assert values(text, {"x": X, "label": [0, 0, 0]})["f"].tolist() == [1, 2, 3, 5, 8, 13, 21, 34, 55, 89]


def test_or_a_statement_that_stands_below_it():
    text = model("a[i < n] = b[i - 1; 1] + x[i, 0]\nb[i < n] = 2 * a[i]")
    found = values(text, {"x": X, "label": [0, 0, 0]})
    a, b = [], [1.0]
    for value in X[:, 0]:
        a.append(b[-1] + value)
        b.append(2 * a[-1])
    np.testing.assert_allclose(found["a"], a)
    np.testing.assert_allclose(found["b"], b[1:])


def test_an_lstm_is_three_statements():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 4, 3), "h.lstm.W": (3, 4, 5), "h.lstm.U": (5, 4, 5), "h.lstm.b": (4, 5)}
    given = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    h = c = np.zeros((2, 5))
    for t in range(4):
        z = np.einsum("ni,igj->ngj", given["x"][:, t], given["h.lstm.W"]) + given["h.lstm.b"]
        z = z + np.einsum("nk,kgj->ngj", h, given["h.lstm.U"])
        c = sigmoid(z[:, 0]) * c + sigmoid(z[:, 1]) * np.tanh(z[:, 2])
        h = sigmoid(z[:, 3]) * np.tanh(c)
    np.testing.assert_allclose(values(LSTM, given)["last"], h, rtol=1e-12)


def test_what_needs_no_carry_stays_outside_the_loop():
    made = graph(LSTM)
    circle = next(nodes for nodes in made.components if len(nodes) > 1)
    found = recurrence_of(circle)
    assert "h.lstm.z_sum" not in {node.out for node in circle}
    assert (str(found.extent), found.ahead) == ("time", False)


def test_a_learned_start_is_a_choice():
    text = model("param h0[4] ~ ones\nh[i < n, k < 4] = if i == 0 then h0[k] else h[i - 1, k; 0] * x[i, k]")
    found = values(text, {"x": X, "label": [0, 0, 0], "h0": np.arange(4.0)})["h"]
    np.testing.assert_allclose(found[2], np.arange(4.0) * X[1] * X[2])


def test_a_name_that_is_defined_above_keeps_its_meaning():
    text = model("h[i] = 2 * x[i, 0]\nh[i < n] = h[i - 1; 0] + 1")
    np.testing.assert_allclose(values(text, {"x": X, "label": [0, 0, 0]})["h"], [1, 1 + 2 * X[0, 0], 1 + 2 * X[1, 0]])


@pytest.mark.parametrize("extent", ["0", "1"])
def test_a_recurrence_may_have_no_place_or_one(extent):
    found = values(model(f"h[i < {extent}, k < 2] = h[i - 1, k; 3] + 1"), {"x": X, "label": [0, 0, 0]})["h"]
    assert found.tolist() == [[4.0, 4.0]] * int(extent)


def test_an_error_names_the_statement_and_a_way_out():
    text = str(error(model("a[i < n] = x[i, 0]\nh[i < n] = h[i; 0] + a[i]")))
    assert "m.graph:7:" in text
    assert "Way out: read all of them at earlier places of one index: h[n, t - 1, k; 0]" in text
