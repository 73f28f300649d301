"""Equal kernels are built once, and renamed: the program is what it would be if each were built by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chainrule import compiler
from chainrule.ir.program import Program, leaves
from chainrule.options import Options
from chainrule.schedule import equal, schedule, scheduling
from chainrule.schedule.task import Task
from chainrule.source import Source

TEXT = """
model deep(width = 8, depth = 30):
    dim batch
    input x[batch, width]
    input label[batch] : index 10
    h[n, i] = x[n, i]
    repeat depth:
        {layer}
    loss = mean(cross_entropy(linear(h, 10), label))
"""

LAYERS = {
    "residual": "h = h + tanh(linear(h, width)) / depth",
    "two kinds": "h = tanh(linear(h, width))\n    repeat depth:\n        h = cos(linear(h, width))",
    "norm": "h = layer_norm(relu(linear(h, width)))",
    "dropout": "h = dropout(tanh(linear(h, width)), 0.5)",
    "softmax": "h = softmax(linear(h, width))",
}


def graph_of(layer: str, depth: int = 30) -> compiler.Graph:
    source = Source(TEXT.format(layer=LAYERS[layer]), "deep.graph", arguments=(("depth", depth),))
    return compiler.derive(source, Options("train", optimizer="momentum")).graph


def program_of(graph: compiler.Graph, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, int]:
    """The program, and how many kernels were built."""
    built = []
    plain = scheduling.kernel_of
    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "kernel_of", lambda *given: built.append(0) or plain(*given))
        return schedule(graph, training=True, sizes={"batch": 64}), len(built)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_renamed_kernel_is_what_building_it_would_give(layer, monkeypatch):
    graph = graph_of(layer)
    program, built = program_of(graph, monkeypatch)
    monkeypatch.setattr(scheduling, "form_of", lambda *given: replace(equal.form_of(*given), key=None))
    alone, each = program_of(graph, monkeypatch)
    assert program == alone
    assert built < each == len(alone.kernels)
    for one, other in zip(program.kernels, alone.kernels, strict=True):  # what equality leaves out
        told = [[(leaf.text, leaf.origin) for leaf in leaves(kernel.body)] for kernel in (one, other)]
        assert told[0] == told[1]
        assert one.formulas == other.formulas


def test_a_form_without_laws_is_noticed(monkeypatch):
    graph = graph_of("two kinds")
    right, _ = program_of(graph, monkeypatch)
    monkeypatch.setattr(Task, "law", property(lambda task: (len(task.reads),)))
    try:
        wrong, _ = program_of(graph, monkeypatch)
    except KeyError:  # a kernel has more locals than the tasks whose names it was given
        return
    assert wrong != right
