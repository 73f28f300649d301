"""Which tasks are products, ``target[rows, columns] = scale * sum[inner] left * right``, leaves of their own kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sympy as sp

from chainrule.ir.expression import is_slot, slot_number
from chainrule.ir.formula import Access, DType, Index, Reduce
from chainrule.ir.machine import Machine
from chainrule.schedule.cost import Sizes, bytes_of
from chainrule.schedule.task import Task

SMALL = 64
"""Multiplications below which loops of known extents, unrolled by the compiler, beat a tile's set-up."""

NARROW = 4096
"""The same for products with fewer columns than a vector has lanes, whose tile is mostly empty."""

LANES = 8

FAR_BYTES = 1 << 20
"""Of an operand that does not stay in the second-level cache, beside the rest."""


@dataclass(frozen=True)
class Contraction:
    """A task's indices by which accesses they stand in: rows (left), columns (right), inner (both, reduced), batch."""

    left: Access
    right: Access
    rows: tuple[Index, ...]
    columns: tuple[Index, ...]
    inner: tuple[Index, ...]
    batch: tuple[Index, ...]
    scale: sp.Expr


def contraction_of(task: Task) -> Contraction | None:
    """`task` as a product, columns being what its target runs over last; None where it is none.

    A padded read (`outside` 0) counts, a condition does not.
    """
    f = task.formula
    if f.reduce is not Reduce.SUM or not f.over or f.dtype is not DType.FLOAT or task.where or task.scattered:
        return None
    two = _operands(task)
    if two is None:
        return None
    left, right, scale = two
    own = {index.symbol for index in task.indices}
    in_left, in_right = (own.intersection(*[_symbols(read)]) for read in (left, right))
    moving = own - ({a.symbol for a in task.axes} & in_left & in_right)  # a batch stands still inside a product
    if not (_affine(left, moving) and _affine(right, moving)):
        return None
    rows = tuple(a for a in task.axes if a.symbol in in_left - in_right)
    columns = tuple(a for a in task.axes if a.symbol in in_right - in_left)
    batch = tuple(a for a in task.axes if a.symbol in in_left & in_right)
    inner = tuple(r for r in task.over if r.symbol in in_left & in_right)
    if not rows or not columns or inner != task.over or len(rows + columns + batch) < len(task.axes):
        return None
    if task.axes[-1] in rows:
        left, right, rows, columns = right, left, columns, rows
    return Contraction(left, right, rows, columns, inner, batch, scale)


def _operands(task: Task) -> tuple[Access, Access, sp.Expr] | None:
    """The two reads of ``scale * slot * slot``."""
    scale, slots = [], []
    for factor in sp.Mul.make_args(task.body):
        if is_slot(factor):
            slots.append(slot_number(factor))
        elif factor.free_symbols.isdisjoint(task.extents) and not any(map(is_slot, factor.free_symbols)):
            scale.append(factor)
        else:
            return None
    if len(slots) != 2 or len(task.reads) != 2:
        return None
    left, right = (task.reads[k] for k in slots)
    if any(read.outside not in (None, sp.S.Zero) for read in (left, right)):
        return None
    return left, right, sp.Mul(*scale)


def _symbols(read: Access) -> set[sp.Symbol]:
    return set().union(*(i.free_symbols for i in read.indices), set())


def _affine(read: Access, own: set[sp.Symbol]) -> bool:
    for index in read.indices:
        if any(map(is_slot, index.free_symbols)):
            return False
        for term in sp.Add.make_args(index):
            moving = own & term.free_symbols
            if moving and (len(moving) > 1 or (term / next(iter(moving))).free_symbols & moving):
                return False
    return True


def is_worth_a_tile(c: Contraction, sizes: Sizes) -> bool:
    """Whether a product is large enough for a register tile; products of known small extents become plain loops."""

    def points(indices: Sequence[Index]) -> int:
        total = 1
        for index in indices:
            total *= sizes.of(index.extent)
        return total

    work = points(c.rows) * points(c.columns) * points(c.inner)
    return work >= (SMALL if points(c.columns) >= LANES else NARROW)


def contractions_of(tasks: Sequence[Task], sizes: Sizes, machine: Machine) -> dict[int, Contraction]:
    """The products; in a loop with others, threads of one block would have one place after the other."""
    found = {k: contraction_of(task) for k, task in enumerate(tasks)}
    return {k: c for k, c in found.items() if c is not None and (machine.blocks == 1 or is_worth_a_tile(c, sizes))}


def is_far(indices: Iterable[Index], sizes: Sizes) -> bool:
    """Whether floats at so many places do not stay in the second-level cache."""
    return bytes_of(DType.FLOAT) * sizes.points(i.extent for i in indices) > FAR_BYTES


def far_operand(c: Contraction, sizes: Sizes) -> Access | None:
    """What a product reads that is far away while its other operand is near, if that is so."""
    far = [read for read, own in ((c.left, c.rows), (c.right, c.columns)) if is_far((*c.batch, *own, *c.inner), sizes)]
    return far[0] if len(far) == 1 else None
