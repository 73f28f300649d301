"""Equal layers are found by their laws, and become equal kernels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chainrule import compiler
from chainrule.ir.validate_program import validate_program
from chainrule.options import Options
from chainrule.schedule import kernels, schedule
from chainrule.schedule.stretches import LAYER, WINDOW, stretches
from chainrule.source import Source
from tests.schedule.laws import assert_law

TEXT = """
model blocks(depth = 3, width = 4):
    dim batch
    input x[batch, 4, width]
    h[n, t, i] = x[n, t, i]
    repeat depth:
        h = h + multi_head(layer_norm(h), 2)
        h = h + linear(gelu(linear(layer_norm(h), 2 * width)), width)
    loss = mean(layer_norm(h)^2)
"""
BLOCKS = Source(TEXT, "blocks.graph")
SIZES = {"batch": 20000}  # what is scheduled for: work enough for blocks


@given(
    before=st.lists(st.integers(100, 110), max_size=20),
    length=st.integers(1, 40),
    times=st.integers(2, 5),
    after=st.lists(st.integers(200, 210), max_size=20),
)
def test_a_stretch_begins_with_its_first_layer_and_ends_after_its_last(before, length, times, after):
    laws = [*dict.fromkeys(before), *(list(range(length)) * times), *dict.fromkeys(after)]
    whole = -(-LAYER // length) * length
    found = stretches(laws)
    if length * times >= WINDOW + length:
        ((first, each, count),) = found
        assert (first, each) == (len(dict.fromkeys(before)), whole)
        assert count == length * times // whole
    else:
        assert found == []


def test_what_is_never_repeated_has_no_stretch():
    assert stretches(range(100)) == []
    assert stretches([]) == []


def graph_of(depth):
    source = Source(TEXT, "blocks.graph", arguments=(("depth", depth),))
    return compiler.derive(source, Options("train", optimizer="sgd")).graph


def forms(program):
    """How many different kernels of blocks there are, by what they compute but for names."""
    return len(
        {
            (len(kernel.formulas), str(kernel.cost), str(kernel.flops), len(kernel.locals))
            for kernel in program.kernels
            if kernel.block is not None
        }
    )


def words(program):
    """How many formulas the different kernels hold."""
    each = {(str(k.flops), len(k.locals)): len(k.formulas) for k in program.kernels if k.block is not None}
    return sum(each.values())


def test_more_layers_are_no_more_distinct_kernels(monkeypatch):
    three, five = (schedule(graph_of(depth), training=True, sizes=SIZES) for depth in (3, 5))
    assert forms(three) == forms(five)
    assert len(five.kernels) > len(three.kernels)
    monkeypatch.setattr(kernels, "starts_of", lambda tasks, _: frozenset())
    assert words(schedule(graph_of(5), training=True, sizes=SIZES)) > words(five)


def test_kernels_of_layers_keep_the_law():
    graph = graph_of(2)
    program = schedule(graph, training=True, sizes=SIZES)
    validate_program(program)
    assert_law(graph, {"batch": 2}, program=program, blocks=reversed)


def test_a_kernel_may_begin_anywhere(monkeypatch):
    """Where kernels begin is a choice: no law depends on it."""
    monkeypatch.setattr(kernels, "starts_of", lambda tasks, _: frozenset(range(1, len(tasks))))
    graph = graph_of(2)
    program = schedule(graph, training=True, sizes=SIZES)
    validate_program(program)
    assert_law(graph, {"batch": 2}, program=program)
