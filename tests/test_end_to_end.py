"""The whole pipeline keeps its promises: what a step computes is what its equations say, bit by bit where it must.

Models, batches and optimizers are drawn. Three oracles judge: the reference evaluator on the joint graph as it was
derived, before any optimization; JAX with the optimizers' rules written by hand; and the step itself, run otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chainrule.api.model import Model
from chainrule.compiler import derive
from chainrule.options import Options
from chainrule.reference import evaluate, updated
from chainrule.source import Source

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

# an example compiles for seconds: a failing one is shown as it was drawn
QUICK = {"phases": [Phase.explicit, Phase.generate]}
BOUNDS = {"float32": 3e-4, "float64": 1e-9}  # relative to the tensor's greatest element; the steps add up

LOSSES = {
    "label[batch] : index 3": "mean(cross_entropy(y, label))",
    "target[batch, 3]": "mean(mean_squared_error(y, target))",
    "half[batch, 3]": "mean(huber(y, half, delta = 0.5))",
    "chance[batch, 3]": "mean(binary_cross_entropy(y, chance))",
}
OPTIMIZERS = {
    "sgd": {"rate": 0.1},
    "momentum": {"rate": 0.05, "beta": 0.8},
    "nesterov": {"rate": 0.05},
    "adam": {"rate": 0.01, "eps": 1e-4},
    "adamw": {"rate": 0.01, "eps": 1e-4, "decay": 0.1},
}


@dataclass(frozen=True)
class Network:
    """A drawn model: its text and how it is trained."""

    text: str
    optimizer: str
    arguments: tuple[tuple[str, float], ...]

    @property
    def model(self) -> Model:
        return Model(Source(self.text, "drawn.graph"))

    def step(self, dtype, **more):
        return self.model.compile(self.optimizer, dtype=dtype, seed=3, **dict(self.arguments), **more)


@st.composite
def networks(draw):
    widths = draw(st.lists(st.sampled_from([1, 2, 5, 17, 40]), max_size=2))
    activation = draw(st.sampled_from(["tanh", "relu", "sigmoid", "gelu", "silu", "softplus", "elu", "leaky_relu"]))
    declared, loss = draw(st.sampled_from(sorted(LOSSES.items())))
    lines = ["dim batch", f"input x[batch, {draw(st.sampled_from([1, 4, 20]))}]", f"input {declared}"]
    before = "x"
    for k, width in enumerate(widths):
        lines.append(f"h{k} = {activation}(linear({before}, {width}))")
        before = f"h{k}"
    if draw(st.booleans()):
        lines.append(f"d = dropout({before}, rate = 0.3)")
        before = "d"
    if draw(st.booleans()):  # a running mean, as batch normalization keeps one
        lines += [
            "state seen = 0",
            f"seen <- 0.9 * seen + 0.1 * sum({before})",
            f"c = {before} * (1 + 0.01 * tanh(seen))",
        ]
        before = "c"
    lines += [f"y = linear({before}, 3)", f"loss = {loss}"]
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    more = draw(st.sampled_from([{}, {"decay": 0.01}, {"clip": 0.05}, {"clip": 0.05, "decay": 0.01}]))
    text = "".join(("model drawn:\n", *(f"    {line}\n" for line in lines)))
    return Network(text, optimizer, tuple({**OPTIMIZERS[optimizer], **more}.items()))


def batch_of(network: Network, size: int, seed: int = 0):
    """Inputs for a drawn model."""
    rng = np.random.default_rng(seed)
    width = int(network.text.split("input x[batch, ")[1].split("]")[0])
    kinds = {
        "label": lambda: rng.integers(0, 3, size),
        "target": lambda: rng.normal(size=(size, 3)),
        "half": lambda: rng.normal(size=(size, 3)),
        "chance": lambda: rng.uniform(size=(size, 3)),
    }
    named = next(name for name in kinds if f"input {name}[" in network.text)
    return {"x": rng.normal(size=(size, width)), named: kinds[named]()}


def assert_near(found, expected, dtype, what=""):
    expected = np.asarray(expected, np.float64)
    scale = max(np.max(np.abs(expected[np.isfinite(expected)]), initial=0), 1e-2)
    np.testing.assert_allclose(found, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype] * scale, err_msg=what)


def by_reference(network: Network, stores, batches):
    """Losses, and what params and states hold after one step a batch, by the graph as derived, in float64."""
    options = Options("train", optimizer=network.optimizer, arguments=tuple(sorted(network.arguments)))
    graph = derive(network.model.source, options).derived
    losses = []
    for k, batch in enumerate(batches):
        with np.errstate(all="ignore"):
            result = evaluate(graph, {**stores, **batch}, seed=3, step=k + 1)
        losses.append(result["loss"])
        stores = stores | updated(graph, result)
    return losses, stores


@settings(max_examples=12, **QUICK)
@given(network=networks(), sizes=st.lists(st.sampled_from([0, 1, 2, 7, 33, 64]), min_size=1, max_size=3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_do_what_the_derived_equations_say(dtype, network, sizes):
    step = network.step(dtype)
    batches = [batch_of(network, size, seed) for seed, size in enumerate(sizes)]
    stores = {name: np.float64(value) for name, value in {**step.params, **step.states}.items()}
    losses, wanted = by_reference(network, stores, batches)
    for batch, expected in zip(batches, losses, strict=True):
        assert_near(step(**batch), expected, dtype, "loss")
    for name, value in {**step.params, **step.states}.items():
        assert_near(value, wanted[name], dtype, name)


@settings(max_examples=4, **QUICK)
@given(network=networks())
def test_neither_threads_nor_calls_change_a_bit(network):
    batches = [batch_of(network, 70, seed) for seed in range(4)]
    single, threaded, together = network.step("float32", threads=1), network.step("float32", threads=2), None
    losses = [single(**batch) for batch in batches]
    assert [threaded(**batch) for batch in batches] == losses
    together = network.step("float32", threads=2)
    found = together.run(4, **{name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
    assert found.tolist() == [float(loss) for loss in losses]
    for other in (threaded, together):
        for name, value in {**single.params, **single.states}.items():
            mine = {**other.params, **other.states}[name]
            assert mine.tobytes() == value.tobytes(), name


@settings(max_examples=4, **QUICK)
@given(network=networks())
def test_predictions_are_those_of_eval_mode(network):
    step, batch = network.step("float64"), batch_of(network, 6)
    step(**batch)
    found = step.predict(outputs=["y", "loss"], **batch)
    graph = derive(network.model.source, Options("predict", ("y", "loss"))).written
    wanted = evaluate(graph, {**step.params, **step.states, **batch}, training=False)
    assert_near(found["y"], wanted["y"], "float64")
    assert_near(found["loss"], wanted["loss"], "float64")
    if "dropout" in network.text:  # nothing is drawn, and nothing is updated
        assert found["y"].tobytes() == step.predict(outputs=["y", "loss"], **batch)["y"].tobytes()
    assert step.steps == 1


# ---------------------------------------------------------------- JAX, and the papers' rules by hand

PERCEPTRON = """
model perceptron(hidden = 12):
    dim batch
    input x[batch, 6]
    input label[batch] : index 4
    h      = tanh(linear(x, hidden))
    logits = linear(h, 4)
    loss   = mean(cross_entropy(logits, label))
