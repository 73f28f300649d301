"""Where a network begins to repeat itself, and where each of its equal layers begins: kernels that end there are equal.

    e, A, B, A, B, A, B, l    ->    e | A, B | A, B | A, B | l

A layer is found by the laws of its tasks, whatever it is called and however it was written.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from chainrule.schedule.task import Task

WINDOW = 12
"""So many tasks in a row are a layer's, if they come again: fewer are what layers of many kinds have in common."""

LAYER = 24
"""Tasks that a kernel of a layer should have at least: of smaller layers it takes several."""


def starts_of(tasks: Sequence[Task]) -> frozenset[int]:
    """The tasks with which a layer begins that reads what was made last, and the one after the last layer."""

    def follows(start: int) -> bool:
        return start > 0 and any(read.tensor == tasks[start - 1].out for read in tasks[start].reads)

    return frozenset(
        start
        for first, length, count in stretches([task.law for task in tasks])
        for start in range(first, min(first + count * length + 1, len(tasks)), length)
        if follows(start)
    )


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
