"""What `networks` needs, as one would call it in JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

relu, tanh, einsum = jax.nn.relu, jnp.tanh, jnp.einsum


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def linear(x: Array, W: Array, b: Array) -> Array:
    return x @ W + b


def cross_entropy(z: Array, label: Array) -> Array:
    picked = jnp.take_along_axis(z, label[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - picked)


def softmax(x: Array) -> Array:
    return jax.nn.softmax(x, axis=-1)


def layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gain + bias


def batch_norm(x: Array, gain: Array, bias: Array) -> Array:
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gain[:, None, None] + bias[:, None, None]


def conv(x: Array, K: Array, stride: int, pad: int, b: Array | None = None) -> Array:
    y = jax.lax.conv_general_dilated(x, K, (stride, stride), [(pad, pad), (pad, pad)])
    return y if b is None else y + b[:, None, None]


def max_pool(x: Array) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def attention(q: Array, k: Array, v: Array) -> Array:
    turned = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))  # its order is batch, time, head
    return jnp.swapaxes(jax.nn.dot_product_attention(*turned, is_causal=True), 1, 2)


def lstm(x: Array, W: Array, U: Array, b: Array) -> Array:
    def step(carry: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        z = z + jnp.einsum("nk,kgj->ngj", h, U)
        i, f, g, o = (z[:, k] for k in range(4))
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((len(x), len(U)), x.dtype)
    _, h = jax.lax.scan(step, (start, start), jnp.einsum("nti,igj->tngj", x, W) + b)
    return jnp.swapaxes(h, 0, 1)


def segment_sum(x: Array, group: Array, count: int) -> Array:
    return jax.ops.segment_sum(x, group, count)


def ones_like(places: Array, x: Array) -> Array:
    return jnp.ones(len(places), x.dtype)


def gradient(f: Callable[[Array], Array], x: Array) -> Array:
    return jax.grad(f)(x)
