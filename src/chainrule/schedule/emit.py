"""From a kernel's tree to the nouns of `ir.program`: loops, statements, products, and their buffers.

A reduction starts at its identity just above its first reduction loop. Over the innermost run of reduction loops, in
which its target stands still, it accumulates in a local scalar: an array element there stops vectorisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.ir.expression import index_symbol
from chainrule.ir.formula import Access, DType, Index, Reduce, identity_of
from chainrule.ir.program import Block, Buffer, Leaf, Loop, Product, Range, Statement
from chainrule.schedule.clips import Clip, clips_of
from chainrule.schedule.storage import (
    Place,
    Step,
    first_of,
    first_reduced,
    local_places,
    loop_symbol,
    paths_of,
    range_of,
    span,
    steps_of,
)
from chainrule.schedule.task import PART, Task, fresh
from chainrule.schedule.tree import Branch, Ground, Twig
from chainrule.schedule.unroll import unrolled


@dataclass
class Kernelwork:
    """What is gathered while one kernel is written down."""

    ground: Ground
    block: Block | None
    paths: Mapping[int, tuple[Branch, ...]]
    places: Mapping[str, Place]  # of the local tensors
    stored: Mapping[str, str]  # of the others: in which buffer, where its name is another
    taken: set[str]
    buffers: list[Buffer]
    clips: frozenset[Clip] = frozenset()
    before: dict[int, list[Leaf]] = field(default_factory=dict)  # by the number of the loop
    after: dict[int, list[Leaf]] = field(default_factory=dict)
    into: dict[int, tuple[Access, str | None]] = field(default_factory=dict)  # accumulators: target, companion
    symbols: int = 0

    def fresh_symbol(self) -> sp.Symbol:
        self.symbols += 1
        return index_symbol(f"_l{self.symbols - 1:02}")

    def local(self, name: str, dtype: DType) -> Access:
        name = fresh(name, self.taken)
        self.taken.add(name)
        self.buffers.append(Buffer(name, (), dtype, "scratch"))
        return Access(name, ())

    def access(self, read: Access, names: Mapping[sp.Basic, sp.Basic]) -> Access:
        read = read.renamed(names)
        place = self.places.get(read.tensor)
        if place is not None:
            return place.access(read)
        return Access(self.stored.get(read.tensor, read.tensor), read.indices, read.outside)

    def target(self, task: Task, names: Mapping[sp.Basic, sp.Basic]) -> Access:
        number = {} if self.block is None else {PART: self.block.number}
        return self.access(Access(task.out, task.target), {**names, **number})


def body_of(
    tree: Sequence[Branch | Twig],
    needed: set[str],
    stored: Mapping[str, str],
    taken: set[str],
    ground: Ground,
    block: Block | None,
) -> tuple[tuple[Leaf, ...], tuple[Buffer, ...]]:
    """The leaves of a kernel and its scratch. needed: the tensors that others read."""
    paths = paths_of(tree)
    places, buffers = local_places(paths, needed, ground, block)
    branches = {branch.number for path in paths.values() for branch in path}
    clips = clips_of(paths, ground)
    work = Kernelwork(ground, block, paths, places, stored, taken, list(buffers), clips, symbols=len(branches))
    for t, path in paths.items():
        task = ground.links.tasks[t]
        steps, first = steps_of(t, path), first_reduced(t, path, ground)
        if task.over and t not in ground.contractions:
            _accumulate(t, task, steps, first, work)
        elif first < len(path):  # a product whose parts the steps of a recurrence add
            _clear(t, task, steps, first, work)
    return tuple(unrolled(_leaves(tree, work))), tuple(work.buffers)


def _leaves(nodes: Sequence[Branch | Twig], work: Kernelwork) -> Iterator[Leaf]:
    for node in nodes:
        if isinstance(node, Branch):
            yield from work.before.get(node.number, ())
            yield Loop(_range(node, work), tuple(_leaves(node.body, work)))
            yield from work.after.get(node.number, ())
        elif node.task in work.ground.contractions:
            yield _product(node.task, work)
        else:
            yield from _statements(node.task, work)


def _range(branch: Branch, work: Kernelwork) -> Range:
    """What a loop runs over: less than all where its members may leave out what lies beyond their strip."""
    t, symbol = next(iter(branch.opened.items()))
    return _clipped(t, symbol, range_of(branch, work.block), steps_of(t, work.paths[t]), work)


def _clipped(t: int, symbol: sp.Symbol, r: Range, steps: Sequence[Step], work: Kernelwork) -> Range:
    parts = [(first, first + size) for first, size in _firsts(steps).values()]
    if work.block is not None and work.ground.links.tasks[t].band is not None:
        parts.append((work.block.first, work.block.last))
    for first, last in parts:
        if Clip(t, symbol, False) in work.clips:
            r = replace(r, stop=last)
        if Clip(t, symbol, True) in work.clips:
            r = replace(r, start=first)
    return r


def _opened(steps: Sequence[Step]) -> dict[sp.Basic, sp.Basic]:
    """What each open index is, over the symbols of the loops: a recurrence that reads ahead counts down, and within a
    strip a loop counts from its first place."""
    firsts = _firsts(steps)
    return {
        symbol: branch.extent - 1 - loop_symbol(branch)
        if branch.ahead
        else firsts.get(symbol, (sp.S.Zero, 0))[0] + loop_symbol(branch)
        for branch, symbol in steps
        if not branch.strip
    }


def _firsts(steps: Sequence[Step]) -> dict[sp.Basic, tuple[sp.Expr, int]]:
    """Of the indices of which a strip is open, its first place and how many it has."""
    return {symbol: (first_of(branch), branch.strip) for branch, symbol in steps if branch.strip}


def _statements(t: int, work: Kernelwork) -> Iterator[Statement]:
    task = work.ground.links.tasks[t]
    names = _opened(steps_of(t, work.paths[t]))
    value = task.body.xreplace(names)
    reads = tuple(work.access(read, names) for read in task.reads)
    where = tuple(c.xreplace(names) for c in task.where)
    origin = task.formula.origin
    if not task.over:
        target = work.target(task, names)
        if where:  # a map is 0 where its conditions do not hold
            yield Statement(target, sp.S.Zero, origin=origin, text=task.text)
        yield Statement(target, value, reads, where, origin=origin, text=task.text)
        return
    target, companion = work.into[t]
    place = None
    if task.reduce is Reduce.ARGMAX:
        place = sp.S.Zero
        for index in task.over:
            place = place * index.extent + names[index.symbol]
    yield Statement(target, value, reads, where, task.reduce, companion, place, origin, task.text)


def _accumulate(t: int, task: Task, steps: Sequence[Step], first: int, work: Kernelwork) -> None:
    """Where the task's accumulator starts, what it is, and where its value goes."""
    over = {index.symbol for index in task.over}
    inside = [k for k in range(first, len(steps)) if steps[k][1] not in over]
    target = work.target(task, _opened(steps))
    if task.scattered or inside:
        _clear(t, task, steps, first, work)
        run = inside[-1] + 1 if inside else first
        if task.scattered or run == len(steps):
            work.into[t] = (target, None)
            return
        assert task.reduce is not Reduce.ARGMAX, "its axes are open before its reduction loops"
        total = _scalar(t, task, steps[run][0], work)
        add = _statement(task, target, total, task.reduce)
        work.after.setdefault(steps[run][0].number, []).append(add)
        return
    scalar = target.tensor in work.places and not target.indices
    total = _scalar(t, task, steps[first][0], work, target if scalar else None)
    if not scalar:
        work.after.setdefault(steps[first][0].number, []).append(_statement(task, target, total))


