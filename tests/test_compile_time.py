"""Compile time: the work of each stage grows as the number of layers does.

Calls are counted, for seconds are the machine's.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from chainrule import compiler
from chainrule.derive import backward
from chainrule.ir.validate import validate
from chainrule.optimize import specialize
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source

DEEP = """model deep():
    dim batch
    input x[batch, 4]
    h = tanh(linear(x, 4))
    repeat {repeated}:
        {layer}
    loss = mean[n, k] h[n, k]
"""

LAYERS = {"plain": "h = tanh(linear(h, 4))", "residual": "h = h + tanh(linear(h, 4))"}

T = TypeVar("T")


def counted(counts: Counter[str], stage: str, work: Callable[[], T]) -> T:
    """What `work` returns; the Python functions and generators that ran meanwhile are counted."""

    def profile(frame: object, event: str, argument: object) -> None:
        counts[stage] += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        return work()
    finally:
        sys.setprofile(before)


def calls(layer: str, repeated: int) -> Counter[str]:
    """How many calls each stage makes for a model of so many layers, from its formulas to its kernels."""
    counts: Counter[str] = Counter()
    graph = specialize(compiler.elaborate(Source(DEEP.format(layer=layer, repeated=repeated), "deep.graph")), True)
    graph = replace(graph, outputs=("loss",))

    def through(passes: tuple[compiler.Pass, ...], graph: compiler.Graph) -> compiler.Graph:
        for step in passes:
            before, graph = graph, counted(counts, step.__name__, lambda step=step, graph=graph: step(graph))
            counted(counts, "validate", lambda before=before, graph=graph: validate(graph, before))
        return graph

    graph = through(compiler.PREPARE, graph)
    wrt = [param.tensor.name for param in graph.params]
    derived = counted(counts, "backward", lambda: backward(graph, "loss", wrt))
    graph = replace(derived.graph, outputs=("loss", *(derived.gradients[name] for name in wrt)))
    graph = through(compiler.IMPROVE, graph)
    counted(counts, "schedule", lambda: schedule(graph, training=True))
    return counts


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_four_times_the_layers_are_four_times_the_work(layer):
    calls(layer, 8)  # what is done once for all layers
    short, long = calls(layer, 12), calls(layer, 48)
    most = {stage: (5.0 if stage == "schedule" else 4.2) * short[stage] + 1000 for stage in long}
    assert {stage: (short[stage], long[stage]) for stage in long if long[stage] > most[stage]} == {}


def test_a_model_is_elaborated_once_until_a_file_that_it_uses_changes(tmp_path, monkeypatch):
    made = []
    plain = compiler.lang.load_source
    monkeypatch.setattr(compiler.lang, "load_source", lambda source: made.append(source) or plain(source))
    layer = tmp_path / "layer.graph"
    layer.write_text("fn twice(x[*]):\n    y[*] = 2 * x[*]\n")
    text = 'use "layer.graph"\nmodel m():\n    dim n\n    input x[n]\n    output y = twice(x)\n'
    source = Source(text, str(tmp_path / "m.graph"), folder=tmp_path)
    assert compiler.elaborate(source) is compiler.elaborate(source)
    layer.write_text("fn twice(x[*]):\n    y[*] = x[*] + x[*] + 1\n")
    changed = compiler.elaborate(source)
    assert len(made) == 2
    assert "1" in str(changed.producers["y"].body)


def test_equal_arguments_of_other_types_are_other_models():
    text = "model m(k = 1):\n    dim n\n    input x[n]\n    output y = k * x\n"
    whole = compiler.elaborate(Source(text, "m.graph", arguments=(("k", 1),)))
    with pytest.raises(compiler.ChainruleError):
        compiler.elaborate(Source(text, "m.graph", arguments=(("k", True),)))
    assert whole.outputs == ("y",)


def test_compiling_leaves_the_collector_as_it_was():
    before = gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()
    text = "model m():\n    dim n\n    input x[n]\n    output y = 2 * x\n"
    compiler.compile_source(Source(text, "m.graph"), Options("predict"))
    with pytest.raises(compiler.ChainruleError), compiler._uncollected(), compiler._seldom_collected():
        raise compiler.ChainruleError("wrong")
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == before
