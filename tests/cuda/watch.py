"""Which accesses of a launch are watched for races, and when: reads of shared memory only where somebody writes.

Between two barriers a CTA mostly reads its shared memory or writes it. Reads are put aside; a barrier that all threads
pass makes them harmless, a write before it has them entered in the shadow first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from tests.cuda.ptx import Instruction
from tests.cuda.races import BARRIER, CTA, LAUNCH, WARP, Shadow, accessor

PENDING = 1000  # reads put aside at most: their index arrays take memory
CONSTANT = "it {} {} memory at {:#x}, which this launch writes and also reads as constant (ld.global.nc)"
RACE = "a race: it {} {} memory at {:#x}, which {other} uses too, in no order"


class Watch:
    """`first`, `threads` and `everyone` say which threads; `fail`(instruction, thread, problem) raises.

    shadows: of each space by words and, for narrower elements, by bytes; base: global memory's first
    address; stride: from one CTA's shared memory to the next.
    """

    def __init__(
        self,
        launch: int,
        first: int,
        threads: int,
        everyone: np.ndarray,
        shadows: dict[str, tuple[Shadow, Shadow]],
        base: int,
        stride: int,
        fail: Callable[[Instruction, int, str], NoReturn],
    ) -> None:
        self.shadows, self.base, self.stride, self.fail = shadows, base, stride, fail
        self.oldest = launch << LAUNCH
        self.stamps = self.oldest + ((everyone // threads + first) << CTA) + everyone % threads
        self.pending: list[tuple[Instruction, np.ndarray, int, int, np.ndarray]] = []
        self.wrote = False  # into shared memory, since the last barrier

    def places(self, space: str, at: Any, item: int, count: int) -> list[tuple[Shadow, Any]]:
        """The shadow and the places in it of `count` elements of `item` bytes from index `at` on."""
        words, narrow = self.shadows[space]
        if item < 4:
            return [(narrow, (at + k) * item) for k in range(count)]
        return [(words, (at + k) * (item // 4)) for k in range(count)]

    def refuse(
        self, text: str, ins: Instruction, verb: str, space: str, place: int, item: int, who: int, other: int = 0
    ) -> NoReturn:
        where = place * (1 if item < 4 else 4)
        where = where % self.stride if space == "shared" else where + self.base
        self.fail(ins, who, text.format(verb, space, where, other=accessor(other)))

    def read(self, ins: Instruction, space: str, at: np.ndarray, item: int, count: int, who: np.ndarray) -> None:
        if "nc" in ins.modifiers:
            for shadow, place in self.places(space, at, item, count):
                bad = shadow.keep(place, self.oldest)
                if bad is not None:
                    self.refuse(CONSTANT, ins, "reads", space, int(place[bad[0]]), item, who[bad[0]])
        elif space != "shared" or self.wrote:
            self.enter(ins, space, at, item, count, who)
        else:
            self.pending.append((ins, at, item, count, who))
            if len(self.pending) > PENDING:
                self.settle()

    def settle(self) -> None:
        """Enter the reads of shared memory that were put aside."""
        for ins, at, item, count, who in self.pending:
            self.enter(ins, "shared", at, item, count, who)
        self.pending.clear()

    def enter(self, ins: Instruction, space: str, at: np.ndarray, item: int, count: int, who: np.ndarray) -> None:
        now = self.stamps[who]
        for shadow, place in self.places(space, at, item, count):
            race = shadow.read(place, now, self.oldest)
            if race is not None:
                at_fault, other = race
                self.refuse(RACE, ins, "reads", space, int(place[at_fault]), item, who[at_fault], other)

    def read_by_all(self, ins: Instruction, at: int, item: int, count: int, who: np.ndarray) -> None:
        """All of `who` read one place in global memory."""
        for shadow, place in self.places("global", at, item, count):
            if "nc" in ins.modifiers:
                if shadow.keep(place, self.oldest) is not None:
                    self.refuse(CONSTANT, ins, "reads", "global", place, item, who[0])
            elif race := shadow.read_by_all(place, self.stamps[who], self.oldest):
                self.refuse(RACE, ins, "reads", "global", place, item, who[race[0]], race[1])

    def write(
        self, ins: Instruction, space: str, at: np.ndarray, item: int, values: list[Any], who: np.ndarray
    ) -> None:
        self.about_to_write(space)
        now = self.stamps[who]
        for (shadow, place), value in zip(self.places(space, at, item, len(values)), values, strict=True):
            bad = shadow.kept(place, self.oldest)
            if bad is not None:
                self.refuse(CONSTANT, ins, "writes", space, int(place[bad[0]]), item, who[bad[0]])
            race = shadow.write(place, now, value, self.oldest)
            if race is not None:
                at_fault, other = race
                self.refuse(RACE, ins, "writes", space, int(place[at_fault]), item, who[at_fault], other)

    def update(self, ins: Instruction, space: str, at: np.ndarray, item: int, who: np.ndarray) -> None:
        """Atomically."""
        self.about_to_write(space)
        ((shadow, place),) = self.places(space, at, item, 1)
        bad = shadow.kept(place, self.oldest)
        if bad is not None:
            self.refuse(CONSTANT, ins, "updates", space, int(place[bad[0]]), item, who[bad[0]])
        race = shadow.atomic(place, self.stamps[who], self.oldest)
        if race is not None:
            at_fault, other = race
            self.refuse(RACE, ins, "updates", space, int(place[at_fault]), item, who[at_fault], other)

    def about_to_write(self, space: str) -> None:
        if space == "shared":
            self.settle()
            self.wrote = True

    def pass_barrier(self, who: np.ndarray, all_of_them: bool) -> None:
        """`who` have met at a barrier of their CTA; `all_of_them`: nobody is left who has not."""
        if all_of_them:
            self.pending.clear()
            self.wrote = False
        else:
            self.settle()
        self.advance(who, BARRIER, CTA)

    def pass_warp_barrier(self, who: np.ndarray) -> None:
        self.settle()
        self.advance(who, WARP, BARRIER)

    def advance(self, who: np.ndarray, start: int, stop: int) -> None:
        """Count one barrier more, in the stamps' field between those bits."""
        mask = ((1 << (stop - start)) - 1) << start
        now = self.stamps[who]
        self.stamps[who] = (now & ~mask) | ((now + (1 << start)) & mask)
