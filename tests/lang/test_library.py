"""The library's texts mean what their sources say: values against NumPy, in float64."""

import math

import numpy as np
import pytest

from chainrule.ir.formula import Formula
from chainrule.lang import elaborate, library, parse
from tests.lang.texts import graph, values

X = np.array([[1.0, -2.0, 3.0, 0.5], [0.0, 4.0, -1.0, 4.0], [-0.5, 0.25, 2.0, -3.0]])
T = np.array([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.25, 0.75], [0.5, 0.5, 0.0, 1.0]])
P = T / T.sum(1, keepdims=True)
LABEL = np.array([2, 0, 3])
HEAD = "model m:\n    dim n\n    input x[n, 4]\n    input t[n, 4]\n    input label[n] : index 4\n"


def y(call):
    return values(f"{HEAD}    y = {call}\n", {"x": X, "t": T, "label": LABEL})["y"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


erf = np.vectorize(math.erf)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("relu(x)", np.maximum(X, 0)),
        ("leaky_relu(x)", np.where(X > 0, X, 0.01 * X)),
        ("leaky_relu(x, 0.3)", np.where(X > 0, X, 0.3 * X)),
        ("elu(x)", np.where(X > 0, X, np.expm1(X))),
        ("elu(x, alpha = 2)", np.where(X > 0, X, 2 * np.expm1(X))),
        ("sigmoid(x)", 1 / (1 + np.exp(-X))),
        ("tanh(x)", np.tanh(X)),
        ("softplus(x)", np.log1p(np.exp(X))),
        ("silu(x)", X / (1 + np.exp(-X))),
        ("gelu(x)", X * (1 + erf(X / np.sqrt(2))) / 2),
        ("gelu_tanh(x)", X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))) / 2),
        ("softmax(x)", softmax(X)),
        ("log_softmax(x)", np.log(softmax(X))),
        ("logsumexp(x)", np.log(np.exp(X).sum(1))),
        ("mean_squared_error(x, t)", ((X - T) ** 2).mean(1)),
        ("cross_entropy(x, label)", -np.log(softmax(X)[np.arange(3), LABEL])),
        ("soft_cross_entropy(x, softmax(t))", -(softmax(T) * np.log(softmax(X))).sum(1)),
        ("binary_cross_entropy(x, t)", np.log1p(np.exp(X)) - X * T),
        ("huber(x, t)", np.where(np.abs(X - T) <= 1, (X - T) ** 2 / 2, np.abs(X - T) - 0.5)),
        ("huber(x, t, delta = 2)", np.where(np.abs(X - T) <= 2, (X - T) ** 2 / 2, 2 * (np.abs(X - T) - 1))),
    ],
)
def test_functions_are_their_definitions(call, expected):
    assert np.allclose(y(call), expected, rtol=1e-12)


def test_linear_is_x_w_plus_b():
    w, b = np.arange(8.0).reshape(4, 2), np.array([1.0, -1.0])
    given = {"x": X, "t": T, "label": LABEL, "y.linear.W": w, "y.linear.b": b}
    assert np.allclose(values(f"{HEAD}    y = linear(x, 2)\n", given)["y"], X @ w + b)


def test_embedding_reads_rows():
    table = np.arange(8.0).reshape(4, 2)
    given = {"x": X, "t": T, "label": LABEL, "y.embedding.table": table}
    assert np.allclose(values(f"{HEAD}    y = embedding(label, 4, 2)\n", given)["y"], table[LABEL])


def test_layer_norm_normalizes_the_last_axis():
    given = {"x": X, "t": T, "label": LABEL, "y.layer_norm.gain": np.full(4, 2.0), "y.layer_norm.bias": np.ones(4)}
    expected = 2 * (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5) + 1
    assert np.allclose(values(f"{HEAD}    y = layer_norm(x)\n", given)["y"], expected)


def test_dropout_scales_in_training_and_passes_in_eval():
    text, given = f"{HEAD}    y = dropout(x, rate = 0.5)\n", {"x": X, "t": T, "label": LABEL}
    assert np.allclose(values(text, given, training=False)["y"], X)
    trained = values(text, given, training=True)["y"]
    assert np.all(np.isclose(trained, 0) | np.isclose(trained, 2 * X))


IMAGE = "model m:\n    dim n, h >= 3, w >= 3\n    input x[n, 2, h, w]\n    y = {}\n"


def test_conv2d_is_a_correlation_with_padding_and_stride():
    draw = np.random.default_rng(0)
    x, k = draw.normal(size=(2, 2, 5, 6)), draw.normal(size=(3, 2, 3, 3))
    given = {"x": x, "y.conv2d.K": k, "y.conv2d.b": np.array([1.0, 2.0, 3.0])}
    found = values(IMAGE.format("conv2d(x, 3, stride = 2, pad = 1)"), given)["y"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    assert found.shape == (2, 3, 3, 3)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected = np.einsum("ncrs,ocrs->no", window, k) + np.array([1, 2, 3])
            assert np.allclose(found[:, :, i, j], expected)


def test_batch_norm_normalizes_by_the_batch_and_keeps_running_figures():
    x = np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    given = {"x": x, "y.batch_norm.gain": np.ones(2), "y.batch_norm.bias": np.zeros(2)}
    text = IMAGE.format("batch_norm(x)")
    found = values(text, given, training=True)
    m, v = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shape = (1, 2, 1, 1)
    assert np.allclose(found["y"], (x - m.reshape(shape)) / np.sqrt(v.reshape(shape) + 1e-5))
    assert np.allclose(found["y.batch_norm.running_mean.next"], 0.1 * m)
    assert np.allclose(found["y.batch_norm.running_var.next"], 0.9 + 0.1 * v * 60 / 59)
    assert np.allclose(values(text, given, training=False)["y"], x / np.sqrt(1 + 1e-5))


def test_attention_is_softmax_of_scaled_products_and_causal():
    inputs = "".join(f"    input {name}[b, t, 3]\n" for name in "qkv")
    text = f"model m:\n    dim b, t\n{inputs}    y = attention(q, k, v)\n"
    draw = np.random.default_rng(2)
    q, k, v = draw.normal(size=(2, 4, 3)), draw.normal(size=(2, 4, 3)), draw.normal(size=(2, 4, 3))
    score = np.einsum("btd,bsd->bts", q, k) / np.sqrt(3)
    score = np.where(np.arange(4)[None, :] > np.arange(4)[:, None], -np.inf, score)
    assert np.allclose(values(text, {"q": q, "k": k, "v": v})["y"], softmax(score) @ v)


def test_multi_head_has_a_head_for_each_part_of_the_width():
    text = "model m:\n    dim b, t\n    input x[b, t, 8]\n    y = multi_head(x, heads = 2)\n"
    assert [p.tensor.shape for p in graph(text).params] == [(8, 2, 4), (8, 2, 4), (8, 2, 4), (2, 4, 8)]


def test_the_silu_is_not_pasted():
    assert sum(isinstance(n, Formula) for n in graph(f"{HEAD}    y = silu(x)\n").nodes) == 2


@pytest.mark.parametrize("name", sorted(library()))
def test_every_definition_parses_and_says_where_it_comes_from(name):
    definition = library()[name]
    assert definition.span.file.startswith("library/")
    assert name.split(":")[-1] == definition.name


def test_formulas_of_the_library_point_into_it():
    node = elaborate(parse(f"{HEAD}    y = linear(x, 2)\n", "m.graph")).nodes[-1]
    assert str(node.origin.span).startswith("library/layers.graph:")
    assert "y[*, o] = sum[i]" in node.origin.span.text
    assert node.origin.layer == "y.linear"