def _statement(task: Task, target: Access, of: Access, reduce: Reduce | None = None) -> Statement:
    from_slot = sp.Symbol("_0000", **({"real": True} if task.formula.dtype is DType.FLOAT else {"integer": True}))
    return Statement(target, from_slot, (of,), reduce=reduce, origin=task.formula.origin, text=task.text)


def _scalar(t: int, task: Task, above: Branch, work: Kernelwork, target: Access | None = None) -> Access:
    """A local accumulator that starts just above a loop; an argmax has a running maximum beside it."""
    f = task.formula
    total = target or work.local(f"{task.out}_sum" if f.reduce is Reduce.SUM else f"{task.out}_acc", f.dtype)
    starts = work.before.setdefault(above.number, [])
    companion = None
    if f.reduce is Reduce.ARGMAX:
        # of nothing, the number of places, as in the reference
        starts.append(Statement(total, sp.Mul(*(r.extent for r in task.over)), origin=f.origin, text=task.text))
        greatest = work.local(f"{task.out}_max", DType.FLOAT)
        starts.append(Statement(greatest, -sp.oo, origin=f.origin, text=task.text))
        companion = greatest.tensor
    else:
        starts.append(Statement(total, identity_of(f.reduce, f.dtype), origin=f.origin, text=task.text))
    work.into[t] = (total, companion)
    return total


