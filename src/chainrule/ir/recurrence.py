"""How a recurrence runs: along which index, and which way. Formulas that read each other at other places along it.

A circle of reads is a recurrence where every read around it goes the same way along one index (``t - 1``, ``t - 2``)
and the reads at distance 0 make no circle of their own but for recurrences along another index. Then one loop over
that index computes all of it, with loops inside for those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import sympy as sp

from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Access, Extent, Formula, Index
from chainrule.ir.graph import Dim

Reads = Sequence[tuple[Formula, Access]]


@dataclass(frozen=True)
class Recurrence:
    """axes: which of each member's indices is stepped along; ahead: reads are of later places, so the steps run down.
    reads: those that members have of each other, within one step of what is around. inner: the recurrences in a step.
    """

    members: tuple[Formula, ...]
    axes: Mapping[str, int]
    reads: Reads
    ahead: bool = False
    inner: tuple[Recurrence, ...] = ()

    @property
    def extent(self) -> Extent:
        return self.step(self.members[0]).extent

    def step(self, f: Formula) -> Index:
        """The index of a member that is stepped along; a sum over all steps has it among those that it reduces."""
        return f.indices[self.axes[f.out]]

    def distance(self, f: Formula, read: Access) -> int:
        """How far along the index a member's read of a member is: -1 is the place before."""
        return int(sp.expand(read.indices[self.axes[read.tensor]] - self.step(f).symbol))


class NoRecurrence(ValueError):
    """Why formulas that read each other are no recurrence; `name`: one that shows it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


def recurrence_of(members: Sequence[Formula], reads: Reads | None = None) -> Recurrence:
    """The index and the way that a strongly connected set of formulas steps along.

    reads: those by which they are connected, if not all that they have of each other. Raises NoRecurrence where there
    is none.
    """
    reads = reads_among(members) if reads is None else reads
    reason: NoRecurrence | None = None
    for axes in _assignments(members, reads):
        try:
            return _checked(Recurrence(tuple(members), axes, reads))
        except NoRecurrence as problem:
            reason = reason or problem
    f, _ = reads[0]
    raise reason or NoRecurrence(f.out, f"no index along which {_circle(members)} is read at a constant distance")


def loop_over(formulas: Sequence[Formula], dim: Dim) -> Recurrence | None:
    """The formulas over a dim whose places follow each other, as one recurrence: a sum over it is a member too.

    Raises NoRecurrence where they do not read each other as `dim` says.
    """
    axes = {f.out: k for f in formulas for k, i in enumerate(f.indices) if i.extent == dim_symbol(dim.name)}
    members = tuple(f for f in formulas if f.out in axes)
    if not members:
        return None
    return replace(_checked(Recurrence(members, axes, reads_among(members))), ahead=dim.steps == "down")


def reads_among(members: Sequence[Formula]) -> Reads:
    names = {f.out for f in members}
    return [(f, read) for f in members for read in f.reads if read.tensor in names]


def circles_among(members: Sequence[Formula], reads: Reads | None = None) -> list[list[Formula]]:
    """Those of `members` that read each other, or themselves, each circle in their order. reads: those that count, if
    not all."""
    reads = reads_among(members) if reads is None else reads
    place = {f.out: k for k, f in enumerate(members)}
    if all(place[read.tensor] < place[f.out] for f, read in reads):  # in order, as most are
        return []
    alone = {f.out for f, read in reads if read.tensor == f.out}
    found = nx.strongly_connected_components(_network(members, reads))
    return [[f for f in members if f.out in names] for names in found if len(names) > 1 or names <= alone]


def _assignments(members: Sequence[Formula], reads: Reads) -> Iterator[dict[str, int]]:
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


def still_indices(members: Sequence[Formula]) -> list[dict[str, sp.Symbol]]:
    """The indices, one of each member, along which all read each other at the same place, such as the batch's. What no
    member reads may reduce it."""
    by_name, reads = {f.out: f for f in members}, reads_among(members)
    starts = ({members[0].out: axis.symbol} for axis in members[0].axes)
    return [chosen for chosen in starts if _is_still(chosen, by_name, reads)]


def _is_still(chosen: dict[str, sp.Symbol], by_name: Mapping[str, Formula], reads: Reads) -> bool:
    """Whether `chosen`, which grows along the reads, comes to hold an index of every member."""
    size = 0
    while size < len(chosen):
        size = len(chosen)
        for f, read in reads:
            g = by_name[read.tensor]
            axes = [axis.symbol for axis in g.axes]
            if g.out in chosen:
                if chosen[g.out] not in axes:
                    return False
                at = read.indices[axes.index(chosen[g.out])]
                if at not in {i.symbol for i in f.indices} or chosen.setdefault(f.out, at) != at:
                    return False
            elif f.out in chosen:
                if chosen[f.out] not in read.indices:
                    return False
                chosen[g.out] = axes[read.indices.index(chosen[f.out])]
    extents = {i.extent for f in by_name.values() for i in f.indices if i.symbol == chosen.get(f.out)}
    return len(chosen) == len(by_name) and len(extents) == 1


def _is_constant(e: sp.Expr) -> bool:
    return bool(sp.expand(e).is_Integer)


def _checked(found: Recurrence) -> Recurrence:
    still: list[tuple[Formula, Access]] = []
    ways: dict[bool, str] = {}
    extents = {found.step(f).extent for f in found.members}
    if len(extents) > 1:
        raise NoRecurrence(found.members[0].out, f"the index runs over {' and '.join(sorted(map(str, extents)))}")
    for f, read in found.reads:
        distance = found.distance(f, read)
        if distance == 0:
            still.append((f, read))
        else:
            ways.setdefault(distance > 0, f.out)
    if len(ways) > 1:
        raise NoRecurrence(ways[True], f"{_circle(found.members)} is read at earlier and at later places")
    inner = circles_among(found.members, still)
    if inner and not ways:
        name = min(f.out for circle in inner for f in circle)
        raise NoRecurrence(name, f"{name} is read at the place that it is computed at")
    within = [{f.out for f in circle} for circle in inner]
    among = [[(f, read) for f, read in still if {f.out, read.tensor} <= names] for names in within]
    return replace(found, ahead=True in ways, inner=tuple(map(recurrence_of, inner, among)))


def _network(members: Sequence[Formula], reads: Reads) -> nx.DiGraph:
    network = nx.DiGraph()
    network.add_nodes_from(f.out for f in members)
    network.add_edges_from((read.tensor, f.out) for f, read in reads)
    return network


def _circle(members: Sequence[Formula]) -> str:
    return " → ".join(f.out for f in members)


def in_steps(found: Recurrence) -> tuple[Formula, ...]:
    """The members in an order in which one step may compute them: each after those that it reads at distance 0, those
    of an inner recurrence together."""
    place = {f.out: k for k, f in enumerate(found.members)}
    still = [(f, read) for f, read in found.reads if found.distance(f, read) == 0]
    order = nx.condensation(_network(found.members, still))
    inner = {f.out: recurrence for recurrence in found.inner for f in recurrence.members}
    groups = {c: sorted(place[name] for name in names) for c, names in order.nodes(data="members")}
    result: list[Formula] = []
    for c in nx.lexicographical_topological_sort(order, key=lambda c: groups[c]):
        first = found.members[groups[c][0]]
        result += in_steps(inner[first.out]) if first.out in inner else (first,)
    return tuple(result)
