"""Neighbouring elements together: a thread that has four of a row loads and stores them in one access of 128 bits.

    for o in range(lane() * 4, 1024, 128):
        x_0, x_1, x_2, x_3 = load4(x, 1024 * n + o)
        y_0 = tanh(x_0)
        ...
        store4(y, 1024 * n + o, y_0, y_1, y_2, y_3)

Rows begin on 16 bytes: buffers do, and a row that is a whole number of groups ends where the next begins. Where the
one row of a grid is of any length, what its last group lacks are turns of single elements:

    groups = length // 4
    for turn in range(block() * 256 + thread(), length - 3 * groups, blocks() * 256):
        if turn < groups: the group at i = 4 * turn
        else: the element at i = turn + 3 * groups
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from chainrule.codegen.cuda.device import ACCESS, WARP
from chainrule.codegen.cuda.team import Spread, Team
from chainrule.codegen.cuda.turns import touches
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import Symbol
from chainrule.codegen.native import ITEM
from chainrule.codegen.statement import write_statement
from chainrule.ir.expression import is_slot, quotient
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Range, Statement, accesses


def group_of(spread: Spread, w: CudaWriter) -> int:
    """How many neighbours a thread of `spread` takes at a time: as many as an access has room for, else 1."""
    count = ACCESS // ITEM[w.element]
    statements = [s for s in spread.body if isinstance(s, Statement)]
    plain = len(statements) == len(spread.body) and not any(s.where or s.reduce is Reduce.ARGMAX for s in statements)
    if spread.members is not Team.THREAD or spread.team is Team.THREAD or not plain or not spread.ranges:
        return 1
    last = spread.ranges[-1]
    if last.start != 0 or not (is_exact(last, count) or (len(spread.ranges) == 1 and spread.team is Team.GRID)):
        return 1
    turns = [r.stop - r.start for r in spread.ranges]
    threads = {Team.WARP: WARP, Team.BLOCK: w.threads, Team.GRID: 1}[spread.team]
    known = all(n.is_Integer for n in turns)
    if (known and sp.Mul(*turns) < count * threads) or (w.alone and not known):  # few, while one block does it
        return 1
    return count if any(is_row(a, last, count, w) for s in statements for a in touches(s)) else 1


def is_exact(last: Range, count: int) -> bool:
    """Whether a row is a whole number of groups, whatever the sizes are."""
    return bool(last.stop.is_Integer) and int(last.stop) % count == 0


def turns_of(last: Range, count: int) -> sp.Expr:
    """How many turns a row of any length has: one for each group, and for each element that is left over."""
    return last.stop - (count - 1) * quotient(last.stop, sp.Integer(count))


def is_row(access: Access, last: Range, count: int, w: CudaWriter) -> bool:
    """Whether the loop over `last` walks along a row of floats in memory, whose groups are aligned."""
    buffer = w.buffer(access.tensor)
    private = w.is_variable(access.tensor) or w.arrays.get(access.tensor) is Team.THREAD
    if private or buffer.space in ("random", "scalar") or not access.indices or access.outside is not None:
        return False
    *rest, index = access.indices
    width = w.over_dims(buffer.shape[-1])
    alone = not rest and buffer.space != "scratch"  # no row before it
    aligned = alone or (bool(width.is_Integer) and int(width) % count == 0)
    still = not any(last.symbol in e.free_symbols or any(map(is_slot, e.free_symbols)) for e in rest)
    return buffer.dtype is DType.FLOAT and index == last.symbol and still and aligned


def narrowed(spread: Spread, count: int) -> tuple[Range, ...]:
    """The ranges, the last of which counts groups."""
    *rest, last = spread.ranges
    return (*rest, replace(last, stop=last.stop / count))


def write_group(statements: Sequence[Statement], last: Range, count: int, w: CudaWriter) -> None:
    """The statements for `count` neighbours, from the one that `last`'s index is at."""
    known = w.symbols[last.symbol]
    rows: dict[tuple[str, tuple[sp.Expr, ...]], Access] = {}
    loaded, stored = [], []
    for s in statements:
        reads, target = accesses(s)
        for a in reads:
            if is_row(a, last, count, w) and (a.tensor, a.indices) not in rows:
                rows[a.tensor, a.indices] = a
                loaded.append((a.tensor, a.indices))
        key = (target.tensor, target.indices)
        if is_row(target, last, count, w):
            rows.setdefault(key, target)
            if key not in stored:
                stored.append(key)
    names = {key: _names(key[0], count, w) for key in rows}
    places = {key: w.element_at(a, {}) for key, a in rows.items()}
    for key in loaded:
        array, at = places[key]
        w.read.add(key[0])
        w.line(f"{', '.join(names[key])} = {w.call(f'load{count}')}({array}, {at})")
    moves = any(_moves(s, last, count, w) for s in statements)
    for k in range(count):
        if k and moves:
            lane = w.names.fresh(f"{known.text}_{k}")
            w.line(f"{lane} = {known.text} + {k}")
            w.symbols[last.symbol] = Symbol(lane, "integer", known.moves)
        w.turn = w.turn[0], k
        w.held.update({key: names[key][k] for key in rows})
        for s in statements:
            write_statement(s, w)
        if k and moves:
            w.names.release(lane)
    w.symbols[last.symbol] = known
    for key in rows:
        del w.held[key]
    for key in stored:
        array, at = places[key]
        w.written.add(key[0])
        w.line(f"{w.call(f'store{count}')}({array}, {at}, {', '.join(names[key])})")


def _names(tensor: str, count: int, w: CudaWriter) -> list[str]:
    buffer = w.buffer(tensor)
    base = w.names.prefix(buffer.stands_for or buffer.name, map(str, range(count)))
    return [f"{base}_{k}" for k in range(count)]


def _moves(s: Statement, last: Range, count: int, w: CudaWriter) -> bool:
    """Whether more than rows changes from neighbour to neighbour."""
    others = (a for a in touches(s) if a.tensor not in w.dealt and not is_row(a, last, count, w))
    return last.symbol in s.value.free_symbols or any(last.symbol in e.free_symbols for a in others for e in a.indices)