def _clear(t: int, task: Task, steps: Sequence[Step], first: int, work: Kernelwork) -> None:
    """Above the first reduction loop: loops over the axes that open below it, a product's own, and scattered ones."""
    names: dict[sp.Basic, sp.Basic] = _opened(steps[:first])
    ranges = [_own(t, axis, steps[:first], names, work) for axis in task.formula.axes if axis.symbol not in names]
    assert task.formula.reduce is not Reduce.ARGMAX
    whole = tuple(axis.symbol for axis in task.formula.axes)
    number = (PART,) if task.partial else ()
    names |= {} if work.block is None else {PART: work.block.number}
    at = work.access(Access(task.out, (*number, *whole)), names)
    zero = identity_of(task.formula.reduce, task.formula.dtype)
    leaf: Leaf = Statement(at, zero, origin=task.formula.origin, text=task.text)
    for r in reversed(ranges):
        leaf = Loop(r, (leaf,))
    if first < len(steps):
        work.before.setdefault(steps[first][0].number, []).append(leaf)


def _own(t: int, index: Index, steps: Sequence[Step], names: dict[sp.Basic, sp.Basic], work: Kernelwork) -> Range:
    """A loop over an index of task `t` that no branch opens; its place goes into `names`."""
    symbol = work.fresh_symbol()
    first, size = _firsts(steps).get(index.symbol, (sp.S.Zero, 0))
    names[index.symbol] = first + symbol
    block = work.block if work.ground.blocked(t, index) else None
    r = span(symbol, sp.Integer(size) if size else index.extent, block, index.name)
    return _clipped(t, index.symbol, r, steps, work)


def _product(t: int, work: Kernelwork) -> Product:
    task, c = work.ground.links.tasks[t], work.ground.contractions[t]
    steps = steps_of(t, work.paths[t])
    names = _opened(steps)
    inner = tuple(index for index in c.inner if index.symbol not in names)
    placed = t in work.ground.placed
    own = inner if placed else (*c.rows, *c.columns, *inner)
    ranges = {i.symbol: _own(t, i, steps, names, work) for i in own}
    known = ranges.keys() | (names.keys() if placed else ())

    def of(indices: tuple[Index, ...]) -> tuple[Range, ...]:
        return tuple(ranges[index.symbol] for index in indices if index in own)

    return Product(
        target=work.target(task, names),
        left=work.access(c.left, names),
        right=work.access(c.right, names),
        rows=of(c.rows),
        columns=of(c.columns),
        inner=of(inner),
        scale=c.scale.xreplace(names),
        accumulate=len(inner) < len(c.inner) or not _firsts(steps).keys().isdisjoint(i.symbol for i in inner),
        where=tuple(m.xreplace(names) for m in work.ground.masks.get(t, ()) if m.free_symbols <= known),
        origin=task.formula.origin,
        text=task.text,
    )
