"""The library's recurrent layers in float64 against PyTorch, values and gradients, as they are compiled."""

from dataclasses import replace

import numpy as np
import pytest

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.lang import load_graph
from chainrule.optimize import specialize
from chainrule.reference import evaluate

torch = pytest.importorskip("torch")
SIZES = [(2, 5, 3, 4), (3, 1, 2, 1), (1, 2, 1, 2), (0, 3, 2, 2)]  # batch, time, inputs, outputs

HEAD = """
model m(out = 4, width = 3):
    dim batch, time >= 1
    input x[batch, time, width]
    input mask[batch, time]
    input start[batch, out]
    input cell[batch, out]
"""
TAIL = """
    input weight[batch, time, size_of_y]
    loss = sum[n, t, j] y[n, t, j] * weight[n, t, j]
"""


def joint(call, out, width, second=1):
    """The model's values and gradients, derived and optimized as they are for kernels."""
    text = HEAD + f"    y = {call}\n" + TAIL.replace("size_of_y", f"{second} * out")
    graph = load_graph(text, arguments={"out": out, "width": width})
    graph = run(replace(specialize(graph, training=True), outputs=("loss", "y")), PREPARE)
    wrt = [p.tensor.name for p in graph.params] + ["x"]
    wrt += [name for name in ("start", "cell") if graph.readers[name]]
    found = backward(graph, "loss", wrt)
    done = run(replace(found.graph, outputs=("loss", "y", *dict.fromkeys(found.gradients.values()))), IMPROVE)
    return done, found.gradients


def module(kind, values, prefix, out, width, bidirectional=False, relu=False):
    """PyTorch's layer with our weights: gate g of theirs is rows g·out to (g + 1)·out."""
    options = {"nonlinearity": "relu"} if relu else {}
    made = getattr(torch.nn, kind)(width, out, batch_first=True, bidirectional=bidirectional, **options).double()
    for own, suffix in zip(prefix, ("", "_reverse"), strict=False):
        for theirs, ours in (("weight_ih", "W"), ("weight_hh", "U"), ("bias_ih", "b"), ("bias_hh", "a")):
            value = values.get(f"{own}.{ours}")
            value = np.zeros_like(values[f"{own}.b"]) if value is None else value
            flat = np.moveaxis(value, 0, -1).reshape(-1, value.shape[0]) if theirs[0] == "w" else value.reshape(-1)
            getattr(made, f"{theirs}_l0{suffix}").data = torch.tensor(flat)
    return made


def ours(theirs, like):
    """One of their gradients in the shape of our parameter."""
    g = theirs.detach().numpy()
    if like.ndim == 1 or g.ndim == 1:
        return g.reshape(like.shape)
    return np.moveaxis(g.reshape(*like.shape[1:], like.shape[0]), -1, 0)


def values_of(graph, sizes, seed=0):
    batch, time, _, _ = sizes
    rng = np.random.default_rng(seed)
    known = {"batch": batch, "time": time}

    def drawn(tensor):
        return rng.normal(size=tuple(known[e.name] if e.is_Symbol else int(e) for e in tensor.shape))

    values = {t.name: drawn(t) for t in (*graph.inputs, *(p.tensor for p in graph.params))}
    if "mask" in values:
        lengths = rng.integers(1, time + 1, size=batch)
        values["mask"] = (np.arange(time) < lengths[:, None]).astype(float)
    return values


def close(found, expected):
    scale = max(np.abs(expected).max(), 1e-3) if expected.size else 1.0
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= 1e-8 * scale


def states(kind, values):
    """The states that PyTorch's layer starts from."""
    parts = [torch.tensor(values[name][None], requires_grad=True) for name in ("start", "cell") if name in values]
    if not parts:
        return None, []
    return (tuple(parts) if kind == "LSTM" else parts[0]), parts


PLAIN = {
    "rnn(x, out)": "RNN",
    "rnn(x, out, relu = true)": "RNN",
    "rnn(x, out, reverse = true)": "RNN",
    "rnn_from(x, start)": "RNN",
    "lstm(x, out)": "LSTM",
    "lstm_from(x, start, cell, reverse = true)": "LSTM",
    "gru(x, out)": "GRU",
    "gru(x, out, reverse = true)": "GRU",
    "gru_from(x, start)": "GRU",
}


@pytest.mark.parametrize("call", PLAIN)
def test_a_layer_and_its_gradients_are_those_of_pytorch(call):
    kind, layer = PLAIN[call], call.partition("(")[0]
    for sizes in SIZES:
        _, _, width, out = sizes
        graph, gradients = joint(call, out, width)
        values = values_of(graph, sizes)
        result = evaluate(graph, values)
        net = module(kind, values, [f"y.{layer}"], out, width, relu="relu" in call)
        x, (start, parts) = torch.tensor(values["x"], requires_grad=True), states(kind, values)
        back = "reverse" in call
        y = net(x.flip(1) if back else x, start)[0]
        y = y.flip(1) if back else y
        (y * torch.tensor(values["weight"])).sum().backward()
        close(result["y"], y.detach().numpy())
        close(result[gradients["x"]], x.grad.numpy())
        for name, part in zip(("start", "cell"), parts, strict=False):
            close(result[gradients[name]], part.grad[0].numpy())
        for ours_, theirs in (("W", "weight_ih"), ("U", "weight_hh"), ("b", "bias_ih"), ("a", "bias_hh")):
            name = f"y.{layer}.{ours_}"
            if name in values:
                close(result[gradients[name]], ours(getattr(net, f"{theirs}_l0").grad, values[name]))


