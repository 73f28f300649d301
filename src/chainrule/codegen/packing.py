"""A panel of `right`'s columns, or a strip of `left`'s rows, copied so that a tile reads it in order.

Rows that lie a power of two apart fall into the same few sets of a cache and drive each other out; the copy is read
once for every tile of rows, so it pays wherever there are some. `left` is packed where its rows lie side by side, and
what a tile reads for one inner index after the other collides: eight rows that collide do not yet drive each other out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.codegen.operand import Extent, Leaf, atom, inner_loops, minus, place, plus, times, wholes


def pack_right(leaf: Leaf, column: str, count: str) -> Iterator[str]:
    """``panel[k, c] = right[k, column + c]``, zeros beyond the last column; squares are turned in registers."""
    k, c, right, lanes, width = leaf.name("k"), leaf.name("c"), leaf.right, leaf.way.lanes, leaf.width
    whole = count == str(width)
    if right.inner and right.inner[-1] == "1" and right.column != "1" and count.isdigit() and int(count) >= lanes:
        yield from _pack_turned(leaf, column, int(count))
        return
    counted = len(leaf.inner) != 1
    at = k if counted else minus(leaf.inner[0].name, leaf.inner[0].start)
    if counted:
        yield f"{k} = 0"
    if right.column == "1":
        body = []
        for v in range(leaf.way.vectors):
            here = plus(place(right, "0", column), str(v * lanes))
            into = plus(times(at, str(width)), str(v * lanes))
            part = f"load_part({right.view}, {here}, {lanes}, {minus(count, str(v * lanes))})"
            body.append(f"store({leaf.panel}, {into}, {part})")
    else:
        here = place(right, "0", f"{column} + {c}")
        body = [
            f"for {c} in range({count}):",
            f"    {leaf.panel}[{at}, {c}] = element({right.view}, {here})",
        ]
        if not whole:
            body += [f"for {c} in range({count}, {width}):", f"    {leaf.panel}[{at}, {c}] = 0.0"]
    yield from inner_loops(leaf, [*body, f"{k} += 1"] if counted else body)


def _pack_turned(leaf: Leaf, column: str, columns: int) -> Iterator[str]:
    """The panel of a transposed `right`, in squares of lanes × lanes; the last inner range is the squares' own."""
    *around, extent = leaf.inner
    if not around:
        yield from _squares(leaf, extent, column, columns, "0")
        return
    k = leaf.name("k")
    count = minus(extent.stop, extent.start)
    yield f"{k} = 0"
    yield from inner_loops(
        replace(leaf, inner=tuple(around)), [*_squares(leaf, extent, column, columns, k), f"{k} += {count}"]
    )


def _squares(leaf: Leaf, extent: Extent, column: str, columns: int, first: str) -> Iterator[str]:
    """Squares as long as they are whole; what is left of the inner range or of the columns, element by element."""
    c, right, lanes, width = leaf.name("c"), leaf.right, leaf.way.lanes, leaf.width
    here = place(right, "0", f"{column} + {c}")
    k = plus(first, minus(extent.name, extent.start))
    into = f"{atom(k)} * {width} + {c}"
    whole = columns // lanes * lanes
    one = f"{leaf.panel}[{k}, {c}] = element({right.view}, {here})"
    lines, end = wholes(leaf, extent, lanes, "squares")
    yield from lines
    if extent.known is None or extent.known >= lanes:
        yield f"for {extent.name} in range({extent.start}, {end}, {lanes}):"
        yield f"    for {c} in range(0, {whole}, {lanes}):"
        yield f"        transpose({right.view}, {here}, {right.column}, {leaf.panel}, {into}, {width}, {lanes})"
        if whole < columns:
            yield f"for {extent.name} in range({extent.start}, {end}):"
            yield from (f"    for {c} in range({whole}, {columns}):", f"        {one}")
    if extent.known is None or extent.known % lanes:
        yield f"for {extent.name} in range({end}, {extent.stop}):"
        yield from (f"    for {c} in range({columns}):", f"        {one}")
    if columns < width:
        yield f"for {extent.name} in range({extent.start}, {extent.stop}):"
        yield from (f"    for {c} in range({columns}, {width}):", f"        {leaf.panel}[{k}, {c}] = 0.0")


PAD = 2  # inner indices: tiles of a strip that start a power of two apart would collide while they are written


def pack_left(leaf: Leaf) -> Iterator[str]:
    """``strip[row, k, r] = left[row + r, k]`` for each tile of rows that starts at `row`, zeros beyond the last one."""
    tall, row = leaf.way.rows, leaf.name("row")
    (extent,) = leaf.inner
    into = plus(strip_place(leaf, row), times(minus(extent.name, extent.start), str(tall)))
    count = str(tall) if leaf.rows.is_whole(tall) else minus(leaf.rows.stop, row)
    part = f"load_part({leaf.left.view}, {place(leaf.left, row, '0')}, {tall}, {count})"
    yield from inner_loops(leaf, [
        f"for {row} in range({leaf.rows.start}, {leaf.rows.stop}, {tall}):",
        f"    store({leaf.strip}, {into}, {part})",
    ])  # fmt: skip


def strip_place(leaf: Leaf, row: str) -> str:
    """Where in the strip the tile that starts at `row` does."""
    (extent,) = leaf.inner
    deep = leaf.way.depth or extent.known
    return times(
        minus(row, leaf.rows.start), str(deep + PAD) if deep else plus(minus(extent.stop, extent.start), str(PAD))
    )
