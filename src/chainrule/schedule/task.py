"""The unit that is scheduled: one formula with the place that it stores to, and what must come before it.

A formula becomes one task. What the graph says by names, tasks say by storage: an update stores in place, after the
last reader of the old value; a scatter stores at a computed place and has no loop over the axis that it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import sympy as sp

from chainrule.ir.affine import Facts, bounds_of
from chainrule.ir.expression import index_symbol, is_slot, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Index, Reduce, free_symbols
from chainrule.ir.graph import Tensor
from chainrule.ir.text import equation_text

PART = sp.Symbol("_part", integer=True, nonnegative=True)
"""In a task's target: the number of the block that a partial result belongs to."""


@dataclass(frozen=True)
class Circle:
    """A loop whose steps follow each other, which computes all of its members: `step` is the index of one of them.

    number: of the loop. ahead: what is read is at later places, so it runs down. carried: a member reads the task's
    result at another place than the loop's, so that all places of it are kept.
    """

    number: int
    step: Index
    ahead: bool
    carried: bool


@dataclass(frozen=True)
class Band:
    """A kernel that computes rows of a matrix which nobody keeps: the tasks of one number are its own.

    at: for each of the matrix's axes the task's index along it; None: it is summed up. index: the one of them that the
    kernel's blocks divide, `size` places each.
    """

    number: int
    at: tuple[sp.Symbol | None, ...]
    index: Index
    size: int

    def alike(self, other: Band) -> frozenset[tuple[sp.Symbol, sp.Symbol]]:
        """Which index of a task, and which of another of the same band, run along the same axis."""
        both = zip(self.at, other.at, strict=True)
        return frozenset((a, b) for a, b in both if a is not None and b is not None)


@dataclass(frozen=True)
class Task:
    """``out[target] = reduce[over where ...] body`` for every value of `axes`.

    target: what it stores at, over the symbols of axes and over, and slots; an axis of `scattered` is no loop.
    store: the state or parameter that it overwrites in place. partial: it reduces the block's part of an index, and
    its first target index is the block's number. circles: the loops of recurrences around it, the outermost first;
    their steps are no axes of the task. after: a tensor that must be there first, though it is not read, and which of
    its task's indices and of this one's are at the same place, so that they may share a loop. band: the kernel whose
    blocks have rows of a matrix that it belongs to.
    """

    formula: Formula
    axes: tuple[Index, ...]
    target: tuple[sp.Expr, ...]
    body: sp.Expr
    reads: tuple[Access, ...]
    where: tuple[sp.Basic, ...]
    scattered: tuple[Index, ...] = ()
    store: str | None = None
    partial: bool = False
    circles: tuple[Circle, ...] = ()
    after: tuple[str, frozenset[tuple[sp.Symbol, sp.Symbol]]] | None = None
    band: Band | None = None

    @cached_property
    def out(self) -> str:
        return self.formula.out

    @property
    def over(self) -> tuple[Index, ...]:
        return self.formula.over

    @property
    def reduce(self) -> Reduce | None:
        """None: a map."""
        return self.formula.reduce if self.over else None

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        return self.axes + self.over

    @cached_property
    def free(self) -> tuple[Index, ...]:
        """The indices that no recurrence steps along."""
        steps = {circle.step.symbol for circle in self.circles}
        return tuple(i for i in self.indices if i.symbol not in steps)

    @cached_property
    def extents(self) -> Mapping[sp.Symbol, Extent]:
        return {index.symbol: index.extent for index in self.indices}

    @cached_property
    def law(self) -> TaskLaw:
        """All but the names of its tensors; pretty names count, for they are printed. The same object where equal."""
        f = self.formula
        reads = tuple((read.indices, read.outside) for read in self.reads)
        indices = tuple((i.symbol, i.extent, i.name) for i in (*f.axes, *f.over))
        looped = tuple(axis.symbol for axis in self.axes)
        kind = (f.reduce, f.dtype, f.bound, len(f.over), self.partial, self.store is None)
        return _law(self.body, reads, indices, looped, self.target, self.where, kind)

    @cached_property
    def jumps(self) -> Mapping[sp.Symbol, int]:
        """How many accesses an innermost loop over an index moves by more than one element a step.

        A place that is read from a tensor jumps with all that it is read at.
        """
        places = [tuple(i.free_symbols for i in of) for of in (*(read.indices for read in self.reads), self.target)]
        found = {}
        for inner in self.free:
            jumpy = {slot(k, DType.INT.sort) for k, at in enumerate(places[:-1]) if any(inner.symbol in e for e in at)}
            moving = jumpy | {inner.symbol}
            found[inner.symbol] = sum(
                any(moving & e for e in at) and (inner.symbol not in at[-1] or bool(jumpy & at[-1])) for at in places
            )
        return found

    @cached_property
    def text(self) -> str:
        return equation_text(self.formula)

    @cached_property
    def read_at(self) -> Mapping[tuple[str, int], set[sp.Expr]]:
        """Where it reads each axis of a tensor."""
        found: dict[tuple[str, int], set[sp.Expr]] = {}
        for read in self.reads:
            for axis, place in enumerate(read.indices):
                found.setdefault((read.tensor, axis), set()).add(place)
        return found

    @cached_property
    def reads_along(self) -> Mapping[sp.Symbol, list[tuple[str, int, sp.Expr]]]:
        """Which axis of which tensor is read at each of its indices, and how many places of the tensor are read."""
        found: dict[sp.Symbol, list[tuple[str, int, sp.Expr]]] = {}
        for read in self.reads:
            moving = free_symbols(read.indices) & self.extents.keys()
            places = sp.Mul(*(self.extents[s] for s in moving))
            for index in moving.intersection(read.indices):
                found.setdefault(index, []).append((read.tensor, read.indices.index(index), places))
        return found

    def reads_of(self, tensor: str) -> list[Access]:
        return [read for read in self.reads if read.tensor == tensor]


