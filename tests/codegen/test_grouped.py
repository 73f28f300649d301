"""Grouped convolutions as kernels: each group a tile's product, at the place of its channels."""

from __future__ import annotations

import pytest

from chainrule.compiler import derive
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.codegen.running import drawn, run_compiled
from tests.codegen.test_cpu_laws import assert_agrees, wanted

MODEL = """model m():
    dim batch
    input x[batch, {channels}, 6, 7]
    h = conv2d(relu(x), {out}, kernel = 3, stride = {stride}, pad = 1, groups = {groups})
    y = conv2d(tanh(h), 8, kernel = 1)
    loss = mean(y * y)
"""


@pytest.mark.parametrize(
    ("channels", "out", "groups", "stride", "element"),
    [(32, 32, 2, 1, "float32"), (16, 48, 4, 2, "float64"), (16, 16, 16, 1, "float64"), (8, 16, 8, 2, "float32")],
)
def test_kernels_of_groups_agree_with_the_reference(channels, out, groups, stride, element):
    text = MODEL.format(channels=channels, out=out, groups=groups, stride=stride)
    graph = derive(Source(text, "m.graph"), Options("gradient", wrt=("x", "h.conv2d.K", "y.conv2d.K"))).graph
    program = schedule(graph, training=False)
    values = {k: v.astype(element).astype(v.dtype) for k, v in drawn(graph, {"batch": 3}).items()}
    assert_agrees(run_compiled(program, {"batch": 3}, values, element), wanted(graph, values, program), element)