"""


def loss_of(params, x, label):
    h = jnp.tanh(x @ params["h.linear.W"] + params["h.linear.b"])
    logits = h @ params["logits.linear.W"] + params["logits.linear.b"]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, label[:, None], 1)[:, 0])


def sgd(w, g, m, v, step, rate=0.1):
    return w - rate * g, m, v


def momentum(w, g, m, v, step, rate=0.05, beta=0.8):
    m = beta * m + g
    return w - rate * m, m, v


def adam(w, g, m, v, step, rate=0.01, eps=1e-4, decay=0.0):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    down = rate * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.999**step)) + eps)
    return w * (1 - rate * decay) - down, m, v


RULES = {"sgd": sgd, "momentum": momentum, "adam": adam, "adamw": lambda *a: adam(*a, decay=0.1)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", RULES)
def test_training_agrees_with_jax(optimizer, dtype):
    step = Model(Source(PERCEPTRON, "perceptron.graph")).compile(
        optimizer, dtype=dtype, seed=1, **OPTIMIZERS[optimizer]
    )
    params = {name: jnp.float64(value) for name, value in step.params.items()}
    m = {name: jnp.zeros_like(value) for name, value in params.items()}
    v = dict(m)
    for k in range(5):
        rng = np.random.default_rng(k)
        x, label = rng.normal(size=(16 + k, 6)), rng.integers(0, 4, 16 + k)
        loss, gradients = jax.value_and_grad(loss_of)(params, x, label)
        assert_near(step(x=x, label=label), loss, dtype, "loss")
        for name, g in gradients.items():
            params[name], m[name], v[name] = RULES[optimizer](params[name], g, m[name], v[name], k + 1)
    for name, value in params.items():
        assert_near(step.params[name], value, dtype, name)


# ---------------------------------------------------------------- second derivatives

TWICE = """
model twice(hidden = 8):
    dim batch
    input x[batch, 3]
    input target[batch, 2]
    {}
    h    = tanh(linear(x, hidden))
    y    = linear(h, 2)
    fit  = mean(mean_squared_error(y, target))
