"""PyTensor: the step as one function compiled by Numba, parameters shared and updated; many steps as a scan."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from tests.benchmarks import networks, ops_pytensor
from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import Row, batches_of, params_of

FUNCTIONS = {
    "exp": pt.exp,
    "tanh": pt.tanh,
    "gelu": ops_pytensor.gelu,
    "sigmoid": pt.sigmoid,
    "erf": pt.erf,
    "log": pt.log,
}


def convert(value: Any) -> np.ndarray:
    """Floats as they are, indices as int64."""
    return np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int64)


def variable(name: str, value: np.ndarray) -> Any:
    """An input of a known shape."""
    return pt.tensor(name, dtype=convert(value).dtype.name, shape=value.shape)


def descended(rate: float, params: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    """One step of SGD."""
    return {name: p - np.float32(rate) * grads[name] for name, p in params.items()}


def adam(rate: float, shared: dict[str, Any], grads: dict[str, Any]) -> list[tuple[Any, Any]]:
    """One step of Adam, Kingma and Ba 2015."""
    one, count = np.float32(1), pytensor.shared(np.float32(0), name="count")
    updates, t = [(count, count + one)], count + one
    for name, p in shared.items():
        m, v = (pytensor.shared(np.zeros_like(p.get_value()), shape=p.type.shape) for _ in range(2))
        m2 = np.float32(0.9) * m + np.float32(0.1) * grads[name]
        v2 = np.float32(0.999) * v + np.float32(0.001) * grads[name] ** 2
        size = pt.sqrt(v2 / (one - np.float32(0.999) ** t)) + np.float32(1e-8)
        updates += [(m, m2), (v, v2), (p, p - np.float32(rate) * (m2 / (one - np.float32(0.9) ** t)) / size)]
    return updates


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call, or all of them in one call."""
    batches = batches_of(data)
    if row.forward:
        x = variable("x", batches["x"][0])
        function = pytensor.function([x], FUNCTIONS[row.loss](x), mode="NUMBA")
        return lambda x: float(function(x)[0]), calls_of(row, data, convert)
    loss_of = partial(getattr(networks, row.loss), ops_pytensor)
    shared = {name: pytensor.shared(convert(v), name, shape=v.shape) for name, v in params_of(data).items()}

    def derived(params: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        loss = loss_of(params, **batch)
        grads = pytensor.grad(loss, list(params.values()))
        return loss, {name: g.astype("float32") for name, g in zip(params, grads, strict=True)}

    if row.inner > 1:
        names, given = list(batches), {name: variable(name, value) for name, value in batches.items()}

        def body(*values: Any) -> tuple[Any, ...]:
            batch = dict(zip(names, values[: len(names)], strict=True))
            params = dict(zip(shared, values[len(names) :], strict=True))
            loss, grads = derived(params, batch)
            return (*descended(row.rate, params, grads).values(), loss)

        found, _ = pytensor.scan(body, list(given.values()), [*shared.values(), None])
        updates = [(p, values[-1]) for p, values in zip(shared.values(), found[:-1], strict=True)]
        many = pytensor.function(list(given.values()), found[-1], updates=updates, mode="NUMBA")
        return lambda **batch: many(**batch), [((), {name: convert(value) for name, value in batches.items()})]
    inputs = {name: variable(name, value[0]) for name, value in batches.items()}
    loss, grads = derived(shared, inputs)
    if row.optimizer == "adam":
        updates = adam(row.rate, shared, grads)
    else:
        updates = [(shared[name], value) for name, value in descended(row.rate, shared, grads).items()]
    function = pytensor.function(list(inputs.values()), loss, updates=updates, mode="NUMBA")
    return lambda **batch: float(function(**batch)), calls_of(row, data, convert)
