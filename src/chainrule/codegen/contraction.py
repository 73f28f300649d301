"""A product leaf as source: register tiles or OpenBLAS (`product`) where its operands are matrices, else loops.

Of the leaf's rows and columns one range each goes to the tile, and all inner ranges; the others, and the batch, are
loops around it. Columns are what the target holds next to each other, so left and right may change places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.codegen.choices import Case
from chainrule.codegen.cpu_writer import CpuWriter
from chainrule.codegen.epilogue import is_matrix
from chainrule.codegen.expressions import Symbol, real
from chainrule.codegen.flatten import LEAST, Guard, clipped, flat_position, merged, unguarded
from chainrule.codegen.operand import Bound, Index
from chainrule.codegen.packing import PAD
from chainrule.codegen.product import EPILOGUE, SMALL, Extent, Operand, Shape, Way, calls, product_lines
from chainrule.codegen.statement import comment_of, write_statement
from chainrule.ir.expression import index_symbol, product, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Leaf, Loop, Product, Range, Statement

OWN = (
    "from",
    "to",
    "full",
    "whole",
    "row",
    "column",
    "sums",
    "low",
    "narrow",
    "corner",
    "k",
    "c",
    "squares",
    "first",
    "last",
    "end",
)  # what `product_lines` names after its prefix
NOTHING = Range(index_symbol("_none"), sp.S.Zero, sp.S.One)  # where there are no rows or no columns


def write_product(leaf: Product, w: CpuWriter, after: Epilogue | None = None) -> bool:
    """``target = (target +) scale * sum[inner] left * right``; whether what comes `after` was written as well."""
    whole, leaf = leaf, _columns_last(_counted(leaf, w), w)
    leaf, guards = _flattened(leaf, w)
    row, column = _longest(leaf.rows, w), _adjacent(leaf, w)
    around = [r for r in (*leaf.batch, *leaf.rows, *leaf.columns) if r not in (row, column)]
    if after is not None and (
        around
        or guards
        or (len(whole.rows), len(whole.columns)) != (1, 1)
        or column.symbol != whole.columns[0].symbol
        or _is_narrow(column, w)
    ):
        after = None
    done = False

    def tile() -> None:
        nonlocal done
        done = _tile(leaf, row, column, guards, w, None if after is None else _placed(after, whole, column, w))

    if leaf.inner and _is_affine(leaf, row, column, w):
        _opened(around, tile, w)
    else:
        _opened(around, lambda: _loops(leaf, row, column, w), w)
    return done


def _flattened(leaf: Product, w: CpuWriter) -> tuple[Product, tuple[Guard, ...]]:
    """`leaf` with one range for several and bounds for guards, where it surely becomes a tile."""
    plain, guards = unguarded(leaf, w)
    whole = merged(plain, guards, w)
    row, column = _longest(whole.rows, w), _adjacent(whole, w)
    count = sp.Add(column.stop, -column.start)
    wide = not count.is_Integer or count >= LEAST
    shape = _shape(whole, row, column, w)
    work = (shape.rows or shape.typical_rows) * (shape.columns or 256) * (shape.inner or 256)
    tiles = wide and work >= SMALL and bool(_step_one(whole.target, [column], w))
    return (whole, guards) if tiles and whole.inner and _is_affine(whole, row, column, w) else (leaf, ())


@dataclass(frozen=True)
class Epilogue:
    """A nest to be written inside a product, by `write`; alone: nobody else needs the product."""

    nest: Loop
    alone: bool
    write: Callable[[tuple[Leaf, ...], CpuWriter], None]


@dataclass(frozen=True)
class Placed:
    """The same with the product's first place in the nest's terms, if a panel of it may lie in scratch.

    shift: from the tile's columns to the nest's, where the tile counts a block's from 0.
    """

    epilogue: Epilogue
    tensor: str
    first: tuple[sp.Expr, sp.Expr] | None
    shift: sp.Expr


def _placed(after: Epilogue, leaf: Product, counted: Range, w: CpuWriter) -> Placed:
    (row,), (column,) = leaf.rows, leaf.columns
    target, shift = leaf.target, column.start - counted.start
    local = after.alone and w.buffer(target.tensor).space == "scratch" and is_matrix(target, row.symbol, column.symbol)
    start = {column.symbol: START + shift}
    first = target.indices[0].xreplace({row.symbol: row.start}), target.indices[1].xreplace(start)
    return Placed(after, target.tensor, first if local else None, shift)


def _is_narrow(column: Range, w: CpuWriter) -> bool:
    """Whether the columns do not fill a vector: then the nest does better as one loop over all elements."""
    count = sp.Add(column.stop, -column.start)
    return bool(count.is_Integer and count < w.target.lanes(w.element))


def _counted(leaf: Product, w: CpuWriter) -> Product:
    """`leaf` with a block's ranges counted from 0 where every block has as many members: the tile then knows them."""
    block = w.kernel.block
    if block is None or not block.extent.is_Integer or int(block.extent) % block.size:
        return leaf
    places = {
        r.symbol: block.first + r.symbol
        for r in (*leaf.rows, *leaf.columns, *leaf.inner)
        if r.start == block.first and r.stop == block.last
    }

    def counted(ranges: Sequence[Range]) -> tuple[Range, ...]:
        whole = {"start": sp.S.Zero, "stop": sp.Integer(block.size)}
        return tuple(replace(r, **whole) if r.symbol in places else r for r in ranges)

    return replace(
        leaf,
        target=leaf.target.renamed(places),
        left=leaf.left.renamed(places),
        right=leaf.right.renamed(places),
        rows=counted(leaf.rows),
        columns=counted(leaf.columns),
        inner=counted(leaf.inner),
        where=tuple(c.xreplace(places) for c in leaf.where),
    )


