"""The tape: the launches of one step as records in memory, which parts of them threads share, and where they meet.

Everything here is a pure function of sizes and addresses; `threads.py` holds those who walk it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from chainrule.executable import Entry, Executable, Launch, evaluate
from chainrule.runtime.buffers import LINE, Plan, address, aligned

GRAIN = 2_000  # nanoseconds of work below which another thread is not worth its barrier (0.1 to 1.5 µs, measured)
TURNS = 8  # how often a thread asks for more of a launch, about: one that is held up then delays the others by less
MEETING = 1_000  # nanoseconds that a barrier is taken to cost on a machine that is not quiet

Span = tuple[int, int]  # addresses [lo, hi)
Words = NDArray[np.int64]


class Tape(msgspec.Struct, frozen=True):
    """Records and tables of one step, and the scratch bytes that each thread needs.

    `keep` holds the memory that addresses point to.
    """

    entries: Words
    threads: int
    scratch: int
    cost: float  # nanoseconds on one core
    keep: tuple[Words, ...]


def build(executable: Executable, plan: Plan, places: Sequence[int], functions: Sequence[int], threads: int) -> Tape:
    """The tape for buffers at the addresses `places` and kernels at `functions`, for at most `threads` threads."""
    launches = executable.launches
    extents = [evaluate(launch.extent, plan.sizes) for launch in launches]
    costs = [float(evaluate(launch.cost, plan.sizes)) for launch in launches]
    shares = divide(costs, extents, threads)
    spans = [_spans(launch, plan, places) for launch in launches]
    meets = barriers(spans, shares)
    if not _pays(costs, shares, meets):
        shares, meets = [1] * len(launches), [False] * len(launches)
    table, starts = _tables(launches, plan, places)
    entries = aligned(8 * Entry.WORDS * len(launches)).view(np.int64).reshape(-1, Entry.WORDS)
    for k, launch in enumerate(launches):
        entries[k, Entry.FUNCTION] = functions[launch.kernel]
        entries[k, Entry.TABLE] = starts[k]
        entries[k, Entry.EXTENT] = extents[k]
        entries[k, Entry.PARTS] = shares[k]
        entries[k, Entry.BARRIER] = meets[k]
        entries[k, Entry.CHUNK] = max(1, extents[k] // (TURNS * shares[k]))
    scratch = max((evaluate(launch.scratch, plan.sizes) for launch in launches), default=0)
    return Tape(entries, max(shares, default=1), _whole_lines(scratch), sum(costs), (table,))


class Uses(msgspec.Struct, frozen=True):
    """The words of a tape's tables that hold one buffer's address."""

    table: Words
    words: tuple[int, ...]

    def point_to(self, place: int) -> None:
        """Let the kernels find the buffer at the address `place`."""
        for word in self.words:
            self.table[word] = place

    @property
    def addresses(self) -> Words:
        """Where these words are, as a list in memory."""
        found = aligned(8 * len(self.words)).view(np.int64)
        found[:] = address(self.table) + 8 * np.array(self.words, np.int64)
        return found


def uses(executable: Executable, tape: Tape, buffer: int) -> Uses:
    """Where the launches of `tape` find the address of `buffer`."""
    (table,) = tape.keep
    starts = (tape.entries[:, Entry.TABLE] - address(table)) // 8
    words = (
        int(start) + position
        for launch, start in zip(executable.launches, starts, strict=True)
        for position, held in enumerate(launch.buffers)
        if held == buffer
    )
    return Uses(table, tuple(words))


def divide(costs: Sequence[float], extents: Sequence[int], threads: int) -> list[int]:
    """Among how many threads each launch is divided: as many as have GRAIN nanoseconds to do, 1 where nobody helps."""
    return [max(1, min(threads, extent, int(cost // GRAIN))) for cost, extent in zip(costs, extents, strict=True)]


def barriers(spans: Sequence[tuple[Sequence[Span], Sequence[Span]]], shares: Sequence[int]) -> list[bool]:
    """Before which launches all threads must meet. `spans`: what each reads and writes, by address.

    A launch waits for another since the last barrier if one of them writes what the other reads or writes (arena
    memory that is used again counts, for spans are addresses). Two undivided launches are both thread 0's, in order.
    """
    meets = []
    read, written = Since([], []), Since([], [])
    for (reads, writes), share in zip(spans, shares, strict=True):
        divided = share > 1
        meet = written.touches([*reads, *writes], divided) or read.touches(writes, divided)
        if meet:
            read, written = Since([], []), Since([], [])
        meets.append(meet)
        read.add(reads, divided)
        written.add(writes, divided)
    return meets


class Since(msgspec.Struct, frozen=True):
    """What was touched since the last barrier: by all launches, and by the divided ones among them."""

    every: list[Span]
    divided: list[Span]

    def add(self, spans: Sequence[Span], divided: bool) -> None:
        self.every.extend(spans)
        if divided:
            self.divided.extend(spans)

    def touches(self, spans: Sequence[Span], divided: bool) -> bool:
        """Whether a launch that touches `spans` has to wait: if it is undivided, for divided launches alone."""
        earlier = self.every if divided else self.divided
        return any(lo < other_hi and other_lo < hi for lo, hi in spans for other_lo, other_hi in earlier)


def _pays(costs: Sequence[float], shares: Sequence[int], meets: Sequence[bool]) -> bool:
    """Whether dividing saves more than calling the workers and meeting them costs."""
    saved = sum(cost * (1 - 1 / share) for cost, share in zip(costs, shares, strict=True))
    return saved > MEETING * (2 + sum(meets))


def _spans(launch: Launch, plan: Plan, places: Sequence[int]) -> tuple[list[Span], list[Span]]:
    def span(position: int) -> Span:
        buffer = launch.buffers[position]
        return places[buffer], places[buffer] + plan.bytes[buffer]

    return [span(k) for k in launch.reads], [span(k) for k in launch.writes]


def _tables(launches: Sequence[Launch], plan: Plan, places: Sequence[int]) -> tuple[Words, list[int]]:
    """All argument tables in one block, each on a cache line of its own, and where each starts."""
    rows = [
        [*(places[buffer] for buffer in launch.buffers), *(evaluate(size, plan.sizes) for size in launch.sizes)]
        for launch in launches
    ]
    starts, total = [], 0
    for row in rows:
        starts.append(total)
        total += _whole_lines(8 * len(row))
    block = aligned(total).view(np.int64)
    for row, start in zip(rows, starts, strict=True):
        block[start // 8 : start // 8 + len(row)] = row
    return block, [address(block) + start for start in starts]


def _whole_lines(count: int) -> int:
    return -(-count // LINE) * LINE
