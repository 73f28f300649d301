"""Axes of which formulas read the group and the member, as a grouped convolution does, made two: a batch of products.

y[n, i, j, o] = sum[q] x[n, i, j, 16 (o // 16) + q] * K[o // 16, q, o % 16]
    ->  y[n, i, j, 16 g + e] = sum[q] x[n, i, j, 16 g + q] * K[g, q, e]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.ir.affine import Facts, tidy
from chainrule.ir.expression import index_symbol, quotient, remainder
from chainrule.ir.formula import Access, Formula, Index, Reduce
from chainrule.schedule.product import contraction_of
from chainrule.schedule.task import Task


@dataclass(frozen=True)
class Groups:
    """``axis = size * group + member``; axis: the place of the axis among those of the formula."""

    axis: int
    size: sp.Integer
    group: Index
    member: Index

    @property
    def whole(self) -> sp.Expr:
        return self.size * self.group.symbol + self.member.symbol


def groups_of(axes: Sequence[Index], reads: Sequence[Access]) -> Groups | None:
    """The first axis that reads take apart by one and the same divisor of its extent."""
    for k, axis in enumerate(axes):
        parts = {part for read in reads for i in read.indices for part in i.atoms(quotient, remainder)}
        sizes = {part.args[1] for part in parts if part.args[0] == axis.symbol}
        if not axis.extent.is_Integer or len(sizes) != 1:
            continue
        (size,) = sizes
        if size.is_Integer and 1 < size < axis.extent and axis.extent % size == 0:
            group = Index(index_symbol(f"_g{k}"), axis.extent / size, f"{axis.name}_group" if axis.name else "")
            return Groups(k, size, group, Index(index_symbol(f"_e{k}"), size, axis.name))
    return None


def taken_apart(
    groups: Groups, axes: Sequence[Index], over: Sequence[Index], reads: Sequence[Access]
) -> tuple[tuple[Index, ...], tuple[Access, ...]]:
    """`axes` and `reads` over group and member."""
    k, axis = groups.axis, axes[groups.axis]
    apart = (*axes[:k], groups.group, groups.member, *axes[k + 1 :])
    names: dict[sp.Basic, sp.Basic] = {
        quotient(axis.symbol, groups.size): groups.group.symbol,
        remainder(axis.symbol, groups.size): groups.member.symbol,
        axis.symbol: groups.whole,
    }
    facts = Facts({i.symbol: i.extent for i in (*apart, *over)})
    moved = (replace(read, indices=tuple(tidy(i.xreplace(names), facts) for i in read.indices)) for read in reads)
    return apart, tuple(moved)


def apart(f: Formula) -> tuple[Formula, Groups] | None:
    """`f` over the group and the member of an axis, in its place; None where it is no sum or has no such axis."""
    groups = groups_of(f.axes, f.reads) if f.over and f.reduce is Reduce.SUM else None
    if groups is None or f.where:
        return None
    axes, reads = taken_apart(groups, f.axes, f.over, f.reads)
    body = f.body.xreplace({f.axes[groups.axis].symbol: groups.whole})
    return replace(f, axes=axes, reads=reads, body=body), groups


def together(f: Formula, group: int, member: int, groups: Groups) -> Formula:
    """`f`, whose axes number `group` and `member` are those, over the axis that they are parts of, in the latter's
    place."""
    axis = Index(index_symbol("_a"), groups.size * groups.group.extent, groups.member.name)
    g, e, size = f.axes[group].symbol, f.axes[member].symbol, groups.size
    names: dict[sp.Basic, sp.Basic] = {g: quotient(axis.symbol, size), e: remainder(axis.symbol, size)}

    def joined(i: sp.Expr) -> sp.Expr:
        c = sp.expand(i).coeff(e)
        whole = c.is_Integer and c != 0 and sp.expand(i).coeff(g) == c * size
        return (sp.expand(i - c * (size * g + e)) + c * axis.symbol if whole else i).xreplace(names)

    kept = [axis if k == member else a for k, a in enumerate(f.axes) if k != group]
    reads = tuple(replace(read, indices=tuple(map(joined, read.indices))) for read in f.reads)
    return replace(f, axes=tuple(kept), reads=reads, body=f.body.xreplace(names))


def grouped(task: Task) -> Task:
    """`task` with axes taken apart: one of a sum, where that makes it a product, all but the last of a map."""
    if task.where or task.scattered or task.reduce not in (None, Reduce.SUM):
        return task
    if task.reduce is None:
        groups = groups_of(task.axes[:-1], task.reads)
        return task if groups is None else grouped(_apart(task, groups))
    groups = groups_of(task.axes, task.reads)
    if groups is None or contraction_of(task) is not None:
        return task
    made = _apart(task, groups)
    return task if contraction_of(made) is None else made


def _apart(task: Task, groups: Groups) -> Task:
    names: dict[sp.Basic, sp.Basic] = {task.axes[groups.axis].symbol: groups.whole}
    axes, reads = taken_apart(groups, task.axes, task.over, task.reads)
    target = tuple(place.xreplace(names) for place in task.target)
    return replace(task, axes=axes, reads=reads, target=target, body=task.body.xreplace(names))