def _opened(ranges: Sequence[Range], body: Callable[[], None], w: CpuWriter) -> None:
    """What `body` writes, inside loops over `ranges`."""
    if not ranges:
        body()
        return
    with w.loop(ranges[0]):
        _opened(ranges[1:], body, w)


def _columns_last(leaf: Product, w: CpuWriter) -> Product:
    """`leaf` with rows and columns exchanged where it is the rows that the target holds next to each other."""
    if _step_one(leaf.target, leaf.columns, w) or not _step_one(leaf.target, leaf.rows, w):
        return leaf
    return replace(leaf, left=leaf.right, right=leaf.left, rows=leaf.columns, columns=leaf.rows)


def _step_one(access: Access, ranges: Sequence[Range], w: CpuWriter) -> list[Range]:
    """Those of `ranges` along which the access moves by one element."""
    flat = flat_position(access, w)
    return [r for r in ranges if flat is not None and flat.coeff(r.symbol, 1) == 1]


def _adjacent(leaf: Product, w: CpuWriter) -> Range:
    found = _step_one(leaf.target, leaf.columns, w) or list(leaf.columns)
    return found[0] if found else NOTHING


def _longest(ranges: Sequence[Range], w: CpuWriter) -> Range:
    """The range that the tile's rows are: the first whose size is not known, if it is long, else the last longest."""
    if not ranges:
        return NOTHING
    known = {r: sp.Add(r.stop, -r.start) for r in ranges}
    unknown = [r for r, count in known.items() if not count.is_Integer]
    block = w.kernel.block
    short = [r for r in unknown if block is not None and r.stop == block.last and block.size < LEAST]
    long = [r for r in unknown if r not in short]
    if long or len(unknown) == len(known):
        return (long or unknown)[0]
    return max((r for r in reversed(ranges) if r not in unknown), key=lambda r: int(known[r]))


def _is_affine(leaf: Product, row: Range, column: Range, w: CpuWriter) -> bool:
    """Whether each operand is a view with a plain stride along its row or column, and nothing else moves there."""
    moving = {r.symbol for r in (row, column, *leaf.inner)}
    parts = ((leaf.target, (row, column), ()), (leaf.left, (row,), leaf.inner), (leaf.right, (column,), leaf.inner))
    for access, own, inner in parts:
        flat = flat_position(access, w)
        if flat is None:
            return False
        strides = [flat.coeff(r.symbol, 1) for r in own]
        rest = sp.expand(flat - sum(s * r.symbol for s, r in zip(strides, own, strict=True)))
        if any(s.free_symbols & moving for s in strides) or rest.free_symbols & (moving - {r.symbol for r in inner}):
            return False
    return leaf.target.tensor not in (leaf.left.tensor, leaf.right.tensor)


