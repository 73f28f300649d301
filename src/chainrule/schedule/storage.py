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
    """Where a tensor's elements are: its axes `keep` of `buffer`, those `sliced` counted from the block's first."""

    buffer: str
    keep: tuple[int, ...]
    sliced: frozenset[int] = field(default=frozenset())

    def access(self, read: Access, first: sp.Expr) -> Access:
        indices = tuple(read.indices[k] - first if k in self.sliced else read.indices[k] for k in self.keep)
        return replace(read, tensor=self.buffer, indices=indices)


def loop_symbol(branch: Branch) -> sp.Symbol:
    return index_symbol(f"_l{branch.number:02}")


def range_of(branch: Branch, block: Block | None) -> Range:
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
        dropped = {branch.opened[t] for branch in common}
        keep = tuple(k for k, place in enumerate(task.target) if place not in dropped)
        divided = ground.block.get(t)
        sliced = frozenset(k for k in keep if divided is not None and task.target[k] == divided)
        places[task.out] = Place(task.out, keep, sliced)
        shape = tuple(_kept(task.formula.shape[k], k in sliced, block) for k in keep)
        buffers.append(Buffer(task.out, shape, task.formula.dtype, "scratch", stands_for=task.out))
    return places, buffers


def _kept(extent: sp.Expr, sliced: bool, block: Block | None) -> sp.Expr:
    return sp.Integer(block.size) if sliced and block is not None else extent


def _prefix(a: tuple[Branch, ...], b: tuple[Branch, ...]) -> tuple[Branch, ...]:
    k = 0
    while k < min(len(a), len(b)) and a[k].number == b[k].number:
        k += 1
    return a[:k]
