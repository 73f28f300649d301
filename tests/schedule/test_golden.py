"""The loop trees that the rule makes, as text: read the diff before you regenerate them (``--force-regen``)."""

from __future__ import annotations

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from chainrule.ir.graph import Graph
from chainrule.ir.program_text import program_text
from chainrule.schedule import schedule
from tests.schedule.graphs import attention, convolution, cross_entropy, embedding, layer_norm, mlp

PROGRAMS: dict[str, tuple[Graph, int]] = {
    "mlp_small": (mlp(2, 16, 16, 2), 1),
    "mlp_middle": (mlp(64, 32, 32, 10), 4096),
    "mlp_large": (mlp(784, 256, 128, 10), 64),
    "cross_entropy": (cross_entropy(k=1024), 4096),
    "layer_norm": (layer_norm(k=512), 4096),
    "attention": (attention(h=4, t=64, d=32), 16),
    "embedding": (embedding(v=1000, j=64), 1024),
    "convolution": (convolution(c=16, o=16, h=14), 64),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_loop_tree_of(name: str, file_regression: FileRegressionFixture) -> None:
    graph, batch = PROGRAMS[name]
    program = schedule(graph, training=True, sizes={"batch": batch})
    file_regression.check(program_text(program), basename=name, extension=".txt")
