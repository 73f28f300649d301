"""A product as tiles: each block of threads computes one, from panels of both operands in shared memory.

    for first in range(0, inner, 16):
        copy 16 columns of the left tile's rows, and 16 rows of the right tile's columns, into shared memory
        for k in range(16): each thread adds the products of its rows and its columns in registers

Any affine access will do: rows, columns and sums may each run over several indices, which are split off a flat number
where an element is read, and padding is 0. So convolutions are products here too. Plain matrices go to a library where
there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sympy as sp

from chainrule.codegen.cuda.device import SIDE, TILE_DEPTH
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.teams import split
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import Symbol, literal, real
from chainrule.codegen.statement import bounds, comment_of
from chainrule.ir.expression import product, quotient
from chainrule.ir.formula import Access
from chainrule.ir.program import Range


def tiles_of(t: Tiled) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """How many tiles there are: down, across, and matrices."""
    down, across = product(r.stop for r in t.product.rows), product(r.stop for r in t.product.columns)
    from_ends = (count(down, t.rows), count(across, t.columns))
    return (*from_ends, product(r.stop for r in t.batch))


def count(extent: sp.Expr, size: int) -> sp.Expr:
    return quotient(extent + size - 1, sp.Integer(size))


@dataclass(frozen=True)
class Side:
    """One operand's part in a tile: its own indices, and how many of them a tile spans."""

    access: Access
    own: tuple[Range, ...]
    size: int
    panel: str
    first: str  # of the tile's own indices
    deep: bool  # neighbours in memory are neighbours in the sum


