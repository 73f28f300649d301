"""Matrices that a GPU never keeps: what makes them and what sums them up is one kernel over bands of their rows.

    score[t, s] = sum[d] q[t, d] * k[s, d]          for each band of rows t, in a block's shared memory:
    e[t, s] = exp(score[t, s] - m[t])         ->        score, m, e, l of these rows
    l[t] = sum[s] e[t, s]                               y of these rows
    y[t, d] = sum[s] e[t, s] * v[s, d] / l[t]

A matrix is the result of a product that is larger than its factors, and all maps of such over the same places. If each
other reader sums along its rows or along its columns, no element of it need lie in memory: the sums of a row are one
kernel, whose blocks have some rows each, those of a column another, and each computes anew what it needs of the matrix.
What follows a sum by way of something else, as a backward pass does, is a kernel of a later level.
Source: Dao, FlashAttention-2, 2023, arXiv:2307.08691, with whole rows in place of a running maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import sympy as sp

from chainrule.ir.formula import DType, Extent, Reduce
from chainrule.ir.machine import Machine
from chainrule.schedule.cost import Sizes, bytes_of, cost_at
from chainrule.schedule.product import Contraction, contraction_of, is_worth_a_tile
from chainrule.schedule.task import Band, Task, fresh, reading
from chainrule.schedule.work import Work, in_order, outputs_of

ROWS = (64, 32, 16)
"""Of a band: multiples of the rows of a block's smallest tile, and more of them read the other operand less often."""

WARPS = 8
"""Of a block, each of which has a row."""

CACHED = 0.5
"""What a byte from the last cache takes beside one from memory."""

APART = 128
"""Rows of the tile of a product that is a kernel of its own."""

COLUMNS, PANEL = 64, 32
"""Of a product's tile in a block; and of how many terms of its sums there are factors for each row and column."""


@dataclass(frozen=True)
class Member:
    """A task's part in a matrix. at: for each of the matrix's axes the index of the task that runs along it; None: it
    is summed up."""

    task: Task
    at: tuple[sp.Symbol | None, ...]
    over: sp.Symbol | None = None

    @property
    def wide(self) -> bool:
        return self.over is None and None not in self.at


@dataclass
class Matrix:
    """All tasks that make a matrix or sum it up, by their results, in order. rows, columns: which of its axes."""

    shape: tuple[Extent, ...]
    rows: int
    columns: int
    members: dict[str, Member] = field(default_factory=dict)

    def axis(self, along: str) -> int:
        return self.rows if along == "rows" else self.columns

    def kept(self, member: Member) -> str:
        """Of what a member that is no matrix has one result for each."""
        return "rows" if member.at[self.columns] is None else "columns"


@dataclass(frozen=True)
class Sums:
    """A kernel to be: what sums along the rows, or along the columns, at one level."""

    along: str
    level: int
    members: tuple[str, ...]  # the matrices that it needs among them, in order


@dataclass(frozen=True)
class Scene:
    """The tasks of a graph, and what is known of them."""

    work: Work
    sizes: Sizes
    machine: Machine
    item: int  # bytes of a float

    @cached_property
    def producers(self) -> Mapping[str, Task]:
        return {task.out: task for task in self.work.tasks}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Task]]:
        found: dict[str, list[Task]] = {}
        for task in self.work.tasks:
            for name in dict.fromkeys(read.tensor for read in task.reads):
                found.setdefault(name, []).append(task)
        return found

    @cached_property
    def contractions(self) -> Mapping[str, Contraction]:
        found = ((task.out, contraction_of(task)) for task in self.work.tasks)
        return {out: c for out, c in found if c is not None and is_worth_a_tile(c, self.sizes)}

    @cached_property
    def kept(self) -> frozenset[str]:
        """What has to be in memory at the end."""
        return outputs_of(self.work) | {task.out for task in self.work.tasks if task.store is not None}

    def points(self, extents: Sequence[Extent]) -> int:
        return self.sizes.points(extents)


