"""What is dear to compute and the same along some axes is computed once, and read where it was.

    y[n, c] = gain[c] * (x[n, c] - m[c]) / sqrt(s[c] + eps)
        ->  y_factor[c] = gain[c] / sqrt(s[c] + eps);  y[n, c] = (x[n, c] - m[c]) * y_factor[c]

A loop over the other axes that is innermost would move it out by itself, but vectors run along c, and strips along
short rows. A quotient by what is the same becomes a product with its reciprocal, which rounds once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import sympy as sp

from chainrule.ir.affine import Facts, bounds_of, is_index
from chainrule.ir.expression import LocallyConstant, Select, is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType, Formula
from chainrule.ir.graph import Tensor
from chainrule.schedule.cost import Sizes
from chainrule.schedule.task import fresh

FEWER = 8
"""So many times fewer elements are worth a tensor of their own."""

Indices = frozenset[sp.Symbol]


def factored_out(f: Formula, tensors: dict[str, Tensor], sizes: Sizes, known: dict[Formula, Formula]) -> Formula:
    """`f`, reading what in it is dear and has fewer axes. The formulas of that go into `tensors`, and into `known` by
    what is equal where they are; what is there serves again."""
    if f.dtype is not DType.FLOAT or not f.indices or not is_dear(f.body):
        return f
    reads = list(f.reads)

    def name(e: sp.Expr, moves: Indices) -> sp.Expr:
        axes = tuple(i for i in f.indices if i.symbol in moves)
        factor = Formula("", axes, (), e, f.reads, origin=f.origin)
        if not _stays(factor, tensors):
            return e
        if factor not in known:
            known[factor] = replace(factor, out=fresh(f"{f.out}_factor", tensors))
            tensors[known[factor].out] = Tensor(known[factor].out, factor.shape)
        read = Access(known[factor].out, tuple(axis.symbol for axis in axes))
        if read not in reads:
            reads.append(read)
        return slot(reads.index(read))

    body = _visited(f.body, lambda e: _fewer(e, f, sizes), name)
    return replace(f, body=body, reads=tuple(reads)) if body != f.body else f


def with_factors(formulas: Sequence[Formula], made: Iterable[Formula]) -> list[Formula]:
    """`formulas`, and each of `made` right after all that it reads: nobody who reads it has to wait."""
    position = {f.out: k for k, f in enumerate(formulas)}
    after: dict[int, list[Formula]] = {}
    for g in made:
        after.setdefault(max((position[name] for name in g.tensors if name in position), default=-1), []).append(g)
    return [*after.get(-1, ()), *(g for k, f in enumerate(formulas) for g in (f, *after.get(k, ())))]


def is_dear(e: sp.Basic) -> bool:
    """Whether a division, a root or a function of what is read or of indices is in `e`."""
    return any(
        (isinstance(part, sp.Pow) and not (part.exp.is_Integer and part.exp > 0))
        or (isinstance(part, sp.Function) and not isinstance(part, Select | LocallyConstant))
        for part in sp.preorder_traversal(e)
        if any(is_slot(s) or is_index(s) for s in part.free_symbols)
    )


def _visited(
    e: sp.Basic, fewer: Callable[[sp.Basic], Indices | None], name: Callable[[sp.Expr, Indices], sp.Expr]
) -> sp.Basic:
    """`e` with names for its largest parts that are dear and have fewer indices. Factors of a product that have no
    more than a dear one, and numbers, go with it; terms of a sum do not: which of them are added first decides what is
    rounded."""
    if not e.args or not is_dear(e):
        return e
    if isinstance(e, sp.Expr) and (moves := fewer(e)):
        return name(e, moves)
    rest, found = list(e.args), list[sp.Expr]()
    if isinstance(e, sp.Mul):
        for group in sorted((m for a in rest if is_dear(a) and (m := fewer(a))), key=len, reverse=True):
            part = [a for a in rest if (m := fewer(a)) is not None and m and m <= group]
            if any(map(is_dear, part)):
                part += [a for a in rest if not found and a.is_number and abs(a) != 1]
                found.append(name(sp.Mul(*part), group))
                rest = [a for a in rest if a not in part]
    args = [*found, *(_visited(a, fewer, name) for a in rest)]
    same = len(args) == len(e.args) and all(a is b for a, b in zip(args, e.args, strict=True))
    return e if same else e.func(*args)


def _fewer(e: sp.Basic, f: Formula, sizes: Sizes) -> Indices | None:
    """The indices of `f` that `e` depends on, where it has far fewer values than `f` has points."""
    moves = moves_with(e, f)
    most = sizes.points(i.extent for i in f.indices)
    return moves if FEWER * sizes.points(i.extent for i in f.indices if i.symbol in moves) <= most else None


def moves_with(e: sp.Basic, f: Formula) -> Indices:
    """The indices of `f` that `e` depends on, through its reads."""
    own = {index.symbol for index in f.indices}
    found, front = set(e.free_symbols & own), slots_in(e)
    while front:
        for index in f.reads[slot_number(front.pop())].indices:
            found |= index.free_symbols & own
            front += slots_in(index)
    return frozenset(found)


def slots_in(e: sp.Basic) -> list[sp.Symbol]:
    return [s for s in e.free_symbols if is_slot(s)]


def _stays(factor: Formula, tensors: dict[str, Tensor]) -> bool:
    """Whether all that it reads is inside its tensors, whatever made its reader ask for it."""
    facts = Facts({i.symbol: i.extent for i in factor.indices}, bounds_of(factor.reads, tensors))
    return all(
        read.outside is not None or (facts.is_nonnegative(i) and facts.is_below(i, n))
        for read in factor.reads
        for i, n in zip(read.indices, tensors[read.tensor].shape, strict=True)
    )
