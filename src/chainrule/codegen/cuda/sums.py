"""A tile's sums in the registers of a block's threads, and what a panel of both operands adds to them.

Multiplied one by one, a thread has up to 8 rows and 8 columns, of which four at a time are neighbours:

    a_0, a_1, a_2, a_3 = load4(left_panel, ...)
    b_0, b_1, b_2, b_3 = load4(right_panel, ...)
    sum_0_0 = fma(a_0, b_0, sum_0_0)

On tensor cores a warp has up to 64 rows and 32 columns, in products of 16 by 16 (`fragments`):

    left, right_0 = load4(left_words, ...), load4(right_words, ...)
    sum_0_0 = mma_tf32(left, right_0, sum_0_0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy as sp

from chainrule.codegen.cuda.device import FRAGMENT, SIDE, WARP
from chainrule.codegen.cuda.fragments import WORDS
from chainrule.codegen.cuda.panels import Form, Side, added, times
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import literal


@dataclass(frozen=True)
class Sums:
    """A thread's sums of a tile: ``names[i][j]`` is that at ``rows[i], columns[j]``, counted from the tile's first.

    registers: the variables that hold them while they are added to. left, right: what the thread reads of a panel, as
    pointers and what is added to a half's first.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    registers: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    right: tuple[tuple[str, str], ...]


def begin(t: Tiled, sides: tuple[Side, Side], form: Form, w: CudaWriter) -> Sums:
    """The sums of a thread, from 0 on."""
    found = _of_warps(t, sides, w) if form.fragments else _of_threads(t, sides, form, w)
    zero = literal(sp.S.Zero, w.scope()).text
    if form.fragments:
        nothing = w.names.fresh("nothing")
        w.line(f"{nothing} = {', '.join([zero] * 8)}")
        zero = nothing
    for name in found.registers:
        w.line(f"{name} = {zero}")
    return found


def _of_threads(t: Tiled, sides: tuple[Side, Side], form: Form, w: CudaWriter) -> Sums:
    """Each of 16 by 16 threads has neighbouring rows and columns, as many as an access moves, and more of them 16 times
    as far apart."""
    places, reads = [], []
    for name, side, number in zip(("row", "column"), sides, ("divide", "modulo"), strict=True):
        count = side.size // SIDE
        together = min(count, form.wide)
        first, own = w.names.fresh(name), w.names.fresh(f"{name}s")
        text = f"{w.call(number)}({w.call('thread')}(), {SIDE})"
        w.line(f"{first} = {times(together, text)}")
        w.line(f"{own} = {w.call('tail')}({side.panel}, {first})")
        reads.append(tuple((own, str(SIDE * k)) for k in range(0, count, together)))
        places.append(tuple(added(first, str(SIDE * (k - k % together) + k % together)) for k in range(count)))
    rows, columns = places
    names = tuple(tuple(w.names.fresh(f"sum_{i}_{j}") for j in range(len(columns))) for i in range(len(rows)))
    return Sums(rows, columns, names, tuple(name for line in names for name in line), *reads)


