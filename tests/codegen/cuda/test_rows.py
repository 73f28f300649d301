"""Rows of work: which loops count them, where turns add to places that move."""

from __future__ import annotations

import pytest
import sympy as sp

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda.mapping import rows_of_work
from chainrule.codegen.cuda.team import Team
from chainrule.codegen.cuda.turns import Tree
from chainrule.ir.formula import Access, DType, Reduce, slot
from chainrule.ir.program import Buffer, Kernel, Loop, Range, Statement

V, H, O = (sp.Symbol(name, integer=True, nonnegative=True) for name in "vho")
NODES, HEADS, OUT = sp.Integer(64), sp.Integer(8), sp.Integer(4)


def over(symbol: sp.Symbol, extent: sp.Expr, *body: Loop | Statement) -> Loop:
    return Loop(Range(symbol, sp.S.Zero, extent), body)


def test_a_loop_that_moves_the_places_of_a_sum_is_no_row_of_its_parts() -> None:
    """B[h, o] += (u[v, h] + w[v, h]) * z[v, h, o]: a row is a node, whose part has all heads."""
    total = Access("B", (H, O))
    both = Statement(Access("t", ()), slot(0) + slot(1), (Access("u", (V, H)), Access("w", (V, H))))
    added = Statement(total, slot(0) * slot(1), (Access("t", ()), Access("z", (V, H, O))), reduce=Reduce.SUM)
    nest = over(V, NODES, over(H, HEADS, both, over(O, OUT, added)))
    shapes = {"B": (HEADS, OUT), "u": (NODES, HEADS), "w": (NODES, HEADS), "z": (NODES, HEADS, OUT)}
    buffers = {name: Buffer(name, shape, DType.FLOAT, "arena") for name, shape in shapes.items()}
    local = Buffer("t", (), DType.FLOAT, "scratch")
    kernel = Kernel("weights", (nest,), (local,))
    inner = nest.body[0]
    assert isinstance(inner, Loop)
    found = rows_of_work([nest, inner], Team.BLOCK, Tree(kernel, buffers | {"t": local}))
    assert found is not None and [r.symbol for r in found.ranges] == [V]
    (kept,) = found.kept
    assert [r.symbol for r in kept.ranges] == [H, O]
