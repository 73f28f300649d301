"""The unit that is scheduled: one formula with the place that it stores to, and what must come before it.

A formula becomes one task. What the graph says by names, tasks say by storage: an update stores in place, after the
last reader of the old value; a scatter stores at a computed place and has no loop over the axis that it computes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import sympy as sp

from chainrule.ir.expression import index_symbol, is_slot, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Index, Reduce
from chainrule.ir.graph import Graph, Tensor
from chainrule.ir.text import equation_text

PART = sp.Symbol("_part", integer=True, nonnegative=True)
"""In a task's target: the number of the block that a partial result belongs to."""


@dataclass(frozen=True)
class Task:
    """``out[target] = reduce[over where ...] body`` for every value of `axes`.

    target: what it stores at, over the symbols of axes and over, and slots; an axis of `scattered` is no loop.
    store: the state or parameter that it overwrites in place. partial: it reduces the block's part of an index, and
    its first target index is the block's number.
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

    @property
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
    def extents(self) -> Mapping[sp.Symbol, Extent]:
        return {index.symbol: index.extent for index in self.indices}

    @cached_property
    def text(self) -> str:
        return equation_text(self.formula)

    def reads_of(self, tensor: str) -> list[Access]:
        return [read for read in self.reads if read.tensor == tensor]


def task_of(f: Formula, tensors: Mapping[str, Tensor]) -> Task:
    """`f` as a task; where a condition says which place an axis has, ``token[b] = p``, it becomes a scatter."""
    target: tuple[sp.Expr, ...] = tuple(axis.symbol for axis in f.axes)
    task = Task(f, f.axes, target, f.body, f.reads, f.where)
    if f.over and f.reduce is not Reduce.ARGMAX:
        for condition in f.where:
            task = _scattered(task, condition, tensors)
    return task


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
    """A slot of an integer tensor whose values stay below the axis' extent."""
    return is_slot(value) and tensors[task.reads[int(value.name[1:])].tensor].bound == axis.extent


# ---------------------------------------------------------------------------------------------------------------------
# What tasks a graph has


def copy_formula(out: str, of: Tensor, origin: str) -> Formula:
    """``out[...] = of[...]``."""
    axes = tuple(Index(index_symbol(f"_i{k:02}"), extent) for k, extent in enumerate(of.shape))
    read = Access(of.name, tuple(axis.symbol for axis in axes))
    return Formula(out, axes, (), slot(0, of.dtype.sort), (read,), dtype=of.dtype, bound=of.bound)


def is_copy(f: Formula, tensors: Mapping[str, Tensor]) -> bool:
    """Whether `f` is another name for what it reads."""
    if f.over or f.where or len(f.reads) != 1 or f.body != slot(0, f.dtype.sort):
        return False
    read, of = f.reads[0], tensors[f.reads[0].tensor]
    same = of.shape == f.shape and of.dtype is f.dtype
    return same and read.indices == tuple(axis.symbol for axis in f.axes)


@dataclass(frozen=True)
class Work:
    """A graph's tasks in an order that may run, and under which name each tensor is stored.

    alias: tensors that are another's copy. stored: what a task computes in place of a state or parameter.
    outputs: each output with the tensor that holds it.
    """

    tasks: tuple[Task, ...]
    tensors: Mapping[str, Tensor]
    alias: Mapping[str, str]
    outputs: tuple[tuple[str, str], ...]


def work_of(graph: Graph) -> Work:
    """The tasks of `graph`: copies are aliases, updates go last and in place where the old value is read no more."""
    tensors = dict(graph.tensors)
    stores = {update.store for update in graph.updates}
    alias: dict[str, str] = {}
    formulas: list[Formula] = []
    for node in graph.nodes:
        if not isinstance(node, Formula):
            continue
        f = replace(node, reads=tuple(replace(r, tensor=alias.get(r.tensor, r.tensor)) for r in node.reads))
        if is_copy(f, tensors) and f.reads[0].tensor not in stores:
            alias[f.out] = f.reads[0].tensor
        else:
            formulas.append(f)
    outputs = tuple((name, alias.get(name, name)) for name in graph.outputs)
    saved = {}
    for _, name in outputs:
        if name in stores and name not in saved:  # an output is the value before the update
            saved[name] = fresh(f"{name}_before", tensors)
            formulas.append(copy_formula(saved[name], tensors[name], name))
            tensors[saved[name]] = replace(tensors[name], name=saved[name])
    tasks = [task_of(f, tensors) for f in formulas]
    tasks = _with_updates(tasks, [(u.store, alias.get(u.value, u.value)) for u in graph.updates], tensors)
    outputs = tuple((name, saved.get(of, of)) for name, of in outputs)
    return Work(tuple(in_order(tasks)), tensors, alias, outputs)


