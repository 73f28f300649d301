"""What the lanes of some CTAs reach: global memory, their shared and local memory, and who was there before.

An address in shared or local memory counts from that memory's start; each CTA, or thread, has a slot of its own.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tests.cuda.flow import Flow
from tests.cuda.memory import UNWRITTEN, Space, layout
from tests.cuda.ptx import Instruction, PTXError
from tests.cuda.races import BARRIER, CTA, LAUNCH, WARP, Shadow

SHARED_LIMIT = 48 * 1024  # bytes of static shared memory of a CTA
CONSTANT = "it {verb} global memory at {place:#x}, which this launch writes and also reads as constant (ld.global.nc)"


class Reach:
    """`launch`: a number, if races are watched; `watched`: the shadows of global memory, by words and by bytes."""

    def __init__(
        self,
        flow: Flow,
        memory: Space,
        first: int,
        ctas: int,
        threads: int,
        watched: tuple[Shadow, Shadow] | None,
        launch: int,
    ) -> None:
        self.flow, self.first, self.threads = flow, first, threads
        count = ctas * threads
        everyone = np.arange(count)
        shared, near, stride = layout([v for v in flow.variables if v.space == "shared"], 0, "shared")
        local, far, depth = layout([v for v in flow.variables if v.space == "local"], 0, "local")
        used = sum(v.size for v in flow.variables if v.space == "shared")
        if used > SHARED_LIMIT:
            raise PTXError(f"{flow.name} declares {used} bytes of shared memory; {SHARED_LIMIT} are allowed")
        self.symbols = near | far
        self.spaces = {"global": memory, "shared": shared, "local": local}
        shared.data = np.full(ctas * stride, UNWRITTEN, np.uint8)
        local.data = np.full(count * depth, UNWRITTEN, np.uint8)
        self.slots = {"shared": everyone // threads * stride, "local": everyone * depth}
        self.watched: dict[str, tuple[Shadow, Shadow]] = {}
        if watched:
            self.stamps = (launch << LAUNCH) + ((everyone // threads + first) << CTA) + everyone % threads
            self.oldest = launch << LAUNCH
            self.watched["global"] = watched
            places = ctas * stride
            if places:
                self.watched["shared"] = (Shadow(places // 4, zeros), Shadow(places, zeros))

    def fail(self, ins: Instruction, who: int, problem: str) -> NoReturn:
        """Raises PTXError about the thread `who` of these CTAs at `ins`."""
        cta, thread = divmod(int(who), self.threads)
        place = f"thread {thread} of CTA {cta + self.first}"
        raise PTXError(f"{self.flow.name}: {problem}\n  at {ins.text}\n  in {place}")

    def index(self, ins: Instruction, space: str, address: Any, item: int, count: int, who: np.ndarray) -> Any:
        """The elements of the space's view that `who` mean by `address`, the first of `count`."""

        def fail(at: int, problem: str) -> None:
            self.fail(ins, who[at], problem)

        found = self.spaces[space].index(address, item * count, item, fail)
        return found if space == "global" else found + self.slots[space][who] // item

    def load(
        self, ins: Instruction, space: str, address: np.ndarray, kind: type, count: int, who: np.ndarray
    ) -> list[np.ndarray]:
        item = np.dtype(kind).itemsize
        at = self.index(ins, space, address, item, count, who)
        view = self.spaces[space].view(kind)
        if space in self.watched:
            self.saw_read(ins, space, at, item, count, who)
        return [view[at + k] if k else view[at] for k in range(count)]

    def load_one(self, ins: Instruction, address: Any, kind: type, count: int, who: np.ndarray) -> list[Any]:
        """All of `who` read one address of global memory: scalars."""
        item = np.dtype(kind).itemsize
        at = self.index(ins, "global", address, item, count, who)
        view = self.spaces["global"].view(kind)
        if self.watched:
            shadow, place = self.shadow("global", at, item)
            for k in range(count):
                here = int(place) + k * max(item // 4, 1)
                if "nc" in ins.modifiers and shadow.keep(here, self.oldest) is not None:
                    self.fail(ins, who[0], CONSTANT.format(verb="reads", place=int(address)))
                if shadow.read_by_all(here, self.stamps[who], self.oldest):
                    self.race(ins, who[0], "reads", "global", int(address))
        return [view[at + k] for k in range(count)]

    def store(
        self, ins: Instruction, space: str, address: np.ndarray, kind: type, values: list[Any], who: np.ndarray
    ) -> None:
        item = np.dtype(kind).itemsize
        at = self.index(ins, space, address, item, len(values), who)
        view = self.spaces[space].view(kind)
        for k, value in enumerate(values):
            here = at + k if k else at
            if space in self.watched:
                shadow, place = self.shadow(space, here, item)
                bad = shadow.kept(place, self.oldest)
                if bad is not None:
                    self.fail(ins, who[bad[0]], CONSTANT.format(verb="writes", place=int(address[bad[0]])))
                bad = shadow.write(place, self.stamps[who], value, self.oldest)
                if bad is not None:
                    self.race(ins, who[bad[0]], "writes", space, int(address[bad[0]]) + k * item)
            view[here] = value

    def places(
        self, ins: Instruction, space: str, address: np.ndarray, kind: type, who: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For atomic updates: the space's view and the elements meant."""
        item = np.dtype(kind).itemsize
        at = self.index(ins, space, address, item, 1, who)
        if space in self.watched:
            shadow, place = self.shadow(space, at, item)
            bad = shadow.atomic(place, self.stamps[who], self.oldest)
            if bad is not None:
                self.race(ins, who[bad[0]], "updates", space, int(address[bad[0]]))
        return self.spaces[space].view(kind), at

    def shadow(self, space: str, at: Any, item: int) -> tuple[Shadow, Any]:
        """Where accesses of `item` bytes are remembered: by words, narrow ones by bytes."""
        words, narrow = self.watched[space]
        return (words, at * (item // 4)) if item >= 4 else (narrow, at * item)

    def saw_read(self, ins: Instruction, space: str, at: np.ndarray, item: int, count: int, who: np.ndarray) -> None:
        for k in range(count):
            shadow, place = self.shadow(space, at + k if k else at, item)
            if "nc" in ins.modifiers and (bad := shadow.keep(place, self.oldest)) is not None:
                at = int(place[bad[0]]) * min(item, 4) + self.spaces[space].base
                self.fail(ins, who[bad[0]], CONSTANT.format(verb="reads", place=at))
            bad = shadow.read(place, self.stamps[who], self.oldest)
            if bad is not None:
                self.race(ins, who[bad[0]], "reads", space, int(place[bad[0]]) * min(item, 4) + self.spaces[space].base)

    def race(self, ins: Instruction, who: int, verb: str, space: str, place: int) -> NoReturn:
        self.fail(ins, who, f"a race: it {verb} {space} memory at {place:#x}, which another thread uses, unordered")

    def pass_barrier(self, who: np.ndarray, of_warp: bool = False) -> None:
        """`who` have met at a barrier of their CTA, or of their warp."""
        if self.watched:
            start, stop = (WARP, BARRIER) if of_warp else (BARRIER, CTA)
            mask = ((1 << (stop - start)) - 1) << start
            now = self.stamps[who]
            self.stamps[who] = (now & ~mask) | ((now + (1 << start)) & mask)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.uint8)
