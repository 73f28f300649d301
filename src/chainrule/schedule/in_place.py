"""A buffer written where another is read for the last time takes its memory, where that changes no value.

    for n, t, c: u_bar[n, t, c] = y_bar[n, t, c] * f(u[n, t, c])    ->    u[n, t, c] = y_bar[n, t, c] * f(u[n, t, c])

No element may be overwritten that is still to be read. That is read off the loops: blocks and the turns of a loop that
both are indexed by touch slices of their own, and in one turn what reads the old comes before what writes the new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate

from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Program, Statement, accesses, leaves, mapped
from chainrule.ir.validate_program import own_axes
from chainrule.schedule.cost import Sizes, bytes_of


@dataclass(frozen=True)
class Lives:
    """Of the arena's buffers, by name: what they are, the first and the last kernel that touches each, its bytes."""

    arena: Mapping[str, Buffer]
    first: Mapping[str, int]
    last: Mapping[str, int]
    bytes: Mapping[str, int]

    @classmethod
    def of(cls, program: Program, sizes: Sizes) -> Lives:
        arena = {b.name: b for b in program.buffers if b.space == "arena"}
        touched = [(name, k) for k, kernel in enumerate(program.kernels) for name in names_of(kernel.body)]
        count = {name: bytes_of(b.dtype) * sizes.points(b.shape) for name, b in arena.items()}
        return cls(arena, dict(reversed(touched)), dict(touched), count)

    def counts(self, kernels: int) -> list[int]:
        """The bytes that are kept during each kernel."""
        changes = [0] * (kernels + 1)
        for name, count in self.bytes.items():
            changes[self.first[name]] += count
            changes[self.last[name] + 1] -= count
        return list(accumulate(changes[:-1]))

    def pairs(self, k: int, kernel: Kernel, results: Set[str]) -> Iterator[tuple[str, str]]:
        """What the k-th kernel is the first to write, and what may lie there until then, for it is the last to read it.

        results: of the program, which stay where they are.
        """
        names = [name for name in names_of(kernel.body) if name in self.arena and name not in results]
        old = [name for name in names if self.first[name] < k == self.last[name]]
        for new in (name for name in names if self.first[name] == k):
            fits = (name for name in old if self._kind(name) == self._kind(new) and may_overwrite(kernel, name, new))
            found = next(fits, None)
            if found is not None:
                old.remove(found)
                yield new, found

    def _kind(self, name: str) -> tuple[object, ...]:
        return self.arena[name].shape, self.arena[name].dtype


def in_place(program: Program, sizes: Sizes, little: int = 0) -> Program:
    """`program` with less kept between its kernels, and the same to the bit; up to `little` bytes are no matter.

    sizes: of all its dims. Overwritten is what makes the most that is kept less, kernel by kernel, and no more: equal
    kernels would else come to differ.
    """
    results = {of for _, of in program.outputs}
    lives = Lives.of(program, sizes)
    counts = lives.counts(len(program.kernels))
    holder: dict[str, str] = {}
    while max(counts, default=0) > little:
        k = counts.index(max(counts))
        pairs = dict(lives.pairs(k, program.kernels[k], results))
        if not pairs or pairs.keys() <= holder.keys():
            break
        holder |= pairs
        counts[k] -= sum(lives.bytes[new] for new in pairs)
    return overwriting(program, holder)


def overwriting(program: Program, holder: Mapping[str, str]) -> Program:
    """`program` with each buffer that has a holder in its place."""

    def held(access: Access) -> Access:
        name = access.tensor
        while name in holder:
            name = holder[name]
        return replace(access, tensor=name)

    return replace(
        program,
        buffers=tuple(b for b in program.buffers if b.name not in holder),
        kernels=tuple(replace(k, body=tuple(mapped(node, held) for node in k.body)) for k in program.kernels),
    )


def names_of(body: Sequence[Leaf]) -> tuple[str, ...]:
    """The buffers that a tree touches, in order of appearance."""
    return tuple(dict.fromkeys(access.tensor for access in touches(body)))


def touches(body: Sequence[Leaf], *of: str) -> list[Access]:
    """All accesses in a tree, or those of the buffers `of`."""
    found = [access for leaf in leaves(tuple(body)) for access in (*accesses(leaf)[0], accesses(leaf)[1])]
    return [access for access in found if access.tensor in of] if of else found


def may_overwrite(kernel: Kernel, old: str, new: str) -> bool:
    """Whether `new`, which the kernel writes, may lie where `old` does, which is equal in shape and not read later."""
    if kernel.block is not None:
        own = own_axes(kernel)
        if not own[old] & own[new]:
            return False
    return _before(kernel.body, old, new)


def _before(body: Sequence[Leaf], old: str, new: str) -> bool:
    """Whether each element of `old` is read before that of `new` is written, in one turn of the loops around."""
    at = next(k for k, node in enumerate(body) if touches((node,), new))
    if touches(body[at + 1 :], old):
        return False
    match body[at]:
        case Loop() as loop if touches((loop,), old):
            places = [access.indices for access in touches((loop,), old, new)]
            own = any(all(index == loop.range.symbol for index in axis) for axis in zip(*places, strict=True))
            return own and loop.until is None and _before(loop.body, old, new)
        case Statement() as leaf:
            return leaf.reduce is None and all(r.indices == leaf.target.indices for r in leaf.reads if r.tensor == old)
        case Product() as leaf:
            return not touches((leaf,), old)
        case _:
            return True