MASKED = {
    "masked_bidirectional_rnn(x, mask, out, relu = true)": "RNN",
    "masked_bidirectional_lstm(x, mask, out)": "LSTM",
    "masked_bidirectional_gru(x, mask, out)": "GRU",
    "bidirectional_rnn(x, out)": "RNN",
    "bidirectional_lstm(x, out)": "LSTM",
    "bidirectional_gru(x, out)": "GRU",
}


@pytest.mark.parametrize("call", MASKED)
def test_a_masked_layer_of_both_directions_is_pytorchs_on_packed_sequences(call):
    """Where a sequence is over PyTorch gives 0, and we hold the state: both are compared inside the sequences."""
    kind, layer = MASKED[call], call.partition("(")[0]
    inner = layer.replace("bidirectional_", "")
    sizes = (3, 4, 2, 3)
    graph, gradients = joint(call, 3, 2, second=2)
    values = values_of(graph, sizes)
    values.setdefault("mask", np.ones((3, 4)))
    values["weight"] *= values["mask"][:, :, None]
    result = evaluate(graph, {k: v for k, v in values.items() if k in graph.tensors})
    prefix = [f"y.{layer}.{part}.{inner}" for part in "fb"]
    net = module(kind, values, prefix, 3, 2, bidirectional=True, relu="relu" in call)
    x = torch.tensor(values["x"], requires_grad=True)
    lengths = torch.tensor(values["mask"].sum(1).astype(int))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(net(packed)[0], batch_first=True, total_length=4)
    (y * torch.tensor(values["weight"])).sum().backward()
    close(result["y"] * values["mask"][:, :, None], y.detach().numpy())
    close(result[gradients["x"]], x.grad.numpy())
    for own, suffix in zip(prefix, ("", "_reverse"), strict=True):
        name = f"{own}.U"
        close(result[gradients[name]], ours(getattr(net, f"weight_hh_l0{suffix}").grad, values[name]))


def test_a_masked_layer_holds_the_last_valid_state():
    graph, _ = joint("masked_lstm(x, mask, out)", 3, 2)
    values = values_of(graph, (3, 4, 2, 3))
    y = evaluate(graph, values)["y"]
    last = values["mask"].sum(1).astype(int) - 1
    np.testing.assert_array_equal(y[:, -1], y[np.arange(3), last])


@pytest.mark.parametrize("call", ["masked_gru(x, mask, out)", "lstm(x, out)", "rnn_from(x, start)"])
def test_second_derivatives_of_a_layer_are_slopes_of_the_first(call):
    text = HEAD + f"    y = {call}\n" + TAIL.replace("size_of_y", "out")
    graph = load_graph(text, arguments={"out": 3, "width": 2})
    graph = run(replace(specialize(graph, training=True), outputs=("loss",)), PREPARE)
    weight = next(p.tensor for p in graph.params if p.tensor.name.endswith(".U"))
    first = backward(graph, "loss", [weight.name])
    u_bar = first.gradients[weight.name]
    once = run(replace(first.graph, outputs=(u_bar,)), (*IMPROVE, *PREPARE))
    once = replace(once, inputs=(*once.inputs, replace(weight, name="v")))
    second = backward(once, {u_bar: "v"}, [weight.name, "x"])
    twice = run(replace(second.graph, outputs=(*once.outputs, *second.gradients.values())), IMPROVE)
    rng = np.random.default_rng(3)
    values = values_of(once, (2, 3, 2, 3))
    result = evaluate(twice, values)
    for name in (weight.name, "x"):
        along = rng.normal(size=values[name].shape)
        ends = [evaluate(once, {**values, name: values[name] + e * along})[u_bar] for e in (1e-5, -1e-5)]
        slope = np.sum(values["v"] * (ends[0] - ends[1])) / 2e-5
        np.testing.assert_allclose(np.sum(result[second.gradients[name]] * along), slope, rtol=1e-6)


@pytest.mark.parametrize("reverse", ["false", "true"])
@pytest.mark.parametrize("kind", ["sum", "product"])
def test_cumulative_sums_and_products_are_those_of_pytorch_at_zeros_too(kind, reverse):
    text = f"""
model m:
    dim n, k
    input x[n, k]
    input weight[n, k]
    y = cumulative_{kind}(x, reverse = {reverse})
    loss = sum[i, j] y[i, j] * weight[i, j]
"""
    graph = run(replace(load_graph(text), outputs=("loss", "y")), PREPARE)
    found = backward(graph, "loss", ["x"])
    graph = run(replace(found.graph, outputs=("loss", "y", *found.gradients.values())), IMPROVE)
    rng = np.random.default_rng(0)
    for shape in ((2, 5), (1, 1), (3, 0), (0, 2)):
        values = {"x": rng.normal(size=shape), "weight": rng.normal(size=shape)}
        values["x"][:, 1:4:2] = 0
        x = torch.tensor(values["x"], requires_grad=True)
        cumulative = torch.cumsum if kind == "sum" else torch.cumprod
        y = cumulative(x.flip(1), 1).flip(1) if reverse == "true" else cumulative(x, 1)
        (y * torch.tensor(values["weight"])).sum().backward()
        result = evaluate(graph, values)
        close(result["y"], y.detach().numpy())
        close(result[found.gradients["x"]], x.grad.numpy())
