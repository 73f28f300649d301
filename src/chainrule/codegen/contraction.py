"""A product leaf as source."""

from __future__ import annotations

import sympy as sp

from chainrule.codegen.kernel import Writer
from chainrule.codegen.statement import write_statement
from chainrule.ir.expression import product, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Product, Range, Statement


def write_product(leaf: Product, w: Writer) -> None:
    """``target = (target +) scale * sum[inner] left * right``."""
    _loops((*leaf.batch, *leaf.rows, *leaf.columns), leaf, w)


def _loops(ranges: tuple[Range, ...], leaf: Product, w: Writer) -> None:
    if ranges:
        with w.loop(ranges[0]):
            _loops(ranges[1:], leaf, w)
        return
    total = Access(local(w, f"{leaf.target.tensor}_sum"), ())
    write_statement(Statement(total, sp.S.Zero), w)
    _inner(leaf.inner, total, leaf, w)
    value = product((leaf.scale, slot(0)))
    store = Statement(leaf.target, value, (total,), (), Reduce.SUM if leaf.accumulate else None, origin=leaf.origin)
    write_statement(store, w)


def _inner(ranges: tuple[Range, ...], total: Access, leaf: Product, w: Writer) -> None:
    if ranges:
        with w.loop(ranges[0]):
            _inner(ranges[1:], total, leaf, w)
        return
    value = product((slot(0), slot(1)))
    write_statement(Statement(total, value, (leaf.left, leaf.right), (), Reduce.SUM, origin=leaf.origin), w)


def local(w: Writer, name: str) -> str:
    """A scratch variable of the printer's own."""
    while name in w.buffers:
        name += "_"
    w.buffers = {**w.buffers, name: Buffer(name, (), DType.FLOAT, "scratch")}
    return name
