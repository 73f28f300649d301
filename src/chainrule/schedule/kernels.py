"""Which tasks become one kernel: the same joining rule at the top, where a loop runs over blocks that threads divide.

A reduction over the blocks' index joins with one partial result per block, which a later kernel adds in order, where
the partials stay smaller than what the loop reads. Everything is cut by shape alone, never by the number of threads,
so that these change no bit. Work too small to share goes to a kernel without blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import sympy as sp

from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Index, Reduce
from chainrule.ir.graph import Tensor
from chainrule.ir.machine import CPU, Machine
from chainrule.ir.recurrence import still_indices
from chainrule.schedule.cost import Sizes, bytes_of, cost_at
from chainrule.schedule.drafts import Draft, even
from chainrule.schedule.epilogue import end_product
from chainrule.schedule.links import Links, links_of
from chainrule.schedule.product import Contraction, contractions_of, far_operand, is_far
from chainrule.schedule.stretches import LAYER, starts_of
from chainrule.schedule.task import PART, Band, Task, fresh, is_in_loop, is_like, partial_of, task_of
from chainrule.schedule.tree import AHEAD, LANES, Ground, Group, Item, gain, is_linked, joining
from chainrule.schedule.updates import beside, share, updates_of

LONG_NS = 2_000.0
"""A kernel without blocks that takes this long, of which a launch is a fortieth, ends where it would repeat itself from
its start; at half as much again at any repetition, at twice as much anywhere. So deep networks of small layers have
many equal kernels, and short ones: each is compiled once."""

FORMULAS = 48
"""A kernel that holds this many takes no further product, so that deep networks have many equal kernels."""

FAR = 96
"""Drafts: farther back, what they and a task share has left the cache."""

TILE_ROWS = 32
FAR_ROWS = 128
"""What a block should at least divide of a product's rows or columns: of one whose operands lie in the second-level
cache, and of one with an operand that is farther away."""

STEP_ROWS = 16
"""The same for a product in a recurrence, whose other operand is read again in the next step."""

SHARES = 16
"""Blocks of a long product are longer than that, for each packs the other operand anew, while there are so many."""

MINOR = 16
"""Products that together are less than such a part of a kernel's work have no say in its blocks."""

BLOCK_BYTES = 1 << 18
"""What the temporaries of a block may take: they should stay in the second-level cache."""


def planner_of(tasks: Sequence[Task], tensors: Mapping[str, Tensor], sizes: Sizes, machine: Machine = CPU) -> Planner:
    """Every task in a draft of a kernel."""
    links = links_of(tasks)
    contractions = contractions_of(tasks, sizes, machine)
    costs = [cost_at(task, sizes, product=k in contractions) for k, task in enumerate(tasks)]
    serial = machine.tiles and sum(costs) < machine.serial_ns
    planner = Planner(links, contractions, dict(tensors), sizes, costs, serial, machine)
    planner.put_all()
    starts = frozenset(t for t in starts_of(tasks, planner.result_bytes) if planner.is_long(t))
    if starts:  # layers that kernels hold anyway had better be kernels
        planner = Planner(links, contractions, dict(tensors), sizes, costs, serial, machine, starts)
        planner.put_all()
    return planner


