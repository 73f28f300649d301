"""A buffer written where another is read for the last time takes its memory, where that changes no value.

    for n, t, c: u_bar[n, t, c] = y_bar[n, t, c] * f(u[n, t, c])    ->    u[n, t, c] = y_bar[n, t, c] * f(u[n, t, c])

No element may be overwritten that is still to be read. That is read off the loops: blocks and the turns of a loop that
both are indexed by touch slices of their own, and in one turn what reads the old comes before what writes the new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.ir.formula import Access
from chainrule.ir.program import Kernel, Leaf, Loop, Product, Program, Statement, accesses, leaves, mapped
from chainrule.ir.validate_program import own_axes


def in_place(program: Program) -> Program:
    """`program` with fewer buffers in the arena; what it computes is the same to the bit."""
    results = {of for _, of in program.outputs}
    arena = {b.name: b for b in program.buffers if b.space == "arena" and b.name not in results}
    touched = [tuple(name for name in names_of(kernel.body) if name in arena) for kernel in program.kernels]
    last = {name: k for k, names in enumerate(touched) for name in names}
    holder: dict[str, str] = {}
    seen: set[str] = set()
    for k, (kernel, names) in enumerate(zip(program.kernels, touched, strict=True)):
        ending = [name for name in names if name in seen and last[name] == k]
        for new in (name for name in names if name not in seen):
            like = (arena[new].shape, arena[new].dtype)
            fits = (old for old in ending if (arena[old].shape, arena[old].dtype) == like)
            old = next((old for old in fits if may_overwrite(kernel, old, new)), None)
            if old is not None:
                ending.remove(old)
                holder[new] = holder.get(old, old)
        seen.update(names)

    def held(access: Access) -> Access:
        return replace(access, tensor=holder.get(access.tensor, access.tensor))

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
