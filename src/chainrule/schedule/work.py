"""The tasks of a graph, in an order that may run: copies are aliases, updates overwrite their store in place."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Law
from chainrule.ir.graph import Dim, Graph, Tensor
from chainrule.ir.recurrence import Recurrence, circles_among, in_steps, loop_over, recurrence_of
from chainrule.schedule.cost import Sizes
from chainrule.schedule.factors import factored_out, with_factors
from chainrule.schedule.groups import grouped
from chainrule.schedule.split import split
from chainrule.schedule.task import Circle, Task, fresh, in_circles, plain_task, task_of
from chainrule.schedule.turn import turned


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


def outputs_of(work: Work) -> frozenset[str]:
    """The tensors that hold outputs."""
    return frozenset(of for _, of in work.outputs)


def work_of(graph: Graph, sizes: Sizes) -> Work:
    """The tasks of `graph`: copies are aliases, updates go last and in place where the old value is read no more."""
    tensors = dict(graph.tensors)
    stores = {update.store for update in graph.updates}
    alias: dict[str, str] = {}
    formulas: list[Formula] = []
    whole: set[Law] = set()  # of formulas that are not split
    factors: dict[Formula, Formula] = {}
    for node in (node for nodes in graph.components for node in nodes):
        if not isinstance(node, Formula):
            continue
        f = node
        if not alias.keys().isdisjoint(node.tensors):
            f = replace(node, reads=tuple(replace(r, tensor=alias.get(r.tensor, r.tensor)) for r in node.reads))
        if is_copy(f, tensors) and f.reads[0].tensor not in stores and not graph.is_recurrent(f.out):
            alias[f.out] = f.reads[0].tensor
        elif f.law in whole:
            formulas.append(f)
        else:
            g = f if graph.is_recurrent(f.out) else factored_out(f, tensors, sizes, factors)
            parts = split(g, tensors, sizes, graph.producers)
            formulas += parts
            if parts == [f] and not f.where:  # what a condition is worth depends on who computes what is read
                whole.add(f.law)
    formulas = with_factors(formulas, factors.values())
    outputs = tuple((name, alias.get(name, name)) for name in graph.outputs)
    formulas, circles = circles_of(formulas, graph.dims)
    formulas = turned(formulas, circles, tensors, sizes)
    saved = {}
    for _, name in outputs:
        if name in stores and name not in saved:  # an output is the value before the update
            saved[name] = fresh(f"{name}_before", tensors)
            formulas.append(copy_formula(saved[name], tensors[name], name))
            tensors[saved[name]] = replace(tensors[name], name=saved[name])
    tasks = [in_circles(task, circles.get(task.out, ())) for task in grouped_tasks(formulas, tensors)]
    tasks = _with_updates(tasks, [(u.store, alias.get(u.value, u.value)) for u in graph.updates], tensors)
    outputs = tuple((name, saved.get(of, of)) for name, of in outputs)
    return Work(tuple(in_order(tasks)), tensors, alias, outputs)


def grouped_tasks(formulas: Iterable[Formula], tensors: Mapping[str, Tensor]) -> Iterator[Task]:
    """`formulas` as tasks, with axes taken apart that had better be two."""
    plain: set[Law] = set()  # of formulas whose task is what they say
    for f in formulas:
        if f.law in plain:
            yield plain_task(f)
            continue
        task = task_of(f, tensors)
        made = grouped(task)
        if made is task and not f.where:
            plain.add(f.law)
        yield made


def circles_of(
    formulas: Sequence[Formula], dims: Sequence[Dim] = ()
) -> tuple[list[Formula], dict[str, tuple[Circle, ...]]]:
    """`formulas`, those of each recurrence in the order of one step, and the loops that each of these is in.

    Formulas over a dim of `dims` whose places follow each other share its loop.
    """
    loops = [loop_over(formulas, dim) for dim in dims if dim.steps is not None]
    recurrences = [loop for loop in loops if loop is not None]
    stepped = {f.out for loop in recurrences for f in loop.members}
    recurrences += map(recurrence_of, circles_among([f for f in formulas if f.out not in stepped]))
    found: dict[str, tuple[Circle, ...]] = {}
    ordered: dict[str, tuple[Formula, ...]] = {}
    numbers = count()
    for recurrence in recurrences:
        ordered[recurrence.members[-1].out] = in_steps(recurrence)
        _enclose(recurrence, numbers, found)
    # all of a recurrence stands where its last member stood
    rest = ((f,) if f.out not in found else ordered.get(f.out, ()) for f in formulas)
    return [f for group in rest for f in group], found


def _enclose(recurrence: Recurrence, numbers: Iterator[int], found: dict[str, tuple[Circle, ...]]) -> None:
    """Add the loop of `recurrence`, and those within it, to what is around its members."""
    number = next(numbers)
    carried = {read.tensor for f, read in recurrence.reads if recurrence.distance(f, read)}
    for f in recurrence.members:
        circle = Circle(number, recurrence.step(f), recurrence.ahead, f.out in carried)
        found[f.out] = (*found.get(f.out, ()), circle)
    for inner in recurrence.inner:
        _enclose(inner, numbers, found)


def _with_updates(tasks: list[Task], updates: Sequence[tuple[str, str]], tensors: dict[str, Tensor]) -> list[Task]:
    """In place: a map that reads its store only where it writes it. Else the value is kept, and copied at the end."""
    position = {task.out: k for k, task in enumerate(tasks)}
    readers = _readers(tasks)
    copies, taken = [], set()
    writers: dict[str, int] = {}
    for store, value in updates:
        if value == store:
            continue
        k = position.get(value, -1)
        allowed = k >= 0 and value not in taken
        if allowed and _may_overwrite(tasks[k], store, tasks, readers, writers, position, tensors):
            tasks[k] = replace(tasks[k], store=store)
            writers[store] = k
            taken.add(value)
            continue
        # every copy reads what was computed before any store changed
        kept = value
        if k < 0:
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
    if (
        bool(task.circles)
        or f.over
        or f.where
        or f.shape != tensors[store].shape
        or f.dtype is not tensors[store].dtype
    ):
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
    """For each task the ones that must come before: who computes what it reads, who reads what it overwrites.

    A recurrence, or a kernel over bands, begins when all is there that any of its tasks reads; among them, order is
    that of one step.
    """
    producers = {task.out: k for k, task in enumerate(tasks)}
    together: dict[object, list[int]] = {}
    for k, task in enumerate(tasks):
        if task.circles:
            together.setdefault(task.circles[0].number, []).append(k)
        elif task.band is not None:
            together.setdefault(("band", task.band.number), []).append(k)
    readers = _readers(tasks)
    before: list[set[int]] = []
    for k, task in enumerate(tasks):
        needed = {producers[read.tensor] for read in task.reads if read.tensor in producers}
        if task.store is not None:
            needed.update(readers.get(task.store, ()))
        if task.after is not None:
            needed.add(producers[task.after[0]])
        before.append(needed - {k})
    for members in together.values():
        outside = set().union(*(before[k] for k in members)) - set(members)
        for j, k in enumerate(members):
            before[k] = outside | set(members[:j])
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