def fresh(name: str, taken: Iterable[str]) -> str:
    known, k, found = set(taken), 2, name
    while found in known:
        found, k = f"{name}{k}", k + 1
    return found


def _with_updates(
    tasks: list[Task], updates: Sequence[tuple[str, str]], tensors: dict[str, Tensor]
) -> list[Task]:
    """In place: a map that reads its store only where it writes it. Else the value is kept, and copied at the end."""
    position = {task.out: k for k, task in enumerate(tasks)}
    readers = _readers(tasks)
    copies, taken = [], set()
    writers: dict[str, int] = {}
    for store, value in updates:
        if value == store:
            continue
        k = position.get(value)
        allowed = k is not None and value not in taken
        if allowed and _may_overwrite(tasks[k], store, tasks, readers, writers, position, tensors):
            tasks[k] = replace(tasks[k], store=store)
            writers[store] = k
            taken.add(value)
            continue
        # every copy reads what was computed before any store changed
        kept = value
        if k is None:
            kept = fresh(f"{value}_before", tensors)
            tensors[kept] = replace(tensors[value], name=kept)
            tasks.append(task_of(copy_formula(kept, tensors[value], value), tensors))
        new = fresh(f"{store}_new", tensors)
        tensors[new] = replace(tensors[store], name=new)
        copies.append(replace(task_of(copy_formula(new, tensors[kept], store), tensors), store=store))
    return tasks + copies


def _may_overwrite(
    task: Task,
    store: str,
    tasks: Sequence[Task],
    readers: Mapping[str, list[int]],
    writers: Mapping[str, int],
    position: Mapping[str, int],
    tensors: Mapping[str, Tensor],
) -> bool:
    f = task.formula
    if f.over or f.where or f.shape != tensors[store].shape or f.dtype is not tensors[store].dtype:
        return False
    if any(read.indices != task.target for read in task.reads_of(store)):
        return False
    # whoever else reads the old value must not wait for the new one, nor for what overwrites its own reads
    others = {k for k in readers.get(store, ()) if tasks[k].out != task.out}
    below, front = set(), [position[task.out]]
    while front and others:
        reached = tasks[front.pop()]
        overwriting = (writers[read.tensor] for read in reached.reads if read.tensor in writers)
        for k in (*readers.get(reached.out, ()), *overwriting):
            if k not in below:
                below.add(k)
                front.append(k)
    return not below.intersection(others)


def _readers(tasks: Sequence[Task]) -> dict[str, list[int]]:
    readers: dict[str, list[int]] = {}
    for k, task in enumerate(tasks):
        for tensor in dict.fromkeys(read.tensor for read in task.reads):
            readers.setdefault(tensor, []).append(k)
    return readers


def predecessors(tasks: Sequence[Task]) -> list[set[int]]:
    """For each task the ones that must come before: who computes what it reads, who reads what it overwrites."""
    producers = {task.out: k for k, task in enumerate(tasks)}
    readers = _readers(tasks)
    before: list[set[int]] = []
    for k, task in enumerate(tasks):
        needed = {producers[read.tensor] for read in task.reads if read.tensor in producers}
        if task.store is not None:
            needed.update(readers.get(task.store, ()))
        before.append(needed - {k})
    return before


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """`tasks` as they stand, but each after all that must come before it."""
    before = predecessors(tasks)
    waiting = [len(needed) for needed in before]
    after: list[list[int]] = [[] for _ in tasks]
    for k, needed in enumerate(before):
        for p in needed:
            after[p].append(k)
    ready = [k for k, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    result = []
    while ready:
        k = heapq.heappop(ready)
        result.append(tasks[k])
        for later in after[k]:
            waiting[later] -= 1
            if waiting[later] == 0:
                heapq.heappush(ready, later)
    if len(result) < len(tasks):
        raise ValueError("the formulas of a graph are not in an order that can run")
    return result


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


def identity_of(reduce: Reduce, dtype: DType) -> sp.Expr:
    """What an accumulator starts at; the least and greatest int64 stand for the infinities."""
    identity = reduce.identity
    assert identity is not None
    if dtype is not DType.FLOAT and identity.is_infinite:
        return sp.Integer(-(2**63)) if identity.is_negative else sp.Integer(2**63 - 1)
    return identity
