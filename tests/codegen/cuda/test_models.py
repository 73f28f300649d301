"""Every model of this repository runs on a GPU: its kernels compute what the equations say, on the PTX interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.compiler import derive, program
from chainrule.ir.formula import DType
from chainrule.optimize import eliminate
from chainrule.options import Options
from chainrule.reference import evaluate, sizes_of
from chainrule.views import point
from tests.codegen.cuda.programs import ARCH, run_on_gpu
from tests.test_float32 import BOUND, SOURCES

MODELS = [name for name in SOURCES if name.endswith(".graph")]


def assert_agrees(name: str) -> None:
    """The loss, and its gradients by all parameters and float inputs, in float32."""
    source = SOURCES[name]
    graph = derive(source, Options("predict", ("loss",))).written
    floats = (*graph.inputs, *(p.tensor for p in graph.params))
    wrt = tuple(tensor.name for tensor in floats if tensor.dtype is DType.FLOAT)
    options = Options("gradient", wrt=wrt, target=f"cuda:{ARCH}")
    compiled = derive(source, options)
    values = {
        name: value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in point(compiled.written, "loss", seed=3).items()
    }
    wanted = evaluate(eliminate(compiled.derived), values, seed=0, step=0)
    made = program(compiled, options)
    sizes = sizes_of(compiled.graph, {name: value.shape for name, value in values.items()})
    free = {dim.name: sizes[dim.name] for dim in compiled.graph.dims if dim.definition is None}
    found = run_on_gpu(made, free, values, "float32", step=0)
    buffers = dict(made.outputs)
    for tensor in ("loss", *(compiled.gradients[name] for name in wrt)):
        scale = max(np.abs(wanted[tensor]).max(initial=0), 1e-3)
        np.testing.assert_allclose(found[buffers[tensor]], wanted[tensor], rtol=0, atol=BOUND * scale, err_msg=tensor)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_kernels_agree_with_the_equations(name):
    assert_agrees(name)
