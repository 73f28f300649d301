"""Every gradient of every library function, in float64, against JAX: one row a function, all sizes drawn.

What is compared is what is compiled: after `stabilize`, `expand_reductions`, `backward` and every later pass.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.derive import backward
from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import DType
from chainrule.ir.graph import Graph, Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.validate import validate
from chainrule.lang import load_graph
from chainrule.optimize import (
    contract,
    cse,
    drop_dead,
    eliminate,
    expand_reductions,
    inline,
    output_form,
    simplify,
    specialize,
    stabilize,
)
from chainrule.reference import evaluate, sizes_of

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

PREPARE = (drop_dead, stabilize, expand_reductions)
IMPROVE = (eliminate, simplify, output_form, cse, inline, simplify, contract, cse, drop_dead)


def norm(x, gain, bias, axes):
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return gain * (x - mean) / jnp.sqrt(var + 1e-5) + bias


def attend(q, k, v, causal=True):
    score = jnp.einsum("...td,...sd->...ts", q, k) / jnp.sqrt(jnp.float64(q.shape[-1]))
    if causal:
        t, s = score.shape[-2:]
        score = jnp.where(jnp.arange(s)[None] > jnp.arange(t)[:, None], -jnp.inf, score)
    return jnp.einsum("...ts,...sd->...td", jax.nn.softmax(score, axis=-1), v)


def heads(x, Q, K, V, O):
    q, k, v = (jnp.einsum("ntc,chd->nhtd", x, w) for w in (Q, K, V))
    return jnp.einsum("nhtd,hdo->nto", attend(q, k, v), O)


def conv(x, kernel, bias):
    y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)))
    return y + bias[None, :, None, None]


def huber(y, t):
    r = y - t
    return jnp.where(jnp.abs(r) > 1, jnp.abs(r) - 0.5, r**2 / 2)


XNK = "input x[n, k]"
TWO = "input x[n, k]\n    input t[n, k]"

# name: (declarations, the call, the same in JAX over the inputs and then the parameters in order, least sizes)
TABLE = {
    "relu": (XNK, "relu(x)", lambda x: jnp.maximum(x, 0), {}),
    "leaky_relu": (XNK, "leaky_relu(x)", lambda x: jnp.where(x > 0, x, 0.01 * x), {}),
    "elu": (XNK, "elu(x, alpha = 2)", lambda x: jax.nn.elu(x, 2.0), {}),
    "sigmoid": (XNK, "sigmoid(x)", jax.nn.sigmoid, {}),
    "softplus": (XNK, "softplus(x)", jax.nn.softplus, {}),
    "silu": (XNK, "silu(x)", jax.nn.silu, {}),
    "gelu": (XNK, "gelu(x)", lambda x: jax.nn.gelu(x, approximate=False), {}),
    "gelu_tanh": (XNK, "gelu_tanh(x)", lambda x: jax.nn.gelu(x, approximate=True), {}),
    "softmax": (XNK, "softmax(x)", lambda x: jax.nn.softmax(x, axis=-1), {"k": 1}),
    "logsumexp": (XNK, "logsumexp(x)", lambda x: jax.nn.logsumexp(x, axis=-1), {"k": 1}),
    "log_softmax": (XNK, "log_softmax(x)", lambda x: jax.nn.log_softmax(x, axis=-1), {"k": 1}),
    "cross_entropy": (
        "input x[n, k]\n    input label[n] : index k",
        "cross_entropy(x, label)",
        lambda x, label: jax.nn.logsumexp(x, axis=-1) - jnp.take_along_axis(x, label[:, None], 1)[:, 0],
        {"k": 1},
    ),
    "soft_cross_entropy": (
        TWO,
        "soft_cross_entropy(x, t)",
        lambda x, t: (t * (jax.nn.logsumexp(x, axis=-1, keepdims=True) - x)).sum(-1),
        {"k": 1},
    ),
    "binary_cross_entropy": (
        TWO,
        "binary_cross_entropy(x, t)",
        lambda x, t: -t * jax.nn.log_sigmoid(x) - (1 - t) * jax.nn.log_sigmoid(-x),
        {},
    ),
    "mean_squared_error": (TWO, "mean_squared_error(x, t)", lambda x, t: ((x - t) ** 2).mean(-1), {}),
    "huber": (TWO, "huber(x, t)", huber, {}),
    "linear": ("input x[n, 4]", "linear(x, 3)", lambda x, W, b: x @ W + b, {}),
    "embedding": ("input l[n] : index 5", "embedding(l, 5, 3)", lambda l, table: table[l], {}),
    "layer_norm": ("input x[n, 4]", "layer_norm(x)", lambda x, g, b: norm(x, g, b, -1), {}),
    "batch_norm": (
        "input x[n, 2, k, m]",
        "batch_norm(x)",
        lambda x, g, b: norm(x, g[:, None, None], b[:, None, None], (0, 2, 3)),
        {"n": 2, "k": 1, "m": 1},
    ),
    "conv2d": ("input x[n, 2, 7, 6]", "conv2d(x, 3, kernel = 3, stride = 2, pad = 1)", conv, {}),
    "attention": (
        "input q[n, k, m]\n    input r[n, k, m]\n    input v[n, k, m]",
        "attention(q, r, v)",
        attend,
        {"m": 1},
    ),
    "multi_head": ("input x[n, k, 4]", "multi_head(x, heads = 2)", heads, {}),
    "dropout": (XNK, "dropout(x, rate = 0.5)", lambda x, u: jnp.where(u < 0.5, x / 0.5, 0), {}),
}


def model(name):
    """The function's graph with a cotangent `y_seed` of its result, and what it is differentiated by."""
    declarations, call, _, _ = TABLE[name]
    g = specialize(load_graph(f"model m():\n    dim n, k, m\n    {declarations}\n    y = {call}\n"), training=True)
    g = replace(g, inputs=(*g.inputs, Tensor("y_seed", g.tensors["y"].shape)), outputs=("y",), updates=())
    given = [*g.inputs, *(p.tensor for p in g.params)]
    return g, tuple(t.name for t in given if t.dtype is DType.FLOAT and t.name != "y_seed")


