"""Where a tensor lives, read off the tree: it keeps only the axes that are not open around all its uses.

So a temporary becomes a scalar, a row or a block's slice in scratch; what another kernel needs is an array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.ir.expression import index_symbol
from chainrule.ir.formula import Access
from chainrule.ir.program import Block, Buffer, Range
from chainrule.schedule.tree import Branch, Ground, Twig

Step = tuple[Branch, sp.Symbol]
"""A loop on the way to a task's leaf, and which of the task's indices it is."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: axes `keep` of `buffer`; `firsts`: what those of blocks and strips are counted from."""

    buffer: str
    keep: tuple[int, ...]
    firsts: Mapping[int, sp.Expr] = field(default_factory=dict)

    def access(self, read: Access) -> Access:
        indices = tuple(read.indices[k] - self.firsts.get(k, sp.S.Zero) for k in self.keep)
        return replace(read, tensor=self.buffer, indices=indices)


def loop_symbol(branch: Branch) -> sp.Symbol:
    return index_symbol(f"_l{branch.number:02}")


def first_of(branch: Branch) -> sp.Expr:
    """The first place of the strip that is open inside `branch`."""
    return branch.strip * loop_symbol(branch)


def range_of(branch: Branch, block: Block | None) -> Range:
    if branch.strip:
        return Range(loop_symbol(branch), sp.S.Zero, branch.extent / branch.strip, f"{branch.pretty}_strip")
    return span(loop_symbol(branch), branch.extent, block if branch.blocked else None, branch.pretty)


def span(symbol: sp.Symbol, extent: sp.Expr, block: Block | None, pretty: str) -> Range:
    """The whole extent, or the block's part of it."""
    if block is None:
        return Range(symbol, sp.S.Zero, extent, pretty)
    return Range(symbol, block.first, block.last, pretty)


def paths_of(tree: Sequence[Branch | Twig]) -> dict[int, tuple[Branch, ...]]:
    """The loops around each task's leaf, from the outside."""
    found: dict[int, tuple[Branch, ...]] = {}

    def walk(nodes: Sequence[Branch | Twig], around: tuple[Branch, ...]) -> None:
        for node in nodes:
            if isinstance(node, Twig):
                found[node.task] = around
            else:
                walk(node.body, (*around, node))

    walk(tree, ())
    return found


def steps_of(task: int, path: Sequence[Branch]) -> tuple[Step, ...]:
    return tuple((branch, branch.opened[task]) for branch in path)


def first_reduced(task: int, path: Sequence[Branch], ground: Ground) -> int:
    """How many loops are around the place where a task's result begins: those before its first reduction loop."""
    over = {index.symbol for index in ground.links.tasks[task].over}
    for k, (_, symbol) in enumerate(steps_of(task, path)):
        if symbol in over:
            return k
    return len(path)


def first_carried(task: int, path: Sequence[Branch], ground: Ground) -> int:
    """How many loops are around the first one of whose steps others read an earlier result."""
    carried = {circle.step.symbol for circle in ground.links.tasks[task].circles if circle.carried}
    for k, (_, symbol) in enumerate(steps_of(task, path)):
        if symbol in carried:
            return k
    return len(path)


def local_places(
    paths: Mapping[int, tuple[Branch, ...]], needed: set[str], ground: Ground, block: Block | None
) -> tuple[dict[str, Place], list[Buffer]]:
    """Scratch for the tensors of a kernel that nobody outside it needs."""
    links = ground.links
    places: dict[str, Place] = {}
    buffers: list[Buffer] = []
    for t, path in paths.items():
        task = links.tasks[t]
        if task.out in needed or task.store is not None or task.partial:
            continue
        common = path[: min(first_reduced(t, path, ground), first_carried(t, path, ground))]
        for reader in links.readers.get(task.out, ()):
            common = _prefix(common, paths[reader])
        dropped = {branch.opened[t] for branch in common if not branch.strip}
        keep = tuple(k for k, place in enumerate(task.target) if place not in dropped)
        parts = {branch.opened[t]: (first_of(branch), branch.strip) for branch in common if branch.strip}
        if block is not None and t in ground.block:
            parts[ground.block[t]] = block.first, block.size
        found = {k: parts[task.target[k]] for k in keep if task.target[k] in parts}
        places[task.out] = Place(task.out, keep, {k: first for k, (first, _) in found.items()})
        full = [task.formula.shape[k] if task.band is None else ground.sizes.most(task.formula.shape[k]) for k in keep]
        shape = tuple(sp.Integer(found[k][1]) if k in found else n for k, n in zip(keep, full, strict=True))
        buffers.append(Buffer(task.out, shape, task.formula.dtype, "scratch", stands_for=task.out))
    return places, buffers


def _prefix(a: tuple[Branch, ...], b: tuple[Branch, ...]) -> tuple[Branch, ...]:
    k = 0
    while k < min(len(a), len(b)) and a[k].number == b[k].number:
        k += 1
    return a[:k]
