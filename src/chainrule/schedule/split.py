"""Sums that hide a product: what stands still in the sum goes out of it, what is no plain read is computed before.

    y[n, o] = sum[i] g[n] * relu(x[n, i]) * W[i, o]
        ->  y_left[n, i] = relu(x[n, i]);  y_sum[n, o] = sum[i] y_left[n, i] * W[i, o];  y[n, o] = g[n] * y_sum[n, o]

A condition on one operand's indices, such as a causal mask, makes that operand 0 where it does not hold; where it is
that already, nothing is to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import Select, is_slot, slot, slot_number, zero_unless
from chainrule.ir.formula import Access, DType, Formula, Reduce
from chainrule.ir.graph import Node, Tensor
from chainrule.schedule.cost import Sizes
from chainrule.schedule.factors import Indices, moves_with, slots_in
from chainrule.schedule.product import NARROW
from chainrule.schedule.task import fresh


def split(f: Formula, tensors: dict[str, Tensor], sizes: Sizes, producers: Mapping[str, Node]) -> list[Formula]:
    """`f`, or the formulas that compute it around a plain product; the tensors that these add go into `tensors`.

    producers: of what `f` reads.
    """
    if f.reduce is not Reduce.SUM or not f.over or f.dtype is not DType.FLOAT:
        return [f]
    over = frozenset(r.symbol for r in f.over)
    if isinstance(f.body, Select) and not moves_with(f.body.args[0], f) & over and sp.S.Zero in f.body.args:
        return _chosen(f, tensors, sizes, producers)
    factors = [(factor, moves_with(factor, f)) for factor in sp.Mul.make_args(f.body)]
    outer = [factor for factor, moves in factors if not moves & over]
    inner = [(factor, moves) for factor, moves in factors if moves & over]
    sides = _sides([moves for _, moves in inner])
    if sides is None or not _is_large(f, sides, sizes):
        return [f]
    wheres = _conditions(f, sides)
    if wheres is None:
        return [f]
    groups: list[list[sp.Expr]] = [[], []]
    for factor, moves in inner:
        groups[0 if moves <= sides[0] else 1].append(factor)
    plain = [
        len(g) == 1 and is_slot(g[0]) and set(where) <= _kept(f.reads[slot_number(g[0])], producers)
        for g, where in zip(groups, wheres, strict=True)
    ]
    scale_only = all(not factor.free_symbols & _own(f) and not slots_in(factor) for factor in outer)
    if all(plain) and scale_only:
        return [replace(f, where=())]
    if not all(p or _is_small(f, side, sizes) for p, side in zip(plain, sides, strict=True)):
        return [f]
    made: list[Formula] = []
    reads = list(f.reads)
    operands: list[sp.Expr] = []
    for k, name in enumerate(("left", "right")):
        if plain[k]:
            operands.append(groups[k][0])
            continue
        axes = tuple(i for i in f.indices if i.symbol in sides[k])
        operand = Formula(
            fresh(f"{f.out}_{name}", tensors), axes, (), sp.Mul(*groups[k]), f.reads, wheres[k], origin=f.origin
        )
        tensors[operand.out] = Tensor(operand.out, operand.shape)
        made.append(operand)
        operands.append(slot(len(reads)))
        reads.append(Access(operand.out, tuple(i.symbol for i in axes)))
    if scale_only:
        return [*made, replace(f, body=sp.Mul(*outer, *operands), reads=tuple(reads), where=())]
    return [*made, *_outside(f, sp.Mul(*operands), tuple(reads), lambda total: sp.Mul(*outer, total), tensors, ())]


def _outside(
    f: Formula,
    inner: sp.Expr,
    reads: tuple[Access, ...],
    around: Callable[[sp.Symbol], sp.Expr],
    tensors: dict[str, Tensor],
    where: tuple[sp.Basic, ...],
) -> tuple[Formula, Formula]:
    """The sum of `inner` where the conditions hold, and what `f` makes `around` it; both over `reads`."""
    total = replace(f, out=fresh(f"{f.out}_sum", tensors), body=inner, reads=reads, where=where, stop=False)
    tensors[total.out] = Tensor(total.out, total.shape)
    read = Access(total.out, tuple(a.symbol for a in f.axes))
    return total, replace(f, over=(), body=around(slot(len(reads))), reads=(*reads, read), where=())


def _chosen(f: Formula, tensors: dict[str, Tensor], sizes: Sizes, producers: Mapping[str, Node]) -> list[Formula]:
    """A choice that stands still in the sum is made once: ``sum[k] if c then 0 else a[k]``."""
    condition, a, b = f.body.args
    inner, around = (b, lambda s: Select(condition, a, s)) if a == 0 else (a, lambda s: Select(condition, s, b))
    total, rest = _outside(f, inner, f.reads, around, tensors, f.where)
    return [*split(total, tensors, sizes, producers), rest]


def _kept(read: Access, producers: Mapping[str, Node]) -> set[sp.Basic]:
    """The conditions without which what is read is 0 by its own formula."""
    made = producers.get(read.tensor)
    if not isinstance(made, Formula) or made.over or (found := zero_unless(made.body)) is None:
        return set()
    names = {axis.symbol: index for axis, index in zip(made.axes, read.indices, strict=True)}
    return set(sp.And.make_args(found[0].xreplace(names)))


def _conditions(f: Formula, sides: tuple[Indices, Indices]) -> tuple[tuple[sp.Basic, ...], ...] | None:
    """The conditions of `f` by the operand whose indices they are on, if each is on one's alone."""
    found: tuple[list[sp.Basic], list[sp.Basic]] = ([], [])
    for c in f.where:
        moves = moves_with(c, f)
        if not (moves <= sides[0] or moves <= sides[1]) or isinstance(c, sp.Eq):
            return None  # an equation is a scatter's
        found[0 if moves <= sides[0] else 1].append(c)
    return tuple(found[0]), tuple(found[1])


def _own(f: Formula) -> set[sp.Symbol]:
    return {index.symbol for index in f.indices}


def _sides(moves: Sequence[Indices]) -> tuple[Indices, Indices] | None:
    """The two greatest sets of indices, if every factor moves with one of them alone."""
    greatest = [m for m in dict.fromkeys(moves) if not any(m < other for other in moves)]
    return (greatest[0], greatest[1]) if len(greatest) == 2 else None


def _is_large(f: Formula, sides: tuple[Indices, Indices], sizes: Sizes) -> bool:
    """A product by its indices, and one that is worth a tile."""
    axes, over = ({i.symbol for i in part} for part in (f.axes, f.over))
    left, right = sides
    matrix = bool(axes & (left - right)) and bool(axes & (right - left)) and over <= (left & right)
    return matrix and axes <= (left | right) and sizes.points(i.extent for i in f.indices) >= NARROW


def _is_small(f: Formula, side: Indices, sizes: Sizes) -> bool:
    """An operand to be computed must not be larger than a part of the product's work."""
    points = sizes.points(i.extent for i in f.indices if i.symbol in side)
    return 8 * points <= sizes.points(i.extent for i in f.indices)
