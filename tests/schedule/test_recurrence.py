"""Recurrences as programs: one loop over the steps, blocks over the batch, products outside it that need no carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chainrule import compiler
from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Formula
from chainrule.ir.program import Loop
from chainrule.ir.recurrence import recurrence_of
from chainrule.ir.validate_program import IllegalProgram, validate_program
from chainrule.options import Options
from chainrule.schedule import schedule, work
from chainrule.source import Source
from tests.optimize.test_recurrences import TABLE, graphs_of
from tests.schedule.laws import assert_law

LSTM = """
layer lstm(x[n, t, i], out):
    param W[i, 4, out]   ~ glorot_uniform(each = 4)
    param U[out, 4, out] ~ orthogonal(each = 4)
    param b[4, out]      ~ zeros
    z[n, t, g < 4, j < out] = sum[i] x[n, t, i] * W[i, g, j] + sum[k] h[n, t - 1, k; 0] * U[k, g, j] + b[g, j]
    c[n, t, j < out] = sigmoid(z[n, t, 0, j]) * c[n, t - 1, j; 0] + sigmoid(z[n, t, 1, j]) * tanh(z[n, t, 2, j])
    h[n, t, j < out] = sigmoid(z[n, t, 3, j]) * tanh(c[n, t, j])

model forecast(hidden = 8):
    dim batch, time >= 1
    input x[batch, time, 3]
    input y[batch, 1]
    h = lstm(x, hidden)
    last[n, j] = h[n, time - 1, j]
    output z = linear(last, 1)
    loss = mean((z - y)^2)
"""

FIBONACCI = """
model sums:
    dim batch
    input x[batch, 4]
    param w[4] ~ ones
    a[n < batch, t < 4] = b[n, t - 1; 1] + x[n, t]
    b[n < batch, t < 4] = tanh(a[n, t]) * w[t] + a[n, t + 0 - 2; 0]
    r[n < batch, t < 4] = r[n, t + 1; 0] * w[t] + b[n, t]
    loss = mean(r)
"""


@pytest.mark.parametrize("sizes", [{"batch": 3, "time": 5}, {"batch": 1, "time": 1}, {"batch": 0, "time": 2}])
@pytest.mark.parametrize("hint", [1, 32, 10**4])
def test_a_training_step_of_an_lstm_keeps_the_law(sizes: dict[str, int], hint: int) -> None:
    graph = compiler.derive(Source(LSTM, "test.graph"), Options("train", optimizer="adam")).graph
    program = schedule(graph, training=True, sizes={"batch": hint, "time": 16})
    validate_program(program)
    assert_law(graph, sizes, program=program, blocks=reversed)


@pytest.mark.parametrize("hint", [1, 10**5])
def test_recurrences_both_ways_keep_the_law(hint: int) -> None:
    graph = compiler.derive(Source(FIBONACCI, "test.graph"), Options("train")).graph
    program = schedule(graph, training=True, sizes={"batch": hint})
    validate_program(program)
    assert_law(graph, {"batch": 3}, program=program, blocks=reversed)


@pytest.mark.parametrize("name", [name for name in TABLE if "draws" not in name])
def test_every_recurrence_and_its_gradient_keep_the_law(name: str) -> None:
    graph = graphs_of(name)[-1][-1]
    program = schedule(graph, training=True, sizes={"batch": 10**4, "time": 8})
    validate_program(program)
    assert_law(graph, {"batch": 3, "time": 4}, program=program, blocks=reversed)


def test_a_recurrence_is_one_kernel_whose_blocks_divide_the_batch() -> None:
    graph = compiler.derive(Source(LSTM, "test.graph"), Options("predict", outputs=("z",))).graph
    program = schedule(graph, training=False, sizes={"batch": 10**4, "time": 16})
    kernel = next(k for k in program.kernels if "h" in k.formulas)
    assert kernel.block is not None
    assert str(kernel.block.extent) == "batch"
    steps = [node for node in kernel.body if isinstance(node, Loop) and str(node.range.stop) == "time"]
    assert len(steps) == 1


@pytest.mark.parametrize("broken", ["ahead", "carried"])
def test_a_wrong_direction_or_a_lost_carry_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = compiler.derive(Source(LSTM, "test.graph"), Options("train")).graph
    whole = work.circles_of

    def wrong(formulas, dims):  # type: ignore[no-untyped-def]
        ordered, circles = whole(formulas, dims)
        turned = {out: tuple(replace(c, **{broken: not getattr(c, broken)}) for c in of) for out, of in circles.items()}
        return ordered, turned

    monkeypatch.setattr(work, "circles_of", wrong)

    def holds() -> None:
        program = schedule(graph, training=True)
        validate_program(program)
        assert_law(graph, {"batch": 3, "time": 4}, program=program)

    with pytest.raises((AssertionError, IllegalProgram, IndexError)):
        holds()


GRID = """model align():
    dim batch, rows >= 1, columns >= 1
    input d[batch, rows, columns]
    near[n < batch, i < rows, j < columns] = exp(-s[n, i - 1, j; 0]) + exp(-s[n, i, j - 1; 0])
    e[n < batch, i < rows, j < columns] = near[n, i, j] + exp(-s[n, i - 1, j - 1; 0])
    s[n < batch, i < rows, j < columns] = d[n, i, j] - log(e[n, i, j])
    loss = mean[n] s[n, rows - 1, columns - 1]
"""


@pytest.mark.parametrize("sizes", [{"batch": 3, "rows": 4, "columns": 5}, {"batch": 1, "rows": 1, "columns": 2}])
def test_a_recurrence_along_two_indices_is_a_loop_in_a_loop(sizes: dict[str, int]) -> None:
    graph = compiler.derive(Source(GRID, "test.graph"), Options("gradient", wrt=("d",))).graph
    program = schedule(graph, training=True)
    validate_program(program)
    assert_law(graph, sizes, program=program)
    alone = recurrence_of([f for f in graph.nodes if isinstance(f, Formula) and f.out in ("s", "e", "near")])
    assert alone.extent == dim_symbol("rows")
    assert [inner.extent for inner in alone.inner] == [dim_symbol("columns")]
