"""Data races: two threads that use one place, one of them writing, with nothing that orders them.

What orders two accesses of a launch: the same thread; a barrier of the CTA between them; a barrier of the warp between
them (bar.warp.sync), for lanes of one warp. Nothing orders two CTAs. Each place remembers, as one integer, the last
thread that wrote it and the threads that read it:

    launch | CTA | barriers passed by the CTA | barriers passed by the warp | who: one thread, several | thread

"Several" is of one warp, of one CTA, or of several CTAs. An access by several lanes at once is ordered by nothing,
too; only lanes of one warp that write one value together are let pass, because the hardware defines that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

THREAD, LEVEL, WARP, BARRIER, CTA = 0, 11, 13, 21, 33  # where each field starts; above: the launch
LAUNCH = 51
ONE, MANY_OF_WARP, MANY_OF_CTA, MANY_CTAS = 0, 1, 2, 3
ATOMIC = 1  # in a writer's level
LAST_LAUNCH = 2 ** (63 - LAUNCH) - 1
MOST_CTAS = 2 ** (LAUNCH - CTA)  # larger grids are not watched


def field(stamp: Any, start: int, stop: int) -> Any:
    return (stamp >> start) & ((1 << (stop - start)) - 1)


WHO = ~(((1 << CTA) - 1) & ~((1 << LEVEL) - 1))  # thread, CTA and launch


def same_warp(a: Any, b: Any) -> Any:
    return field(a, 5, LEVEL) == field(b, 5, LEVEL)


def unordered(before: Any, now: Any) -> Any:
    """Whether the access `before` may run at the same time as the one `now`."""
    level = field(before, LEVEL, WARP)
    launch = (before >> LAUNCH) == (now >> LAUNCH)
    cta = (before >> CTA) == (now >> CTA)
    interval = (before >> BARRIER) == (now >> BARRIER)
    warps = (before >> WARP) == (now >> WARP)
    threads = (field(before, THREAD, LEVEL) != field(now, THREAD, LEVEL)) | (level == MANY_OF_WARP)
    within = (level == MANY_OF_CTA) | ~same_warp(before, now) | (warps & threads)
    return launch & (~cta | (level == MANY_CTAS) | (interval & within))


def settled(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Whether the read `now` adds nothing to what `before` says: the same, or one among many."""
    apart, level = before ^ now, field(before, LEVEL, WARP)
    among = ((apart >> BARRIER) == 0) & (level >= MANY_OF_CTA)
    return (apart == 0) | among | (((apart >> LAUNCH) == 0) & (level == MANY_CTAS))


Race = tuple[int, int]
"""The first position among the lanes that races, and the stamp of what it races with."""


def found(bad: Any, others: Any) -> Race | None:
    """The first lane for which `bad` holds; others: the stamps that each meets."""
    at = int(np.argmax(bad))
    return (at, int(np.broadcast_to(others, np.shape(bad))[at])) if np.any(bad) else None


def accessor(stamp: int) -> str:
    """Who made the access that left `stamp`."""
    cta, level = field(stamp, CTA, LAUNCH), field(stamp, LEVEL, WARP)
    one = f"thread {field(stamp, THREAD, LEVEL)} of CTA {cta}"
    return {MANY_OF_WARP: f"lanes of a warp of CTA {cta}", MANY_OF_CTA: f"threads of CTA {cta}"}.get(
        level, "threads of several CTAs" if level == MANY_CTAS else one
    )


