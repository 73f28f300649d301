"""Chainrule: the model is text, the step is one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chainrule as cr
from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.rows import RATE, Row

MODEL = Path(__file__).with_name("mlp.graph")
LAYERS = ("a.linear", "b.linear", "logits.linear")


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call, or all of them in one call."""
    names = ("inputs", "first", "second", "classes")
    model = cr.load(str(MODEL), **dict(zip(names, row.widths, strict=True)))
    step = model.compile(optimizer="sgd", rate=RATE, threads=threads)
    for k, layer in enumerate(LAYERS):
        step.params[f"{layer}.W"] = data[f"W{k}"]
        step.params[f"{layer}.b"] = data[f"b{k}"]
    if row.inner > 1:
        return step.run, [((row.inner,), {"x": data["x"], "label": data["label"]})]
    batches = zip(data["x"], data["label"], strict=True)
    return step, [((), {"x": x, "label": label}) for x, label in batches]
