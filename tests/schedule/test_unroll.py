"""Short loops whose index decides: each of its values alone, and the same numbers."""

from __future__ import annotations

import pytest

from chainrule import compiler
from chainrule.ir.program import Loop, Program, leaves
from chainrule.options import Options
from chainrule.schedule import emit, schedule, unroll
from chainrule.source import Source
from tests.schedule.laws import assert_law

GATES = """model m():
    dim batch
    input x[batch, 3, 5]
    input t[batch] : index 3
    y[n, j] = tanh(x[n, 0, j]) * sin(x[n, 1, j]) + x[n, 2, j]^2
    z[n, g < 3, j < 5] = if g == 1 then y[n, j] else (if g == 2 and j > 1 then x[n, t[n], j] else x[n, g, j])
    loss = mean(z^2)
"""


def program_of() -> tuple[object, Program]:
    graph = compiler.derive(Source(GATES, "test.graph"), Options("gradient", wrt=("x",))).graph
    return graph, schedule(graph, training=True)


def choices(program: Program) -> int:
    """Loops over the three, of statements that compare that index with a number."""
    loops = [k for kernel in program.kernels for k in _loops(kernel.body) if k.range.stop - k.range.start == 3]
    return sum(unroll._decides(loop.range.symbol, loop.body) for loop in loops)


def _loops(body: object) -> list[Loop]:
    return [loop for node in body if isinstance(node, Loop) for loop in (node, *_loops(node.body))]  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_what_is_written_out_computes_the_same(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, program = program_of()
    assert choices(program) == 0
    assert_law(graph, {"batch": batch}, program=program)  # type: ignore[arg-type]
    monkeypatch.setattr(emit, "unrolled", lambda body: body)
    _, plain = program_of()
    assert choices(plain) > 0
    assert_law(graph, {"batch": batch}, program=plain)  # type: ignore[arg-type]


def test_a_statement_reads_only_what_its_own_value_needs() -> None:
    _, program = program_of()
    for kernel in program.kernels:
        for leaf in leaves(kernel.body):
            if hasattr(leaf, "reads"):
                assert unroll._read(leaf) == leaf


def test_a_value_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = program_of()
    whole = unroll._at
    monkeypatch.setattr(unroll, "_at", lambda place, body: whole({s: k - (k == 2) for s, k in place.items()}, body))
    with pytest.raises((AssertionError, KeyError)):
        assert_law(graph, {"batch": 2}, program=program_of()[1])  # type: ignore[arg-type]
