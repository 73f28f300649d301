"""What a program bound to sizes keeps between calls: where its buffers lie, and the graphs that were recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chainrule.executable import Launch
from chainrule.runtime.buffers import Plan
from chainrule.runtime.cuda.arrays import Block, padded
from chainrule.runtime.cuda.tables import Tables
from chainrule.runtime.values import Array

Slices = Mapping[int, tuple[int, int]]
"""By buffer, where that of the first step lies, and how far on that of each next one is."""


@dataclass(eq=False)
class Recording:
    """`count` steps in a row, with memory for what goes in and comes out.

    fed, kept: by buffer, where that of the first step lies and how many bytes each next one is further on (0: one for
    all). The results lie side by side from `block` on, then the inputs. host: pinned memory for all of it, where the
    steps copy by themselves what is small and comes from the host; inputs: by buffer, the array there. tables: what
    launches of several sets of arguments read.
    """

    count: int
    block: Block
    fed: Slices
    kept: Slices
    results: int  # bytes
    tables: Tables = field(init=False)
    host: NDArray[np.uint8] | None = None
    inputs: Mapping[int, Array] = field(default_factory=dict)
    replay: Callable[[], None] | None = None


@dataclass(eq=False)
class Binding:
    """A program for one set of sizes: its launches, where its buffers lie, and what was recorded of it."""

    plan: Plan
    launches: tuple[Launch, ...]
    arena: Block
    places: list[int]  # by buffer
    scratch: int
    chunk: int
    warm: bool = False  # whether a step was done
    recordings: dict[tuple[int, frozenset[int], bool], Recording] = field(default_factory=dict)


def laid(buffers: Iterable[int], counts: Sequence[int], steps: int, at: int) -> tuple[dict[int, tuple[int, int]], int]:
    """By buffer, the offset (from `at` on) of its first of `steps` slices and their distance; and where all end."""
    found = {}
    for buffer in buffers:
        found[buffer] = at, padded(counts[buffer])
        at += steps * padded(counts[buffer])
    return found, at


def placed(address: int, offsets: Slices) -> dict[int, tuple[int, int]]:
    """The same with addresses, of what is laid out from `address` on."""
    return {buffer: (address + at, stride) for buffer, (at, stride) in offsets.items()}
