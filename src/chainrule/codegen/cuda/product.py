"""A product as tiles: each block of threads computes one, from panels of both operands in shared memory.

    a panel is 16 columns of the left tile's rows, or 16 rows of the right tile's columns
    load the first panels, and store them in shared memory
    for first in range(0, inner, 16):
        load the following panels into registers
        for k in range(16): each thread adds the products of its rows and its columns in shared memory
        store what was loaded in the other half of shared memory

Factors may be rounded and multiplied on tensor cores (`Tiled.factors`); sums are the element's. Any affine access will
do: rows, columns and sums may each run over several indices, which are split off a flat number where an element is
read, and padding is 0. So convolutions are products here too. Plain matrices go to a library where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

import sympy as sp

from chainrule.codegen.cuda.device import THREADS
from chainrule.codegen.cuda.indices import indices, places
from chainrule.codegen.cuda.panels import Form, load_panel, sides_of, store_panel
from chainrule.codegen.cuda.sums import Sums, begin, end, multiply
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import real
from chainrule.codegen.kernel import Element
from chainrule.codegen.native import ITEM
from chainrule.codegen.statement import comment_of, write_statement
from chainrule.ir.expression import quotient


def tiles_of(t: Tiled) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """How many tiles there are: down, across, and matrices."""
    from_ends = (count(places(t.product.rows), t.rows), count(places(t.product.columns), t.columns))
    return (*from_ends, places(t.batch))


def panel_bytes(tiles: Iterable[Tiled], element: Element) -> int:
    """Of shared memory, for two panels of each operand, which products use one after the other."""
    forms = [(t, Form(t.factors, ITEM[element])) for t in tiles]
    left = max((form.words(t.rows) for t, form in forms), default=0)
    right = max((form.words(t.columns) for t, form in forms), default=0)
    return 2 * ITEM[element] * (left + right)


def count(extent: sp.Expr, size: int) -> sp.Expr:
    return quotient(extent + size - 1, sp.Integer(size))


def write_tile(t: Tiled, w: CudaWriter) -> None:
    """The lines of one tile, where each block of a grid has one."""
    down, across, _ = (w.integer(e) if e.is_Integer else w.size(e) for e in tiles_of(t))
    number, rest, row_first, column_first = (
        w.names.fresh(name) for name in ("tile", "rest", "row_first", "column_first")
    )
    divide, modulo = w.call("divide"), w.call("modulo")
    w.line(f"{number} = {w.call('block')}()")
    w.line(f"{column_first} = {modulo}({number}, {across}) * {t.columns}")
    w.line(f"{rest} = {divide}({number}, {across})")
    w.line(f"{row_first} = {modulo}({rest}, {down}) * {t.rows}")
    with indices(t.batch, f"{divide}({rest}, {down})", w):
        _write(t, (row_first, column_first), w)


def write_tiles(t: Tiled, w: CudaWriter) -> None:
    """All tiles of a product, one after the other by the same block."""
    down, across = (w.integer(places(ranges)) for ranges in (t.product.rows, t.product.columns))
    with (
        w.named("row_first", "column_first") as (row_first, column_first),
        w.inside(f"for {row_first} in range(0, {down}, {t.rows}):"),
        w.inside(f"for {column_first} in range(0, {across}, {t.columns}):"),
    ):
        _write(t, (row_first, column_first), w)


def _write(t: Tiled, at: tuple[str, str], w: CudaWriter) -> None:
    """The tile that begins `at` a row and a column."""
    p, form = t.product, Form(t.factors, ITEM[w.element])
    w.read |= {p.left.tensor, p.right.tensor}
    w.written.add(p.target.tensor)
    sides = sides_of(t, at, form, w)
    sums = begin(t, sides, form, w)
    if t.threads == THREADS and form.item == 4 and (form.each == 1 or all(side.row for side in sides)):
        w.blocks = 2  # 128 registers do: no spill was seen, where as many as it likes are some more
    depth = w.integer(places(p.inner))
    with w.named("first", "following") as (first, following):
        for side in sides:
            load_panel(side, form, "0", t.threads, w)
            store_panel(side, form, "0", side is sides[0], t.threads, w)
        w.line(f"{w.call('sync')}()")
        with w.inside(f"for {first} in range(0, {depth}, {form.depth}):"):
            w.line(f"{following} = {first} + {form.depth}")
            for side in sides:
                load_panel(side, form, following, t.threads, w)
            multiply(sides, form, first, sums, w)
            for side in sides:
                store_panel(side, form, following, side is sides[0], t.threads, w)
            w.line(f"{w.call('sync')}()")
    end(sums, form, w)
    _store(t, at, sums, w)


def _store(t: Tiled, first: tuple[str, str], sums: Sums, w: CudaWriter) -> None:
    """Each thread's sums into the result."""
    p = t.product
    down, across = (w.integer(places(ranges)) for ranges in (p.rows, p.columns))
    for row, line in zip(sums.rows, sums.names, strict=True):
        at = f"{first[0]} + {row}"
        with w.inside(f"if {at} < {down}:"), indices(p.rows, at, w):
            for column, name in zip(sums.columns, line, strict=True):
                here = f"{first[1]} + {column}"
                with w.inside(f"if {here} < {across}:"), indices(p.columns, here, w):
                    _end(t, name, w)


def _end(t: Tiled, name: str, w: CudaWriter) -> None:
    """One sum, which is in the register `name`: to memory, if it is wanted there, and into what is made of it."""
    p, comment = t.product, comment_of(t.product.origin)
    value = name if p.scale == 1 else f"{real(p.scale, w.scope()).within(5)} * {name}"
    if not t.then:
        w.line(f"{w.place(p.target, {})} {'+=' if p.accumulate else '='} {value}", comment)
        return
    target = p.target.tensor
    if p.accumulate:
        value = f"{w.place(p.target, {})} + {value}"
    if value != name:
        w.line(f"{name} = {value}", comment)
    if w.is_variable(target):
        w.variables[target] = name
    else:
        w.line(f"{w.place(p.target, {})} = {name}", comment)
        w.held[target, p.target.indices] = name
    for statement in t.then:
        write_statement(statement, w)
    w.held.pop((target, p.target.indices), None)
