"""Launches: one lane a thread of as many CTAs as are worth running together.

Lanes that part wait at their next block; always the lowest block in the text runs next, so they meet again where the
branches join. A block of all lanes that are left runs on whole arrays; one of some lanes runs on whole arrays too, and
only the registers that outlive the block are merged; one of few lanes runs on their registers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.cuda.decode import Code, Kernel
from tests.cuda.lanes import Batch, Lanes
from tests.cuda.memory import Space, reserved
from tests.cuda.ptx import BYTES, PTXError
from tests.cuda.races import LAST_LAUNCH, MOST_CTAS, Shadow
from tests.cuda.reach import Reach

LANES = 1 << 15  # run together: their registers stay in the cache
FEW = 4096  # lanes below which choosing among them costs more than running all
STEPS = 20_000_000  # blocks: a launch that runs more hangs


class Machine:
    """Global memory, and launches over it; `races`: whether to watch for them."""

    def __init__(self, memory: Space, races: bool = True) -> None:
        self.memory = memory
        self.launches = 0
        self.watched: tuple[Shadow, Shadow] | None = None
        if races:
            self.watched = (Shadow(len(memory.data) // 4, reserved), Shadow(len(memory.data), reserved))

    def launch(self, kernel: Kernel, grid: int, threads: int, words: Sequence[int], symbols: dict[str, int]) -> None:
        """`kernel` over `grid` CTAs of `threads` threads; words: parameters; symbols: the module's variables."""
        if not 0 < threads <= 1024 or not 0 < grid < 1 << 31:
            raise PTXError(f"{kernel.name}: {grid} CTAs of {threads} threads are not allowed")
        required, most = kernel.flow.required, kernel.flow.most
        if threads != (required or threads) or threads > most:
            expected = required or f"at most {most}"
            raise PTXError(f"{kernel.name} was compiled for CTAs of {expected} threads, not {threads}")
        if len(words) != len(kernel.flow.params):
            raise PTXError(f"{kernel.name} takes {len(kernel.flow.params)} parameters, not {len(words)}")
        self.launches += 1
        if self.launches > LAST_LAUNCH:
            self.launches = 1
            for shadow in self.watched or ():
                shadow.forget()
        together = max(1, LANES // threads)
        watched = self.watched if grid <= MOST_CTAS else None
        with np.errstate(all="ignore"):
            for first in range(0, grid, together):
                batch = Batch(min(together, grid - first), threads)
                reach = Reach(kernel.flow, self.memory, first, batch.ctas, threads, watched, self.launches)
                registers = register_file(kernel, batch, first, grid, words, symbols | reach.symbols)
                Run(kernel, batch, reach, registers).go()


def register_file(
    kernel: Kernel, batch: Batch, first: int, grid: int, words: Sequence[int], symbols: dict[str, int]
) -> list[Any]:
    """The kernel's constants and what this launch adds."""
    found = list(kernel.template)
    places = {p.name: k for k, p in enumerate(kernel.flow.params)}
    for key, slot in kernel.late.items():
        match key:
            case ("special", name):
                found[slot] = special(name, batch, first, grid)
            case ("address", name, offset):
                if name not in symbols:
                    raise PTXError(f"{kernel.name} names {name}, which is no variable")
                found[slot] = np.int64(symbols[name] + offset)
            case ("param", name, offset, kind):
                found[slot] = parameter(words[places[name]], offset, kind)
    return found


def parameter(word: int, offset: int, kind: str) -> Any:
    """The `kind` at byte `offset` of a parameter of 8 bytes."""
    size = BYTES[kind]
    part = (int(word) % 2**64 >> 8 * offset) % 2 ** (8 * size)
    dtype = {"f": "float", "u": "uint"}.get(kind[0], "int")
    return np.frombuffer(part.to_bytes(size, "little"), f"{dtype}{8 * size}")[0]


def special(name: str, batch: Batch, first: int, grid: int) -> Any:
    match name:
        case "%tid.x":
            return batch.thread.astype(np.int32)
        case "%ctaid.x":
            return (batch.cta + first).astype(np.int32) if batch.ctas > 1 else np.int32(first)
        case "%ntid.x":
            return np.int32(batch.threads)
        case "%nctaid.x":
            return np.int32(grid)
        case "%laneid":
            return batch.lane.astype(np.int32)
        case "%warpid":
            return (batch.thread // 32).astype(np.int32)
        case "WARP_SZ":
            return np.int32(32)
        case "%lanemask_lt":
            return ((np.uint32(1) << batch.lane.astype(np.uint32)) - np.uint32(1)).view(np.int32)
        case "%lanemask_eq":
            return (np.uint32(1) << batch.lane.astype(np.uint32)).view(np.int32)
        case "%tid.y" | "%tid.z" | "%ctaid.y" | "%ctaid.z" | "%clock" | "%smid":
            return np.int32(0)
        case "%ntid.y" | "%ntid.z" | "%nctaid.y" | "%nctaid.z":
            return np.int32(1)
        case "%clock64" | "%globaltimer":
            return np.int64(0)
    raise PTXError(f"{name} is not known to this machine")


class Run:
    """Some CTAs of one launch. waiting[block]: the lanes that are to run it; parked[block]: at a barrier before it."""

    def __init__(self, kernel: Kernel, batch: Batch, reach: Reach, registers: list[Any]) -> None:
        self.kernel, self.batch, self.reach, self.registers = kernel, batch, reach, registers
        self.varying = [slot for slot in kernel.late.values() if registers[slot].ndim]
        self.exited = np.zeros(batch.count, bool)
        self.waiting: dict[int, np.ndarray] = {0: np.ones(batch.count, bool)}
        self.parked: dict[int, np.ndarray] = {}
        self.leave = len(kernel.blocks)

    def go(self) -> None:
        whole = Lanes(self.reach, self.batch, None)
        steps = 0
        while self.waiting:
            at = self.choose()
            mask = self.waiting.pop(at)
            if at == self.leave:
                self.exited |= mask
                whole = Lanes(self.reach, self.batch, np.flatnonzero(~self.exited))
            else:
                steps += 1
                if steps > STEPS:
                    raise PTXError(f"{self.kernel.name} has run {steps} blocks: it does not end")
                code = self.kernel.blocks[at]
                if self.waiting or self.parked:
                    self.partial(code, mask)
                else:
                    for operation in code.operations:
                        operation(self.registers, whole)
                    self.move(code, mask, self.registers, None)
            if not self.waiting and self.parked:
                self.stuck()

    def choose(self) -> int:
        """The lowest block that has lanes; one where warps act together waits for their other lanes."""
        lowest = min(self.waiting)
        if len(self.waiting) == 1 or not self.together(lowest):
            return lowest
        return next((at for at in sorted(self.waiting) if self.ready(at)), lowest)

    def together(self, at: int) -> bool:
        return at != self.leave and self.kernel.blocks[at].together

    def ready(self, at: int) -> bool:
        """Whether no lane that could still come to block `at` is missing from its warp there."""
        if not self.together(at):
            return True
        here = np.zeros(self.batch.warps, bool)
        here[self.batch.warp[self.waiting[at]]] = True
        elsewhere = ~self.waiting[at] & ~self.exited
        for parked in self.parked.values():
            elsewhere &= ~parked
        return not here[self.batch.warp[elsewhere]].any()

    def partial(self, code: Code, mask: np.ndarray) -> None:
        """Run a block for the lanes of `mask`, while others are elsewhere."""
        chosen = np.flatnonzero(mask)
        registers = self.registers
        mine = list(registers)
        if self.batch.count <= FEW or 4 * len(chosen) > self.batch.count:
            lanes, ids = Lanes(self.reach, self.batch, chosen), None
        else:
            lanes, ids = Lanes(self.reach, self.batch, None, chosen), chosen
            for slot in (*code.incoming, *self.varying):
                if mine[slot] is not None and mine[slot].ndim:
                    mine[slot] = mine[slot][chosen]
        for operation in code.operations:
            operation(mine, lanes)
        for slot in code.outgoing:
            registers[slot] = self.merged(registers[slot], mine[slot], mask, ids)
        self.move(code, mask, mine, ids)

    def merged(self, old: Any, new: Any, mask: np.ndarray, ids: np.ndarray | None) -> Any:
        """`new` for the lanes of `mask`, `old` for the others."""
        if new is None or new is old:
            return old
        if old is None:
            if new.ndim == 0 or ids is None:
                return new
            old = np.zeros(1, new.dtype)
        if old.ndim == 0 and new.ndim == 0 and old.tobytes() == new.tobytes():
            return old
        if ids is None:
            return np.where(mask, new, old)
        found = np.array(np.broadcast_to(old, len(mask)))
        found[ids] = new
        return found

    def move(self, code: Code, mask: np.ndarray, registers: list[Any], ids: np.ndarray | None) -> None:
        """Send the lanes of `mask` to where the block's end says."""
        if code.kind == "barrier":
            self.park(code.targets[0], mask)
            return
        if code.kind == "jump":
            self.send(code.targets[0], mask)
            return
        condition = registers[code.condition]
        if condition.ndim and ids is not None:
            whole = np.zeros(len(mask), condition.dtype)
            whole[ids] = condition
            condition = whole
        if code.kind == "table":
            for k, target in enumerate(code.targets):
                self.send(target, mask & (condition == k))
            return
        if code.negated:
            condition = ~condition
        if condition.ndim == 0:
            self.send(code.targets[0 if condition else 1], mask)
            return
        taken = mask & condition
        self.send(code.targets[0], taken)
        self.send(code.targets[1], mask & ~condition)

    def send(self, target: int, mask: np.ndarray) -> None:
        if mask.any():
            there = self.waiting.get(target)
            self.waiting[target] = mask if there is None else there | mask

    def park(self, after: int, mask: np.ndarray) -> None:
        """Lanes arrive at the barrier before block `after`; CTAs that are complete pass it."""
        here = mask | self.parked.pop(after) if after in self.parked else mask
        by_cta = here.reshape(self.batch.ctas, self.batch.threads)
        passing = np.repeat(by_cta.all(axis=1), self.batch.threads)
        if self.reach.watch and passing.any():
            self.reach.watch.pass_barrier(np.flatnonzero(passing), bool((passing | self.exited).all()))
        self.send(after, passing)
        if (here & ~passing).any():
            self.parked[after] = here & ~passing

    def stuck(self) -> None:
        """No lane can go on: raises PTXError about a barrier that some threads of a CTA never reach."""
        after, lanes = min(self.parked.items())
        who = int(np.flatnonzero(lanes)[0])
        cta = who // self.batch.threads
        block = slice(cta * self.batch.threads, (cta + 1) * self.batch.threads)
        here, gone = int(lanes[block].sum()), int(self.exited[block].sum())
        end = self.kernel.blocks[after - 1].end
        missing = self.batch.threads - here
        facts = f"{here} of {self.batch.threads} threads wait here; of the others {gone} have exited"
        facts += f" and {missing - gone} wait at another barrier" if missing - gone else ""
        self.reach.fail(end, who, f"a divergent barrier: {facts}")
