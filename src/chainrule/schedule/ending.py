"""Loops of steps that end early, and keep two places instead of all: recurrences that come to rest.

    for s < 50:                                         z_at[1, n] = 0, z_done[0] = z_done[1] = 0
        z_next[n] = f(z_at[s - 1, n; 0])                for s < 50 until z_done[s % 2] > 0:
        z_done[s] = if z_done[s - 1; 0] > 0 then 1          z_next[n] = f(z_at[(s + 1) % 2, n])
                    else …                        ->        z_done[s % 2] = …
        z_at[s, n] = if z_done[s - 1; 0] > 0                z_at[s % 2, n] = …
                     then z_at[s - 1, n; 0]
                     else z_next[n]
    z[n] = z_at[49, n]                                  z[n] = z_at[1, n]

Two places are enough where a step reads the one before it alone, and what comes later reads the last. Once a step is
done, the next repeats it, and so does every other: both places then hold what the last would. The place that step s is
about to overwrite is that of step s - 2, which tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.ir.expression import Select, index_symbol, is_slot, remainder, slot_number
from chainrule.ir.formula import Access
from chainrule.ir.program import (
    Buffer,
    Kernel,
    Leaf,
    Loop,
    Product,
    Program,
    Range,
    Statement,
    accesses,
    leaves,
    mapped,
)

Around = tuple[Range, ...]


@dataclass(frozen=True)
class Carried:
    """A buffer whose `axis` is stepped along; `start` is what stands before the first step."""

    name: str
    axis: int
    start: sp.Expr


@dataclass(frozen=True)
class Ending:
    """The `loop` of the kernel at `place`, all that its steps carry, and what tells that they are done."""

    place: int
    loop: Loop
    done: str
    carried: tuple[Carried, ...]

    @property
    def last(self) -> sp.Expr:
        return self.loop.range.stop - 1


def end_early(program: Program) -> Program:
    """`program` with each loop that can come to rest made to end there; what it computes is the same to the bit."""
    while (ending := next(_endings(program), None)) is not None:
        program = _shortened(program, ending)
    return program


def _endings(program: Program) -> Iterator[Ending]:
    for place, kernel in enumerate(program.kernels):
        loops = (node for node in kernel.body if isinstance(node, Loop) and node.until is None)
        found = (_ending(program, place, loop) for loop in loops if kernel.block is None)
        yield from (ending for ending in found if ending is not None)


def _ending(program: Program, place: int, loop: Loop) -> Ending | None:
    s = loop.range
    if s.start != 0 or not s.stop.is_Integer or s.stop < 2:
        return None
    told = next((node for node in loop.body if isinstance(node, Statement) and _tells(node, s.symbol)), None)
    if told is None:
        return None
    inside = list(_within(loop.body, ()))
    kernel = program.kernels[place]
    others = [leaf for k in program.kernels for leaf in leaves(tuple(n for n in k.body if n is not loop))]
    local = {buffer.name for buffer in kernel.locals}
    kept = {buffer.name: buffer for buffer in program.buffers if buffer.space == "arena"}
    written = {accesses(leaf)[1].tensor for leaf, _ in inside}
    elsewhere = {access.tensor for leaf in others for access in _all(leaf)}
    if not written <= local | set(kept) or written & local & elsewhere or written & {of for _, of in program.outputs}:
        return None
    carried = [_carried(kept[name], inside, others, s) for name in sorted(written - local)]
    found = tuple(c for c in carried if c is not None)
    still = all(c.name == told.target.tensor or _repeats(c, told, inside, s.symbol) for c in found)
    return Ending(place, loop, told.target.tensor, found) if still and len(found) == len(carried) else None


def _tells(made: Statement, s: sp.Symbol) -> bool:
    """``done[s] = if done[s - 1; 0] > 0 then 1 else …``"""
    before = _unless(made)
    if before is None or made.where or made.target.indices != (s,):
        return False
    read, then = before
    own = read.tensor == made.target.tensor and read.indices == (s - 1,)
    return own and read.outside is not None and not read.outside > 0 and bool(then.is_positive)


def _unless(made: Statement) -> tuple[Access, sp.Expr] | None:
    """(done, x) of a value ``if done > 0 then x else …``."""
    if made.reduce is not None or not isinstance(made.value, Select):
        return None
    c, then, _ = made.value.args
    return (made.reads[slot_number(c.lhs)], then) if isinstance(c, sp.Gt) and is_slot(c.lhs) and c.rhs == 0 else None


def _carried(
    of: Buffer, inside: Sequence[tuple[Statement | Product, Around]], others: Sequence[Statement | Product], s: Range
) -> Carried | None:
    """`of`, if each step writes its own place of it and reads that before, and nothing else but the last is read."""
    made = [leaf for leaf, _ in inside if accesses(leaf)[1].tensor == of.name]
    if len(made) != 1 or not isinstance(made[0], Statement) or made[0].where or made[0].reduce is not None:
        return None
    if s.symbol not in made[0].target.indices:
        return None
    axis, starts = made[0].target.indices.index(s.symbol), set()
    for leaf, around in inside:
        for read in (r for r in accesses(leaf)[0] if r.tensor == of.name):
            rest = zip(
                read.indices[:axis] + read.indices[axis + 1 :], of.shape[:axis] + of.shape[axis + 1 :], strict=True
            )
            whole = {(r.symbol, r.stop) for r in around if r.start == 0}
            if isinstance(leaf, Product):
                return None
            if read.indices[axis] == s.symbol and read.outside is None:
                continue
            if read.indices[axis] != s.symbol - 1 or not all(pair in whole for pair in rest):
                return None
            starts.add(read.outside)  # only the first step leaves it, for the other indices are whole
    for leaf in others:
        reads, target = accesses(leaf)
        at = [r.indices[axis] for r in reads if r.tensor == of.name]
        if target.tensor == of.name or any(i != s.stop - 1 for i in at):
            return None
    start = starts.pop() if len(starts) == 1 else None
    return Carried(of.name, axis, start) if of.shape[axis] == s.stop and start is not None else None


def _repeats(of: Carried, told: Statement, inside: Sequence[tuple[Statement | Product, Around]], s: sp.Symbol) -> bool:
    """Whether what a step writes is what the one before wrote, once that is done."""
    made = next(leaf for leaf, _ in inside if accesses(leaf)[1].tensor == of.name)
    found = _unless(made) if isinstance(made, Statement) else None
    mine = _unless(told)
    if found is None or mine is None or not isinstance(made, Statement) or found[0] != mine[0] or not is_slot(found[1]):
        return False
    read = made.reads[slot_number(found[1])]
    copies = [leaf for leaf, _ in inside if accesses(leaf)[1].tensor == read.tensor]
    if read.tensor != of.name and len(copies) == 1 and isinstance(copies[0], Statement) and _is_copy(copies[0]):
        names = dict(zip(copies[0].target.indices, read.indices, strict=True))
        read = copies[0].reads[0].renamed(names)
    return read.tensor == of.name and read.indices == tuple(i - 1 if i == s else i for i in made.target.indices)


def _is_copy(made: Statement) -> bool:
    plain = all(i.is_Symbol for i in made.target.indices) and len(set(made.target.indices)) == len(made.target.indices)
    return plain and is_slot(made.value) and len(made.reads) == 1 and not made.where and made.reduce is None


def _within(body: Sequence[Leaf], around: Around) -> Iterator[tuple[Statement | Product, Around]]:
    """The leaves, each with the loops around it."""
    for node in body:
        if isinstance(node, Loop):
            yield from _within(node.body, (*around, node.range))
        else:
            yield node, around


def _all(leaf: Statement | Product) -> tuple[Access, ...]:
    reads, target = accesses(leaf)
    return (*reads, target)


def _shortened(program: Program, e: Ending) -> Program:
    """Two places for what the loop carries, the starts before it, and its end."""
    axes = {c.name: c.axis for c in e.carried}
    s, two = e.loop.range.symbol, sp.Integer(2)
    turns: Mapping[sp.Basic, sp.Expr] = {s: remainder(s, two), s - 1: remainder(s + 1, two)}

    def placed(access: Access, inside: bool) -> Access:
        if access.tensor not in axes:
            return access
        axis = axes[access.tensor]
        at = turns[access.indices[axis]] if inside else remainder(e.last, two)
        return Access(access.tensor, (*access.indices[:axis], at, *access.indices[axis + 1 :]))

    def kernel(k: Kernel, here: bool) -> Kernel:
        body: list[Leaf] = []
        for node in k.body:
            if node is not e.loop:
                body.append(mapped(node, lambda a: placed(a, False)))
                continue
            loop = mapped(node, lambda a: placed(a, True))
            assert here and isinstance(loop, Loop)
            starts = [leaf for c in e.carried for leaf in _starts(c, buffers[c.name], c.name == e.done, len(body))]
            body += [*starts, replace(loop, until=Access(e.done, (remainder(s, two),)))]
        return replace(k, body=tuple(body))

    def halved(b: Buffer) -> Buffer:
        shape = tuple(two if axes.get(b.name) == axis else n for axis, n in enumerate(b.shape))
        return b if b.name not in axes else replace(b, shape=shape)

    made = tuple(map(halved, program.buffers))
    buffers = {b.name: b for b in made}
    kernels = tuple(kernel(k, at == e.place) for at, k in enumerate(program.kernels))
    return replace(program, buffers=made, kernels=kernels)


def _starts(c: Carried, of: Buffer, both: bool, place: int) -> list[Leaf]:
    """What stands before the first step, at the place that it reads; nothing is done before it."""
    found: list[Leaf] = []
    for at in (0, 1) if both else (1,):
        ranges = [
            Range(index_symbol(f"_e{place:02}{at}{k}"), sp.S.Zero, n, "i")
            for k, n in enumerate(of.shape)
            if k != c.axis
        ]
        symbols: list[sp.Expr] = [r.symbol for r in ranges]
        symbols.insert(c.axis, sp.Integer(at))
        leaf: Leaf = Statement(Access(c.name, tuple(symbols)), c.start)
        for r in reversed(ranges):
            leaf = Loop(r, (leaf,))
        found.append(leaf)
    return found