@dataclass
class Planner:
    links: Links
    contractions: dict[int, Contraction]
    tensors: dict[str, Tensor]
    sizes: Sizes
    costs: list[float]
    serial: bool
    machine: Machine = CPU
    starts: frozenset[int] = frozenset()  # the tasks with which equal layers begin
    drafts: list[Draft] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    parts: dict[int, tuple[Task, Task]] = field(default_factory=dict)  # task: its partial, and their sum
    sums: dict[int, int] = field(default_factory=dict)  # task: the draft that adds its partials
    shares: dict[int, int] = field(default_factory=dict)  # task: the draft that computes them
    rows: dict[tuple[int, sp.Symbol], int] = field(default_factory=dict)  # what `tile_rows` has found
    bytes: dict[tuple[int, sp.Symbol], int] = field(default_factory=dict)  # what `row_bytes` has found

    def put_all(self) -> None:
        for t in range(len(self.links.tasks)):
            if t not in self.place:  # with others that it cannot be without
                self.put(t)

    def result_bytes(self, task: Task) -> int:
        return bytes_of(task.formula.dtype) * self.sizes.points(task.formula.shape)

    def is_long(self, t: int) -> bool:
        """Whether `t` is in a kernel of blocks that holds as much as a layer around it."""
        draft = self.drafts[self.place[t]]
        near = sum(abs(k - t) < 2 * LAYER for k in draft.tasks)
        return draft.index is not None and near >= LAYER and self.costs[t] >= self.machine.tiny_ns

    def put(self, t: int) -> None:
        """Task `t` into the latest draft that it may join, else into a new one."""
        circles, band = self.links.tasks[t].circles, self.links.tasks[t].band
        if circles:
            self.put_circle([k for k, task in enumerate(self.links.tasks) if is_in_loop(task, circles[0].number)])
            return
        if band is not None and not self.serial:
            self.put_band(band)
            return
        earliest = max(max((self.done(p, t) for p in self.links.before[t]), default=0), self.awaited(t))
        if end_product(t, earliest, self):
            return
        if not self.serial and not self.begins(t) and not self.is_alone(t) and self.join(t, earliest):
            return
        if self.is_alone(t):
            index = self.options(t)[0]
            product = t if t in self.contractions else None
            self.add(t, len(self.drafts), index.symbol, Draft(index, closed=True, product=product))
            return
        tiny = self.serial or (self.costs[t] < self.machine.tiny_ns and t not in self.updates)
        options = [] if tiny else list(self.options(t))
        shared = None if tiny else self.shared(t)
        if shared is not None:
            self.drafts.append(Draft(shared))
            self.add_partial(t, len(self.drafts) - 1, shared)
        elif options:
            index = max(options, key=lambda i: (self.gain(t, i), -options.index(i)))
            self.add(t, len(self.drafts), index.symbol, Draft(index))
        else:
            self.put_serial(t, earliest)

    def is_alone(self, t: int) -> bool:
        """Whether `t` shares no kernel: a product whose own tiles divide the machine, or a sum into computed places,
        each of which has an owner."""
        own = t in self.contractions or (bool(self.links.tasks[t].scattered) and bool(self.options(t)))
        return own and not self.machine.tiles and not self.serial

    def begins(self, t: int) -> bool:
        """Whether `t` begins a kernel because a layer begins with it: equal layers then have equal kernels. Not after
        so little work that it is worth no kernel of its own."""
        before = (self.costs[k] for k in self.drafts[self.place[t - 1]].tasks) if t in self.starts else ()
        return t in self.starts and sum(before) >= self.machine.serial_ns

    def done(self, p: int, t: int) -> int:
        """The draft after which, or in which, `t` may run for all that `p` does: what overwrites what a partial result
        reads need not wait for the sum."""
        reads = any(read.tensor == self.links.tasks[p].out for read in self.links.tasks[t].reads)
        return self.place[p] if reads else self.shares.get(p, self.place[p])

    def awaited(self, t: int) -> int:
        """The draft before which no reader of `t` can run, where that is one whose reading is smaller than the result:
        what is larger than what it is made of is not kept, but made where it is read."""
        tasks, found = self.links.tasks, t
        while len(readers := self.links.readers.get(tasks[found].out, ())) == 1 and self.grows(found):
            (found,) = readers
        others = (p for p in self.links.before[found] if p in self.place) if found != t else ()
        return max((self.place[p] for p in others), default=0)

    def grows(self, t: int) -> bool:
        """Whether the result of a map is larger than all that it reads."""
        task = self.links.tasks[t]
        read = sum(self.sizes.points(self.tensors[name].shape) for name in {read.tensor for read in task.reads})
        return not task.over and self.sizes.points(task.formula.shape) > read

    def put_circle(self, members: Sequence[int]) -> None:
        """All of a recurrence into one draft, for its steps follow each other: blocks divide what all of it has in
        common, such as the batch."""
        outside = {p for t in members for p in self.links.before[t]} - set(members)
        earliest = max((self.place[p] for p in outside), default=0)
        common = self.common(members)
        if self.serial or not common or sum(self.costs[t] for t in members) < self.machine.tiny_ns:
            self.put_serial(members[0], earliest)
            for t in members[1:]:
                self.place[t] = self.place[members[0]]
                self.drafts[self.place[t]].tasks.append(t)
            return
        at = len(self.drafts)
        self.drafts.append(Draft(common[0][members[0]]))
        for t in members:
            if common[0][t] in self.links.tasks[t].over:
                self.add_partial(t, at, common[0][t])
            else:
                self.add(t, at, common[0][t].symbol)

    def put_band(self, band: Band) -> None:
        """All tasks of a band into one draft, whose blocks have so many rows each."""
        self.drafts.append(Draft(band.index, rows=band.size, closed=True))
        for k, task in enumerate(self.links.tasks):
            if task.band is not None and task.band.number == band.number:
                self.add(k, len(self.drafts) - 1, task.band.index.symbol)

    def common(self, members: Sequence[int]) -> list[dict[int, Index]]:
        """Which index of each task of a recurrence may be one and the same: all reads among them are at its place, and
        what reduces it can be added up later."""
        tasks = {self.links.tasks[t].out: t for t in members}
        found = []
        for symbols in still_indices([self.links.tasks[t].formula for t in members]):
            chosen = {
                tasks[out]: index
                for out, symbol in symbols.items()
                for index in self.links.tasks[tasks[out]].free
                if index.symbol == symbol
            }
            divides = all(i in self.links.tasks[t].axes or self.may_part(t) for t, i in chosen.items())
            if divides and len(chosen) == len(tasks):
                found.append(chosen)
        return found

    def options(self, t: int) -> Sequence[Index]:
        """The indices that blocks may divide: never one that is reduced, for its parts would have to be added.

        Each block fetches all of the operand that its index does not divide: of a near and a far one, the near one.
        """
        contraction = self.contractions.get(t)
        task = self.links.tasks[t]
        if contraction is None:
            # by its columns, a sum of rows would leave each of them to one thread of the one block
            return task.axes[: max(len(task.axes) - 1, 1)] if self.machine.blocks == 1 else task.axes
        own = {contraction.left: contraction.rows, contraction.right: contraction.columns}
        far = far_operand(contraction, self.sizes)
        divided = (*contraction.rows, *contraction.columns) if far is None else own[far]
        return [axis for axis in task.axes if axis in (*contraction.batch, *divided)]

    def shared(self, t: int) -> Index | None:
        """The outermost index of a sum, if blocks do better to divide it: their partial results are little beside what
        they read, while parts of a short result would each walk all of that."""
        task = self.links.tasks[t]
        grows = any(not axis.extent.is_Integer for axis in task.axes)
        if not task.over or grows or self.costs[t] < 4 * self.machine.block_ns or self.parts_well(t):
            return None
        index = task.over[0]
        draft = Draft(index, {t: index.symbol}, [t])
        return index if self.partial_pays(t, index, draft) else None

    def parts_well(self, t: int) -> bool:
        """Whether parts of the result read stretches of memory of their own, as a maximum of each row does."""
        task = self.links.tasks[t]
        inner = {s for read in task.reads if read.indices for s in read.indices[-1].free_symbols}
        rows = [axis for axis in task.axes if axis.symbol not in inner]
        return t not in self.contractions and any(self.sizes.of(axis.extent) >= self.machine.parts for axis in rows)

    def gain(self, t: int, index: Index) -> float:
        tasks = self.links.tasks
        following = [Item(k, tasks[k].axes) for k in range(t + 1, min(t + 1 + AHEAD, len(tasks)))]
        return gain(t, index, following, self.ground)

    @cached_property
    def ground(self) -> Ground:
        """At the top every index of a result may be divided, a product's rows and columns too."""
        return Ground(self.links, {}, {}, self.sizes)

    def join(self, t: int, earliest: int) -> bool:
        """Into the latest draft that computes what `t` reads, else into one that shares some other read with it."""
        first = max(earliest, len(self.drafts) - FAR)
        for linked in (True, False):
            for at in range(len(self.drafts) - 1, first - 1, -1):
                draft = self.drafts[at]
                if draft.index is None or self.is_full(draft, t) or not self.share(t, draft):
                    continue
                group = Group(draft.index, False, draft.opened)
                if is_linked(t, group, self.ground) == linked and self.join_draft(t, at, group):
                    return True
        return False

    @cached_property
    def updates(self) -> frozenset[int]:
        """The tasks whose kernels are flat maps, for a machine of small blocks."""
        return frozenset() if self.machine.tiles or self.serial else updates_of(self.links, self.tensors)

    def share(self, t: int, draft: Draft) -> bool:
        return share(t, draft.tasks, self.links, self.tensors, self.updates)

    def join_draft(self, t: int, at: int, group: Group) -> bool:
        draft = self.drafts[at]
        index = joining(t, self.options(t), group, self.ground) or self.shared_dim(t, draft)
        index = index or beside(t, draft.opened, self.links, self.updates)
        if index is not None and self.suits(t, index, draft):
            self.add(t, at, index.symbol)
            return True
        index = joining(t, self.links.tasks[t].over, group, self.ground)
        if index is not None and self.partial_pays(t, index, draft):
            self.add_partial(t, at, index)
            return True
        return False

    def suits(self, t: int, index: Index, draft: Draft) -> bool:
        """Whether blocks that hold `t` as well would be long enough for each product's tiles: one picture is work
        enough for a convolution, and a matrix wants many rows. Where blocks divide what vectors run along, they are
        some vectors long. Threads that share a block want neither."""
        if not self.machine.tiles:
            return True
        opened = {**draft.opened, t: index.symbol}
        wanted = [self.tile_rows(k, opened[k]) for k in (*draft.tasks, t) if self.costs[k] >= self.machine.tiny_ns]
        size = self.block_size(Draft(draft.index, opened, [*draft.tasks, t]))
        extent = self.sizes.of(index.extent)
        along = index == self.links.tasks[t].axes[-1] and t not in self.contractions
        return 2 * size >= min(max(wanted, default=0), extent) and (not along or size >= min(2 * LANES, extent))

    def shared_dim(self, t: int, draft: Draft) -> Index | None:
        """Independent work over the same symbolic size, which is what a step has in common, joins as well."""
        assert draft.index is not None
        if draft.index.extent.is_Integer or any(p in draft.opened for p in self.links.before[t]):
            return None
        return next((axis for axis in self.options(t) if axis.extent == draft.index.extent), None)

    def is_full(self, draft: Draft, t: int) -> bool:
        """Whether task `t` has to go elsewhere. A kernel without blocks then takes nothing else either."""
        if draft.closed:
            return True
        filled = 2 * len(draft.tasks) / FORMULAS
        if draft.index is None and not self.serial:
            filled = max(filled, sum(self.costs[k] for k in draft.tasks) / LONG_NS)
            draft.closed = filled > 2 or self.repeats(draft, t, filled)
            return draft.closed
        return filled >= (2 if t in self.contractions else 6) or self.repeats(draft, t, filled)

    def repeats(self, draft: Draft, t: int, filled: float) -> bool:
        """Whether a kernel that is long enough would repeat itself with `t`: from its start, or what runs once
        anywhere, when it is longer."""
        if self.serial or filled < 1:
            return False
        starts = draft.tasks[: None if draft.index is None and filled >= 1.5 else 1]
        return any(is_like(self.links.tasks[t], self.links.tasks[k]) for k in starts)

    def may_part(self, t: int) -> bool:
        """Whether the partial results of blocks can be put together."""
        task = self.links.tasks[t]
        return self.machine.parts > 1 and task.reduce is not Reduce.ARGMAX and not task.scattered and task.store is None

    def partial_pays(self, t: int, index: Index, draft: Draft) -> bool:
        """Whether the partial results of a block are fewer than what the block reads for them."""
        if not self.may_part(t):
            return False
        task, size = self.links.tasks[t], self.block_size(replace(draft, blocks=PART))
        result = self.sizes.points(axis.extent for axis in task.axes)
        extents = {i.symbol: self.sizes.of(i.extent) for i in task.indices} | {index.symbol: size}
        grows = any(not axis.extent.is_Integer for axis in task.axes)
        far = far_operand(self.contractions[t], self.sizes) if grows and t in self.contractions else None
        read = 0
        for access in task.reads:
            if access == far and not any(self.links.tasks[p].out == access.tensor for p in draft.opened):
                continue  # blocks of a kernel of its own would read that once as well
            points = 1
            for symbol in set().union(*(i.free_symbols for i in access.indices), set()):
                points *= extents.get(symbol, 1)
            # windows overlap, so their places are fewer than their indices' values
            points = min(points, self.sizes.points(self.tensors[access.tensor].shape))
            read += 2 * points if self.stays(access.tensor, t, draft) else points
        return 4 * result <= read  # written, added and read again

    def stays(self, tensor: str, t: int, draft: Draft) -> bool:
        """Whether `draft` computes a tensor that `t` alone needs: there it would be neither written nor read again."""
        made = any(self.links.tasks[p].out == tensor for p in self.links.before[t] if p in draft.opened)
        return made and self.links.readers.get(tensor) == (t,)

    def put_serial(self, t: int, earliest: int) -> None:
        for at in range(len(self.drafts) - 1, max(earliest, len(self.drafts) - FAR) - 1, -1):
            draft = self.drafts[at]
            if draft.index is None and not self.is_full(draft, t):
                draft.tasks.append(t)
                self.place[t] = at
                return
        self.drafts.append(Draft(None, tasks=[t]))
        self.place[t] = len(self.drafts) - 1

    def add(self, t: int, at: int, symbol: sp.Symbol, draft: Draft | None = None) -> None:
        if draft is not None:
            self.drafts.append(draft)
        self.drafts[at].tasks.append(t)
        self.drafts[at].opened[t] = symbol
        self.place[t] = at

    def add_partial(self, t: int, at: int, index: Index) -> None:
        """A share for each block now; their sum comes as work of its own, which what reads it must wait for."""
        draft, task = self.drafts[at], self.links.tasks[t]
        if draft.blocks is None:
            draft.blocks = dim_symbol(fresh(f"_blocks{at}", (s.name for s in self.sizes.known)))
            self.sizes.known[draft.blocks] = 8
        name = fresh(f"{task.out}_part", self.tensors)
        part, total = partial_of(task, draft.blocks, name)
        self.tensors[name] = Tensor(name, (draft.blocks, *task.formula.shape), task.formula.dtype)
        self.parts[t] = (part, task_of(total, self.tensors))
        draft.tasks.append(t)
        draft.opened[t] = index.symbol
        self.shares[t] = at
        if self.machine.sums_apart:
            self.sums[t] = self.place[t] = len(self.drafts)
            self.drafts.append(Draft(total.axes[0] if total.axes else None, closed=True))
            return
        # the sum runs in a later kernel without blocks
        for later in range(at + 1, len(self.drafts)):
            if self.drafts[later].index is None:
                self.sums[t] = self.place[t] = later
                return
        self.drafts.append(Draft(None))
        self.sums[t] = self.place[t] = len(self.drafts) - 1

    def block_size(self, draft: Draft) -> int:
        """Rows of a block: enough work to be worth one, few enough that its temporaries stay in the cache."""
        assert draft.index is not None
        if draft.rows:
            return draft.rows
        extent = max(1, self.sizes.of(draft.index.extent))
        cost = sum(self.costs[t] for t in draft.tasks) + sum(
            self.sizes.points(i.extent for i in self.parts[t][1].indices)
            for t, at in self.sums.items()
            if self.drafts[at] is draft
        )
        row = sum(self.row_bytes(t, draft.opened[t]) for t in draft.tasks)
        most = self.machine.blocks if draft.blocks is None else self.machine.parts
        size = max(math.ceil(extent * min(1.0, self.machine.block_ns / max(cost, 1.0))), math.ceil(extent / most))
        rows = self.wanted_rows(draft, cost)
        if rows:  # the block's results stay in the cache, if its tiles can afford it
            size = max(rows, min(size, BLOCK_BYTES // max(row, 1)))
        if size > LANES and draft.index.extent.is_Integer:
            size = even(extent, size)
        elif size > LANES:
            size = -(-size // (2 * LANES)) * 2 * LANES
        return min(size, extent) if draft.index.extent.is_Integer else size

    def wanted_rows(self, draft: Draft, cost: float) -> int:
        """As many rows as products want that together are no minor part of the kernel's work."""
        found, work = 0, 0.0
        for rows, each in sorted(
            ((self.tile_rows(t, draft.opened[t]), self.costs[t]) for t in draft.tasks), reverse=True
        ):
            found, work = rows, work + each
            if MINOR * work >= cost:
                break
        return found

    def tile_rows(self, t: int, symbol: sp.Symbol) -> int:
        """What a block should hold at least if it divides a product: its tiles read the other operand once a block."""
        if (t, symbol) not in self.rows:
            self.rows[t, symbol] = self._tile_rows(t, symbol)
        return self.rows[t, symbol]

    def _tile_rows(self, t: int, symbol: sp.Symbol) -> int:
        contraction = self.contractions.get(t)
        if contraction is None or not self.machine.tiles or symbol in {i.symbol for i in contraction.batch}:
            return 0
        groups = (contraction.rows, contraction.columns, contraction.inner)
        mine = next(group for group in groups if symbol in {i.symbol for i in group})
        beside = self.sizes.points(i.extent for i in mine if i.symbol != symbol)  # of what one index gives
        rows = STEP_ROWS if self.links.tasks[t].circles else TILE_ROWS
        if mine is not contraction.inner:
            extent = next(i.extent for i in mine if i.symbol == symbol)
            if extent.is_Integer and beside == 1:
                rows = min(max(rows, int(extent) // SHARES), FAR_ROWS)
            rest = (i for group in groups if group is not mine for i in group)
            if far_operand(contraction, self.sizes) is not None or is_far(rest, self.sizes):
                half = -(-int(extent) * beside // 2) if extent.is_Integer else FAR_ROWS  # for two threads
                rows = min(FAR_ROWS, max(rows, half))
        return -(-rows // max(1, beside))

    def row_bytes(self, t: int, symbol: sp.Symbol) -> int:
        """What the result of a task takes for one value of the block's index."""
        if (t, symbol) not in self.bytes:
            task = self.links.tasks[t]
            points = self.sizes.points(a.extent for a in task.axes if a.symbol != symbol)
            self.bytes[t, symbol] = bytes_of(task.formula.dtype) * points
        return self.bytes[t, symbol]
