"""What kernels keep for later ones, and an order of the kernels in which that is little."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from chainrule.schedule.kernels import Planner

NEAR = 1 << 21
"""Bytes that a core's second cache holds: what is kept and stays there costs nothing."""


@dataclass(frozen=True)
class Liveness:
    """For each result of a plan the kernels during which it is kept, at the sizes that the plan was made for.

    outputs: what is kept to the end.
    """

    planner: Planner
    outputs: frozenset[str]

    @cached_property
    def at(self) -> list[int]:
        """The kernel in which each task reads what it reads."""
        return [self.planner.shares.get(t, self.planner.place[t]) for t in range(len(self.planner.links.tasks))]

    def readers(self, t: int) -> tuple[int, ...]:
        return self.planner.links.readers.get(self.planner.links.tasks[t].out, ())

    @cached_property
    def bytes(self) -> list[int]:
        """Of each task's result; what overwrites a state or a parameter takes none of its own."""
        planner = self.planner
        return [0 if task.store is not None else planner.result_bytes(task) for task in planner.links.tasks]

    @cached_property
    def last(self) -> list[int]:
        """The last kernel that reads the result of each task; the one that computes it if no other does."""
        at, readers, end = self.at, self.planner.links.readers, len(self.planner.drafts) - 1
        return [
            end if task.out in self.outputs else max([at[r] for r in readers.get(task.out, ())], default=at[t])
            for t, task in enumerate(self.planner.links.tasks)
        ]

    @cached_property
    def counts(self) -> list[int]:
        """The bytes that are kept during each kernel."""
        changes = [0] * (len(self.planner.drafts) + 1)
        for first, last, size in zip(self.at, self.last, self.bytes, strict=True):
            if last > first:
                changes[first] += size
                changes[last + 1] -= size
        for t, last in self.planner.sums.items():
            part = self.bytes[t] * self.blocks(self.planner.shares[t])
            changes[self.planner.shares[t]] += part
            changes[last + 1] -= part
        return list(accumulate(changes[:-1]))

    def blocks(self, k: int) -> int:
        """Of kernel `k`."""
        draft = self.planner.drafts[k]
        assert draft.index is not None
        return -(-self.planner.sizes.of(draft.index.extent) // self.planner.block_size(draft))

    @cached_property
    def most(self) -> int:
        return max(self.counts, default=0)

    @cached_property
    def turn(self) -> int:
        """The kernel during which most is kept; in training, where the forward pass ends."""
        return self.counts.index(self.most) if self.counts else 0


def lean(planner: Planner, outputs: frozenset[str]) -> Planner:
    """The same kernels, those that free more than they make as soon as they can run, if less is kept so.

    A weight's gradient frees the layer's input and cotangent, which would else be kept to the end of the step.
    """
    live = Liveness(planner, outputs)
    if live.most < NEAR:
        return planner
    ordered = in_order_of(planner, order_of(live))
    return ordered if Liveness(ordered, outputs).most < live.most else planner


def order_of(live: Liveness) -> list[int]:
    """The kernels in an order that may run: of those that are ready the first that frees memory, else the first."""
    planner = live.planner
    before = kernels_before(planner)
    touched: list[set[int]] = [set() for _ in planner.drafts]  # the results that a kernel reads and that outlive theirs
    made = [0] * len(planner.drafts)
    for t, first in enumerate(live.at):
        if live.last[t] > first:
            made[first] += live.bytes[t]
            for r in live.readers(t):
                if live.at[r] != first:
                    touched[live.at[r]].add(t)
    left = {t: {live.at[r] for r in live.readers(t)} - {live.at[t]} for t in set().union(*touched)}
    after: list[list[int]] = [[] for _ in planner.drafts]
    for k, needed in enumerate(before):
        for p in needed:
            after[p].append(k)
    waiting = [len(needed) for needed in before]
    ready = [k for k, count in enumerate(waiting) if not count]
    result: list[int] = []

    def frees(k: int) -> bool:
        outputs, tasks = live.outputs, planner.links.tasks
        return made[k] < sum(live.bytes[t] for t in touched[k] if left[t] == {k} and tasks[t].out not in outputs)

    while ready:
        k = next((k for k in sorted(ready) if frees(k)), min(ready))
        ready.remove(k)
        result.append(k)
        for t in touched[k]:
            left[t].discard(k)
        for later in after[k]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, later)
    return result


def kernels_before(planner: Planner) -> list[set[int]]:
    """For each kernel those that must come before it."""
    before: list[set[int]] = [set() for _ in planner.drafts]
    for t in range(len(planner.links.tasks)):
        reads = planner.shares.get(t, planner.place[t])
        before[reads] |= {planner.done(p, t) for p in planner.links.before[t]}
        before[planner.place[t]].add(reads)
    return [needed - {k} for k, needed in enumerate(before)]


def in_order_of(planner: Planner, order: Sequence[int]) -> Planner:
    """The plan with its kernels in another order."""
    now = {k: at for at, k in enumerate(order)}

    def moved(found: dict[int, int]) -> dict[int, int]:
        return {t: now[k] for t, k in found.items()}

    drafts = [planner.drafts[k] for k in order]
    return replace(
        planner, drafts=drafts, place=moved(planner.place), sums=moved(planner.sums), shares=moved(planner.shares)
    )
