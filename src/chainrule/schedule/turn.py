"""Operands that each step of a recurrence reads anew, turned once so that a product's columns lie side by side.

    a_bar[n, t, j] = sum[o] z_bar[n, t + 1, o; 0] * U[j, o]
        ->  U_turned[o, j] = U[j, o]
            a_bar[n, t, j] = sum[o] z_bar[n, t + 1, o; 0] * U_turned[o, j]

A register tile would turn such an operand while it packs it, once a block, which in a recurrence is once a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Origin
from chainrule.ir.graph import Tensor
from chainrule.schedule.cost import Sizes
from chainrule.schedule.product import contraction_of, is_worth_a_tile
from chainrule.schedule.task import Circle, fresh, in_circles, task_of

Order = tuple[int, ...]


def turned(
    formulas: Sequence[Formula], circles: Mapping[str, tuple[Circle, ...]], tensors: dict[str, Tensor], sizes: Sizes
) -> list[Formula]:
    """`formulas`, before those of each recurrence what of their operands is turned; that goes into `tensors` too."""
    found: list[Formula] = []
    starts: dict[int, int] = {}
    copies: dict[tuple[str, Order], str] = {}
    for f in formulas:
        around = circles.get(f.out, ())
        start = starts.setdefault(around[0].number, len(found)) if around else len(found)
        read, order = _unsuited(f, circles, tensors, sizes) if around else (None, ())
        if read is not None:
            known = (read.tensor, order)
            if known not in copies:
                copy = _copy(read.tensor, order, tensors)
                copies[known] = copy.out
                found.insert(start, copy)
            better = Access(copies[known], tuple(read.indices[k] for k in order))
            f = replace(f, reads=tuple(better if r == read else r for r in f.reads))
        found.append(f)
    return found


def _unsuited(
    f: Formula, circles: Mapping[str, tuple[Circle, ...]], tensors: Mapping[str, Tensor], sizes: Sizes
) -> tuple[Access | None, Order]:
    """What `f` reads as its right operand with its columns apart, and the order of axes that would suit it."""
    around = circles[f.out]
    contraction = contraction_of(in_circles(task_of(f, tensors), around))
    if contraction is None or not is_worth_a_tile(contraction, sizes):
        return None, ()
    read, column = contraction.right, contraction.columns[-1].symbol
    moving = set().union(*(index.free_symbols for index in read.indices))
    still = read.tensor not in circles and not moving & {circle.step.symbol for circle in around}
    if read.outside is not None or not still or column not in read.indices[:-1]:
        return None, ()
    at = read.indices.index(column)
    if any(column in index.free_symbols for k, index in enumerate(read.indices) if k != at):
        return None, ()
    return read, (*(k for k in range(len(read.indices)) if k != at), at)


def _copy(of: str, order: Order, tensors: dict[str, Tensor]) -> Formula:
    """``turned[...] = of[...]``, its axes in another order."""
    tensor = tensors[of]
    axes = [Index(index_symbol(f"_i{k:02}"), tensor.shape[axis]) for k, axis in enumerate(order)]
    place = {axis: index.symbol for axis, index in zip(order, axes, strict=True)}
    name = fresh(f"{of}_turned", tensors)
    tensors[name] = replace(tensor, name=name, shape=tuple(axis.extent for axis in axes))
    read = Access(of, tuple(place[k] for k in range(len(order))))
    return Formula(name, tuple(axes), (), slot(0), (read,), dtype=tensor.dtype, origin=Origin(formula=of, rule="turn"))
