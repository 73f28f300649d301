"""Where a network begins to repeat itself, and where each of its equal layers begins: kernels that end there are equal.

    e, A, B, A, B, A, B, l    ->    e | A, B | A, B | A, B | l

A layer is found by the laws of its tasks, whatever it is called and however it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from chainrule.schedule.task import Task

WINDOW = 12
"""So many tasks in a row are a layer's, if they come again: fewer are what layers of many kinds have in common."""

LAYER = 24
"""Tasks that a kernel of a layer should have at least: of smaller layers it takes several."""


def starts_of(tasks: Sequence[Task], bytes_of: Callable[[Task], int]) -> frozenset[int]:
    """The tasks with which a layer begins, and the one after the last layer.

    A layer may be said to begin anywhere, if what begins it reads what was made last; it begins where least of what it
    makes is read by the next one, for that is kept.
    """
    readers: dict[str, list[int]] = {}
    for t, task in enumerate(tasks):
        for name in {read.tensor for read in task.reads}:
            readers.setdefault(name, []).append(t)

    def follows(start: int) -> bool:
        return start > 0 and any(read.tensor == tasks[start - 1].out for read in tasks[start].reads)

    def kept(start: int, length: int) -> int:
        layer = range(max(start - length, 0), start)
        return sum(bytes_of(tasks[t]) for t in layer if any(r >= start for r in readers.get(tasks[t].out, ())))

    found: set[int] = set()
    for first, length, count in stretches([task.law for task in tasks]):
        end = min(first + count * length + 1, len(tasks))
        phases = [first + k for k in range(length) if first + k + length < end and follows(first + k + length)]
        if phases:
            best = min(phases, key=lambda phase: (kept(phase + length, length), phase))
            found.update(start for start in range(best, end, length) if follows(start))
    return frozenset(found)


def stretches(laws: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """Where something is repeated: its first place, its length, and how often it stands there."""
    numbers: dict[Hashable, int] = {}
    word = [numbers.setdefault(law, len(numbers)) for law in laws]
    windows = [tuple(word[k : k + WINDOW]) for k in range(len(word) - WINDOW + 1)]
    last: dict[tuple[int, ...], int] = {}
    ahead = [0] * len(windows)  # how far it is to the next equal window
    for k in reversed(range(len(windows))):
        ahead[k] = last.get(windows[k], k) - k
        last[windows[k]] = k
    found = []
    k = 0
    while k < len(ahead):
        length, first = ahead[k], k
        while k < len(ahead) and ahead[k] == length:
            k += 1
        covered = k - first + WINDOW - 1 + length
        if length and covered >= 2 * length:
            whole = -(-LAYER // length) * length
            found.append((first, whole, covered // whole))
    return found
