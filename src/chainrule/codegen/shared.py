"""An exp that several loops over one row need is computed once and kept in a row of scratch.

    for k: s += exp(x[k] - m)                   for k: e[k] = exp(x[k] - m); s += e[k]
    for k: y[k] = exp(x[k] - m) / s      ->     for k: y[k] = e[k] / s

To read it again takes two instructions, an exp sixteen. Only within a kernel: between kernels it would go to memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.codegen.weights import is_plain
from chainrule.ir.expression import is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Range, Statement, accesses, greatest, leaves

LONGEST = 1 << 14
"""Elements of a row that is still near when it is read again."""

PLACE = sp.Symbol("_place", integer=True, nonnegative=True)
"""Any loop's index."""


@dataclass(frozen=True)
class Use:
    """A function's value in a step: body[loop].body[step] computes `value`."""

    loop: int
    step: int
    value: sp.Expr


def shared(kernel: Kernel, buffers: Mapping[str, Buffer], dims: frozenset[sp.Symbol]) -> Kernel:
    """`kernel` with what several loops of a row compute alike in rows of their own."""
    rows: list[Buffer] = []
    body = _kept(kernel.body, {*buffers}, dims, rows, {})
    return replace(kernel, body=body, locals=(*kernel.locals, *rows)) if rows else kernel


def _kept(
    body: tuple[Leaf, ...],
    taken: set[str],
    dims: frozenset[sp.Symbol],
    rows: list[Buffer],
    around: Mapping[sp.Symbol, Range],
) -> tuple[Leaf, ...]:
    nodes = [
        replace(node, body=_kept(node.body, taken, dims, rows, {**around, node.range.symbol: node.range}))
        if isinstance(node, Loop)
        else node
        for node in body
    ]
    while (uses := _best(nodes, dims, around)) is not None:
        loop = nodes[uses[0].loop]
        assert isinstance(loop, Loop)
        first = loop.body[uses[0].step]
        assert isinstance(first, Statement)
        base = f"{first.target.tensor}_{type(uses[0].value).__name__}"
        name = next(n for k in range(len(taken) + 1) if (n := f"{base}{k or ''}") not in taken)
        taken.add(name)
        rows.append(Buffer(name, (greatest(loop.range.stop, around),), DType.FLOAT, "scratch", "", base))
        nodes = _with_row(nodes, uses, name)
    return tuple(nodes)


def _best(nodes: Sequence[Leaf], dims: frozenset[sp.Symbol], around: Mapping[sp.Symbol, Range]) -> list[Use] | None:
    """The uses of the value that most loops share, in order."""
    found: dict[object, list[Use]] = {}
    for i, node in enumerate(nodes):
        if isinstance(node, Loop) and all(isinstance(s, Statement) for s in node.body):
            if not _is_row(node.range.start, greatest(node.range.stop, around), dims):
                continue
            for use, key in _uses(i, node):
                found.setdefault((node.range.stop, key), []).append(use)
    several = [uses for uses in found.values() if len({use.loop for use in uses}) > 1]
    stays = [uses for uses in several if _stays(nodes, uses)]
    return max(stays, key=lambda uses: (len(uses), sp.count_ops(uses[0].value)), default=None)


def _is_row(start: sp.Expr, stop: sp.Expr, dims: frozenset[sp.Symbol]) -> bool:
    if start != 0 or not stop.free_symbols <= dims:
        return False
    return bool(not stop.is_Integer or 1 < stop <= LONGEST)


def _uses(at: int, loop: Loop) -> Iterator[tuple[Use, object]]:
    """The functions that the steps of a loop compute from plain reads, each with what is equal for equal values."""
    for j, step in enumerate(loop.body):
        assert isinstance(step, Statement)
        if step.where or step.companion is not None or step.place is not None:
            continue
        for value in sorted(step.value.atoms(sp.Function), key=str):
            key = _meaning(value, step, loop.range.symbol)
            if not is_plain(value) and key is not None:
                yield Use(at, j, value), key


def _meaning(value: sp.Expr, step: Statement, index: sp.Symbol) -> tuple[sp.Expr, tuple[Access, ...]] | None:
    """`value` over the elements that it reads, the loop's index being `PLACE`; None where no element moves with it."""
    slots = sorted((s for s in value.free_symbols if is_slot(s)), key=lambda s: s.name)
    reads = [step.reads[slot_number(s)] for s in slots]
    if any(read.slots for read in reads) or not any(index in i.free_symbols for read in reads for i in read.indices):
        return None
    names: dict[sp.Basic, sp.Basic] = {index: PLACE}
    moved = [read.renamed(names) for read in reads]
    order = sorted(range(len(moved)), key=lambda k: str(moved[k]))
    for k, at in enumerate(order):
        names[slots[at]] = sp.Symbol(f"_read{k}", real=slots[at].is_real)
    return value.xreplace(names), tuple(moved[at] for at in order)


def _stays(nodes: Sequence[Leaf], uses: Sequence[Use]) -> bool:
    """Whether nothing that the value reads changes from its first use to its last."""
    first, last = nodes[uses[0].loop], nodes[uses[-1].loop]
    assert isinstance(first, Loop) and isinstance(last, Loop)
    step = first.body[uses[0].step]
    assert isinstance(step, Statement)
    index = first.range.symbol
    reads = [step.reads[slot_number(s)] for s in uses[0].value.free_symbols if is_slot(s)]
    for node in nodes[uses[0].loop : uses[-1].loop]:
        if any(accesses(leaf)[1].tensor == read.tensor for leaf in leaves((node,)) for read in reads):
            return False
    for j, leaf in enumerate(leaves((last,))):  # it may be overwritten where it was read last
        target = accesses(leaf)[1]
        after = j >= uses[-1].step and uses[-1].loop != uses[0].loop
        here = target.renamed({last.range.symbol: index}).indices
        if any(target.tensor == read.tensor and not (after and here == read.indices) for read in reads):
            return False
    return True


def _with_row(nodes: Sequence[Leaf], uses: Sequence[Use], name: str) -> list[Leaf]:
    """`nodes` with the value computed into the row `name` before its first use, and read from there."""
    result = list(nodes)
    for k, use in enumerate(uses):
        loop = result[use.loop]
        assert isinstance(loop, Loop)
        steps = list(loop.body)
        step = steps[use.step]
        assert isinstance(step, Statement)
        place = Access(name, (loop.range.symbol,))
        reader = pruned(
            replace(step, value=step.value.xreplace({use.value: slot(len(step.reads))}), reads=(*step.reads, place))
        )
        steps[use.step] = reader
        if k == 0:
            steps.insert(use.step, pruned(Statement(place, use.value, step.reads, origin=step.origin)))
        result[use.loop] = replace(loop, body=tuple(steps))
        if k == 0:  # what follows in this loop has moved on by one
            uses = [replace(u, step=u.step + (u.loop == use.loop and u.step >= use.step)) for u in uses]
    return result


def pruned(step: Statement) -> Statement:
    """`step` without the reads that it does not need."""
    places = [i for access in (*step.reads, step.target) for i in access.indices]
    used = {slot_number(s) for e in (step.value, *step.where, *places) for s in e.free_symbols if is_slot(s)}
    if any(access.slots for access in (*step.reads, step.target)):
        return step
    kept = sorted(used)
    names: dict[sp.Basic, sp.Basic] = {
        slot(old, dtype.sort): slot(new, dtype.sort) for new, old in enumerate(kept) for dtype in DType
    }
    return replace(
        step,
        value=step.value.xreplace(names),
        reads=tuple(step.reads[k] for k in kept),
        where=tuple(c.xreplace(names) for c in step.where),
    )