"""

PENALISED = (
    TWICE.format("")
    + """\
    slope = gradient(fit, x)
    loss = fit + 0.3 * sum(slope^2)
"""
)

ALONG = (
    TWICE.format("input v[3, hidden]\n    param W[3, hidden] ~ glorot_uniform")
    .replace("linear(x, hidden)", "sum[i] x[n, i] * W[i, j]")
    .replace("h    = tanh(", "h[n, j] = tanh(")
    + """\
    g = gradient(fit, W)
    along = sum(g * v)
    output Hv = gradient(along, W)
    loss = fit
"""
)


def fit_of(params, x, target):
    h = jnp.tanh(x @ params["h.linear.W"] + params["h.linear.b"])
    return jnp.mean((h @ params["y.linear.W"] + params["y.linear.b"] - target) ** 2)


def penalised_of(params, x, target):
    return fit_of(params, x, target) + 0.3 * jnp.sum(jax.grad(fit_of, argnums=1)(params, x, target) ** 2)


def test_a_penalty_on_a_gradient_trains_as_in_jax():
    step = Model(Source(PENALISED, "twice.graph")).compile("sgd", rate=0.1, dtype="float64", seed=2)
    params = {name: jnp.asarray(value) for name, value in step.params.items()}
    for k in range(3):
        rng = np.random.default_rng(k)
        x, target = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
        loss, gradients = jax.value_and_grad(penalised_of)(params, x, target)
        assert_near(step(x=x, target=target), loss, "float64", "loss")
        params = {name: value - 0.1 * gradients[name] for name, value in params.items()}
    for name, value in params.items():
        assert_near(step.params[name], value, "float64", name)


def test_a_hessian_times_a_vector_agrees_with_jax():
    model = Model(Source(ALONG, "twice.graph"))
    rng = np.random.default_rng(0)
    x, target, v = rng.normal(size=(7, 3)), rng.normal(size=(7, 2)), rng.normal(size=(3, 8))
    found = model.predict(outputs=["Hv"], dtype="float64", x=x, target=target, v=v)["Hv"]
    p = dict(model.store("float64").params)

    def fit(W):
        return jnp.mean((jnp.tanh(x @ W) @ p["y.linear.W"] + p["y.linear.b"] - target) ** 2)

    expected = jax.jvp(jax.grad(fit), (p["W"],), (v,))[1]
    assert_near(found, expected, "float64")
