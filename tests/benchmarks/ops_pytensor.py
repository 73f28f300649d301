"""What `networks` needs, as one would call it in PyTensor; convolutions its Numba mode does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

tanh, einsum = pt.tanh, pt.einsum


def relu(x: Any) -> Any:
    return pt.switch(x > 0, x, np.float32(0))


def gelu(x: Any) -> Any:
    return np.float32(0.5) * x * (1 + pt.erf(x * np.float32(0.5**0.5)))


def linear(x: Any, W: Any, b: Any) -> Any:
    return x @ W + b


def cross_entropy(z: Any, label: Any) -> Any:
    return -pt.special.log_softmax(z, axis=1)[pt.arange(z.shape[0]), label].mean(dtype="float32")


def softmax(x: Any) -> Any:
    return pt.special.softmax(x, axis=-1)


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    mean = x.mean(axis=-1, keepdims=True, dtype="float32")
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True, dtype="float32")
    return (x - mean) / pt.sqrt(var + np.float32(1e-5)) * gain + bias


def attention(q: Any, k: Any, v: Any) -> Any:
    time, width = q.type.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) * np.float32(width**-0.5)
    hidden = np.triu(np.full((time, time), -np.inf, np.float32), 1)
    return softmax(scores + hidden) @ v


def lstm(x: Any, W: Any, U: Any, b: Any) -> Any:
    def step(z: Any, h: Any, c: Any, turned: Any) -> tuple[Any, Any]:
        z = z + (h @ turned).reshape(z.shape)
        i, f, g, o = (z[:, k] for k in range(4))
        c = pt.sigmoid(f) * c + pt.sigmoid(i) * pt.tanh(g)
        return pt.sigmoid(o) * pt.tanh(c), c

    width = U.type.shape[0]
    start = pt.zeros((x.shape[0], width), dtype="float32")
    entering = pt.einsum("nti,igj->tngj", x, W) + b
    recurrent = U.reshape((width, 4 * width))
    (h, _), _ = pytensor.scan(step, [entering], [start, start], [recurrent])
    return h.swapaxes(0, 1)


def segment_sum(x: Any, group: Any, count: Any) -> Any:
    shape = (count, *x.shape[1:]) if x.ndim > 1 else (count,)
    return pt.inc_subtensor(pt.zeros(shape, dtype="float32")[group], x)


def ones_like(places: Any, x: Any) -> Any:
    return pt.ones((places.shape[0],), dtype="float32")


def gradient(f: Callable[[Any], Any], x: Any) -> Any:
    return pytensor.grad(f(x), x)
