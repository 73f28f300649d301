"""What the lanes of some CTAs reach: global memory, their shared and local memory, and who was there before.

An address in shared or local memory counts from that memory's start; each CTA, or thread, has a slot of its own.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tests.cuda.flow import Flow
from tests.cuda.memory import UNWRITTEN, Space, layout
from tests.cuda.ptx import Instruction, PTXError
from tests.cuda.races import Shadow
from tests.cuda.watch import Watch

SHARED_LIMIT = 48 * 1024  # bytes of static shared memory of a CTA


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
        self.watch: Watch | None = None
        if watched:
            shadows = {"global": watched}
            if stride:
                shadows["shared"] = (Shadow(ctas * stride // 4, zeros), Shadow(ctas * stride, zeros))
            self.watch = Watch(launch, first, threads, everyone, shadows, memory.base, stride, self.fail)

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
        if self.watch and space != "local":
            self.watch.read(ins, space, at, item, count, who)
        return [view[at + k] if k else view[at] for k in range(count)]

    def load_one(self, ins: Instruction, address: Any, kind: type, count: int, who: np.ndarray) -> list[Any]:
        """All of `who` read one address of global memory: scalars."""
        item = np.dtype(kind).itemsize
        at = self.index(ins, "global", address, item, count, who)
        if self.watch:
            self.watch.read_by_all(ins, int(at), item, count, who)
        view = self.spaces["global"].view(kind)
        return [view[at + k] for k in range(count)]

    def store(
        self, ins: Instruction, space: str, address: np.ndarray, kind: type, values: list[Any], who: np.ndarray
    ) -> None:
        item = np.dtype(kind).itemsize
        at = self.index(ins, space, address, item, len(values), who)
        if self.watch and space != "local":
            self.watch.write(ins, space, at, item, values, who)
        view = self.spaces[space].view(kind)
        for k, value in enumerate(values):
            view[at + k if k else at] = value

    def places(
        self, ins: Instruction, space: str, address: np.ndarray, kind: type, who: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For atomic updates: the space's view and the elements meant."""
        item = np.dtype(kind).itemsize
        at = self.index(ins, space, address, item, 1, who)
        if self.watch and space != "local":
            self.watch.update(ins, space, at, item, who)
        return self.spaces[space].view(kind), at


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.uint8)
