"""A tile's sums in the registers of a block's threads, and what a panel of both operands adds to them.

Multiplied one by one, a thread has up to 8 rows and 8 columns, of which four at a time are neighbours:

    a_0, a_1, a_2, a_3 = load4(left_panel, ...)
    b_0, b_1, b_2, b_3 = load4(right_panel, ...)
    sum_0_0 = fma(a_0, b_0, sum_0_0)

On tensor cores a warp has up to 64 rows and 32 columns, in products of 16 by 8 (`fragments`):

    upper, lower, right_0 = load4(left_panel, ...), load4(left_panel, ...), load4(right_panel, ...)
    sum_0_0 = mma_tf32(upper, lower, right_0, sum_0_0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy as sp

from chainrule.codegen.cuda.device import FRAGMENT, SIDE, WARP
from chainrule.codegen.cuda.fragments import WORDS
from chainrule.codegen.cuda.panels import Form, Side, added
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import literal


@dataclass(frozen=True)
class Sums:
    """A thread's sums of a tile: ``names[i][j]`` is that at ``rows[i], columns[j]``, counted from the tile's first.

    left, right: where the thread's operands lie in the panels, with no word before them.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    left: tuple[str, ...]
    right: tuple[str, ...]


def begin(t: Tiled, form: Form, w: CudaWriter) -> Sums:
    """The sums of a thread, from 0 on."""
    found = _of_warps(t, w) if form.fragments else _of_threads(t, form, w)
    zero = literal(sp.S.Zero, w.scope()).text
    if form.fragments:
        nothing = w.names.fresh("nothing")
        w.line(f"{nothing} = {', '.join([zero] * 4)}")
        zero = nothing
    for name in _registers(found, form):
        w.line(f"{name} = {zero}")
    return found


def _registers(sums: Sums, form: Form) -> list[str]:
    """Each variable that sums are in: with fragments, one for four."""
    step = 2 if form.fragments else 1
    names = [line[::step] for line in sums.names[::step]]
    return [name.rsplit("_", 1)[0] if form.fragments else name for line in names for name in line]


def _of_threads(t: Tiled, form: Form, w: CudaWriter) -> Sums:
    """Each of 16 by 16 threads has neighbouring rows and columns, as many as an access moves, and more of them 16 times
    as far apart."""
    places, tops = [], []
    for name, size, number in (("row", t.rows, "divide"), ("column", t.columns, "modulo")):
        count = size // SIDE
        together = min(count, form.wide)
        first = w.names.fresh(name)
        text = f"{w.call(number)}({w.call('thread')}(), {SIDE})"
        w.line(f"{first} = {text if together == 1 else f'{together} * {text}'}")
        tops.append(tuple(added(first, str(SIDE * k)) for k in range(0, count, together)))
        places.append(tuple(added(first, str(SIDE * (k - k % together) + k % together)) for k in range(count)))
    rows, columns = places
    names = tuple(tuple(w.names.fresh(f"sum_{i}_{j}") for j in range(len(columns))) for i in range(len(rows)))
    return Sums(rows, columns, names, *tops)