@dataclass(frozen=True)
class Sums:
    """A thread's sums of a tile: ``names[i][j]`` is that at ``rows[i], columns[j]``, counted from the tile's first."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]


def write_tile(t: Tiled, w: CudaWriter) -> None:
    """The lines of one tile."""
    p = t.product
    down, across, _ = (w.integer(e) if e.is_Integer else w.size(e) for e in tiles_of(t))
    w.read |= {p.left.tensor, p.right.tensor}
    w.written.add(p.target.tensor)
    left_panel, right_panel = (
        _shared(name, TILE_DEPTH * size, w) for name, size in (("left", t.rows), ("right", t.columns))
    )
    number = w.names.fresh("tile")
    w.line(f"{number} = {w.call('block')}()")
    row_first, column_first = w.names.fresh("row_first"), w.names.fresh("column_first")
    w.line(f"{column_first} = {w.call('modulo')}({number}, {across}) * {t.columns}")
    rest = w.names.fresh("rest")
    w.line(f"{rest} = {w.call('divide')}({number}, {across})")
    w.line(f"{row_first} = {w.call('modulo')}({rest}, {down}) * {t.rows}")
    with indices(t.batch, f"{w.call('divide')}({rest}, {down})", w):
        row, column = w.names.fresh("row"), w.names.fresh("column")
        w.line(f"{row} = {w.call('divide')}({w.call('thread')}(), {SIDE})")
        w.line(f"{column} = {w.call('modulo')}({w.call('thread')}(), {SIDE})")
        sums = _sums(t, (row, column), w)
        zero = literal(sp.S.Zero, w.scope()).text
        for line in sums.names:
            for name in line:
                w.line(f"{name} = {zero}")
        first = w.names.fresh("first")
        depth = w.integer(product(r.stop for r in p.inner))
        sides = (
            Side(p.left, p.rows, t.rows, left_panel, row_first, _runs_along(p.left, p.inner, w)),
            Side(p.right, p.columns, t.columns, right_panel, column_first, _runs_along(p.right, p.inner, w)),
        )
        with w.inside(f"for {first} in range(0, {depth}, {TILE_DEPTH}):"):
            for side in sides:
                _copy(side, p.inner, first, t.threads, w)
            w.line(f"{w.call('sync')}()")
            _multiply(sides, sums, w)
            w.line(f"{w.call('sync')}()")
        _store(t, (row_first, column_first), sums, w)


def _sums(t: Tiled, place: tuple[str, str], w: CudaWriter) -> Sums:
    """Names for the sums of the thread at `place`."""
    rows, columns = (
        tuple(f"{at} + {SIDE * k}" for k in range(n // SIDE)) for at, n in zip(place, (t.rows, t.columns), strict=True)
    )
    names = tuple(tuple(w.names.fresh(f"sum_{i}_{j}") for j in range(len(columns))) for i in range(len(rows)))
    return Sums(rows, columns, names)


def _shared(name: str, elements: int, w: CudaWriter) -> str:
    called = w.names.fresh(f"{name}_panel", never_had=True)
    w.top.append(f"{called} = {w.call(f'shared_{w.element}')}({elements})")
    return called


def _runs_along(access: Access, inner: Sequence[Range], w: CudaWriter) -> bool:
    """Whether the operand is contiguous along the last index of the sum."""
    return bool(access.indices) and access.indices[-1].has(inner[-1].symbol)


@contextmanager
def indices(ranges: Sequence[Range], flat: str, w: CudaWriter) -> Iterator[None]:
    """Names for the indices that a flat number consists of."""
    names = []
    for r in ranges:
        name = w.names.fresh(r.pretty or "i")
        names.append(name)
        w.symbols[r.symbol] = Symbol(name, "integer", frozenset({r.symbol}))
    if len(ranges) == 1:
        w.line(f"{names[0]} = {flat}")
    elif ranges:
        number = w.names.fresh("flat")
        w.line(f"{number} = {flat}")
        split(number, [(n, r, w.integer(r.stop)) for n, r in zip(names, ranges, strict=True)], w)
        w.names.release(number)
    yield
    for name in names:
        w.names.release(name)


def _copy(side: Side, inner: Sequence[Range], first: str, threads: int, w: CudaWriter) -> None:
    """A panel into shared memory, neighbours in memory by neighbouring threads; what lies beyond is 0."""
    part, own, deep = (w.names.fresh(name) for name in ("part", "own", "deep"))
    with w.inside(f"for {part} in range({w.call('thread')}(), {TILE_DEPTH * side.size}, {threads}):"):
        quick, slow, size = (deep, own, TILE_DEPTH) if side.deep else (own, deep, side.size)
        w.line(f"{quick} = {w.call('modulo')}({part}, {size})")
        w.line(f"{slow} = {w.call('divide')}({part}, {size})")
        place = f"{side.panel}[{deep} * {side.size} + {own}]"
        value = w.names.fresh("value")
        zero = literal(sp.S.Zero, w.scope()).text
        w.line(f"{value} = {zero}")
        extent, depth = (w.integer(product(r.stop for r in ranges)) for ranges in (side.own, inner))
        with (
            w.inside(f"if ({side.first} + {own} < {extent}) & ({first} + {deep} < {depth}):"),
            indices(side.own, f"{side.first} + {own}", w),
            indices(inner, f"{first} + {deep}", w),
        ):
            text = w.place(side.access, {})
            buffer = w.buffer(side.access.tensor)
            inside = bounds(side.access, buffer, {}, w) if side.access.outside is not None else ""
            if inside:
                with w.inside(f"if {inside}:"):
                    w.line(f"{value} = {text}")
            else:
                w.line(f"{value} = {text}")
        w.line(f"{place} = {value}")
    for name in (part, own, deep, value):
        w.names.release(name)


def _multiply(sides: tuple[Side, Side], sums: Sums, w: CudaWriter) -> None:
    left, right = sides
    k = w.names.fresh("k")
    with w.inside(f"for {k} in range({TILE_DEPTH}):"):
        for i, row in enumerate(sums.rows):
            w.line(f"a_{i} = {left.panel}[{k} * {left.size} + {row}]")
        for j, column in enumerate(sums.columns):
            w.line(f"b_{j} = {right.panel}[{k} * {right.size} + {column}]")
        for i, line in enumerate(sums.names):
            for j, name in enumerate(line):
                w.line(f"{name} = {w.call('fma')}(a_{i}, b_{j}, {name})")
    w.names.release(k)


def _store(t: Tiled, first: tuple[str, str], sums: Sums, w: CudaWriter) -> None:
    """Each thread's sums into the result."""
    p = t.product
    down, across = (w.integer(product(r.stop for r in ranges)) for ranges in (p.rows, p.columns))
    scale = "" if p.scale == 1 else real(p.scale, w.scope()).within(5)
    comment = comment_of(p.origin)
    for row, line in zip(sums.rows, sums.names, strict=True):
        at = f"{first[0]} + {row}"
        with w.inside(f"if {at} < {down}:"), indices(p.rows, at, w):
            for column, name in zip(sums.columns, line, strict=True):
                here = f"{first[1]} + {column}"
                with w.inside(f"if {here} < {across}:"), indices(p.columns, here, w):
                    target = w.place(p.target, {})
                    value = f"{scale} * {name}" if scale else name
                    w.line(f"{target} {'+=' if p.accumulate else '='} {value}", comment)
