"""What a machine with many small blocks does for each parameter at the end of a step: maps over all of its places.

    m[n, k] = b1 * m[n, k] + (1 - b1) * g[n, k]
    w[n, k] = w[n, k] - rate * m[n, k]

All tensors of an update are read and written at the same place of equal shapes, so that a kernel of nothing else is a
map over one flat index, whatever their shape: kernels of all parameters are then the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp

from chainrule.ir.formula import Index
from chainrule.ir.graph import Tensor
from chainrule.schedule.links import Links
from chainrule.schedule.task import Task


def updates_of(links: Links, tensors: Mapping[str, Tensor]) -> frozenset[int]:
    """The flat tasks that overwrite a parameter or a state, and those that only such tasks read."""
    found: set[int] = set()
    for t in reversed(range(len(links.tasks))):
        task = links.tasks[t]
        readers = links.readers.get(task.out, ())
        ends = task.store is not None or (bool(readers) and found.issuperset(readers))
        if ends and is_flat(task, tensors):
            found.add(t)
    return frozenset(found)


def is_flat(task: Task, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a task is a map whose place is that of all that it reads, but of numbers."""
    place, shape = tuple(axis.symbol for axis in task.axes), tuple(axis.extent for axis in task.axes)
    if not place or task.over or task.circles or task.where or task.scattered or task.target != place:
        return False
    if task.body.free_symbols & set(place):
        return False
    arrays = [read for read in task.reads if read.indices]
    own = all(read.indices == place and read.outside is None for read in arrays)
    return own and all(tensors[read.tensor].shape == shape for read in arrays)


def share(t: int, others: Sequence[int], links: Links, tensors: Mapping[str, Tensor], updates: frozenset[int]) -> bool:
    """Whether a kernel of `others` may hold `t` as well: one that holds an update is a flat map."""
    if t not in updates and updates.isdisjoint(others):
        return True
    tasks = [links.tasks[k] for k in (t, *others)]
    shapes = {tuple(axis.extent for axis in task.axes) for task in tasks}
    return len(shapes) == 1 and all(is_flat(task, tensors) for task in tasks)


def beside(t: int, opened: Mapping[int, sp.Symbol], links: Links, updates: frozenset[int]) -> Index | None:
    """The index of the update `t` with which it goes through the places of others, if it reads an array that one of
    them reads: however small that is, what a parameter's update consists of is one map."""
    if t not in updates or updates.isdisjoint(opened):
        return None
    task = links.tasks[t]
    arrays = {read.tensor for read in task.reads if read.indices}
    for k, symbol in opened.items():
        other = links.tasks[k]
        if any(read.indices and read.tensor in arrays for read in other.reads):
            return task.axes[[axis.symbol for axis in other.axes].index(symbol)]
    return None
