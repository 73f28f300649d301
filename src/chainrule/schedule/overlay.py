"""A block's array written where another of its kernel is read for the last time takes that one's place.

    for t, s: p[t, s] = exp(score[t, s] - m[t])    ->    for t, s: score[t, s] = exp(score[t, s] - m[t])

Shared memory is small: of a matrix's maps, one row after the other, no two need be there at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import sympy as sp

from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Leaf, Loop, Product, Statement, mapped
from chainrule.schedule.in_place import names_of, touches


def overlaid(body: tuple[Leaf, ...], local: Sequence[Buffer]) -> tuple[tuple[Leaf, ...], tuple[Buffer, ...]]:
    """A kernel's leaves and its scratch with fewer arrays; no value changes."""
    arrays = {b.name: b for b in local if b.shape}
    holder: dict[str, str] = {}
    order = [name for name in names_of(body) if name in arrays]
    for k, new in enumerate(order):
        for old in order[:k]:
            kind = [(arrays[name].shape, arrays[name].dtype) for name in (old, new)]
            if old not in holder and kind[0] == kind[1] and is_last_read(body, old, new):
                body = tuple(mapped(node, partial(held, new=new, old=old)) for node in body)
                holder[new] = old
                break
    return body, tuple(b for b in local if b.name not in holder)


def held(access: Access, new: str, old: str) -> Access:
    return replace(access, tensor=old) if access.tensor == new else access


def is_last_read(body: Sequence[Leaf], old: str, new: str) -> bool:
    """Whether no element of `old` is read after that of `new` is written; each turn of the loops around both has
    arrays of its own."""
    first = [k for k, node in enumerate(body) if touches((node,), new)]
    last = [k for k, node in enumerate(body) if touches((node,), old)]
    if not first or not last or first[0] > last[-1]:
        return True
    if first[0] < last[-1]:
        return False
    match body[first[0]]:
        case Loop() as loop:
            own = len(first) == len(last) == 1 and not moves(touches((loop,), old, new), loop)
            return (
                loop.until is None
                and (own or is_a_slice(touches((loop,), old, new), loop))
                and is_last_read(loop.body, old, new)
            )
        case Statement() as leaf:
            return leaf.reduce is None and all(r.indices == leaf.target.indices for r in leaf.reads if r.tensor == old)
        case Product():
            return False


def moves(accesses: Sequence[Access], loop: Loop) -> bool:
    return any(loop.range.symbol in index.free_symbols for access in accesses for index in access.indices)


def is_a_slice(accesses: Sequence[Access], loop: Loop) -> bool:
    """Whether the turns of a loop touch slices of their own, all at one place that moves with them."""
    i = loop.range.symbol
    axes = (set(axis) for axis in zip(*(access.indices for access in accesses), strict=True))
    return any(len(axis) == 1 and i not in sp.expand(axis.pop() - i).free_symbols for axis in axes)
