"""Save or compute again: what later kernels read of earlier ones, chosen by a minimum cut.

A first plan says what each kernel keeps for others, and in which of them most is kept: the turn from forward to
backward pass. Every task before it whose result is read after it has two choices, to save its result, which costs
price · bytes, or to be computed again beside its readers, which costs its time and needs what it reads:

    source ── time of v ──> v ── price · bytes of v ──> v'        u' ── ∞ ──> v   for each u that v reads
    source ── ∞ ──> v   if it cannot be computed again            v' ── ∞ ──> sink   if it is read after the turn

What the cut leaves on the sink's side is computed again. As the cut is a minimum, no other choice costs less.
Source: He and Yu, Transcending Runtime-Memory Tradeoffs in Checkpointing by being Fusion Aware, MLSys 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx

from chainrule.ir.formula import Access
from chainrule.schedule.kernels import Planner
from chainrule.schedule.links import Pair
from chainrule.schedule.liveness import Liveness
from chainrule.schedule.task import Task, fresh, reading
from chainrule.schedule.work import Work, outputs_of

PRICE = 0.4
"""Nanoseconds a byte that is saved: to write and to read it takes most of that, and memory is worth something."""

MAP = 0.4
"""What part of its cost a map has beside its readers, where its operands and its result are in the nearest cache."""

SUM = 8.0
"""The same of a sum or a product: its operands have to be fetched, and the kernel's blocks shrink by its scratch. Only
a budget of memory makes that worth it."""

SMALL = 1 << 16
"""Bytes below which a tensor is saved in any case."""

SOURCE, SINK = "source", "sink"


def rematerialize(work: Work, planner: Planner, price: float = PRICE, saved: Set[str] = frozenset()) -> Work:
    """`work` with results that are cheaper computed again than saved computed again, right before their late readers.

    planner: of `work`, whose kernels say what is saved. saved: results that are in any case.
    """
    kept = Kept(work, Liveness(planner, outputs_of(work)))
    banned = {t for t, task in enumerate(work.tasks) if task.out in saved}
    while True:
        again = cut(kept, price, banned)
        waits = Waits(kept, again)
        early = [t for t in again if waits.of(t) is None or waits.comes_early(t)]
        if not early:
            return with_copies(kept, again, waits) if again else work
        banned.update(early)


@dataclass(frozen=True)
class Kept:
    """What a plan keeps between kernels: results are early or late, as they come before or after the turn."""

    work: Work
    live: Liveness

    @property
    def planner(self) -> Planner:
        return self.live.planner

    @property
    def tasks(self) -> Sequence[Task]:
        return self.work.tasks

    @cached_property
    def producers(self) -> Mapping[str, int]:
        return {task.out: t for t, task in enumerate(self.tasks)}

    @cached_property
    def overwritten(self) -> Mapping[str, int]:
        """The task that overwrites a state or a parameter."""
        return {task.store: t for t, task in enumerate(self.tasks) if task.store is not None}

    def is_late(self, t: int) -> bool:
        return self.live.at[t] > self.live.turn

    def time(self, t: int) -> float:
        """Nanoseconds of doing a task again."""
        return self.planner.costs[t] * (SUM if self.tasks[t].over else MAP)

    def may_repeat(self, t: int) -> bool:
        """Whether a task gives the same result when it is done again after the turn."""
        task = self.tasks[t]
        stays = all(
            writer is None or (self.is_late(writer) and not self.live.readers(writer))
            for writer in (self.overwritten.get(read.tensor) for read in task.reads)
        )
        alone = task.store is None and not (task.circles or task.scattered) and task.after is None and task.band is None
        return stays and alone and self.live.bytes[t] >= SMALL


def cut(kept: Kept, price: float, banned: set[int]) -> list[int]:
    """The tasks on the sink's side of the minimum cut, in order. Capacities are whole picoseconds, so it is exact."""
    network = nx.DiGraph()
    late = [t for t in range(len(kept.tasks)) if kept.is_late(t)]
    front = [p for t in late for p in _sources(kept, t) if not kept.is_late(p)]
    for p in front:
        network.add_edge((p, "result"), SINK)  # an edge without capacity has room for all
    seen: set[int] = set()
    while front:
        t = front.pop()
        if t in seen:
            continue
        seen.add(t)
        saved = 0 if kept.tasks[t].out in kept.live.outputs else round(1000 * price * kept.live.bytes[t])
        network.add_edge((t, "work"), (t, "result"), capacity=saved)
        if t in banned or not kept.may_repeat(t):
            network.add_edge(SOURCE, (t, "work"))
            continue
        network.add_edge(SOURCE, (t, "work"), capacity=round(1000 * kept.time(t)))
        for p in _sources(kept, t):
            network.add_edge((p, "result"), (t, "work"))
            front.append(p)
    if SINK not in network:
        return []
    _, (_, beyond) = nx.minimum_cut(network, SOURCE, SINK)
    return sorted(t for t in seen if (t, "work") in beyond)


def _sources(kept: Kept, t: int) -> list[int]:
    """The tasks whose results task `t` reads."""
    names = dict.fromkeys(read.tensor for read in kept.tasks[t].reads)
    return [kept.producers[name] for name in names if name in kept.producers]