def derived(g: Graph, wrt, improve=IMPROVE):
    for step in PREPARE:
        g = step(g)
    derivation = backward(g, {"y": "y_seed"}, wrt)
    g = replace(derivation.graph, outputs=(*g.outputs, *dict.fromkeys(derivation.gradients.values())))
    for step in improve:
        validate(g)
        g = step(g)
    validate(g)
    return g, derivation.gradients


DERIVED = {}


def values_of(g: Graph, sizes, seed):
    """Normal numbers for floats, indices below their bound for integers."""
    rng = np.random.default_rng(seed)
    dims = Tensor("sizes", tuple(dim_symbol(d) for d in sizes))
    full = sizes_of(replace(g, inputs=(dims,)), {"sizes": tuple(sizes.values())})
    values = {}
    for t in (*g.inputs, *(p.tensor for p in g.params)):
        shape = tuple(full[e.name] if e.is_Symbol else int(e) for e in t.shape)
        bound = None if t.bound is None else full[t.bound.name] if t.bound.is_Symbol else int(t.bound)
        values[t.name] = rng.normal(size=shape) if t.dtype is DType.FLOAT else rng.integers(0, bound, size=shape)
    return values


def agree(found, expected, rtol=1e-9):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    undefined = np.isnan(expected)  # the mean of nothing
    assert np.array_equal(np.isnan(found), undefined)
    found, expected = found[~undefined], expected[~undefined]
    scale = np.abs(expected).max() if expected.size else 0.0
    assert np.all(np.abs(found - expected) <= rtol * np.maximum(np.abs(expected), max(scale, 1e-3)))


