"""A contraction leaf as source: a register tile, or a call of OpenBLAS; tiny ones are loops that the caller prints.

    target[r, c] (+)= scale * sum[k] left[r, k] * right[k, c]

`choose` decides how, from the extents that are known; `product_lines` prints it. A caller opens loops of its own
for all but one row range, one column range, and the inner ranges, and describes each operand by flat positions:

    way = choose(shape, element, target)
    panel = <a scratch array of way.panel, where that is not None>
    for line in product_lines(way, z, x, w, rows, columns, inner, scale="1.0", accumulate=False, prefix="z"): ...

A tile is TM rows × NV vectors of sums in registers: for each k, NV loads of `right`, TM broadcasts of `left` and
TM · NV fused multiply-adds. Every element is summed over k in order, from 0, whatever the tile: no split of rows or
columns changes a bit. Columns are the outer loop, so that a panel of `right` stays in the cache while the rows pass.
Where `right` is not contiguous in its columns, or its rows collide in the cache, its panel is first packed. Where a
panel is too long for the first cache, it is cut: sums then wait in the target for the next part, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.codegen.operand import (
    EPILOGUE,
    Bound,
    Extent,
    Leaf,
    Operand,
    Shape,
    Way,
    indent,
    inner_loops,
    minus,
    place,
    plus,
    times,
    wholes,
)
from chainrule.codegen.packing import pack_left, pack_right, strip_place
from chainrule.codegen.target import Target

__all__ = ["EPILOGUE", "Bound", "Extent", "Operand", "Shape", "Way", "calls", "choose", "product_lines"]

SMALL = 512  # multiplications: below, a tile's edges cost more than they save
LARGE = 2**29  # above, its blocking for all caches pays
COLLISION = 2048  # bytes: rows so far apart share few sets of the first cache
NEAR = 140_000  # bytes of a panel: the second cache gives a tile all that it reads, but no panel needs more of it
IN_FLIGHT = 10  # sums that two pipelines of four cycles keep waiting, and a little more
DEEP = 256  # inner indices at a time, where a panel is cut and their number is known at run time only
MANY = 16  # panels: so many times a strip is read that it pays where places are merely far apart
STRIP = 1 << 19  # bytes of a packed left operand that the second cache holds beside the rest


def choose(
    shape: Shape,
    element: str,
    target: Target,
    left: Operand,
    right: Operand,
    into: Operand,
    *,
    accumulate: bool = False,
) -> Way:
    """Direct loops for tiny or scattered products, OpenBLAS for large plain matrices, else a tile that fits."""
    m, n, k = shape.rows or shape.typical_rows, shape.columns or 256, shape.inner or 256
    if into.column != "1" or m * n * k < SMALL:
        return Way("direct")
    lanes, size = target.lanes(element), target_bytes(element)
    if m >= 64 and m * n * k >= LARGE and is_matrix(left, left.row) and is_matrix(right, right.column):
        return Way("blas")
    rows, vectors = _tile_shape(shape, n, lanes, target)
    width = lanes * vectors
    stride, single = right.inner[-1] if right.inner else "", len(right.inner) == 1
    near = single or k * width * size <= STRIP  # a panel of several inner ranges is not cut
    collides = near and _collides(stride, size) and k >= 64 and m >= 4 * rows and n >= width
    pack = right.column != "1" or collides
    step = "".join(left.inner) if left.row == "1" and len(left.inner) == 1 else ""
    far = step.isdigit() and int(step) * size >= COLLISION and k >= DEEP // 2 and n >= MANY * width
    strip = far or (k >= 64 and n >= width and _collides(step, size))
    if strip:
        tall, wide = _tile_shape(shape, n, lanes, target, packed=True)
        room = NEAR if pack else NEAR * 3 // 4  # rows that are not packed do not use all of the cache
        depth = _depth(shape.inner, min(room // (lanes * wide * size), STRIP // (m * size)))
        if depth is None or not accumulate:  # what is added is no sum that waits for its next part
            panel = (depth or shape.inner, lanes * wide) if pack else None
            return Way("tile", tall, wide, lanes, panel, depth, strip)
    cut = pack and single and not accumulate and (shape.inner is None or k * width * size > NEAR)
    depth = _depth(shape.inner, NEAR // (width * size)) if cut and m >= 2 * rows and n > width else None
    return Way("tile", rows, vectors, lanes, (depth or shape.inner, width) if pack else None, depth)


def _collides(stride: str, size: int) -> bool:
    """Whether rows so many elements apart drive each other out of the cache."""
    return stride.isdigit() and int(stride) > 0 and int(stride) * size % COLLISION == 0


def _depth(known: int | None, most: int) -> int | None:
    """How many inner indices at a time, in parts of about equal length; None: all."""
    if known is None:
        return max(min(DEEP, most // 16 * 16), 16)
    parts = -(-known // max(most, 16))
    return -(-known // parts // 16) * 16 if parts > 1 else None


def target_bytes(element: str) -> int:
    """The bytes of an element."""
    return 4 if element == "float32" else 8


def is_matrix(operand: Operand, other: str) -> bool:
    """Whether an operand is a matrix of BLAS: one inner stride, and one of its two strides is 1."""
    return len(operand.inner) == 1 and "1" in (operand.inner[0], other)


def _tile_shape(shape: Shape, columns: int, lanes: int, target: Target, *, packed: bool = False) -> tuple[int, int]:
    """Rows and vectors of a tile: those with the fewest instructions for each inner index of the whole product.

    A tile loads its vectors and broadcasts an element for each row beside their multiply-adds: 1.6 instructions for
    each of these at 8 × 2, 1.4 at 6 × 4, which is what counts where another thread shares the core's front end. A
    vector, which the second cache may have to give, counts twice. A tile with fewer sums than the pipelines hold waits
    for its own: with AVX2 6 rows of 2 vectors reach 95 % of the peak, 4 rows 82 %. What is left over counts twice as
    well, for it is a loop of its own; where rows are known at run time only, it computes as many as the others. What is
    left over of the columns is all of these loops once more, to compile and to fetch: a tenth.

    packed: rows are loaded as a vector.
    """
    usual = max(shape.typical_rows if shape.rows is None else shape.rows, 1)

    def tile(rows: int, vectors: int) -> int:
        """Those that could have been executed while waiting included."""
        return max(rows * vectors, IN_FLIGHT) + rows + 2 * vectors if rows and vectors else 0

    def instructions(rows: int, vectors: int) -> int:
        count, rest = divmod(usual, rows)
        low = rows if rest and shape.rows is None else rest
        panels, left = divmod(columns, lanes * vectors)
        widths = ((panels, vectors), (1, -(-left // lanes)))
        total = sum(each * (count * tile(rows, wide) + 2 * tile(low, wide)) for each, wide in widths)
        return total * (11 if panels and left else 10)

    widest = target.widest if shape.columns is not None else min(target.widest, 2)  # a power of two leaves less
    shapes = [
        (rows, vectors)
        for vectors in range(1, min(max(-(-columns // lanes), 1), widest) + 1)
        for rows in range(1, min(target.tallest(vectors), 16 if vectors == 1 else 14, usual) + 1)
        if not packed or rows in (1, 2, 4, 8)
    ]
    return min(shapes, key=lambda s: (instructions(*s), usual % s[0] != 0, -s[0]))


def product_lines(
    way: Way,
    target: Operand,
    left: Operand,
    right: Operand,
    rows: Extent,
    columns: Extent,
    inner: tuple[Extent, ...],
    *,
    scale: str = "1.0",
    accumulate: bool = False,
    prefix: str = "p",
    panel: str = "",
    strip: str = "",
    epilogue: bool = False,
    bounds: tuple[Bound, ...] = (),
) -> list[str]:
    """The leaf's source, unindented. prefix: what the leaf's own variables start with; panel, strip: scratch views.

    `scale` is an expression of the element's type. Names that it calls: `calls`. epilogue: mark with a line EPILOGUE
    where the columns from ``<prefix>_column`` to ``<prefix>_end`` are done. bounds: what may be left out.
    """
    leaf = Leaf(way, target, left, right, rows, columns, inner, scale, accumulate, prefix, panel, strip, bounds=bounds)
    if way.method == "direct":
        raise ValueError("a direct product is plain loops, which the caller prints")
    return list(_blas(leaf) if way.method == "blas" else _tiled(leaf, epilogue))


CALLS = (
    "tile",
    "rank1",
    "rank1_part",
    "store_tile",
    "add_tile",
    "load_tile",
    "transpose",
    "element",
    "gemm",
    "store",
    "load_part",
)


def calls(lines: list[str]) -> set[str]:
    """The functions of `vector` and `functions` that a leaf's lines call."""
    return {name for name in CALLS if any(f"{name}(" in line for line in lines)}