def warps_of(rows: int, columns: int, most: int) -> tuple[int, int]:
    """How many warps a tile's rows and columns are divided among: all of them, each with a part near to a square."""
    blocks = rows // FRAGMENT[0], columns // FRAGMENT[1]
    ways = [(d, a) for d in range(1, most + 1) for a in range(1, most // d + 1) if not (blocks[0] % d or blocks[1] % a)]
    return min(ways, key=lambda way: (-way[0] * way[1], rows // way[0] + columns // way[1]))


def _of_warps(t: Tiled, w: CudaWriter) -> Sums:
    """Each warp has neighbouring products of fragments; a lane has of each two rows and two columns."""
    down, across = warps_of(t.rows, t.columns, t.threads // WARP)
    rows, columns = t.rows // down, t.columns // across
    divide, modulo, lane, warp = (w.call(name) for name in ("divide", "modulo", "lane", "warp"))
    row, column, own, word = (w.names.fresh(name) for name in ("row", "column", "own", "word"))
    w.line(f"{row} = {rows} * {divide}({warp}(), {across}) + {divide}({lane}(), 4)")
    w.line(f"{own} = {columns} * {modulo}({warp}(), {across}) + {divide}({lane}(), 4)")
    w.line(f"{column} = {columns} * {modulo}({warp}(), {across}) + 2 * {modulo}({lane}(), 4)")
    w.line(f"{word} = 4 * {modulo}({lane}(), 4)")
    left, right = (_fragments(at, n, word, w) for at, n in ((row, rows), (own, columns)))
    names = []
    for i in range(rows // FRAGMENT[0]):
        fours = [w.names.prefix(f"sum_{i}_{j}", "0123") for j in range(columns // FRAGMENT[1])]
        names += [tuple(f"{four}_{k + half}" for four in fours for k in range(2)) for half in (0, 2)]
    return Sums(
        tuple(added(row, str(8 * i)) for i in range(rows // 8)),
        tuple(added(column, str(8 * j + k)) for j in range(columns // 8) for k in range(2)),
        tuple(names),
        left,
        right,
    )


def _fragments(own: str, count: int, word: str, w: CudaWriter) -> tuple[str, ...]:
    """Where a lane's words of every eighth row or column lie. What is swizzled repeats after 32 of them."""
    names = []
    for k in range(min(count // 8, 4)):
        names.append(w.names.fresh(f"{own}_{8 * k}" if k else f"{own}_words"))
        w.line(f"{names[-1]} = {w.call('swizzled')}({WORDS} * ({added(own, str(8 * k))}) + {word})")
    return tuple(added(names[k % 4], str(32 * WORDS * (k // 4))) for k in range(count // 8))


def multiply(sides: tuple[Side, Side], form: Form, first: str, sums: Sums, w: CudaWriter) -> None:
    """What the panels of the terms from `first` on add to the sums."""
    halves = []
    for side in sides:
        halves.append(w.names.fresh(f"{side.panel.removesuffix('_panel')}_half"))
        apart = form.words(side.size) // form.depth
        w.line(f"{halves[-1]} = ({first} & {form.depth}) * {apart}")
    if form.fragments:
        _by_fragments(sides, form, halves, sums, w)
    else:
        _one_by_one(sides, form, halves, sums, w)


def _one_by_one(sides: Sequence[Side], form: Form, halves: Sequence[str], sums: Sums, w: CudaWriter) -> None:
    with w.named("k") as (k,), w.inside(f"for {k} in range({form.depth}):"):
        for side, letter, half, places in zip(sides, "ab", halves, (sums.left, sums.right), strict=True):
            together = min(side.size // SIDE, form.wide)
            for n, place in enumerate(places):
                names = [f"{letter}_{n * together + e}" for e in range(together)]
                at = f"{half} + {k} * {side.size + form.wide} + {place}"
                text = f"{side.panel}[{at}]" if together == 1 else f"{w.call(f'load{together}')}({side.panel}, {at})"
                w.line(f"{', '.join(names)} = {text}")
        for i, line in enumerate(sums.names):
            for j, name in enumerate(line):
                w.line(f"{name} = {w.call('fma')}(a_{i}, b_{j}, {name})")


def _by_fragments(sides: Sequence[Side], form: Form, halves: Sequence[str], sums: Sums, w: CudaWriter) -> None:
    load, multiplied = w.call("load4"), w.call(f"mma_{form.factors}")
    (left, right), (rows, columns) = sides, halves
    for j, place in enumerate(sums.right):
        w.line(f"right_{j} = {load}({right.panel}, {columns} + {place})")
    totals = _registers(sums, form)
    for i in range(len(sums.left) // 2):
        for name, place in zip(("upper", "lower"), sums.left[2 * i : 2 * i + 2], strict=True):
            w.line(f"{name} = {load}({left.panel}, {rows} + {place})")
        for j in range(len(sums.right)):
            total = totals[len(sums.right) * i + j]
            w.line(f"{total} = {multiplied}(upper, lower, right_{j}, {total})")


def end(sums: Sums, form: Form, w: CudaWriter) -> None:
    """A variable for each sum."""
    if form.fragments:
        for name in _registers(sums, form):
            w.line(f"{', '.join(f'{name}_{k}' for k in range(4))} = {name}")
