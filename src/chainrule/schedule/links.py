"""Who must come before whom, and which pairs of their indices may share a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy as sp

from chainrule.schedule.task import Task

Pair = tuple[sp.Symbol, sp.Symbol]
"""An index of an earlier task and one of a later: they may be the same loop."""


@dataclass(frozen=True)
class Links:
    """before[t][p]: task p comes before t, which may share a loop over these pairs of their indices, and no other.

    near[t]: for tensors that t reads as well as an earlier task, the pairs that read them at the same place: nothing
    forbids another pair there, but these are what sharing a loop is good for.
    """

    tasks: tuple[Task, ...]
    before: tuple[Mapping[int, frozenset[Pair]], ...]
    readers: Mapping[str, tuple[int, ...]]


def links_of(tasks: Sequence[Task]) -> Links:
    producers = {task.out: k for k, task in enumerate(tasks)}
    readers: dict[str, list[int]] = {}
    before: list[dict[int, frozenset[Pair]]] = []
    for k, task in enumerate(tasks):
        for tensor in dict.fromkeys(read.tensor for read in task.reads):
            readers.setdefault(tensor, []).append(k)
    for k, task in enumerate(tasks):
        found: dict[int, frozenset[Pair]] = {}
        for tensor in dict.fromkeys(read.tensor for read in task.reads):
            p = producers.get(tensor)
            if p is not None and not (p >= k and task.circles):  # the steps before have computed that
                found[p] = _flow(tasks[p], task)
        if task.store is not None:
            for p in readers.get(task.store, ()):
                if p != k:
                    pairs = _overwrite(tasks[p], task, task.store)
                    found[p] = found[p] & pairs if p in found else pairs
        if task.after is not None:
            found.setdefault(producers[task.after[0]], task.after[1])
        before.append(found)
    return Links(tuple(tasks), tuple(before), {name: tuple(ks) for name, ks in readers.items()})


def reordered(links: Links, order: Sequence[int]) -> Links:
    """The same tasks in another order, which may run as well."""
    now = {t: k for k, t in enumerate(order)}
    return Links(
        tuple([links.tasks[t] for t in order]),
        tuple([{now[p]: pairs for p, pairs in links.before[t].items()} for t in order]),
        {name: tuple(sorted([now[t] for t in ts])) for name, ts in links.readers.items()},
    )


def _flow(p: Task, t: Task) -> frozenset[Pair]:
    """t reads what p computes: along an axis where every read is at one index of t, which is p's there."""
    pairs = set()
    loops = {axis.symbol for axis in p.axes}
    reads = t.reads_of(p.out)
    for axis, place in enumerate(p.target):
        at = {read.indices[axis] for read in reads}
        if place in loops and len(at) == 1 and (j := next(iter(at))) in t.extents:
            pairs.add((place, j))
    return frozenset(pairs)


def _overwrite(p: Task, t: Task, store: str) -> frozenset[Pair]:
    """t overwrites what p reads: along an axis where p reads at one of its indices and t writes at one of its own."""
    pairs = set()
    reads = p.reads_of(store)
    for axis, place in enumerate(t.target):
        at = {read.indices[axis] for read in reads}
        if place in t.extents and len(at) == 1 and (a := next(iter(at))) in p.extents:
            pairs.add((a, place))
    return frozenset(pairs)