@dataclass(frozen=True, eq=False)
class TaskLaw:
    """What tasks have in common that differ in the names of tensors alone; equal where it is the same object."""

    body: sp.Expr
    reads: tuple[tuple[tuple[sp.Expr, ...], sp.Expr | None], ...]
    indices: tuple[tuple[sp.Symbol, Extent, str], ...]
    looped: tuple[sp.Symbol, ...]
    target: tuple[sp.Expr, ...]
    where: tuple[sp.Basic, ...]
    kind: tuple[object, ...]


_law = lru_cache(maxsize=65536)(TaskLaw)


def task_of(f: Formula, tensors: Mapping[str, Tensor]) -> Task:
    """`f` as a task; where a condition says which place an axis has, ``token[b] = p``, it becomes a scatter."""
    task = plain_task(f)
    if f.over and f.reduce is not Reduce.ARGMAX:
        for condition in f.where:
            task = _scattered(task, condition, tensors)
    return task


def plain_task(f: Formula) -> Task:
    """`f` as a task that stores at its axes."""
    return Task(f, f.axes, tuple([axis.symbol for axis in f.axes]), f.body, f.reads, f.where)


def in_circles(task: Task, circles: tuple[Circle, ...]) -> Task:
    """`task` with the loops around it that its axes are not."""
    steps = [circle.step for circle in circles]
    return replace(task, axes=tuple(a for a in task.axes if a not in steps), circles=circles) if circles else task


def _scattered(task: Task, condition: sp.Basic, tensors: Mapping[str, Tensor]) -> Task:
    if not isinstance(condition, sp.Eq):
        return task
    axes = {axis.symbol: axis for axis in task.axes}
    for place, value in ((condition.rhs, condition.lhs), (condition.lhs, condition.rhs)):
        axis = axes.get(place)
        computed = any(map(is_slot, value.free_symbols))
        if axis is None or not computed or not _known_without(axis.symbol, value, task):
            continue
        names = {axis.symbol: value}
        bounds = () if _proved(value, axis, task, tensors) else (sp.Ge(value, 0), sp.Lt(value, axis.extent))
        rest = tuple(c.xreplace(names) for c in task.where if c is not condition)
        return replace(
            task,
            axes=tuple(a for a in task.axes if a is not axis),
            target=tuple(t.xreplace(names) for t in task.target),
            body=task.body.xreplace(names),
            reads=tuple(read.renamed(names) for read in task.reads),
            where=(*bounds, *rest),
            scattered=(*task.scattered, axis),
        )
    return task


def _known_without(axis: sp.Symbol, value: sp.Expr, task: Task) -> bool:
    """Whether `value` can be read before the axis is known."""
    symbols = set(value.free_symbols)
    slots = [s for s in symbols if is_slot(s)]
    while slots:
        inside = set().union(*(i.free_symbols for i in task.reads[int(slots.pop().name[1:])].indices), set())
        slots += [s for s in inside - symbols if is_slot(s)]
        symbols |= inside
    return axis not in symbols


def _proved(value: sp.Expr, axis: Index, task: Task, tensors: Mapping[str, Tensor]) -> bool:
    """Whether `value` stays within the axis, by the ranges of its indices and of the integers that it reads."""
    facts = Facts({i.symbol: i.extent for i in task.indices if i is not axis}, bounds_of(task.reads, tensors))
    return facts.is_nonnegative(value) and facts.is_below(value, axis.extent)


def partial_of(task: Task, blocks: sp.Symbol, out: str) -> tuple[Task, Formula]:
    """`task`'s share for each block, ``out[part, ...]``, and the formula that adds the shares in their order."""
    f = task.formula
    part = replace(task, formula=replace(f, out=out), target=(PART, *task.target), partial=True)
    share = Index(index_symbol("_r00"), blocks, "part")
    read = Access(out, (share.symbol, *(axis.symbol for axis in f.axes)))
    total = Formula(
        f.out, f.axes, (share,), slot(0, f.dtype.sort), (read,),
        reduce=f.reduce, dtype=f.dtype, bound=f.bound, origin=f.origin,
    )  # fmt: skip
    return part, total


def reading(task: Task, names: Mapping[str, str]) -> Task:
    """`task`, reading other tensors."""
    if names.keys().isdisjoint(read.tensor for read in task.reads):
        return task

    def renamed(reads: Sequence[Access]) -> tuple[Access, ...]:
        return tuple(replace(read, tensor=names.get(read.tensor, read.tensor)) for read in reads)

    formula: Formula = replace(task.formula, reads=renamed(task.formula.reads))
    return replace(task, formula=formula, reads=renamed(task.reads))


def fresh(name: str, taken: Iterable[str]) -> str:
    known, k, found = set(taken), 2, name
    while found in known:
        found, k = f"{name}{k}", k + 1
    return found


def is_in_loop(task: Task, number: int) -> bool:
    return bool(task.circles) and task.circles[0].number == number


def is_like(a: Task, b: Task) -> bool:
    """Whether the tasks differ in the names of tensors alone."""
    places = [tuple(read.indices for read in task.reads) for task in (a, b)]
    return places[0] == places[1] and (a.body, a.indices, a.where) == (b.body, b.indices, b.where)
