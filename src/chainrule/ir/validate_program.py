"""What a legal program is; run on what the scheduler made. A program that breaks it is a defect of the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy as sp

from chainrule.errors import ChainruleError
from chainrule.ir.expression import dim_symbol, is_slot, slot_number
from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Program, Range, Statement, accesses, leaves

WRITTEN = ("param", "state", "arena", "scratch")
GIVEN = ("input", "param", "state", "scalar", "clock", "constant", "random")


class IllegalProgram(ChainruleError):
    """The scheduler made what no program may be; the message names the kernel."""


def validate_program(program: Program) -> None:
    """Raise IllegalProgram unless every read finds what was written for it, whatever order the blocks run in."""
    for problem in problems(program):
        raise IllegalProgram(f"program {program.name}: {problem}")


def problems(program: Program) -> Iterator[str]:
    """What is illegal about `program`, in order."""
    buffers: dict[str, Buffer] = {}
    for buffer in program.buffers:
        if buffer.name in buffers:
            yield f"buffer {buffer.name} is declared twice"
        if buffer.space == "scratch":
            yield f"buffer {buffer.name} lives between kernels, and scratch does not"
        buffers[buffer.name] = buffer
    dims = {dim_symbol(dim.name) for dim in program.dims}
    written = {name for name, buffer in buffers.items() if buffer.space in GIVEN}
    for kernel in program.kernels:
        for problem in kernel_problems(kernel, buffers, written, dims):
            yield f"kernel {kernel.name}: {problem}"
        written |= {accesses(leaf)[1].tensor for leaf in leaves(kernel.body)} & buffers.keys()
    for name, of in program.outputs:
        if of not in written:
            yield f"output {name} is in {of}, which nothing writes"


@dataclass(frozen=True)
class Seen:
    """A leaf with the loops around it, from the outside."""

    leaf: Statement | Product
    around: tuple[Range, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        leaf = self.leaf
        own = () if isinstance(leaf, Statement) else (*leaf.batch, *leaf.rows, *leaf.columns, *leaf.inner)
        return (*self.around, *own)


def kernel_problems(
    kernel: Kernel, between: Mapping[str, Buffer], written: set[str], dims: set[sp.Symbol]
) -> Iterator[str]:
    local = {buffer.name: buffer for buffer in kernel.locals}
    for name, buffer in local.items():
        if buffer.space != "scratch" or name in between:
            yield f"local {name} is not its own scratch"
    buffers = {**between, **local}
    seen = list(_seen(kernel.body, ()))
    made: dict[str, list[Seen]] = {}
    for at in seen:
        reads, target = accesses(at.leaf)
        for access in (*reads, target):
            shape = None if access.tensor not in buffers else buffers[access.tensor].shape
            if shape is None:
                yield f"{access.tensor} is declared nowhere"
            elif len(shape) != len(access.indices):
                yield f"{access.tensor} has {len(shape)} axes, and is accessed by {len(access.indices)}"
        if any(access.tensor not in buffers for access in (*reads, target)):
            return
        yield from _unknown_symbols(kernel, at, dims)
        for read in reads:
            if read.tensor not in written and read.tensor not in made and not _is_carried(read, at, seen):
                yield f"{read.tensor} is read before it is written"
            for writer in made.get(read.tensor, ()):
                yield from _lost_axes(writer, at, local)
        if buffers[target.tensor].space not in WRITTEN:
            yield f"{target.tensor} is {buffers[target.tensor].space}, and is written"
        made.setdefault(target.tensor, []).append(at)
        if isinstance(at.leaf, Statement) and at.leaf.companion is not None and at.leaf.companion not in local:
            yield f"{at.leaf.companion} is not local"
    if kernel.block is not None:
        yield from _shared(kernel, seen, local)


def _is_carried(read: Access, at: Seen, seen: list[Seen]) -> bool:
    """Whether a leaf below writes what is read here, in an earlier turn of a loop that is around both."""
    for later in seen:
        target = accesses(later.leaf)[1]
        if target.tensor != read.tensor:
            continue
        shared = {r.symbol for r in at.around} & {r.symbol for r in later.around}
        for mine, other in zip(read.indices, target.indices, strict=True):
            turns = [s for s in shared if other.coeff(s) in (1, -1)]
            apart = sp.expand(mine - other)
            if any(apart.is_Integer and apart * other.coeff(s) < 0 for s in turns):
                return True
    return False


def _seen(body: tuple[Leaf, ...], around: tuple[Range, ...]) -> Iterator[Seen]:
    for node in body:
        if isinstance(node, Loop):
            yield from _seen(node.body, (*around, node.range))
        else:
            yield Seen(node, around)


def _unknown_symbols(kernel: Kernel, at: Seen, dims: set[sp.Symbol]) -> Iterator[str]:
    """Loop symbols that are not open, slots without a read."""
    leaf = at.leaf
    reads, target = accesses(leaf)
    indices = [i for access in (*reads, target) for i in access.indices]
    more = (leaf.value, *leaf.where, leaf.place) if isinstance(leaf, Statement) else (leaf.scale,)
    count = len(leaf.reads) if isinstance(leaf, Statement) else 0
    open_symbols = dims | {r.symbol for r in at.ranges}
    if kernel.block is not None:
        open_symbols |= {kernel.block.number, kernel.block.first, kernel.block.last}
    for e in (*indices, *(e for e in more if e is not None)):
        for s in e.free_symbols:
            if is_slot(s):
                if slot_number(s) >= count:
                    yield f"{target.tensor} needs slot {s}, and has {count} reads"
            elif s not in open_symbols:
                yield f"{target.tensor} uses {s}, which no open loop gives"


def _lost_axes(writer: Seen, reader: Seen, local: Mapping[str, Buffer]) -> Iterator[str]:
    """A local keeps each value until its reader comes: a loop around the writer alone must be an axis of it."""
    leaf = writer.leaf
    target = leaf.target
    if target.tensor not in local or leaf is reader.leaf:
        return
    if isinstance(leaf, Statement) and leaf.reduce is not None:
        return
    common = 0
    pairs = zip(writer.around, reader.around, strict=False)
    for mine, other in pairs:
        if mine.symbol != other.symbol:
            break
        common += 1
    kept = set().union(*(i.free_symbols for i in target.indices), set())
    for r in writer.around[common:]:
        if r.symbol not in kept:
            yield f"{target.tensor} keeps no axis for loop {r.pretty or r.symbol}, and is read outside it"


def _shared(kernel: Kernel, seen: list[Seen], local: Mapping[str, Buffer]) -> Iterator[str]:
    """Blocks may run at once: what they write, and what they read of it, is their own part of one axis."""
    own = own_axes(kernel)
    for name in dict.fromkeys(accesses(at.leaf)[1].tensor for at in seen):
        if name not in local and not own[name]:
            yield f"two blocks may write the same element of {name}"


def own_axes(kernel: Kernel) -> dict[str, set[int]]:
    """Of each buffer that the kernel touches, the axes along which each block touches a part of its own."""
    block = kernel.block
    assert block is not None
    axes: dict[str, set[int]] = {}
    for at in _seen(kernel.body, ()):
        reads, target = accesses(at.leaf)
        for access in (*reads, target):
            own = set(_own(at, access, block.number, block.first, block.last))
            axes[access.tensor] = axes.get(access.tensor, own) & own
    return axes


def _own(at: Seen, access: Access, number: sp.Symbol, first: sp.Symbol, last: sp.Symbol) -> Iterator[int]:
    parts = {r.symbol for r in at.ranges if r.start == first and r.stop == last}
    for axis, index in enumerate(access.indices):
        if index == number or index in parts:
            yield axis
