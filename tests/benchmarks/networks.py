"""The rows' losses, written once over the few operations that the peers have (`ops_torch`, `ops_jax`, `ops_pytensor`).

Parameters go by the names and shapes that they have in Chainrule's models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Params = Mapping[str, Any]
Loss = Callable[..., Any]


def linear(ops: Any, p: Params, name: str, x: Any) -> Any:
    return ops.linear(x, p[f"{name}.W"], p[f"{name}.b"])


def mlp(ops: Any, p: Params, x: Any, label: Any) -> Any:
    h = ops.relu(linear(ops, p, "a.linear", x))
    h = ops.relu(linear(ops, p, "b.linear", h))
    return ops.cross_entropy(linear(ops, p, "logits.linear", h), label)


def lenet(ops: Any, p: Params, x: Any, label: Any) -> Any:
    a = ops.max_pool(ops.relu(ops.conv(x, p["a.conv2d.K"], 1, 2, p["a.conv2d.b"])))
    b = ops.max_pool(ops.relu(ops.conv(a, p["b.conv2d.K"], 1, 0, p["b.conv2d.b"])))
    h = b.reshape(len(b), -1)
    for name in ("c.linear", "d.linear"):
        h = ops.relu(linear(ops, p, name, h))
    return ops.cross_entropy(linear(ops, p, "e.linear", h), label)


def resnet(ops: Any, p: Params, x: Any, label: Any) -> Any:
    def normed(y: Any, name: str) -> Any:
        return ops.batch_norm(y, p[f"{name}.gain"], p[f"{name}.bias"])

    def block(x: Any, name: str, stride: int) -> Any:
        y = ops.relu(normed(ops.conv(x, p[f"{name}.y.conv2d.K"], stride, 1), f"{name}.y.batch_norm"))
        y = normed(ops.conv(y, p[f"{name}.y.conv2d_2.K"], 1, 1), f"{name}.y.batch_norm_2")
        if stride > 1:
            x = normed(ops.conv(x, p[f"{name}.s.conv2d.K"], stride, 0), f"{name}.s.batch_norm")
        return ops.relu(y + x)

    side = int(x.shape[1] ** 0.5)
    y = ops.relu(normed(ops.conv(x.reshape(-1, 1, side, side), p["y.conv2d.K"], 1, 1), "y.batch_norm"))
    for name in ("y.0.block", "y.1.block", "y.2.block"):
        y = block(y, name, 1)
    y = block(y, "y.block", 2)
    for name in ("y.0.block_2", "y.1.block_2"):
        y = block(y, name, 1)
    y = block(y, "y.block_2", 2)
    for name in ("y.0.block_3", "y.1.block_3"):
        y = block(y, name, 1)
    return ops.cross_entropy(linear(ops, p, "logits.linear", y.mean((2, 3))), label)


def convolution(ops: Any, p: Params) -> Any:
    y = ops.conv(p["x"], p["y.conv2d.K"], 1, p["y.conv2d.K"].shape[2] // 2)
    return (y * y).mean()


def lstm2(ops: Any, p: Params, x: Any, y: Any) -> Any:
    for name in ("a.lstm", "b.lstm"):
        x = ops.lstm(x, p[f"{name}.W"], p[f"{name}.U"], p[f"{name}.b"])
    return ((x - y) ** 2).mean()


def gpt(ops: Any, p: Params, token: Any, next: Any) -> Any:
    x = p["e.embedding.table"][token] + p["P"][: token.shape[1]]
    depth = sum(name.endswith("multi_head.Q") for name in p)
    for k in range(depth):
        y = ops.layer_norm(x, p[f"x.{k}.layer_norm.gain"], p[f"x.{k}.layer_norm.bias"])
        q, key, v = (ops.einsum("ntc,chd->nhtd", y, p[f"x.{k}.multi_head.{name}"]) for name in "QKV")
        x = x + ops.einsum("nhtd,hdo->nto", ops.attention(q, key, v), p[f"x.{k}.multi_head.O"])
        y = ops.layer_norm(x, p[f"x.{k}.layer_norm_2.gain"], p[f"x.{k}.layer_norm_2.bias"])
        x = x + linear(ops, p, f"x.{k}.linear_2", ops.gelu(linear(ops, p, f"x.{k}.linear", y)))
    z = linear(ops, p, "logits.linear", ops.layer_norm(x, p["logits.layer_norm.gain"], p["logits.layer_norm.bias"]))
    return ops.cross_entropy(z.reshape(-1, z.shape[-1]), next.reshape(-1))


def attend(ops: Any, p: Params) -> Any:
    y = ops.attention(p["q"], p["k"], p["v"])
    return (y * y).mean()


def softmax_rows(ops: Any, p: Params, w: Any) -> Any:
    return ((ops.softmax(p["x"]) - w) ** 2).sum() / w.shape[0]


def layer_norm_rows(ops: Any, p: Params, w: Any) -> Any:
    y = ops.layer_norm(p["x"], p["y.layer_norm.gain"], p["y.layer_norm.bias"])
    return ((y - w) ** 2).sum() / w.shape[0]


def cross_entropy_rows(ops: Any, p: Params, label: Any) -> Any:
    return ops.cross_entropy(p["x"], label)


def graph_convolution(ops: Any, p: Params, x: Any, source: Any, target: Any) -> Any:
    scale = 1 / (1 + ops.segment_sum(ops.ones_like(source, x), target, x.shape[0])) ** 0.5
    s = (x @ p["h.gcn.W"]) * scale[:, None]
    h = scale[:, None] * (ops.segment_sum(s[source], target, x.shape[0]) + s) + p["h.gcn.b"]
    return (h * h).mean()


def descent(ops: Any, p: Params, g: Any) -> Any:
    return (p["w"] * g).sum()


def deep(ops: Any, p: Params, x: Any, label: Any) -> Any:
    depth = sum(name.startswith("h.") and name.endswith(".W") for name in p)
    for k in range(depth):
        x = x + ops.tanh(linear(ops, p, f"h.{k}.linear", x)) / depth
    return ops.cross_entropy(linear(ops, p, "z.linear", x), label)


def hessian_product(ops: Any, p: Params, x: Any, label: Any, v: Any) -> Any:
    def inner(W: Any) -> Any:
        return ops.cross_entropy(ops.tanh(x @ W) @ p["V"], label)

    return (ops.gradient(inner, p["W"]) * v).sum()
