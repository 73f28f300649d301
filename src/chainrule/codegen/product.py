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
Where `right` is not contiguous in its columns, or its rows collide in the cache, its panel is first packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from chainrule.codegen.target import Target

Method = Literal["direct", "tile", "blas"]


@dataclass(frozen=True)
class Extent:
    """A loop of the leaf, ``for name in range(start, stop)``, as source; a number where it is known."""

    name: str
    start: str
    stop: str

    @property
    def known(self) -> int | None:
        """How many indices there are, if that is known now."""
        digits = self.start.isdigit() and self.stop.isdigit()
        return max(int(self.stop) - int(self.start), 0) if digits else None


@dataclass(frozen=True)
class Operand:
    """An operand: the element of row r and column c lies at ``offset + r row + c column`` of the flattened `view`.

    All are source; `offset` may mention the inner loops' names and what is open around the leaf, never rows and
    columns. `left` has column "0", `right` row "0".
    """

    view: str
    offset: str
    row: str
    column: str
    inner: tuple[str, ...] = ()  # what offset moves by with each inner range, where that is a plain stride


@dataclass(frozen=True)
class Shape:
    """What the choice depends on; None: known at run time only. `typical_rows`: a block's usual number of rows."""

    rows: int | None
    columns: int | None
    inner: int | None
    typical_rows: int = 32


@dataclass(frozen=True)
class Way:
    """How a product is computed. panel: the shape of the scratch array that `right` is packed into, or None.

    The panel's first extent is None where the number of inner indices is known at run time only.
    """

    method: Method
    rows: int = 1
    vectors: int = 1
    lanes: int = 1
    panel: tuple[int | None, int] | None = None


SMALL = 512  # multiplications: below, a tile's edges cost more than they save
LARGE = 2**24  # above, OpenBLAS's blocking for all caches pays
COLLISION = 2048  # bytes: rows so far apart share few sets of the first cache


def choose(shape: Shape, element: str, target: Target, left: Operand, right: Operand, into: Operand) -> Way:
    """Direct loops for tiny or scattered products, OpenBLAS for large plain matrices, else a tile that fits."""
    m, n, k = shape.rows or shape.typical_rows, shape.columns or 256, shape.inner or 256
    if into.column != "1" or m * n * k < SMALL:
        return Way("direct")
    if m * n * k >= LARGE and _is_matrix(left, left.row) and _is_matrix(right, right.column) and m >= 64:
        return Way("blas")
    lanes = target.lanes(element)
    vectors = 1 if n <= lanes else 2
    most = (target.registers - 4) // vectors if target.registers >= 32 else (target.registers - 3) // vectors
    rows = _tile_rows(shape.rows, shape.typical_rows, min(most, 14))
    width = lanes * vectors
    stride = right.inner[0] if len(right.inner) == 1 else ""
    size = target_bytes(element)
    collides = stride.isdigit() and int(stride) * size % COLLISION == 0 and k >= 64 and m >= 4 * rows and n > width
    pack = right.column != "1" or collides
    return Way("tile", rows, vectors, lanes, (shape.inner, width) if pack else None)


def target_bytes(element: str) -> int:
    """The bytes of an element."""
    return 4 if element == "float32" else 8


def _is_matrix(operand: Operand, other: str) -> bool:
    """Whether an operand is a matrix of BLAS: one inner stride, and one of its two strides is 1."""
    return len(operand.inner) == 1 and "1" in (operand.inner[0], other)


