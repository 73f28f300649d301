"""What the generated float32 kernels compute is what the equations say: against the reference, in float64.

One row a function of the library, and one a model of this repository; values and gradients, at drawn points.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from chainrule.api.model import Model
from chainrule.compiler import derive
from chainrule.ir.formula import DType
from chainrule.optimize import eliminate
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.source import Source, read_source
from chainrule.train import recipe
from chainrule.views import point
from tests.derive.test_library_gradients import TABLE

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for folder in ("graphs", "examples") for path in (ROOT / folder).glob("*.graph"))
BOUND = 2e-5
"""Relative to the tensor's greatest element: sums of some hundred products, each within half an ulp of 6e-8."""


def of_library(name: str) -> Source:
    declarations, call, _, _ = TABLE[name]
    dims = sorted(set(re.findall(r"\b[nkm]\b", "".join(re.findall(r"\[.*?\]", declarations)))))
    lines = [f"dim {', '.join(dims)}", *declarations.split("\n    "), f"y = {call}", "loss = mean(y * y) + mean(y)"]
    return Source("".join(("model m():\n", *(f"    {line}\n" for line in lines))), f"{name}.graph")


def of_file(path: Path) -> Source:
    """A model as small as its recipe's quick run makes it."""
    return read_source(str(path), recipe.shortened(recipe.beside(path)).set)


SOURCES = {name: of_library(name) for name in sorted(TABLE)} | {str(path): of_file(ROOT / path) for path in FILES}


@pytest.mark.parametrize("name", SOURCES)
def test_generated_kernels_agree_with_the_equations(name):
    source = SOURCES[name]
    graph = derive(source, Options("predict", ("loss",))).written
    wrt = tuple(
        tensor.name for tensor in (*graph.inputs, *(p.tensor for p in graph.params)) if tensor.dtype is DType.FLOAT
    )
    compiled = derive(source, Options("gradient", wrt=wrt))
    rounded = {
        name: value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in point(compiled.written, "loss", seed=3).items()
    }
    # as defined, the gradients of a convolution range over more places than there is memory for
    wanted = evaluate(eliminate(compiled.derived), rounded, seed=0, step=0)
    model = Model(source)
    inputs = {tensor.name: rounded[tensor.name] for tensor in graph.inputs}
    model.gradients(wrt, **inputs)  # the one program that is compiled here
    model.params.update({name: rounded[name] for name in model.params})
    loss, gradients = model.gradients(wrt, **inputs)
    for tensor, found in {"loss": loss, **{compiled.gradients[name]: gradients[name] for name in wrt}}.items():
        scale = max(np.abs(wanted[tensor]).max(initial=0), 1e-3)
        np.testing.assert_allclose(found, wanted[tensor], rtol=0, atol=BOUND * scale, err_msg=tensor)