def _tile(
    leaf: Product, row: Range, column: Range, guards: Sequence[Guard], w: CpuWriter, after: Placed | None
) -> bool:
    """Whether what comes `after` was written inside the tile's loops."""
    names = {r: w.names.fresh(r.pretty or "i") for r in (row, column, *leaf.inner)}
    w.symbols |= {r.symbol: Symbol(name, "integer", frozenset({r.symbol})) for r, name in names.items()}
    left = _operand(leaf.left, row, None, leaf.inner, w)
    right = _operand(leaf.right, None, column, leaf.inner, w)
    into = _operand(leaf.target, row, column, (), w)
    way = w.way(Case(_shape(leaf, row, column, w), w.element, left, right, into, leaf.accumulate, not guards))
    if way.method == "direct":
        _closed(list(names), w)
        _loops(leaf, row, column, w)
        return False
    after = after if way.method == "tile" and not (way.strip and way.depth) else None
    panel = ""
    if after is not None and after.first is not None:
        width = way.vectors * way.lanes
        count = w.over_dims(sp.Add(row.stop, -row.start))
        panel = _local(w, f"{leaf.target.tensor}_tile", (count, sp.Integer(width)))
        into = Operand(w.view(panel), w.integer(-width * row.start), str(width), "0")
    prefix = w.names.prefix(leaf.target.tensor, OWN)
    extents = {r: Extent(name, w.integer(r.start), w.integer(r.stop), _even(r)) for r, name in names.items()}
    inner = clipped([extents[r] for r in leaf.inner], leaf.inner, guards, w)
    lines = product_lines(
        way,
        into,
        left,
        right,
        extents[row],
        extents[column],
        tuple(inner),
        scale=real(leaf.scale, w.scope()).text,
        accumulate=leaf.accumulate,
        prefix=prefix,
        panel=_panel(way, leaf, w),
        strip=_strip(way, leaf, row, w),
        epilogue=after is not None,
        bounds=_bounds(leaf, row, column, w),
    )
    if comment := comment_of(leaf.origin):
        w.line(f"# {comment}")
    for line in lines:
        if line.strip() == EPILOGUE and after is not None:
            _epilogue(after, panel, prefix, (len(line) - len(EPILOGUE)) // 4, w)
        else:
            w.line(line)
    w.used |= {name for name in calls(lines) if any(re.search(rf"\b{name}\(", line) for line in lines)}
    w.used |= {name for name in ("maximum", "minimum") if any(f"{name}(" in line for line in lines)}
    w.read |= {leaf.left.tensor, leaf.right.tensor, *((leaf.target.tensor,) if leaf.accumulate else ())}
    w.written.add(leaf.target.tensor)
    _closed(list(names), w)
    return after is not None


def _even(r: Range) -> int:
    """What the number of places of `r` is surely a multiple of."""
    terms = [term.as_coeff_Mul()[0] for term in sp.Add.make_args(sp.Add(r.stop, -r.start))]
    return max(int(sp.gcd_list(terms)), 1) if all(c.is_Integer for c in terms) else 1


def _bounds(leaf: Product, row: Range, column: Range, w: CpuWriter) -> tuple[Bound, ...]:
    """What the leaf's conditions say of the tile's own loops."""
    if len(leaf.inner) != 1:
        return ()
    own: dict[sp.Basic, Index] = {row.symbol: "row", column.symbol: "column", leaf.inner[0].symbol: "inner"}
    found = []
    for condition in leaf.where:
        room = sp.expand(condition.gts - condition.lts)
        low = [name for s, name in own.items() if room.coeff(s, 1) == -1]
        high = [name for s, name in own.items() if room.coeff(s, 1) == 1]
        shift = room.xreplace(dict.fromkeys(own, sp.S.Zero))
        if len(low) == len(high) == 1:
            found.append(Bound(low[0], high[0], w.integer(shift)))
    return tuple(found)


START, END = (sp.Symbol(name, integer=True, nonnegative=True) for name in ("_column", "_end"))  # of a panel


def _epilogue(after: Placed, panel: str, prefix: str, depth: int, w: CpuWriter) -> None:
    """The nest over the columns of one panel."""
    rows = after.epilogue.nest
    (columns,) = rows.body
    assert isinstance(columns, Loop)
    w.depth += depth
    w.symbols |= {START: Symbol(f"{prefix}_column", "integer"), END: Symbol(f"{prefix}_end", "integer")}
    part = w.integer(START + after.shift), w.integer(END + after.shift)
    if after.first is not None:
        w.moved[after.tensor] = panel, after.first
    with w.loop(rows.range), w.loop(columns.range, part):
        after.epilogue.write(columns.body, w)
    w.moved.pop(after.tensor, None)
    del w.symbols[START], w.symbols[END]
    w.depth -= depth


def _closed(ranges: Sequence[Range], w: CpuWriter) -> None:
    for r in ranges:
        w.names.release(w.symbols.pop(r.symbol).text)


def _operand(access: Access, row: Range | None, column: Range | None, inner: Sequence[Range], w: CpuWriter) -> Operand:
    flat = flat_position(access, w)
    assert flat is not None
    strides = [sp.S.Zero if r is None else flat.coeff(r.symbol, 1) for r in (row, column)]
    own = [r.symbol for r in (row, column) if r is not None]
    offset = flat.xreplace(dict.fromkeys(own, sp.S.Zero))
    steps = [offset.coeff(r.symbol, 1) for r in inner]
    plain = not any(s.free_symbols & {r.symbol for r in inner} for s in steps)
    return Operand(
        view=w.view(access.tensor),
        offset=w.integer(offset),
        row=w.integer(strides[0]),
        column=w.integer(strides[1]),
        inner=tuple(map(w.integer, steps)) if plain else (),
    )


def _shape(leaf: Product, row: Range, column: Range, w: CpuWriter) -> Shape:
    def count(ranges: Sequence[Range]) -> int | None:
        extent = product(sp.Add(r.stop, -r.start) for r in ranges)
        return int(extent) if extent.is_Integer else None

    block = w.kernel.block
    typical = min(block.size, 32) if block is not None and row.stop == block.last else 64
    return Shape(count([row]), count([column]), count(leaf.inner), max(typical, 1))


def _panel(way: Way, leaf: Product, w: CpuWriter) -> str:
    """The scratch array that `right` is packed into."""
    if way.panel is None:
        return ""
    return w.view(_local(w, f"{leaf.right.tensor}_panel", (_deep(way, leaf, w), sp.Integer(way.panel[1]))))


def _strip(way: Way, leaf: Product, row: Range, w: CpuWriter) -> str:
    """The scratch array that `left` is packed into."""
    if not way.strip:
        return ""
    rows = w.over_dims(sp.Add(row.stop, -row.start)) + way.rows
    return w.view(_local(w, f"{leaf.left.tensor}_strip", (rows, _deep(way, leaf, w) + PAD)))


def _deep(way: Way, leaf: Product, w: CpuWriter) -> sp.Expr:
    """How many inner indices are packed at a time."""
    if way.depth:
        return sp.Integer(way.depth)
    return sp.expand(product(w.over_dims(sp.Add(r.stop, -r.start)) for r in leaf.inner))


def _local(w: CpuWriter, name: str, shape: tuple[sp.Expr, ...] = ()) -> str:
    """A scratch buffer of the printer's own."""
    while name in w.buffers:
        name += "_"
    w.buffers = {**w.buffers, name: Buffer(name, shape, DType.FLOAT, "scratch")}
    return name


# Plain loops.


def _loops(leaf: Product, row: Range, column: Range, w: CpuWriter) -> None:
    """Row by row: along the target where that and `right` are contiguous, else one sum after the other."""
    along = bool(_step_one(leaf.target, (column,), w)) and _moves_by_one(leaf.right, column)
    length = sp.Add(column.stop, -column.start)
    if along and not (length.is_Integer and length < 8) and leaf.inner:
        _rows_along(leaf, row, column, w)
        return
    own = [r for r in (row, column) if r is not NOTHING]
    _opened(own, lambda: _one_sum(leaf, w), w)


def _moves_by_one(access: Access, column: Range) -> bool:
    """Whether only the last index of a read moves with the column, by one: guarded or not, it is contiguous."""
    if not access.indices or any(column.symbol in i.free_symbols for i in access.indices[:-1]):
        return False
    return bool(sp.expand(access.indices[-1]).coeff(column.symbol, 1) == 1)


def _one_sum(leaf: Product, w: CpuWriter) -> None:
    total = Access(_local(w, f"{leaf.target.tensor}_sum"), ())
    write_statement(Statement(total, sp.S.Zero), w)
    value = product((slot(0), slot(1)))
    add = Statement(total, value, (leaf.left, leaf.right), (), Reduce.SUM, origin=leaf.origin)
    _opened(leaf.inner, lambda: write_statement(add, w), w)
    reduce = Reduce.SUM if leaf.accumulate else None
    whole = product((leaf.scale, slot(0)))
    write_statement(Statement(leaf.target, whole, (total,), (), reduce, origin=leaf.origin), w)


def _rows_along(leaf: Product, row: Range, column: Range, w: CpuWriter) -> None:
    """``target[r, :] += left[r, k] * right[k, :]`` for each k: the columns are lanes of a vector."""
    value = product((leaf.scale, slot(0), slot(1)))
    add = Statement(leaf.target, value, (leaf.left, leaf.right), (), Reduce.SUM, origin=leaf.origin)

    def one_row() -> None:
        if not leaf.accumulate:
            clear = Statement(leaf.target, sp.S.Zero, origin=leaf.origin)
            _opened([column], lambda: write_statement(clear, w), w)
        _opened([*leaf.inner, column], lambda: write_statement(add, w), w)

    _opened([row] if row is not NOTHING else [], one_row, w)