def _tile_rows(known: int | None, typical: int, most: int) -> int:
    """The rows of a tile: as many as fit, but so that few are left over; 8 or a half of it for run-time blocks."""
    if known is None:
        return next((r for r in (8, 4, 2, 1) if r <= most and r <= typical), 1)
    if known <= most:
        return max(known, 1)
    return min(range(most, most // 2, -1), key=lambda r: (-(-known // r), known % r != 0, -r))


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
) -> list[str]:
    """The leaf's source, unindented. prefix: what the leaf's own variables start with; panel: the scratch view.

    `scale` is an expression of the element's type. Names that it calls: `calls`.
    """
    leaf = _Leaf(way, target, left, right, rows, columns, inner, scale, accumulate, prefix, panel)
    if way.method == "direct":
        raise ValueError("a direct product is plain loops, which the caller prints")
    return list(_blas(leaf) if way.method == "blas" else _tiled(leaf))


def calls(lines: list[str]) -> set[str]:
    """The functions of `vector` and `functions` that a leaf's lines call."""
    names = (
        "tile",
        "rank1",
        "rank1_part",
        "store_tile",
        "add_tile",
        "transpose",
        "element",
        "gemm",
        "store",
        "load_part",
    )
    return {name for name in names if any(f"{name}(" in line for line in lines)}


@dataclass(frozen=True)
class _Leaf:
    way: Way
    target: Operand
    left: Operand
    right: Operand
    rows: Extent
    columns: Extent
    inner: tuple[Extent, ...]
    scale: str
    accumulate: bool
    prefix: str
    panel: str

    def name(self, of: str) -> str:
        return f"{self.prefix}_{of}"

    @property
    def width(self) -> int:
        return self.way.lanes * self.way.vectors


def _indent(lines: Iterator[str], depth: int = 1) -> Iterator[str]:
    return ("    " * depth + line for line in lines)


def _times(index: str, stride: str) -> str:
    if stride == "1":
        return index
    if index.isdigit() and stride.isdigit():
        return str(int(index) * int(stride))
    return f"{_atom(index)} * {_atom(stride)}"


def _atom(text: str) -> str:
    return text if text.replace("_", "").isalnum() else f"({text})"


def _plus(*terms: str) -> str:
    return " + ".join(term for term in terms if term != "0") or "0"


def _at(operand: Operand, row: str, column: str) -> str:
    """The flat position of an element."""
    parts = [_times(i, s) for i, s in ((row, operand.row), (column, operand.column)) if s != "0"]
    return _plus(operand.offset, *parts)


def _store(leaf: _Leaf) -> str:
    return "add_tile" if leaf.accumulate else "store_tile"


def _inner_loops(leaf: _Leaf, body: list[str]) -> Iterator[str]:
    for depth, extent in enumerate(leaf.inner):
        yield "    " * depth + f"for {extent.name} in range({extent.start}, {extent.stop}):"
    yield from _indent(iter(body), len(leaf.inner))


def _tiled(leaf: _Leaf) -> Iterator[str]:
    """Panels of `width` columns, then what is left of them with masks."""
    column, width, columns = leaf.name("column"), leaf.width, leaf.columns
    known = columns.known
    whole = known is not None and known % width == 0
    full = leaf.name("full")
    if known is not None:
        end = str(int(columns.start) + known // width * width)
    else:
        end = full
        yield f"{full} = {_atom(columns.start)} + max({_minus(columns.stop, columns.start)}, 0) // {width} * {width}"
    if known is None or known >= width:
        yield f"for {column} in range({columns.start}, {end}, {width}):"
        yield from _indent(_panel(leaf, column, str(width), leaf.way.vectors))
    if not whole:
        yield f"for {column} in range({end}, {columns.stop}, {width}):"
        rest = str(known % width) if known is not None else f"{columns.stop} - {column}"
        vectors = -(-(known % width) // leaf.way.lanes) if known is not None else leaf.way.vectors
        yield from _indent(_panel(leaf, column, rest, vectors))


def _minus(a: str, b: str) -> str:
    return a if b == "0" else f"{a} - {_atom(b)}"


def _panel(leaf: _Leaf, column: str, count: str, vectors: int) -> Iterator[str]:
    """All rows against one panel of columns: tiles of the full height, then one of what is left.

    Where the number of rows is known at run time only, the last tile repeats its last row and stores each once.
    """
    if leaf.way.panel is not None:
        yield from _pack(leaf, column, count)
    rows, row, tall = leaf.rows, leaf.name("row"), leaf.way.rows
    start, known = rows.start, rows.known
    if known is not None:
        heights, first = [(tall, known // tall)] if known >= tall else [], int(rows.start)
        heights += [(known % tall, 1)] if known % tall else []
        for height, times in heights:
            yield f"for {row} in range({first}, {first + height * times}, {height}):"
            yield from _indent(_tile(leaf, row, column, height, vectors, count, str(height)))
            first += height * times
        return
    yield f"for {row} in range({start}, {rows.stop}, {tall}):"
    yield from _indent(_tile(leaf, row, column, tall, vectors, count, f"{rows.stop} - {row}"))


def _tile(leaf: _Leaf, row: str, column: str, height: int, vectors: int, columns: str, rows: str) -> Iterator[str]:
    sums, target, left, right = leaf.name("sums"), leaf.target, leaf.left, leaf.right
    yield f"{sums} = tile({target.view}, {height}, {vectors}, {leaf.way.lanes})"
    whole = rows == str(height) and columns == str(vectors * leaf.way.lanes)
    counted = leaf.way.panel is not None and len(leaf.inner) != 1  # else the inner index itself counts the panel's rows
    k = leaf.name("k")
    if counted:
        yield f"{k} = 0"
    if leaf.way.panel is not None:
        at = k if counted else _atom(_minus(leaf.inner[0].name, leaf.inner[0].start))
        place, count = f"{leaf.panel}, {at} * {leaf.width}", str(vectors * leaf.way.lanes)
        whole = rows == str(height)
    else:
        place, count = f"{right.view}, {_at(right, '0', column)}", columns
    places = f"{sums}, {left.view}, {_at(left, row, '0')}, {left.row}, {place}"
    body = [f"{sums} = rank1({places})" if whole else f"{sums} = rank1_part({places}, {rows}, {count})"]
    yield from _inner_loops(leaf, [*body, f"{k} += 1"] if counted else body)
    into = f"{target.view}, {_at(target, row, column)}, {target.row}"
    yield f"{_store(leaf)}({sums}, {into}, {leaf.scale}, {rows}, {columns})"


def _pack(leaf: _Leaf, column: str, count: str) -> Iterator[str]:
    """``panel[k, c] = right[k, column + c]``, zeros beyond the last column; squares are turned in registers."""
    k, c, right, lanes, width = leaf.name("k"), leaf.name("c"), leaf.right, leaf.way.lanes, leaf.width
    whole = count == str(width)
    if len(leaf.inner) == 1 and right.inner == ("1",) and right.column != "1" and whole:
        yield from _pack_turned(leaf, column)
        return
    yield f"{k} = 0"
    if right.column == "1":
        body = []
        for v in range(leaf.way.vectors):
            place = _plus(_at(right, "0", column), str(v * lanes))
            into = _plus(f"{k} * {width}", str(v * lanes))
            part = f"load_part({right.view}, {place}, {lanes}, {_minus(count, str(v * lanes))})"
            body.append(f"store({leaf.panel}, {into}, {part})")
    else:
        place = _at(right, "0", f"{column} + {c}")
        body = [
            f"for {c} in range({count}):",
            f"    {leaf.panel}[{k}, {c}] = element({right.view}, {place})",
        ]
        if not whole:
            body += [f"for {c} in range({count}, {width}):", f"    {leaf.panel}[{k}, {c}] = 0.0"]
    yield from _inner_loops(leaf, [*body, f"{k} += 1"])


def _pack_turned(leaf: _Leaf, column: str) -> Iterator[str]:
    """The panel of a transposed `right`, in squares of lanes × lanes."""
    c, right, lanes, width = leaf.name("c"), leaf.right, leaf.way.lanes, leaf.width
    (extent,) = leaf.inner
    place = _at(right, "0", f"{column} + {c}")
    k = _minus(extent.name, extent.start)
    into = f"{_atom(k)} * {width} + {c}"
    known = extent.known
    if known is None:
        end = leaf.name("squares")
        yield f"{end} = {_atom(extent.start)} + max({_minus(extent.stop, extent.start)}, 0) // {lanes} * {lanes}"
    else:
        end = str(int(extent.start) + known // lanes * lanes)
    if known is None or known >= lanes:
        yield f"for {extent.name} in range({extent.start}, {end}, {lanes}):"
        yield f"    for {c} in range(0, {width}, {lanes}):"
        yield f"        transpose({right.view}, {place}, {right.column}, {leaf.panel}, {into}, {width}, {lanes})"
    if known is None or known % lanes:
        yield f"for {extent.name} in range({end}, {extent.stop}):"
        yield f"    for {c} in range({width}):"
        yield f"        {leaf.panel}[{k}, {c}] = element({right.view}, {place})"


def _blas(leaf: _Leaf) -> Iterator[str]:
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
    sizes = ", ".join(_minus(e.stop, e.start) for e in (rows, columns, extent))
    yield f"{extent.name} = {extent.start}"
    yield "gemm("
    yield f"    {int(turned_left)}, {int(turned_right)}, {sizes}, {leaf.scale},"
    yield f"    {leaf.left.view}, {_at(leaf.left, rows.start, '0')}, {left_step},"
    yield f"    {leaf.right.view}, {_at(leaf.right, '0', columns.start)}, {right_step},"
    yield f"    {keep}, {leaf.target.view}, {_at(leaf.target, rows.start, columns.start)}, {leaf.target.row},"
    yield ")"
