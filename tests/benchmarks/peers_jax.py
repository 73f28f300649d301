"""JAX: the whole step under one jit, parameters on the device and donated; many steps as one lax.scan.

Dispatch is synchronous: a step whose loss is read at once gains nothing from a queue, and takes up to a third less
time without one (38 against 46 µs for the smallest row, 76 against 143 for the next).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.rows import RATE, Row

Params = tuple[tuple[jax.Array, jax.Array], ...]


def loss_of(params: Params, x: jax.Array, label: jax.Array) -> jax.Array:
    """Mean cross-entropy of the perceptron."""
    h = x
    for W, b in params[:-1]:
        h = jax.nn.relu(h @ W + b)
    W, b = params[-1]
    z = h @ W + b
    picked = jnp.take_along_axis(z, label[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - picked)


def update(params: Params, batch: tuple[jax.Array, jax.Array]) -> tuple[Params, jax.Array]:
    """One step of SGD."""
    loss, grads = jax.value_and_grad(loss_of)(params, *batch)
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads), loss


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call, or all of them in one call."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    state = tuple((jnp.array(data[f"W{k}"]), jnp.array(data[f"b{k}"])) for k in range(3))
    x, label = jnp.array(data["x"]), jnp.array(data["label"], jnp.int32)
    one = jax.jit(update, donate_argnums=0)
    many = jax.jit(lambda params, batches: jax.lax.scan(update, params, batches), donate_argnums=0)

    def step(batch: tuple[jax.Array, jax.Array]) -> float:
        nonlocal state
        state, loss = one(state, batch)
        return float(loss)

    def steps(batches: tuple[jax.Array, jax.Array]) -> np.ndarray:
        nonlocal state
        state, losses = many(state, batches)
        return np.asarray(losses)

    if row.inner > 1:
        return steps, [(((x, label),), {})]
    return step, [(((x[k], label[k]),), {}) for k in range(len(x))]
