"""Orders in which launches may run, where some of them are done at the same time.

A launch comes after those that write what it reads or writes, and those that read what it writes. Launches none of
which must come before another may be one: then what must come after one of them comes after all.

    sum b0; update b0; sum b1; update b1     ->     sum b0 and b1; update b0 and b1
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

Touched = tuple[frozenset[str], frozenset[str]]
"""The buffers that a launch reads, and those that it writes."""

Group = tuple[int, ...]
"""Launches, by number, that are done at the same time."""


def needed(touched: Sequence[Touched]) -> list[set[int]]:
    """For each launch those that must come before it, as far as no other says so already."""
    before: list[set[int]] = []
    writer: dict[str, int] = {}
    readers: dict[str, set[int]] = {}
    for k, (reads, writes) in enumerate(touched):
        found = {writer[name] for name in reads | writes if name in writer}
        found.update(*(readers.get(name, ()) for name in writes))
        before.append(found - {k})
        for name in reads:
            readers.setdefault(name, set()).add(k)
        for name in writes:
            writer[name], readers[name] = k, set()
    return before


def ancestors(before: Sequence[Collection[int]]) -> list[int]:
    """For each launch all that must come before it, a bit each."""
    found: list[int] = []
    for needs in before:
        bits = 0
        for p in needs:
            bits |= found[p] | 1 << p
        found.append(bits)
    return found


def independent(members: Sequence[int], earlier: Sequence[int]) -> Group:
    """Of `members`, from the first on, those that may be done at the same time."""
    found: list[int] = []
    bits = above = 0
    for k in members:
        if not earlier[k] & bits and not above >> k & 1:
            found.append(k)
            bits, above = bits | 1 << k, above | earlier[k]
    return tuple(found)


def together(group: Group, earlier: Sequence[int]) -> list[int]:
    """`ancestors` once the launches of `group` are one."""
    bits = above = 0
    for k in group:
        bits, above = bits | 1 << k, above | earlier[k]
    inside = set(group)
    return [above if k in inside else e | above | bits if e & bits else e for k, e in enumerate(earlier)]


def ordered(before: Sequence[Collection[int]], groups: Sequence[Group]) -> list[Group]:
    """All launches in an order that may run, each of `groups` at once: as near to the old one as can be, a group where
    its last member was."""
    own = {k: group for group in groups for k in group}
    nodes = list(dict.fromkeys(own.get(k, (k,)) for k in range(len(before))))
    of = {k: n for n, node in enumerate(nodes) for k in node}
    needs = [{of[p] for k in node for p in before[k]} - {n} for n, node in enumerate(nodes)]
    after: list[list[int]] = [[] for _ in nodes]
    for n, found in enumerate(needs):
        for p in found:
            after[p].append(n)
    waiting = [len(found) for found in needs]
    ready = [(max(nodes[n]), n) for n, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    result: list[Group] = []
    while ready:
        _, n = heapq.heappop(ready)
        result.append(nodes[n])
        for later in after[n]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, (max(nodes[later]), later))
    assert len(result) == len(nodes), "launches that must come before each other are one"
    return result


def most_kept(
    order: Sequence[Group], touched: Sequence[Touched], sizes: Mapping[str, int], outputs: Collection[str]
) -> int:
    """The bytes that are kept between launches, at most. sizes: of what lies in the arena; outputs live to the end."""
    lives: dict[str, tuple[int, int]] = {}
    for at, group in enumerate(order):
        for name in frozenset().union(*(reads | writes for reads, writes in (touched[k] for k in group))):
            if name in sizes:
                lives[name] = lives.get(name, (at, at))[0], at
    changes = [0] * (len(order) + 1)
    for name, (first, last) in lives.items():
        changes[first] += sizes[name]
        changes[len(order) if name in outputs else last + 1] -= sizes[name]
    return max(accumulate(changes), default=0)
