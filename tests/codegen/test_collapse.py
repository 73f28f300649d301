"""Loops over whole tensors of short rows become one loop; nothing else does, and not a bit changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chainrule.codegen import collapse, cpu
from chainrule.codegen.cpu import sources
from chainrule.schedule import schedule
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.schedule.graphs import mlp

GRAPH = mlp(24, 32, 10)
SIZES = {"batch": 9}


def program():
    """Another each time, or the objects are found again."""
    return schedule(GRAPH, training=True, sizes={"batch": 32})


def test_rows_of_ten_are_one_loop_and_no_bit_changes(monkeypatch):
    values = drawn(GRAPH, SIZES)
    one, text = run_compiled(program(), SIZES, values, "float32"), "".join(s.text for s in sources_of())
    assert "flat(" in text
    monkeypatch.setattr(cpu, "collapsed", lambda nest, w: None)
    rows = run_compiled(program(), SIZES, values, "float32")
    assert "flat(" not in "".join(s.text for s in sources_of())
    for buffer in dict(program().inits):
        np.testing.assert_array_equal(one[buffer], rows[buffer], err_msg=buffer)


def sources_of():
    return sources(program(), element="float32").values()


def test_plain_python_writes_through_a_flat_view():
    values = drawn(GRAPH, SIZES)
    plain, compiled = (run(program(), SIZES, values, "float64") for run in (run_plain, run_compiled))
    for buffer in dict(program().inits):
        np.testing.assert_allclose(plain[buffer], compiled[buffer], rtol=1e-12, atol=1e-12)


def test_rows_that_fill_vectors_stay_rows():
    wide = schedule(mlp(24, 32, 64), training=True, sizes={"batch": 32})
    assert "flat(" not in "".join(s.text for s in sources(wide, element="float32").values())


def test_a_loop_that_ends_too_soon_is_noticed(monkeypatch):
    values = drawn(GRAPH, SIZES)
    right = run_compiled(program(), SIZES, values, "float32")
    found = collapse.collapsed

    def short(nest, w):
        loop = found(nest, w)
        return loop and replace(loop, range=replace(loop.range, stop=loop.range.stop - 1))

    monkeypatch.setattr(cpu, "collapsed", short)
    wrong = run_compiled(program(), SIZES, values, "float32")
    assert any(not np.array_equal(right[b], wrong[b]) for b in dict(program().inits))


@pytest.mark.parametrize("batch", [0, 1, 33])
def test_a_size_known_at_run_time_only_may_be_part_of_it(batch):
    values = drawn(GRAPH, {"batch": batch})
    plain, compiled = (run(program(), {"batch": batch}, values, "float64") for run in (run_plain, run_compiled))
    for buffer in dict(program().inits):
        np.testing.assert_allclose(plain[buffer], compiled[buffer], rtol=1e-10, atol=1e-10)
