"""One kernel for the GPU as readable Python: parameters are addresses and sizes, elements stand at flat places.

def hidden(z, b, h, batch, scratch):
    for flat in range(block() * 256 + thread(), batch * 64, blocks() * 256):
        n = divide(flat, 64)
        o = modulo(flat, 64)
        h[64 * n + o] = tanh(z[64 * n + o] + b[o])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy as sp

from chainrule.codegen.cuda.device import SHARED_BYTES, WARP
from chainrule.codegen.cuda.team import Deal, Team
from chainrule.codegen.expressions import Symbol
from chainrule.codegen.kernel import Writer, element_of
from chainrule.codegen.native import ITEM
from chainrule.ir.expression import quotient
from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer

ALIGNMENT = 64  # of an array in a block's region

REGION = "REGION"  # stands for where a block's region begins, until it is known how long one is

ROOM = "ROOM"  # stands for the bytes of shared memory that are left, until it is known what is taken

ROWS = 1024  # bytes of shared memory in which reductions over a block pass values


def register(deal: Deal, turn: str, neighbour: int) -> str:
    """The place of an element among a thread's own."""
    place = turn if deal.width == 1 else f"{turn} * {deal.width}"
    return f"{place} + {neighbour}" if neighbour else place


@dataclass
class CudaWriter(Writer):
    """A `Writer` whose arrays are flat, and whose scratch belongs to teams.

    arrays: the team of each array of scratch. threads: of a block. shared: bytes of shared memory that are taken.
    own: by array of scratch its name, and where its team's part begins. region: bytes of memory for each block, for
    what shared memory does not hold. bounds: of dims, the greatest size. panels: of products' operands, by name: what
    each is called, and its elements. held: elements that are in variables. blocks: so many are to fit a multiprocessor.
    counts: the kernel counts the step, when it ends. alone: one block is all that runs, so what has a size when inputs
    have may be in shared memory too.
    dealt: arrays that are rows in registers. turn: the number of a thread's turn, where these are dealt, and which of
    its neighbours is meant. stages: memory by its elements, in which what is in registers is laid out.
    """

    arrays: Mapping[str, Team] = field(default_factory=dict)
    threads: int = 0
    shared: int = 0
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    region: sp.Expr = sp.S.Zero
    blocks: int = 1
    top: list[str] = field(default_factory=list)
    bounds: Mapping[sp.Basic, int] = field(default_factory=dict)
    panels: dict[str, tuple[str, int]] = field(default_factory=dict)
    held: dict[tuple[str, tuple[sp.Expr, ...]], str] = field(default_factory=dict)
    counts: bool = False
    alone: bool = False
    dealt: Mapping[str, Deal] = field(default_factory=dict)
    turn: tuple[str, int] = ("", 0)
    stages: dict[int, str] = field(default_factory=dict)

    def is_inside(self, index: sp.Expr, extent: sp.Expr, buffer: Buffer) -> tuple[bool, bool]:
        """What the loops show, or that a dim is never greater than an array of scratch is long."""
        above, below = super().is_inside(index, extent, buffer)
        r, block = self.ranges.get(index), self.kernel.block
        if not below and r is not None and extent.is_Integer:
            stop = block.extent if block is not None and r.stop == block.last else r.stop
            below = bool(self.bounds.get(stop, extent + 1) <= extent)
        return above, below

    @property
    def warps(self) -> int:
        return self.threads // WARP

    @contextmanager
    def named(self, *texts: str) -> Iterator[tuple[str, ...]]:
        """Names for what is written inside."""
        names = tuple(self.names.fresh(text) for text in texts)
        yield names
        for name in names:
            self.names.release(name)

    def step(self) -> str:
        return f"({self.clock()}[1] + 1)" if self.counts else super().step()

    def place(self, access: Access, slots: Mapping[sp.Symbol, Symbol]) -> str:
        """An element as source: ``h[64 * n + j]``, or the variable that it was loaded into."""
        if self.is_variable(access.tensor):
            return self.variable(access.tensor)
        if (held := self.held.get((access.tensor, access.indices))) is not None:
            return held
        if (deal := self.dealt.get(access.tensor)) is not None:
            turn, neighbour = self.turn
            return f"{self.scratch(access.tensor)[0]}[{register(deal, turn, neighbour)}]"
        name, at = self.element_at(access, slots)
        return f"{name}[{at}]"

    def element_at(self, access: Access, slots: Mapping[sp.Symbol, Symbol]) -> tuple[str, str]:
        """An element's array, and its place there."""
        buffer = self.buffer(access.tensor)
        name, first = self.scratch(access.tensor) if buffer.space == "scratch" else (self.view(access.tensor), "")
        flat: sp.Expr = sp.S.Zero
        for index, extent in zip(access.indices, buffer.shape, strict=True):
            flat = flat * self.over_dims(extent) + index
        at = self.integer(flat, slots)
        return name, f"{first} + {at}" if first else at

    def scratch(self, name: str) -> tuple[str, str]:
        """The array that an array of scratch is, and where its team's part begins."""
        if name not in self.own:
            self.own[name] = self._declared(name)
        return self.own[name]

    def _declared(self, name: str) -> tuple[str, str]:
        """Registers for a thread's own; shared memory where it fits; else a part of the launch's scratch region."""
        buffer, team = self.buffer(name), self.arrays[name]
        called = self.names.fresh(buffer.stands_for or buffer.name, never_had=True)
        element = element_of(buffer.dtype, self.element)
        count = sp.Mul(*(self.over_dims(e) for e in buffer.shape))
        if (deal := self.dealt.get(name)) is not None:
            count = sp.Integer(deal.rounds * deal.width)
        if team is Team.THREAD:
            self.top.append(f"{called} = {self.call(f'local_{element}')}({max(int(count), 1)})")
            return called, ""
        parts = self.warps if team is Team.WARP else 1
        first = ""
        if team is Team.WARP:
            first = self.names.fresh(f"{called}_first", never_had=True)
        self.top.append(f"{called} = {self._memory(count * parts, element)}")
        if first:
            self.top.append(f"{first} = {self.call('warp')}() * {self.size_text(count)}")
        return called, first

    def panel(self, name: str, elements: int) -> str:
        """Shared memory for part of an operand, which a block's products use one after the other."""
        called, known = self.panels.get(name) or (self.names.fresh(name, never_had=True), 0)
        self.panels[name] = called, max(known, elements)
        return called

    def staging(self, elements: int) -> str:
        """Memory of a block in which threads lay out what they have in registers; each user has it between barriers."""
        if elements not in self.stages:
            called = self.names.fresh("stage", never_had=True)
            self.stages[elements] = called
            self.top.append(f"{called} = {self._memory(sp.Integer(elements), self.element)}")
        return self.stages[elements]

    def _memory(self, count: sp.Expr, element: str) -> str:
        """Shared memory where it fits, else a part of the launch's scratch region."""
        size = ITEM[element] * count
        if count.is_Integer and self.shared + int(size) <= SHARED_BYTES:
            self.shared += -(-int(size) // 16) * 16
            return f"{self.call(f'shared_{element}')}({max(int(count), 1)})"
        first = self.region
        self.region += quotient(size + ALIGNMENT - 1, sp.Integer(ALIGNMENT)) * ALIGNMENT
        if self.alone and not count.is_Integer:
            part = f"{self.size_text(first)}, {self.size_text(self.region)}"
            return f"{self.call(f'near_{element}')}({ROOM}, {part}, scratch)"
        return f"{self.call(f'view_{element}')}(scratch, {REGION} + {self.size_text(first)})"

    def declarations(self) -> list[str]:
        """The arrays of scratch, for the top of the kernel."""
        begins = f"{self.call('block')}() * {self.size_text(self.region)}" if self.region != 0 else "0"
        panels = [f"{name} = {self.call(f'shared_{self.element}')}({n})" for name, n in self.panels.values()]
        room = max(SHARED_BYTES - ROWS - self.shared, 0) // ALIGNMENT * ALIGNMENT
        begins = "0" if self.alone else begins
        return [*panels, *(line.replace(REGION, begins).replace(ROOM, str(room)) for line in self.top)]

    def size_text(self, e: sp.Expr) -> str:
        return str(int(e)) if e.is_Integer else self.size(e)
