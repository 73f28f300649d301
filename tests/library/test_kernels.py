"""Operations of the library through real kernels, in both types: several in one program, against the equations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from chainrule.api.model import Model
from chainrule.compiler import derive
from chainrule.ir.formula import DType
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.source import Source
from chainrule.views import point

BOUNDS = {"float32": 3e-5, "float64": 1e-10}
TEXTS = {
    "pictures": """
    dim n
    input x[n, 4, 6, 6]
    a = conv2d(x, 4, 3, stride = 2, pad = 1, groups = 2, bias = false)
    b = group_norm(a, 2)
    c = conv_transpose2d(b, 2, 3, stride = 2, pad = 1, extra = 1)
    d = concat_channels(c, max_pool2d(upsample(x), 3, stride = 2, pad = 1))
    e = resize_bilinear(d, 4, 5)
    f = adaptive_avg_pool2d(e, 3, 2)
    y = flatten(pixel_unshuffle(pad2d(f, 1, 0), 2))
    """,
    "sequences": """
    dim n; dim t >= 3
    input x[n, t, 4]
    a = rotary(rms_norm(x))
    c = concat_time(a, x)
    y = roll(pad_reflect(transpose(c), 1, 2), 2)
    """,
    "graph": """
    dim v >= 1; dim e
    input x[v, 3]
    input source[e] : index v
    input target[e] : index v
    a = gat(x, source, target, 2, heads = 2)
    b = gcn(l2_normalize(a), source, target, 3)
    c = take_rows(b, source)
    y = segment_max(c, target, v)
    z[k < 3] = max[v] (if y[v, k] > -inf then y[v, k] else 0)
    """,
}


@cache
def prepared(name):
    lines = [line.strip() for line in TEXTS[name].replace(";", "\n").strip().split("\n")]
    last = lines[-1].split("=")[0].split("[")[0].strip()
    lines.append(f"loss = mean({last} * {last}) + mean({last})")
    source = Source("model m:\n" + "".join(f"    {line}\n" for line in lines), f"{name}.graph")
    graph = derive(source, Options("predict", ("loss",))).written
    given = (*graph.inputs, *(p.tensor for p in graph.params))
    wrt = tuple(t.name for t in given if t.dtype is DType.FLOAT)
    compiled = derive(source, Options("gradient", wrt=wrt))
    rounded = {
        name: value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in point(compiled.written, "loss", seed=3).items()
    }
    return source, graph, wrt, compiled, rounded, evaluate(compiled.derived, rounded)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", TEXTS)
def test_kernels_agree_with_the_equations(name, dtype):
    source, graph, wrt, compiled, values, wanted = prepared(name)
    model = Model(source)
    model.dtype = dtype
    inputs = {tensor.name: values[tensor.name] for tensor in graph.inputs}
    model.params.update({p.tensor.name: values[p.tensor.name] for p in graph.params})
    loss, gradients = model.gradients(wrt, **inputs)
    for tensor, found in {"loss": loss, **{compiled.gradients[t]: gradients[t] for t in wrt}}.items():
        scale = max(np.abs(wanted[tensor]).max(initial=0), 1e-3)
        np.testing.assert_allclose(found, wanted[tensor], rtol=0, atol=BOUNDS[dtype] * scale, err_msg=tensor)
