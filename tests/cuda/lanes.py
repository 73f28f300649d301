"""Which threads an operation runs for, and where their values stand in the arrays at hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.cuda.reach import Reach


class Lanes:
    """`size` places in each array; `ids`: the thread at each place; `active`: the places that count, None for all."""

    def __init__(self, reach: Reach, batch: Batch, active: np.ndarray | None, ids: np.ndarray | None = None) -> None:
        self.reach, self.batch, self.active = reach, batch, active
        self.all_here = ids is None
        self.ids = batch.everyone if ids is None else ids
        self.size = len(self.ids)
        self.whole_warps = self.all_here and active is None and batch.threads % 32 == 0

    def who(self, active: np.ndarray | None) -> np.ndarray:
        """The threads at the places `active`."""
        return self.ids if active is None else self.ids[active]

    def narrowed(self, p: Any) -> np.ndarray:
        """The active places at which `p` holds; None holds everywhere."""
        active = self.active
        if p is None:
            return np.arange(self.size) if active is None else active
        p = np.broadcast_to(p, self.size)
        return np.flatnonzero(p) if active is None else active[p[active]]

    def compressed(self, x: Any, active: np.ndarray | None) -> np.ndarray:
        """`x` at the places `active`, as an array."""
        if x.ndim == 0:
            return np.full(self.size if active is None else len(active), x)
        return x if active is None else x[active]

    def expanded(self, x: np.ndarray, active: np.ndarray) -> np.ndarray:
        found = np.zeros(self.size, x.dtype)
        found[active] = x
        return found

    @functools.cached_property
    def lane(self) -> np.ndarray:
        return self.batch.lane if self.all_here else self.batch.lane[self.ids]

    @functools.cached_property
    def warp(self) -> np.ndarray:
        return self.batch.warp if self.all_here else self.batch.warp[self.ids]

    @functools.cached_property
    def position(self) -> np.ndarray:
        """thread -> its place, -1 where it is not active; one place more, for threads beyond the last."""
        active = self.narrowed(None)
        found = np.full(self.batch.count + 32, -1)
        found[self.ids[active]] = active
        return found

    def active_bits(self) -> np.ndarray:
        """For each place, the active lanes of its warp as bits."""
        active = self.narrowed(None)
        words = np.zeros(self.batch.warps, np.uint32)
        np.add.at(words, self.warp[active], np.uint32(1) << self.lane[active].astype(np.uint32))
        return words[self.warp]

    def pass_warp_barrier(self) -> None:
        if self.reach.watch:
            self.reach.watch.pass_warp_barrier(self.who(self.active))


class Batch:
    """The threads of `ctas` CTAs that run together, CTA after CTA."""

    def __init__(self, ctas: int, threads: int) -> None:
        self.ctas, self.threads, self.count = ctas, threads, ctas * threads
        self.everyone = np.arange(self.count)
        self.cta, self.thread = np.divmod(self.everyone, threads)
        self.lane = self.thread & 31
        per_cta = -(-threads // 32)
        self.warp = self.cta * per_cta + self.thread // 32
        self.warps = ctas * per_cta