@dataclass(frozen=True)
class Wait:
    """A result that must be there before something is computed again, and which of their indices are the same."""

    task: int
    pairs: frozenset[Pair]


class Waits:
    """What each of the tasks `again` waits for, so that it is not done before the turn; it comes right after that.

    It is the last thing, of those computed after the turn, that is read beside it, or beside what it reads: there its
    operands are at hand.
    """

    def __init__(self, kept: Kept, again: Sequence[int]) -> None:
        self.kept, self.again = kept, set(again)
        self._limit: dict[int, int] = {}  # the first task that reads each
        self._found: dict[int, Wait | None] = {}
        for t in reversed(again):
            late = [r for r in kept.live.readers(t) if kept.is_late(r)]
            copies = [r for r in kept.live.readers(t) if r in self.again]
            self._limit[t] = min((*late, *(self.place(r) for r in copies)))
            self._found[t] = self._latest(t, late, copies)

    def place(self, t: int) -> int:
        """The task before which the second `t` stands."""
        wait = self._found[t]
        return self._limit[t] if wait is None else wait.task + 1

    def of(self, t: int) -> Wait | None:
        return self._found[t]

    def comes_early(self, t: int) -> bool:
        """Whether a copy needs `t` in an earlier kernel than others do: then it is kept for them anyway.

        Else a chain of layers, each of which adds to the one before, would be computed again as a whole.
        """
        at = self.kept.live.at
        waits = [self._found[r] for r in self.kept.live.readers(t) if r in self.again]
        copies = [at[wait.task] for wait in waits if wait is not None]
        late = [at[r] for r in self.kept.live.readers(t) if self.kept.is_late(r)]
        return bool(copies) and min(copies) < min((*late, max(copies)))

    def _latest(self, t: int, late: Sequence[int], copies: Sequence[int]) -> Wait | None:
        kept, own = self.kept, self.kept.tasks[t]
        seen: list[Wait] = []
        for r in late:
            seen += self._beside(t, r, kept.tasks[r].reads_of(own.out), own.target)
        for copy in copies:
            seen += self._through(t, copy)
        for read in own.reads:
            of = kept.producers.get(read.tensor)
            for r in kept.planner.links.readers.get(read.tensor, ()):
                if kept.is_late(r) and (of is None or not kept.is_late(of)):
                    seen += self._beside(t, r, kept.tasks[r].reads_of(read.tensor), read.indices)
        if not seen:
            return None
        last = max(wait.task for wait in seen)
        return Wait(last, frozenset().union(*(wait.pairs for wait in seen if wait.task == last)))

    def _beside(self, t: int, r: int, reads: Sequence[Access], places: Sequence[object]) -> Iterator[Wait]:
        """What the late task `r` reads beside `reads`, whose indices are `places` to task `t`."""
        kept = self.kept
        for other in kept.tasks[r].reads:
            p = kept.producers.get(other.tensor)
            if p is None or not kept.is_late(p) or p >= self._limit[t] or kept.tasks[p].circles:
                continue
            made = {i: place for place, i in zip(kept.tasks[p].target, other.indices, strict=True)}
            loops = {a.symbol for a in kept.tasks[p].axes}
            pairs = {
                (made[i], place)
                for read in reads
                for i, place in zip(read.indices, places, strict=True)
                if made.get(i) in loops and place in kept.tasks[t].extents
            }
            yield Wait(p, frozenset(pairs))

    def _through(self, t: int, copy: int) -> Iterator[Wait]:
        """What `copy`, which reads task `t` and is computed again as well, waits for."""
        wait, own, reader = self._found[copy], self.kept.tasks[t], self.kept.tasks[copy]
        if wait is None or wait.task >= self._limit[t]:
            return
        reads = reader.reads_of(own.out)
        same = {i: place for read in reads for i, place in zip(read.indices, own.target, strict=True)}
        yield Wait(wait.task, frozenset((a, same[j]) for a, j in wait.pairs if same.get(j) in own.extents))


def with_copies(kept: Kept, again: Sequence[int], waits: Waits) -> Work:
    """The tasks, with those of `again` once more, which the late readers read."""
    tensors = dict(kept.work.tensors)
    names: dict[str, str] = {}
    for t in again:
        old = kept.tasks[t].out
        names[old] = fresh(f"{old}_again", tensors)
        tensors[names[old]] = replace(tensors[old], name=names[old])
    standing: dict[int, list[Task]] = {}
    for t in again:
        standing.setdefault(waits.place(t), []).append(_copy(kept, t, names, waits))
    tasks: list[Task] = []
    for t, task in enumerate(kept.tasks):
        tasks += standing.get(t, ())
        tasks.append(reading(task, names) if kept.is_late(t) else task)
    return replace(kept.work, tasks=tuple(tasks), tensors=tensors)


def _copy(kept: Kept, t: int, names: Mapping[str, str], waits: Waits) -> Task:
    task, wait = reading(kept.tasks[t], names), waits.of(t)
    assert wait is not None
    origin = task.formula.origin
    origin = replace(origin, rule="recompute", formula=origin.formula or task.out)
    formula = replace(task.formula, out=names[task.out], origin=origin)
    return replace(task, formula=formula, after=(kept.tasks[wait.task].out, wait.pairs))