def banded(work: Work, sizes: Sizes, machine: Machine, item: int) -> Work:
    """`work` with the tasks of each matrix that had better not be kept in bands; item: bytes of a float."""
    if machine.tiles or sum(cost_at(task, sizes, product=False) for task in work.tasks) < machine.serial_ns:
        return work
    number, done = 0, set[str]()
    while True:
        scene = Scene(work, sizes, machine, item)
        seeds = (out for out in scene.contractions if out not in done and is_larger(out, scene))
        seed = next(seeds, None)
        if seed is None:
            return work
        matrix = matrix_of(seed, scene)
        done |= {seed} if matrix is None else matrix.members.keys()
        if matrix is None:
            continue
        kernels = kernels_of(matrix, scene)
        rows = [rows_of(kernel, matrix, scene) for kernel in kernels]
        if all(rows) and pays(matrix, kernels, rows, scene):
            made = in_bands(matrix, kernels, rows, scene, number)
            done |= {task.out for task in made.tasks if task.band is not None}
            work, number = made, number + len(kernels)


def is_larger(out: str, scene: Scene) -> bool:
    """Whether a product is a matrix of one index by another that is larger than its factors."""
    c, task = scene.contractions[out], scene.producers[out]
    if len(c.rows) != 1 or len(c.columns) != 1 or task.circles or task.band is not None:
        return False
    rows, columns, inner = (scene.points([i.extent for i in group]) for group in (c.rows, c.columns, c.inner))
    return rows * columns > (rows + columns) * inner


# Who belongs to a matrix.


def matrix_of(seed: str, scene: Scene) -> Matrix | None:
    """The matrix that a product begins, if nobody reads it but maps of it and sums along it."""
    task, c = scene.producers[seed], scene.contractions[seed]
    axes = tuple(a.symbol for a in task.axes)
    shape = tuple(a.extent for a in task.axes)
    matrix = Matrix(shape, axes.index(c.rows[0].symbol), axes.index(c.columns[0].symbol))
    found = {seed: Member(task, axes)}
    front = [seed]
    while front:
        out = front.pop()
        if out in scene.kept:
            return None
        for reader in scene.readers.get(out, ()):
            if reader.out in found:
                continue
            member = member_of(reader, found, matrix, scene)
            if member is None:
                return None
            found[reader.out] = member
            if member.wide:
                front.append(reader.out)
                for other in products_beside(member, found, matrix, scene):
                    found[other.out] = Member(other, tuple(a.symbol for a in other.axes))
                    front.append(other.out)
    between(found, matrix, scene)
    matrix.members = {t.out: found[t.out] for t in scene.work.tasks if t.out in found}
    return matrix if all(map_of_rows(m, matrix) for m in matrix.members.values()) else None


def member_of(task: Task, found: Mapping[str, Member], matrix: Matrix, scene: Scene) -> Member | None:
    """`task`, which reads the matrix, as a member; None where it is neither a map of it nor a sum along it."""
    places = {read.indices for read in task.reads if read.tensor in found and found[read.tensor].wide}
    plain = len(places) == 1 and not (task.circles or task.scattered or task.store is not None or task.partial)
    if not plain or task.band is not None or task.after is not None:
        return None
    (at,) = places
    if len(set(at)) < len(at) or not set(at) <= task.extents.keys():
        return None
    over = [i.symbol for i in task.over]
    if not over:
        return Member(task, at) if at == tuple(a.symbol for a in task.axes) else None
    ends = (at[matrix.rows], at[matrix.columns])
    if len(over) != 1 or over[0] not in ends or task.reduce is Reduce.ARGMAX:
        return None
    return Member(task, tuple(None if s == over[0] else s for s in at), over[0])


def products_beside(member: Member, found: Mapping[str, Member], matrix: Matrix, scene: Scene) -> Iterator[Task]:
    """The products of the matrix's shape that a map of it reads at the same places."""
    for read in member.task.reads:
        c, task = scene.contractions.get(read.tensor), scene.producers.get(read.tensor)
        if c is None or task is None or read.tensor in found or read.indices != member.at:
            continue
        ends = [(i.symbol,) for i in (task.axes[matrix.rows], task.axes[matrix.columns])]
        if [tuple(i.symbol for i in group) for group in (c.rows, c.columns)] == ends and task.band is None:
            yield task


