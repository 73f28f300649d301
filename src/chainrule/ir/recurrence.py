"""How a recurrence runs: along which index, and which way. Formulas that read each other at other places along it.

A circle of reads is a recurrence where every read around it goes the same way along one index (``t - 1``, ``t - 2``)
and the reads at distance 0 make no circle of their own. Then one loop over that index computes all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import sympy as sp

from chainrule.ir.formula import Access, Extent, Formula


@dataclass(frozen=True)
class Recurrence:
    """axes: which axis of each member is stepped along; ahead: reads are of later places, so the steps run down."""

    members: tuple[Formula, ...]
    axes: Mapping[str, int]
    ahead: bool

    @property
    def extent(self) -> Extent:
        first = self.members[0]
        return first.axes[self.axes[first.out]].extent

    def distance(self, f: Formula, read: Access) -> int:
        """How far along the index a member's read of a member is: -1 is the place before."""
        return int(sp.expand(read.indices[self.axes[read.tensor]] - f.axes[self.axes[f.out]].symbol))


class NoRecurrence(ValueError):
    """Why formulas that read each other are no recurrence; `name`: one that shows it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


def recurrence_of(members: Sequence[Formula]) -> Recurrence:
    """The index and the way that a strongly connected set of formulas steps along.

    Raises NoRecurrence where there is none.
    """
    names = {f.out for f in members}
    reads = [(f, read) for f in members for read in f.reads if read.tensor in names]
    reason: NoRecurrence | None = None
    for axes in _assignments(members, reads):
        try:
            return _checked(Recurrence(tuple(members), axes, False), reads)
        except NoRecurrence as problem:
            reason = reason or problem
    f, _ = reads[0]
    raise reason or NoRecurrence(f.out, f"no index along which {_circle(members)} is read at a constant distance")


def _assignments(members: Sequence[Formula], reads: Sequence[tuple[Formula, Access]]) -> Iterator[dict[str, int]]:
    """Every way to choose an axis of each member so that all reads have a constant distance along them."""
    by_name = {f.out: f for f in members}

    def extend(chosen: dict[str, int]) -> Iterator[dict[str, int]]:
        for f, read in reads:
            a, b = chosen.get(f.out), chosen.get(read.tensor)
            if a is not None and b is not None and not _is_constant(read.indices[b] - f.axes[a].symbol):
                return
        for f, read in reads:
            a, b = chosen.get(f.out), chosen.get(read.tensor)
            if a is not None and b is None:
                for k, place in enumerate(read.indices):
                    if _is_constant(place - f.axes[a].symbol):
                        yield from extend({**chosen, read.tensor: k})
                return
            if a is None and b is not None:
                for k, axis in enumerate(f.axes):
                    if _is_constant(read.indices[b] - axis.symbol):
                        yield from extend({**chosen, f.out: k})
                return
        if len(chosen) == len(by_name):
            yield chosen

    for k in range(len(members[0].axes)):
        yield from extend({members[0].out: k})


def still_axes(members: Sequence[Formula]) -> list[Mapping[str, int]]:
    """The axes, one of each member, along which they read each other at the same place, such as the batch's."""
    names = {f.out for f in members}
    reads = [(f, read) for f in members for read in f.reads if read.tensor in names]
    found: list[Mapping[str, int]] = []
    for axes in _assignments(members, reads):
        extents = {f.axes[axes[f.out]].extent for f in members}
        if len(extents) == 1 and all(
            read.indices[axes[read.tensor]] == f.axes[axes[f.out]].symbol for f, read in reads
        ):
            found.append(axes)
    return found


def _is_constant(e: sp.Expr) -> bool:
    return bool(sp.expand(e).is_Integer)


def _checked(found: Recurrence, reads: Sequence[tuple[Formula, Access]]) -> Recurrence:
    still = nx.DiGraph()
    ways: dict[bool, str] = {}
    extents = {f.axes[found.axes[f.out]].extent for f in found.members}
    if len(extents) > 1:
        raise NoRecurrence(found.members[0].out, f"the index runs over {' and '.join(sorted(map(str, extents)))}")
    for f, read in reads:
        distance = found.distance(f, read)
        if distance == 0:
            still.add_edge(read.tensor, f.out)
        else:
            ways.setdefault(distance > 0, f.out)
    if not nx.is_directed_acyclic_graph(still):
        name = nx.find_cycle(still)[0][0]
        raise NoRecurrence(name, f"{name} is read at the place that it is computed at")
    if len(ways) > 1:
        raise NoRecurrence(ways[True], f"{_circle(found.members)} is read at earlier and at later places")
    return Recurrence(found.members, found.axes, True in ways)


def _circle(members: Sequence[Formula]) -> str:
    return " → ".join(f.out for f in members)


def in_steps(found: Recurrence) -> tuple[Formula, ...]:
    """The members in an order in which one step may compute them: each after those that it reads at distance 0."""
    order = nx.DiGraph()
    place = {f.out: k for k, f in enumerate(found.members)}
    order.add_nodes_from(place)
    for f in found.members:
        for read in f.reads:
            if read.tensor in place and found.distance(f, read) == 0:
                order.add_edge(read.tensor, f.out)
    return tuple(found.members[place[name]] for name in nx.lexicographical_topological_sort(order, key=place.get))