def warps_of(rows: int, columns: int, most: int) -> tuple[int, int]:
    """How many warps a tile's rows and columns are divided among: all of them, each with a part near to a square."""
    down, across = rows // FRAGMENT, columns // FRAGMENT
    ways = [(d, a) for d in range(1, most + 1) for a in range(1, most // d + 1) if not (down % d or across % a)]
    return min(ways, key=lambda way: (-way[0] * way[1], rows // way[0] + columns // way[1]))


def _of_warps(t: Tiled, sides: tuple[Side, Side], w: CudaWriter) -> Sums:
    """Each warp has neighbouring products of fragments; a lane has of each two rows and four columns."""
    down, across = warps_of(t.rows, t.columns, t.threads // WARP)
    rows, columns = t.rows // down, t.columns // across
    divide, modulo, lane, warp = (w.call(name) for name in ("divide", "modulo", "lane", "warp"))
    row, column, own = (w.names.fresh(name) for name in ("row", "column", "own"))
    w.line(f"{row} = {rows} * {divide}({warp}(), {across}) + 2 * {divide}({lane}(), 4)")
    w.line(f"{own} = {columns} * {modulo}({warp}(), {across}) + 2 * {divide}({lane}(), 4)")
    w.line(f"{column} = {columns} * {modulo}({warp}(), {across}) + 4 * {modulo}({lane}(), 4)")
    m, n = rows // FRAGMENT, columns // FRAGMENT
    registers = [[w.names.prefix(f"sum_{i}_{j}", "01234567") for j in range(n)] for i in range(m)]
    return Sums(
        tuple(added(row, str(FRAGMENT * i + k)) for i in range(m) for k in range(2)),
        tuple(added(column, str(FRAGMENT * j + k)) for j in range(n) for k in range(4)),
        tuple(tuple(f"{name}_{4 * k + e}" for name in line for e in range(4)) for line in registers for k in range(2)),
        tuple(name for line in registers for name in line),
        _quads(sides[0], row, m, w),
        _quads(sides[1], own, n, w),
    )


def _quads(side: Side, own: str, count: int, w: CudaWriter) -> tuple[tuple[str, str], ...]:
    """Where a lane's quads lie: the first of each fragment, then the second. What is swizzled repeats after 32 rows or
    columns."""
    found = []
    for half in range(2):
        names = []
        for k in range(min(count, 2)):
            names.append(w.names.fresh(f"{side.panel.removesuffix('_panel')}_words"))
            place = added(own, str(FRAGMENT * k))
            at = added(f"{WORDS} * ({place}) + 8 * {w.call('modulo')}({w.call('lane')}(), 4)", str(4 * half))
            w.line(f"{names[-1]} = {w.call('tail')}({side.panel}, {w.call('swizzled')}({at}))")
        found += [(names[k % 2], str(2 * FRAGMENT * WORDS * (k // 2))) for k in range(count)]
    return tuple(found)


def multiply(sides: tuple[Side, Side], form: Form, first: str, sums: Sums, w: CudaWriter) -> None:
    """What the panels of the terms from `first` on add to the sums."""
    halves = []
    for side in sides:
        halves.append(w.names.fresh(f"{side.panel.removesuffix('_panel')}_half"))
        apart = form.words(side.size) // form.depth
        w.line(f"{halves[-1]} = ({first} & {form.depth}) * {apart}")
    if form.fragments:
        _by_fragments(form, halves, sums, w)
    else:
        _one_by_one(sides, form, halves, sums, w)


def _one_by_one(sides: Sequence[Side], form: Form, halves: Sequence[str], sums: Sums, w: CudaWriter) -> None:
    with w.named("k") as (k,), w.inside(f"for {k} in range({form.depth}):"):
        for side, letter, half, reads in zip(sides, "ab", halves, (sums.left, sums.right), strict=True):
            together = side.size // SIDE // len(reads)
            for n, (pointer, more) in enumerate(reads):
                names = ", ".join(f"{letter}_{n * together + e}" for e in range(together))
                at = added(half, f"{k} * {side.size + form.wide}", more)
                text = f"{pointer}[{at}]" if together == 1 else f"{w.call(f'load{together}')}({pointer}, {at})"
                w.line(f"{names} = {text}")
        for i, line in enumerate(sums.names):
            for j, name in enumerate(line):
                w.line(f"{name} = {w.call('fma')}(a_{i}, b_{j}, {name})")


def _by_fragments(form: Form, halves: Sequence[str], sums: Sums, w: CudaWriter) -> None:
    load, multiplied = w.call("load4"), w.call(f"mma_{form.factors}")
    m, n = len(sums.left) // 2, len(sums.right) // 2
    for quad in range(2):
        for j, (pointer, more) in enumerate(sums.right[quad * n : quad * n + n]):
            w.line(f"right_{j} = {load}({pointer}, {added(halves[1], more)})")
        for i, (pointer, more) in enumerate(sums.left[quad * m : quad * m + m]):
            w.line(f"left = {load}({pointer}, {added(halves[0], more)})")
            for j, name in enumerate(sums.registers[i * n : i * n + n]):
                w.line(f"{name} = {multiplied}(left, right_{j}, {name})")


def end(sums: Sums, form: Form, w: CudaWriter) -> None:
    """A variable for each sum."""
    if form.fragments:
        for name in sums.registers:
            w.line(f"{', '.join(f'{name}_{k}' for k in range(8))} = {name}")