def _store(leaf: Leaf) -> str:
    return "add_tile" if leaf.accumulate else "store_tile"


def _tiled(leaf: Leaf, epilogue: bool) -> Iterator[str]:
    """Panel after panel; where `left` is packed, its strips are the outermost loop."""
    if not leaf.way.strip:
        yield from _panels(leaf, epilogue)
    elif leaf.way.depth is None:
        yield from pack_left(leaf)
        yield from _panels(leaf, epilogue)
    else:
        lines, part = _part(leaf)
        yield from lines
        yield from indent([*pack_left(part), *_panels(part, epilogue=False)])


def _panels(leaf: Leaf, epilogue: bool) -> Iterator[str]:
    """Panels of `width` columns, then what is left of them with masks."""
    column, width, columns = leaf.name("column"), leaf.width, leaf.columns
    known = columns.known
    lines, end = wholes(leaf, columns, width, "whole")
    yield from lines
    done = [f"{leaf.name('end')} = minimum({column} + {width}, {columns.stop})", EPILOGUE] if epilogue else []
    if known is None or known >= width:
        whole = [f"{leaf.name('end')} = {column} + {width}", EPILOGUE] if epilogue else []
        yield f"for {column} in range({columns.start}, {end}, {width}):"
        yield from indent([*_parts(leaf, column, str(width), leaf.way.vectors), *whole])
    if not columns.is_whole(width):
        rest = str(known % width) if known is not None else f"{columns.stop} - {column}"
        vectors = -(-(known % width) // leaf.way.lanes) if known is not None else leaf.way.vectors
        yield f"for {column} in range({end}, {columns.stop}, {width}):"
        yield from indent([*_parts(leaf, column, rest, vectors), *done])


def _parts(leaf: Leaf, column: str, count: str, vectors: int) -> Iterator[str]:
    """One panel, all of it or part after part of the inner indices."""
    if leaf.way.depth is None or leaf.around is not None:
        yield from _panel(leaf, column, count, vectors)
        return
    lines, part = _part(leaf)
    yield from lines
    yield from indent(_panel(part, column, count, vectors))


def _part(leaf: Leaf) -> tuple[list[str], Leaf]:
    """The leaf of a part of the inner indices, and the loop over these parts around it."""
    depth, (inner,) = leaf.way.depth, leaf.inner
    first, last, known = leaf.name("first"), leaf.name("last"), inner.known
    assert depth is not None
    once = inner.stop if known else f"maximum({inner.stop}, {plus(inner.start, '1')})"  # zeros, for a sum of nothing
    whole = known is not None and known > 0 and known % depth == 0
    lines = [
        f"for {first} in range({inner.start}, {once}, {depth}):",
        f"    {last} = {first} + {depth}" if whole else f"    {last} = minimum({first} + {depth}, {inner.stop})",
    ]
    return lines, replace(leaf, inner=(Extent(inner.name, first, last),), around=inner)


def _panel(leaf: Leaf, column: str, count: str, vectors: int) -> Iterator[str]:
    """All rows against one panel of columns: tiles of the full height, then one of what is left.

    Where the number of rows is known at run time only, the last tile repeats its last row and stores each once.
    """
    if leaf.way.panel is not None:
        yield from pack_right(leaf, column, count)
    rows, row, tall = leaf.rows, leaf.name("row"), leaf.way.rows
    lines, end = wholes(leaf, rows, tall, "full")
    yield from lines
    if rows.known is None or rows.known >= tall:
        yield f"for {row} in range({rows.start}, {end}, {tall}):"
        yield from indent(_tile(leaf, row, column, tall, vectors, count, str(tall)))
    if not rows.is_whole(tall):
        height = tall if rows.known is None else rows.known % tall
        count_rows = minus(rows.stop, row) if rows.known is None else str(rows.known % tall)
        yield f"for {row} in range({end}, {rows.stop}, {tall}):"
        yield from indent(_tile(leaf, row, column, height, vectors, count, count_rows))


def _tile(leaf: Leaf, row: str, column: str, height: int, vectors: int, columns: str, rows: str) -> Iterator[str]:
    """One tile: its sums from zeros or from what the parts before left, all inner indices, the store."""
    sums, target, around = _sums_name(leaf, height, vectors), leaf.target, leaf.around
    shape = f"{height}, {vectors}, {leaf.way.lanes}"
    into = f"{target.view}, {place(target, row, column)}, {target.row}"
    bounds, bounded = _bounded(leaf, row, column, height, vectors)
    lines = [*bounds]
    if around is None:
        lines.append(f"{sums} = tile({target.view}, {shape})")
    else:
        lines += [
            f"if {leaf.inner[0].start} == {around.start}:",
            f"    {sums} = tile({target.view}, {shape})",
            "else:",
            f"    {sums} = load_tile({into}, {shape}, {rows}, {columns})",
        ]
    lines += _sums(leaf, bounded, row, column, height, vectors, columns, rows)
    scale = leaf.scale
    if around is not None and not leaf.is_plain:
        one = "float32(1.0)" if scale.startswith("float32(") else "1.0"
        scale = f"({scale} if {leaf.inner[0].stop} == {around.stop} else {one})"
    lines.append(f"{_store(leaf)}({sums}, {into}, {scale}, {rows}, {columns})")
    if around is None and bounds and leaf.accumulate:  # nothing to add
        (part,) = bounded.inner
        yield from [*lines[: len(bounds)], f"if {part.start} < {part.stop}:", *indent(lines[len(bounds) :])]
        return
    if around is None or not bounds or not (leaf.is_plain or all(b.low != "inner" for b in leaf.bounds)):
        yield from lines
        return
    # a part of which nothing is needed leaves the sums as they are, but for the last one's scale
    yield from lines[: len(bounds)]
    (part,) = bounded.inner
    yield f"if ({part.start} < {part.stop}) | ({leaf.inner[0].start} == {around.start}):"
    yield from indent(lines[len(bounds) :])


def _sums_name(leaf: Leaf, height: int, vectors: int) -> str:
    """A variable of its own for each shape of tile, where one loop holds several: it has one type all around."""
    low, narrow = height < leaf.way.rows, vectors < leaf.way.vectors
    if leaf.around is None or not (low or narrow):
        return leaf.name("sums")
    return leaf.name("corner" if low and narrow else "low" if low else "narrow")


def _sums(
    leaf: Leaf, bounded: Leaf, row: str, column: str, height: int, vectors: int, columns: str, rows: str
) -> Iterator[str]:
    """The loop over the inner indices of one tile."""
    left, right, k, sums = leaf.left, leaf.right, leaf.name("k"), _sums_name(leaf, height, vectors)
    counted = leaf.way.panel is not None and len(leaf.inner) != 1  # else the inner index itself counts the panel's rows
    at = k if counted else minus(leaf.inner[0].name, leaf.inner[0].start) if leaf.inner else "0"
    if leaf.way.panel is not None:
        here, count = f"{leaf.panel}, {times(at, str(leaf.width))}", str(vectors * leaf.way.lanes)
    else:
        here, count = f"{right.view}, {place(right, '0', column)}", columns
    if leaf.way.strip:  # rows that do not exist are zeros there
        there = f"{leaf.strip}, {plus(strip_place(leaf, row), times(at, str(leaf.way.rows)))}, 1"
        rows = str(height)
    else:
        there = f"{left.view}, {place(left, row, '0')}, {left.row}"
    whole = rows == str(height) and count == str(vectors * leaf.way.lanes)
    body = [f"{sums} = rank1({sums}, {there}, {here})" if whole else
            f"{sums} = rank1_part({sums}, {there}, {here}, {rows}, {count})"]  # fmt: skip
    if counted:
        yield f"{k} = 0"
    yield from inner_loops(bounded, [*body, f"{k} += 1"] if counted else body)


def _bounded(leaf: Leaf, row: str, column: str, height: int, vectors: int) -> tuple[list[str], Leaf]:
    """The leaf whose inner loop is as short as its bounds allow in one tile, and the lines that say how short."""
    if not leaf.bounds or len(leaf.inner) != 1:
        return [], leaf
    (inner,) = leaf.inner
    first, last = leaf.name("from"), leaf.name("to")
    least = {"row": row, "column": column}
    greatest = {"row": f"{row} + {height - 1}", "column": f"{column} + {vectors * leaf.way.lanes - 1}"}
    lines = [f"{first} = {inner.start}", f"{last} = {inner.stop}"]
    for b in leaf.bounds:
        if b.low == "inner":
            lines.append(f"{last} = minimum({last}, {plus(greatest[b.high], b.shift, '1')})")
        elif b.high == "inner":
            lines.append(f"{first} = maximum({first}, {minus(least[b.low], b.shift)})")
        else:
            lines.append(f"{last} = {last} if {least[b.low]} <= {plus(greatest[b.high], b.shift)} else {first}")
    return lines, replace(leaf, inner=(Extent(inner.name, first, last),))


def _blas(leaf: Leaf) -> Iterator[str]:
    """One call; the inner loop's name stands at its start, where the operands' offsets are taken."""
    (extent,) = leaf.inner
    rows, columns = leaf.rows, leaf.columns
    turned_left, turned_right = (
        leaf.left.row == "1" != leaf.left.inner[0],
        leaf.right.inner[0] == "1" != leaf.right.column,
    )
    left_step = leaf.left.inner[0] if turned_left else leaf.left.row
    right_step = leaf.right.column if turned_right else leaf.right.inner[0]
    keep = "1.0" if leaf.accumulate else "0.0"
    sizes = ", ".join(minus(e.stop, e.start) for e in (rows, columns, extent))
    yield f"{extent.name} = {extent.start}"
    yield "gemm("
    yield f"    {int(turned_left)}, {int(turned_right)}, {sizes}, {leaf.scale},"
    yield f"    {leaf.left.view}, {place(leaf.left, rows.start, '0')}, {left_step},"
    yield f"    {leaf.right.view}, {place(leaf.right, '0', columns.start)}, {right_step},"
    yield f"    {keep}, {leaf.target.view}, {place(leaf.target, rows.start, columns.start)}, {leaf.target.row},"
    yield ")"