class Shadow:
    """The last accesses to each place of a memory of `count` places; `reserve`(bytes) gives zeros, at its first use."""

    def __init__(self, count: int, reserve: Callable[[int], np.ndarray]) -> None:
        self.count, self.reserve = count, reserve
        self.latest = 0  # launch that read something as constant

    def stamps(self) -> np.ndarray:
        return self.reserve(8 * self.count).view(np.int64)

    @functools.cached_property
    def writer(self) -> np.ndarray:
        return self.stamps()

    @functools.cached_property
    def reader(self) -> np.ndarray:
        return self.stamps()

    @functools.cached_property
    def constant(self) -> np.ndarray:
        """The launch that read a place as what no launch changes."""
        return self.stamps()

    def keep(self, place: Any, first: int) -> np.ndarray | None:
        """A read by .nc, past the caches that stores keep in order; positions of what this launch has written."""
        self.constant[place] = self.latest = first
        bad = np.atleast_1d(self.writer[place] >= first)
        return np.flatnonzero(bad) if bad.any() else None

    def kept(self, place: np.ndarray, first: int) -> np.ndarray | None:
        """Positions of what this launch has read by .nc, and must not write."""
        if self.latest < first:
            return None
        bad = self.constant[place] >= first
        return np.flatnonzero(bad) if bad.any() else None

    def read(self, place: np.ndarray, now: np.ndarray, first: int) -> Race | None:
        """Lanes with stamps `now` read."""
        wrote = self.writer[place]
        race = None
        if wrote.max() >= first:
            race = found(unordered(plain := wrote & ~(3 << LEVEL), now), plain)
        before = self.reader[place]
        if before.max() < first:
            self.reader[place] = now
        else:
            known = settled(before, now)
            if known.all():
                return race
            if known.any():
                place, before, now = place[~known], before[~known], now[~known]
            self.reader[place] = joined(before, now)
        stays = self.reader[place]
        others = np.flatnonzero((stays ^ now) & WHO)
        if len(others):
            self.share(place[others], stays[others], now[others])
        return race

    def read_by_all(self, place: int, now: np.ndarray, first: int) -> Race | None:
        """Lanes with stamps `now` all read one place."""
        wrote, before = self.writer[place] & ~(3 << LEVEL), self.reader[place]
        race = found(unordered(wrote, now), wrote) if wrote >= first else None
        last = now[-1]
        others = now[0] != last
        level = np.where(same_warp(now[0], last), MANY_OF_WARP, MANY_OF_CTA) if others else ONE
        level = level if (now[0] >> CTA) == (last >> CTA) else MANY_CTAS
        if before >= first:
            level = max(level, field(joined(before, last), LEVEL, WARP))
        self.reader[place] = last | (level << LEVEL)
        return race

    def share(self, place: np.ndarray, stays: np.ndarray, now: np.ndarray) -> None:
        """Several lanes read one place at once: say so, the widest circle last."""
        level = np.where(same_warp(stays, now), MANY_OF_WARP, MANY_OF_CTA)
        level = np.where((stays >> CTA) == (now >> CTA), level, MANY_CTAS)
        level = np.maximum(level, field(stays, LEVEL, WARP))
        for k in (MANY_OF_WARP, MANY_OF_CTA, MANY_CTAS):
            chosen = level == k
            self.reader[place[chosen]] = (stays[chosen] & ~(3 << LEVEL)) | (k << LEVEL)

    def write(self, place: np.ndarray, now: np.ndarray, value: Any, first: int) -> Race | None:
        """Lanes with stamps `now` write `value`."""
        wrote, was_read = self.writer[place], self.reader[place]
        race = None
        if wrote.max() >= first:
            race = found(unordered(plain := wrote & ~(3 << LEVEL), now), plain)
        if race is None and was_read.max() >= first:
            race = found(unordered(was_read, now), was_read)
        self.writer[place] = now
        stays = self.writer[place]
        lost = stays != now
        if race is None and lost.any():
            race = found(lost & self.differs(place, stays, now, value), stays)
        return race

    def differs(self, place: np.ndarray, stays: np.ndarray, now: np.ndarray, value: Any) -> np.ndarray:
        """Among lanes that write one place together: not of the winner's warp, or not the winner's value."""
        alone = ~same_warp(stays, now) | ((stays >> CTA) != (now >> CTA))
        if value.ndim == 0:
            return alone
        order = np.argsort(place, kind="stable")
        bits = value.view(f"u{value.dtype.itemsize}")[order]
        first = np.searchsorted(place[order], place)
        unequal = np.zeros(len(place), bool)
        unequal[order] = bits != bits[first[order]]
        return alone | unequal

    def atomic(self, place: np.ndarray, now: np.ndarray, first: int) -> Race | None:
        """Atomic updates race with plain accesses only."""
        wrote, was_read = self.writer[place], self.reader[place]
        plain = field(wrote, LEVEL, WARP) != ATOMIC
        wrote &= ~(3 << LEVEL)
        self.writer[place] = now | (ATOMIC << LEVEL)
        return found(unordered(wrote, now) & plain, wrote) or found(unordered(was_read, now), was_read)

    def forget(self) -> None:
        self.latest = 0
        for name in ("writer", "reader", "constant"):
            self.__dict__.pop(name, None)


def joined(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The readers `before` and `now` of one place as one stamp: `now`'s, with who has read it."""
    level = field(before, LEVEL, WARP)
    near = same_warp(before, now)
    same = field(before, THREAD, LEVEL) == field(now, THREAD, LEVEL)
    warp = np.where(near, np.where(same, level, np.maximum(level, MANY_OF_WARP)), MANY_OF_CTA)
    together = ((before >> WARP) == (now >> WARP)) | ~near | (level == MANY_OF_CTA)
    within = np.where(((before >> BARRIER) == (now >> BARRIER)) & together, np.maximum(warp, level), ONE)
    found = np.where((before >> CTA) == (now >> CTA), within, MANY_CTAS)
    found = np.where(level == MANY_CTAS, MANY_CTAS, found)
    found = np.where((before >> LAUNCH) == (now >> LAUNCH), found, ONE)
    return now | (found << LEVEL)