def between(found: dict[str, Member], matrix: Matrix, scene: Scene) -> None:
    """Add to the members what is computed of sums for each row and read by other members."""
    more: dict[str, Member] = {}
    for task in scene.work.tasks:
        if task.out in found or task.over or task.circles or task.scattered or task.store is not None:
            continue
        for read in task.reads:
            of = found.get(read.tensor) or more.get(read.tensor)
            if of is None or of.wide or len(of.task.axes) != len(matrix.shape) - 1 or task.band is not None:
                continue
            places = dict(zip(of.task.target, read.indices, strict=True))
            at = tuple(places.get(s) if s is not None else None for s in of.at)
            if read.indices == tuple(a.symbol for a in task.axes):
                more[task.out] = Member(task, at)
    while unread := [
        out for out in more if not any(r.out in found or r.out in more for r in scene.readers.get(out, ()))
    ]:
        for out in unread:
            del more[out]
    found |= more


def map_of_rows(member: Member, matrix: Matrix) -> bool:
    """Whether a member reads what sums left at the place of its own row, and nothing of what they left of columns."""
    for read in member.task.reads:
        of = matrix.members.get(read.tensor)
        if of is None or of.wide:
            continue
        if matrix.kept(of) == "columns" or len(of.task.axes) != len(matrix.shape) - 1:
            return False
        here = dict(zip(of.task.target, read.indices, strict=True))
        if any(s is not None and here[s] != mine for s, mine in zip(of.at, member.at, strict=True)):
            return False
    return True


# Which kernels there are.


def levels_of(matrix: Matrix, scene: Scene) -> dict[str, int]:
    """How often the way to each member leads out of the matrix, and back."""
    own: dict[str, int] = {}
    outside: dict[str, int] = {}
    for task in scene.work.tasks:
        names = {read.tensor for read in task.reads}
        mine = [own[n] for n in names if n in own]
        away = [outside[n] for n in names if n in outside]
        if task.out in matrix.members:
            own[task.out] = max([0, *mine, *(level + 1 for level in away)])
        elif mine or away:
            outside[task.out] = max(mine + away)
    return own


def kernels_of(matrix: Matrix, scene: Scene) -> list[Sums]:
    """The kernels that the matrix becomes, in order."""
    levels = levels_of(matrix, scene)
    found = []
    for level in sorted(set(levels.values())):
        for along in ("rows", "columns"):
            sums = [
                out
                for out, m in matrix.members.items()
                if not m.wide and levels[out] == level and matrix.kept(m) == along
            ]
            needed, front = set(sums), list(sums)
            while front:
                for read in matrix.members[front.pop()].task.reads:
                    of = matrix.members.get(read.tensor)
                    if of is not None and of.wide and read.tensor not in needed:
                        needed.add(read.tensor)
                        front.append(read.tensor)
            if sums:
                found.append(Sums(along, level, tuple(out for out in matrix.members if out in needed)))
    return found


