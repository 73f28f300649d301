"""Chainrule: the model is text, the step is one call."""

from __future__ import annotations

from typing import Any

import llvmlite.binding  # noqa: F401 -- a step loads it, as the other peers' imports load all that they need
import numpy as np
import numpy.random  # this and the next likewise

import chainrule as cr
import chainrule.api.model
from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import Row, batches_of, params_of


def model_of(row: Row) -> Any:
    """The row's model; a forward row's is one line."""
    if not row.forward:
        return cr.load(row.model, **row.arguments)
    ((shape, _),) = row.inputs.values()
    x = cr.input("x", list(shape))
    return cr.Model(None, y=cr.formula(f"y[i] = {row.model}(x[i])", x=x))


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call, or all of them in one call."""
    model = model_of(row)
    if row.forward:

        def forward(x: Any) -> float:
            return float(model.predict(outputs=("y",), x=x, threads=threads)["y"][0])

        return forward, calls_of(row, data, np.asarray)
    step = model.compile(optimizer=row.optimizer, rate=row.rate, threads=threads)
    step.params.update(params_of(data))
    if row.inner > 1:
        return step.run, [((row.inner,), batches_of(data))]
    return step, calls_of(row, data, np.asarray)