@pytest.mark.parametrize("name", sorted(TABLE))
@settings(max_examples=4, deadline=None)
@given(sizes=st.fixed_dictionaries({d: st.sampled_from([0, 1, 3]) for d in "nkm"}), seed=st.integers(0, 99))
def test_every_gradient_agrees_with_jax(name, sizes, seed):
    oracle, least = TABLE[name][2:]
    if name not in DERIVED:
        g, wrt = model(name)
        DERIVED[name] = (g, wrt, *derived(g, wrt))
    g, wrt, graph, gradients = DERIVED[name]
    # few sizes: the oracle compiles each anew
    sizes = {d.name: max(sizes[d.name], least.get(d.name, 0)) for d in g.dims if d.definition is None}
    values = values_of(g, sizes, seed)
    result = evaluate(graph, values, seed=seed)
    draws = [result[node.out] for node in g.nodes if isinstance(node, Primitive)]
    arguments = [values[t.name] for t in (*g.inputs[:-1], *(p.tensor for p in g.params))]
    places = [k for k, t in enumerate((*g.inputs[:-1], *(p.tensor for p in g.params))) if t.name in wrt]
    y, pullback = jax.vjp(lambda *x: oracle(*merged(arguments, places, x), *draws), *(arguments[k] for k in places))
    agree(result["y"], y)
    for x, expected in zip(wrt, pullback(jnp.asarray(values["y_seed"])), strict=True):
        agree(result[gradients[x]], expected)


def merged(arguments, places, moving):
    chosen = dict(zip(places, moving, strict=True))
    return [chosen.get(k, a) for k, a in enumerate(arguments)]


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "softmax", "log_softmax", "logsumexp", "silu", "elu"])
def test_gradients_stay_finite_far_out(name):
    g, wrt = model(name)
    graph, gradients = derived(g, wrt)
    for scale in (100, 1000):
        x = np.array([[-scale, 0.0, scale], [scale, scale, -scale]])
        seed = np.ones((2, 3)) if len(g.tensors["y"].shape) == 2 else np.ones(2)
        result = evaluate(graph, {"x": x, "y_seed": seed})
        assert np.all(np.isfinite(result[gradients["x"]])), result[gradients["x"]]
        y, pullback = jax.vjp(TABLE[name][2], x)
        agree(result["y"], y)
        agree(result[gradients["x"]], pullback(jnp.asarray(seed))[0])


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "softmax", "log_softmax", "gelu", "layer_norm", "attention"])
def test_second_derivatives_agree_with_jax(name):
    """The gradient of the sum of squares of the gradient, by the same passes again."""
    g, wrt = model(name)
    for step in PREPARE:
        g = step(g)
    first = backward(g, {"y": "y_seed"}, wrt)
    graph = first.graph
    x = wrt[0]
    seeds = Tensor("x_seed", graph.tensors[x].shape)
    graph = replace(graph, inputs=(*graph.inputs, seeds))
    for step in (eliminate, stabilize, expand_reductions):
        graph = step(replace(graph, outputs=(first.gradients[x],)))
    second = backward(graph, {first.gradients[x]: "x_seed"}, wrt)
    graph = replace(second.graph, outputs=tuple(dict.fromkeys(second.gradients.values())))
    for step in IMPROVE:
        validate(graph)
        graph = step(graph)
    sizes = {d.name: 3 for d in g.dims if d.definition is None}
    values = values_of(g, sizes, 0)
    values["x_seed"] = np.random.default_rng(1).normal(size=values[x].shape)
    oracle = TABLE[name][2]
    arguments = [values[t] for t in wrt]

    def once(*moving):
        return jax.vjp(oracle, *moving)[1](jnp.asarray(values["y_seed"]))[0]

    expected = jax.vjp(once, *arguments)[1](jnp.asarray(values["x_seed"]))
    result = evaluate(graph, values)
    for t, e in zip(wrt, expected, strict=True):
        agree(result[second.gradients[t]], e)
