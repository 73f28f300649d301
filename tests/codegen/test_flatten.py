"""Products of recurrences as tiles: guards become bounds, ranges that are one stretch of memory become one."""

from __future__ import annotations

import importlib
from functools import cache

import pytest

from chainrule import compiler
from chainrule.codegen.cpu import sources
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.codegen.test_cpu_laws import assert_agrees, wanted

contraction = importlib.import_module("chainrule.codegen.contraction")
TEXT = """
model m:
    dim batch, time >= 1
    input x[batch, time, 12]
    input mask[batch, time]
    h = {layer}
    loss = mean(last_state(h))
"""
LAYERS = ("lstm(x, 16)", "masked_gru(x, mask, 20, reverse = true)", "rnn(x, 24)")


@cache
def made(layer: str):  # type: ignore[no-untyped-def]
    text = TEXT.replace("{layer}", layer)
    graph = compiler.derive(Source(text, "m.graph"), Options("train", optimizer="sgd")).graph
    return graph, schedule(graph, training=True, sizes={"batch": 32, "time": 16})


def check(layer: str, batch: int, time: int, run, element: str = "float64") -> None:  # type: ignore[no-untyped-def]
    graph, program = made(layer)
    sizes = {"batch": batch, "time": time}
    values = drawn(graph, sizes)
    assert_agrees(run(program, sizes, values, element), wanted(graph, values, program), element)


@pytest.mark.parametrize(("batch", "time"), [(3, 4), (9, 1), (0, 2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_recurrence_with_tiles_agrees_with_the_reference(layer, batch, time):
    check(layer, batch, time, run_plain)


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_its_compiled_kernels_do(element):
    check(LAYERS[0], 5, 3, run_compiled, element)


def test_all_products_of_a_recurrence_are_tiles():
    text = "\n".join(kernel.text for kernel in sources(made(LAYERS[0])[1], element="float32").values())
    code = [line for line in text.splitlines() if "rank1(" in line]
    for product in ("x, ", "h, ", "h_lstm_z_bar, "):
        assert any(f"_sums, {product}" in line for line in code), product
    assert "stop = 16 if (t - 1 >= 0) & (t - 1 < time) else 0" in text


def test_a_lost_guard_is_noticed(monkeypatch):
    monkeypatch.setattr(contraction, "clipped", lambda extents, ranges, guards, w: list(extents))
    with pytest.raises((AssertionError, IndexError, ValueError)):
        check(LAYERS[0], 3, 4, run_plain)


def test_a_wrong_merge_is_noticed(monkeypatch):
    flatten = importlib.import_module("chainrule.codegen.flatten")
    right = flatten._is_one
    monkeypatch.setattr(flatten, "_is_one", lambda leaf, a, b, w: not right(leaf, a, b, w))
    with pytest.raises((AssertionError, IndexError, ValueError)):
        check(LAYERS[0], 3, 4, run_plain)
