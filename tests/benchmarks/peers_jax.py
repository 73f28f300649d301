"""JAX: the whole step under one jit, parameters on the device and donated; many steps as one lax.scan.

Dispatch is synchronous: a step whose loss is read at once gains nothing from a queue, and takes up to a third less
time without one (38 against 46 µs for the smallest row, 76 against 143 for the next).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import networks, ops_jax
from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import DECAY, Row, batches_of, params_of

FUNCTIONS = {
    "exp": jnp.exp,
    "tanh": jnp.tanh,
    "gelu": ops_jax.gelu,
    "sigmoid": jax.nn.sigmoid,
    "erf": jax.scipy.special.erf,
    "log": jnp.log,
}


def convert(value: Any) -> jax.Array:
    """Floats as they are, indices in the width that JAX counts in."""
    return jnp.array(value, jnp.float32 if value.dtype.kind == "f" else jnp.int32)


def descend(rate: float, state: Any, grads: Any) -> Any:
    """One step of SGD."""
    return jax.tree.map(lambda p, g: p - rate * g, state, grads)


def adam(rate: float, decay: float, state: Any, grads: Any) -> Any:
    """One step of Adam, Kingma and Ba 2015; with a decay, of AdamW, Loshchilov and Hutter 2019."""
    params, m, v, count = state
    count = count + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)

    def moved(p: Any, m: Any, v: Any) -> Any:
        return p * (1 - rate * decay) - rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

    return jax.tree.map(moved, params, m, v), m, v, count


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call, or all of them in one call."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if row.forward:
        function = jax.jit(FUNCTIONS[row.loss])
        return lambda x: float(np.asarray(function(x))[0]), calls_of(row, data, convert)
    loss_of = partial(getattr(networks, row.loss), ops_jax)
    params = {name: jnp.array(value) for name, value in params_of(data).items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    sgd, decay = row.optimizer == "sgd", DECAY if row.optimizer == "adamw" else 0.0
    state: Any = params if sgd else (params, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(()))

    def update(state: Any, batch: Any) -> Any:
        params = state if sgd else state[0]
        loss, grads = jax.value_and_grad(lambda p: loss_of(p, **batch))(params)
        return descend(row.rate, state, grads) if sgd else adam(row.rate, decay, state, grads), loss

    one = jax.jit(update, donate_argnums=0)
    many = jax.jit(lambda state, batches: jax.lax.scan(update, state, batches), donate_argnums=0)

    def step(**batch: jax.Array) -> float:
        nonlocal state
        state, loss = one(state, batch)
        return float(loss)

    def steps(**batches: jax.Array) -> np.ndarray:
        nonlocal state
        state, losses = many(state, batches)
        return np.asarray(losses)

    if row.inner > 1:
        return steps, [((), {name: convert(value) for name, value in batches_of(data).items()})]
    return step, calls_of(row, data, convert)
