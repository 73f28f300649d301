"""What runs inside a product: only what needs it at its own place, and then not a bit changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule.codegen import contraction, cpu
from chainrule.codegen.cpu import sources
from chainrule.codegen.epilogue import arranged, runs_inside
from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, Reduce
from chainrule.ir.program import Leaf, Loop, Product, Range, Statement
from chainrule.schedule import product, schedule
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.schedule.graphs import mlp

R, C, K, N, M = map(index_symbol, ("_l00", "_l01", "_l02", "_l03", "_l04"))


def over(symbol: sp.Symbol, extent: int) -> Range:
    return Range(symbol, sp.S.Zero, sp.Integer(extent))


PRODUCT = Product(
    Access("z", (R, C)), Access("x", (R, K)), Access("w", (K, C)), (over(R, 8),), (over(C, 32),), (over(K, 64),)
)


def nest(*steps: Leaf, rows: int = 8) -> Loop:
    return Loop(over(N, rows), (Loop(over(M, 32), steps),))


ADDS_BIAS = Statement(Access("y", (N, M)), slot(0) + slot(1), (Access("z", (N, M)), Access("b", (M,))))


def test_a_map_over_the_products_own_places_runs_inside():
    assert runs_inside(nest(ADDS_BIAS), PRODUCT)


def test_a_sum_over_rows_runs_inside_and_one_over_columns_does_not():
    total = Statement(Access("s", (M,)), slot(0), (Access("z", (N, M)),), reduce=Reduce.SUM)
    assert runs_inside(nest(total), PRODUCT)
    assert not runs_inside(nest(replace(total, target=Access("s", (N,)))), PRODUCT)
    assert not runs_inside(nest(replace(total, target=Access("s", ()))), PRODUCT)


@pytest.mark.parametrize(
    "other",
    [
        nest(replace(ADDS_BIAS, reads=(Access("z", (N, M)), Access("z", (N + 1, M))))),  # its neighbour
        nest(replace(ADDS_BIAS, target=Access("x", (N, M)))),  # an operand
        nest(replace(ADDS_BIAS, target=Access("z", (N, M)))),  # the product itself
        nest(ADDS_BIAS, rows=7),
        nest(replace(ADDS_BIAS, reads=(Access("v", (N, M)), Access("b", (M,))))),  # no need of it
        nest(replace(ADDS_BIAS, reads=(Access("z", (N, M)), Access("y", (N - 1, M))))),  # the row before
        Loop(over(N, 8), (Loop(over(M, 32), (ADDS_BIAS,)), ADDS_BIAS)),
    ],
)
def test_what_needs_more_than_its_own_place_stays_outside(other):
    assert not runs_inside(other, PRODUCT)


def test_a_product_waits_for_its_nest_unless_others_need_it_or_change_its_operands():
    clears = Statement(Access("s", ()), sp.S.Zero)
    assert arranged((PRODUCT, clears, nest(ADDS_BIAS))) == [(clears, None), (PRODUCT, nest(ADDS_BIAS))]
    for other in (Statement(Access("x", (sp.S.Zero, sp.S.Zero)), sp.S.Zero), replace(PRODUCT, left=PRODUCT.target)):
        assert arranged((PRODUCT, other, nest(ADDS_BIAS)))[0] == (PRODUCT, None)


WIDTHS = ((64, 32, 32, 10), (40, 80, 48, 3), (2, 16, 16, 2))


@pytest.mark.parametrize("batch", [0, 1, 5, 40])
@pytest.mark.parametrize("widths", WIDTHS)
def test_epilogues_change_no_bit(widths, batch, monkeypatch):
    graph = mlp(*widths)
    program = schedule(graph, training=True, sizes={"batch": 64})
    values = drawn(graph, {"batch": batch})
    inside = run_compiled(program, {"batch": batch}, values, "float32")
    assert any("_end" in source.text for source in sources(program, element="float32").values())
    monkeypatch.setattr(cpu, "arranged", lambda body: [(node, None) for node in body])
    program = schedule(graph, training=True, sizes={"batch": 64})  # another, or the objects are found again
    apart = run_compiled(program, {"batch": batch}, values, "float32")
    for buffer in (*dict(program.outputs).values(), *dict(program.inits)):
        np.testing.assert_array_equal(inside[buffer], apart[buffer], err_msg=buffer)


@pytest.mark.parametrize("batch", [0, 1, 9])
def test_blocks_that_divide_columns_run_epilogues_at_their_own_columns(batch, monkeypatch):
    graph = mlp(16, 256, 256, 3)
    rows = run_compiled(schedule(graph, training=True), {"batch": batch}, drawn(graph, {"batch": batch}), "float64")
    monkeypatch.setattr(product, "FAR_BYTES", 1 << 16)  # of the weight of 256 KB; its other operand has 32
    program = schedule(graph, training=True)
    assert any("_end + " in source.text for source in sources(program, element="float64").values())
    columns = run_compiled(program, {"batch": batch}, drawn(graph, {"batch": batch}), "float64")
    for buffer in (*dict(program.outputs).values(), *dict(program.inits)):
        np.testing.assert_allclose(rows[buffer], columns[buffer], rtol=1e-11, atol=1e-13, err_msg=buffer)


def test_plain_python_runs_epilogues_too():
    graph = mlp(8, 32, 16, 3)
    program = schedule(graph, training=True, sizes={"batch": 64})
    values = drawn(graph, {"batch": 3})
    plain, compiled = (run(program, {"batch": 3}, values, "float64") for run in (run_plain, run_compiled))
    for buffer in dict(program.inits):
        np.testing.assert_allclose(plain[buffer], compiled[buffer], rtol=1e-12, atol=1e-12)


def test_a_panel_that_is_read_from_the_wrong_column_is_noticed(monkeypatch):
    graph = mlp(40, 80, 48, 3)
    program = schedule(graph, training=True, sizes={"batch": 64})
    values = drawn(graph, {"batch": 5})
    right = run_compiled(program, {"batch": 5}, values, "float32")
    placed = contraction._placed

    def late(*args):
        found = placed(*args)
        return found if found.first is None else replace(found, first=(found.first[0], found.first[1] + 1))

    monkeypatch.setattr(contraction, "_placed", late)
    program = schedule(graph, training=True, sizes={"batch": 64})  # another, or the objects are found again
    wrong = run_compiled(program, {"batch": 5}, values, "float32")
    assert any(not np.array_equal(right[b], wrong[b]) for b in dict(program.inits))