def rows_of(kernel: Sums, matrix: Matrix, scene: Scene) -> int:
    """How many rows a block has: as many as fit, if there are blocks enough; 0 where not even few fit."""
    axis = matrix.axis(kernel.along)
    length = matrix.columns if kernel.along == "rows" else matrix.rows
    row = scene.sizes.most(matrix.shape[length])
    if not row.is_Integer:
        return 0
    arrays, lines = arrays_of(kernel, matrix, scene)
    most = scene.machine.shared_bytes // scene.item
    fitting = [r for r in ROWS if (arrays * r + lines * WARPS) * int(row) + PANEL * (r + COLUMNS + 8) <= most]
    extent = scene.points([matrix.shape[axis]])
    others = scene.points([e for k, e in enumerate(matrix.shape) if k not in (axis, length)])
    filling = [rows for rows in fitting if others * -(-extent // rows) >= scene.machine.parts]
    return filling[0] if filling else fitting[-1] if fitting else 0


def arrays_of(kernel: Sums, matrix: Matrix, scene: Scene) -> tuple[int, int]:
    """How many matrices a block has, and how many rows each of its warps: what products make or read is there as a
    whole, in the other's place; of other maps a row at a time, where a sum of it must be known before its last use."""
    wide = [out for out in kernel.members if matrix.members[out].wide]
    made = {out for out in wide if out in scene.contractions}
    others = [out for out in kernel.members if out not in wide]
    sums = [out for out in others if out in scene.contractions]
    read = {r.tensor for out in sums for r in matrix.members[out].task.reads if r.tensor in wide}
    used = [r.tensor for out in kernel.members for r in matrix.members[out].task.reads]
    waits = any(matrix.members[out].over is not None for out in others if out not in sums)
    lines = [out for out in wide if waits and out not in made | read and used.count(out) > 1]
    return max(len(made), len(read)), len(lines)


def pays(matrix: Matrix, kernels: Sequence[Sums], rows: Sequence[int], scene: Scene) -> bool:
    """Whether to compute again, and to fetch again for each band what its products read, takes less time than to write
    the matrices and to read them. All for one element, in bytes."""
    wide = [out for kernel in kernels for out in kernel.members if matrix.members[out].wide]
    again = [out for k, out in enumerate(wide) if out in wide[:k] and out in scene.contractions]
    inner = sum(scene.points([i.extent for i in scene.contractions[out].inner]) for out in again)
    fetched = sum(fetches(kernel, size, matrix, scene) for kernel, size in zip(kernels, rows, strict=True))
    size = bytes_of(DType.FLOAT)
    rates = scene.machine.rates
    if rates is None:
        return False
    spent = 2 * inner * rates.bytes / rates.flops + CACHED * size * fetched
    return spent <= size * crossings(matrix, scene)


def crossings(matrix: Matrix, scene: Scene) -> int:
    """How often an element of the matrices is written or read, where products are kernels of their own."""
    levels, count = levels_of(matrix, scene), 0
    for out in (out for out, member in matrix.members.items() if member.wide):
        readers = scene.readers.get(out, ())
        products = sum(reader.out in scene.contractions for reader in readers)
        late = any(levels[r.out] > levels[out] and r.out not in scene.contractions for r in readers)
        others = out in scene.contractions or late  # maps are one kernel
        count += 1 + products + others if products or others else 0
    return count


def fetches(kernel: Sums, size: int, matrix: Matrix, scene: Scene) -> float:
    """How many elements of other factors a band reads for each of its elements of the matrix, beyond what the tiles of
    a product's own kernel would."""
    axis = matrix.axis(kernel.along)
    length = matrix.rows + matrix.columns - axis
    total = 0.0
    for out in kernel.members:
        member = matrix.members[out]
        for read in member.task.reads if out in scene.contractions else ():
            own = {s for e in read.indices for s in e.free_symbols}
            if member.at[axis] not in own and read.tensor not in matrix.members:
                batch = {s for k, s in enumerate(member.at) if k not in (axis, length)}
                total += scene.points([i.extent for i in member.task.indices if i.symbol in own - batch])
    return total / scene.points([matrix.shape[length]]) * (1 / size - 1 / APART)


# The tasks, kernel by kernel.


def in_bands(matrix: Matrix, kernels: Sequence[Sums], rows: Sequence[int], scene: Scene, number: int) -> Work:
    """The work with the members of each kernel in a band of their own, and again what an earlier kernel has as well."""
    work = scene.work
    tensors = dict(work.tensors)
    seen: set[str] = set()
    made: dict[str, list[Task]] = {}  # before which of the old tasks each stands
    for k, (kernel, size) in enumerate(zip(kernels, rows, strict=True)):
        axis = matrix.axis(kernel.along)
        names: dict[str, str] = {}
        for out in kernel.members:
            if out in seen:
                names[out] = fresh(f"{out}_again", tensors)
                tensors[names[out]] = replace(tensors[out], name=names[out])
        seen.update(kernel.members)
        last = kernel.members[-1]
        for out in sorted(kernel.members, key=lambda out: not is_first(out, matrix)):
            member = matrix.members[out]
            symbol = member.at[axis]
            index = next(i for i in member.task.indices if i.symbol == symbol)
            task = copied(member.task, names) if names else member.task
            made.setdefault(last, []).append(replace(task, band=Band(number + k, member.at, index, size)))
    tasks = [
        new
        for task in work.tasks
        for new in (*made.get(task.out, ()), *(() if task.out in matrix.members else (task,)))
    ]
    return replace(work, tasks=tuple(in_order(tasks)), tensors=tensors)


def is_first(out: str, matrix: Matrix) -> bool:
    """Whether a member needs no other: such products come first, that what follows them share its loops."""
    return all(read.tensor not in matrix.members for read in matrix.members[out].task.reads)


def copied(task: Task, names: Mapping[str, str]) -> Task:
    """`task` reading what is computed again, and if it is so itself, under its new name."""
    task = reading(task, names)
    if task.out not in names:
        return task
    origin = replace(task.formula.origin, rule="recompute", formula=task.formula.origin.formula or task.out)
    return replace(task, formula=replace(task.formula, out=names[task.out], origin=origin))
