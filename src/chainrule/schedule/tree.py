"""Who joins which loop: the one greedy rule that builds a kernel's tree of loops.

    build(tasks in order, each with its indices not yet opened):
        each joins the latest group whose loop it may share, or opens a group on the index that lets most of the
        following work join; no index left: a leaf
        recurse into each group with that index removed

Indices are aligned pairwise, by access, and never by name: attention reads one time axis as query and as key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.ir.formula import Index, Reduce
from chainrule.schedule.cost import Sizes, bytes_of
from chainrule.schedule.links import Links
from chainrule.schedule.product import Contraction
from chainrule.schedule.task import Circle, Task

LANES = 8
"""What a vector holds, about: shorter rows of accumulators are slower than one scalar at a time."""

NEAR = 256
"""Elements that are in the nearest cache in any case, so that strides cost nothing."""

STRIDED = 0.75
"""What work counts for that joins along the axis in which memory is contiguous."""

STRIP = 64
"""Places of a strip at most: so many rows are enough for each tile that reads the other operand anew."""

STRIP_BYTES = 5 << 18
"""What products pass to each other within a strip: less than the second cache, for the other operands are beside it."""

AHEAD = 32
"""How many of the following tasks the choice of a new loop looks at."""


@dataclass(frozen=True)
class Branch:
    """A loop that its members share: `opened` says which of each one's indices it is."""

    number: int
    extent: sp.Expr
    blocked: bool  # runs over the block's part of the extent
    pretty: str
    opened: Mapping[int, sp.Symbol]
    body: tuple[Branch | Twig, ...]
    ahead: bool = False  # a recurrence whose steps run down
    strip: int = 0  # of so many places of the extent each turn has one strip: inside, the index is open over these


@dataclass(frozen=True)
class Twig:
    """A leaf: a task whose loops are all open, but for a product's own."""

    task: int


@dataclass(frozen=True)
class Item:
    task: int
    free: tuple[Index, ...]  # the indices that still want a loop


@dataclass
class Group:
    index: Index
    blocked: bool
    opened: dict[int, sp.Symbol]
    items: list[Item] = field(default_factory=list)
    circle: Circle | None = None  # its loop is that of a recurrence, which nothing else joins
    strip: int = 0  # its loop is over strips of so many places, which have their members already
    inside: int = 0  # it runs over a strip of so many places


@dataclass(frozen=True)
class Ground:
    """What does not change while a kernel's tree grows."""

    links: Links
    contractions: Mapping[int, Contraction]
    block: Mapping[int, sp.Symbol]  # of each task the index that the kernel's blocks divide
    sizes: Sizes
    masks: Mapping[int, tuple[sp.Basic, ...]] = field(default_factory=dict)  # of products: what of them is needed
    needed: frozenset[str] | None = None  # the results that others read; None: not known
    strips: Mapping[int, tuple[sp.Symbol, int]] = field(default_factory=dict)  # of tasks: the index cut in strips, size
    placed: frozenset[int] = frozenset()  # the products whose places are turns of loops, which others share

    def may_open(self, item: Item) -> list[Index]:
        """The indices of `item` that may be the next loop around it."""
        contraction = self.contractions.get(item.task)
        task = self.links.tasks[item.task]
        if contraction is not None:
            own = task.axes if item.task in self.placed else contraction.batch
            return [i for i in item.free if i in own]
        if task.reduce is Reduce.ARGMAX:
            # the first of equals wins, so its loops keep their order, around one running maximum
            axes = [i for i in item.free if i in task.axes]
            return axes or list(item.free[:1])
        # a reduction loop outside would keep an array of accumulators, here one too short to be a vector
        left = [i for i in item.free if i in task.axes]
        narrow = bool(left) and self.sizes.of(left[-1].extent) < LANES
        inner = [i for i in item.free if not (narrow and i in task.over)]
        if self.sizes.points(i.extent for i in item.free) < NEAR:
            return inner
        # where every loop hurts, strides do the least harm
        return [i for i in inner if not is_strided(task, i, item.free)] or inner

    def shares_a_read(self, p: int, t: int, pair: tuple[sp.Symbol, sp.Symbol]) -> bool:
        """Whether p and t read some tensor at the same place along the pair, and surely more than a vector of it."""
        (a, j), read = pair, self.links.tasks[p].read_at
        return any(
            a in read.get((tensor, axis), ()) and not (places.is_Integer and places < LANES)
            for tensor, axis, places in self.links.tasks[t].reads_along.get(j, ())
        )

    def blocked(self, task: int, index: Index) -> bool:
        return task in self.block and bool(self.block[task] == index.symbol)

    def strip(self, task: int, index: Index) -> int:
        """How many places of `index` are in the strip that is open around `task`; 0: all."""
        symbol, size = self.strips.get(task, (None, 0))
        return size if symbol == index.symbol else 0


def build(
    items: Sequence[Item], ground: Ground, count: list[int] | None = None, inside: int = 0
) -> tuple[Branch | Twig, ...]:
    """The loops over `items`, in order. `count` numbers the loops of the whole kernel; `inside`: how many recurrences
    are open."""
    count = [0] if count is None else count
    groups: list[Group | Twig] = []
    place: dict[int, int] = {}
    strips, strips_at = None if inside else stripped(items, ground), 0
    for k, item in enumerate(items):
        if strips is not None and item.task in strips.opened:
            if item is strips.items[0]:
                strips_at = len(groups)
                groups.append(strips)
            place[item.task] = strips_at
            continue
        circles = ground.links.tasks[item.task].circles[inside:]
        if circles:
            place[item.task] = _stepped(item, circles[0], groups)
            continue
        earliest = max((place[p] for p in ground.links.before[item.task] if p in place), default=0)
        options = ground.may_open(item)
        if not options:
            place[item.task] = len(groups)
            groups.append(Twig(item.task))
            continue
        at, index = _joined(item, options, groups, earliest, ground)
        if index is None:
            index = _best(item, options, items[k + 1 : k + 1 + AHEAD], ground)
            at = len(groups)
            groups.append(Group(index, ground.blocked(item.task, index), {}, inside=ground.strip(item.task, index)))
        group = groups[at]
        assert isinstance(group, Group)
        group.opened[item.task] = index.symbol
        group.items.append(Item(item.task, tuple(i for i in item.free if i is not index)))
        place[item.task] = at
    result: list[Branch | Twig] = []
    for group in groups:
        if isinstance(group, Twig):
            result.append(group)
        else:
            number, count[0] = count[0], count[0] + 1
            circle = group.circle
            below = replace(ground, strips={t: (s, group.strip) for t, s in group.opened.items()})
            body = build(group.items, below if group.strip else ground, count, inside + (circle is not None))
            ahead = circle is not None and circle.ahead
            extent = sp.Integer(group.inside) if group.inside else group.index.extent
            result.append(
                Branch(number, extent, group.blocked, group.index.name, group.opened, body, ahead, group.strip)
            )
    return tuple(result)


def stripped(items: Sequence[Item], ground: Ground) -> Group | None:
    """The tasks that had better share a loop over strips of an index: what some products make others then read from a
    strip's scratch, where all of it would not stay in the cache.

    An index that blocks divide is cut already, and one strip is not cut again.
    """
    best, most = None, STRIP_BYTES
    for k, item in enumerate(items):
        contraction = ground.contractions.get(item.task)
        if contraction is None or ground.strips or ground.needed is None or ground.may_open(item):
            continue
        for index in contraction.rows:
            if index.extent.is_Integer and not ground.blocked(item.task, index):
                group = _along(index, items[k:], ground)
                kept = _kept_bytes(group, ground)
                size = _strip_size(int(index.extent), kept)
                if kept > most and size:
                    best, most = replace(group, strip=size), kept
    return best


def _along(index: Index, items: Sequence[Item], ground: Ground) -> Group:
    """The first of `items` and all that may follow it in a loop over `index`, or be added up there."""
    first = items[0]
    group = Group(index, False, {first.task: index.symbol}, [first])
    outside: set[int] = set()
    for item in items[1:]:
        task = ground.links.tasks[item.task]
        options = [i for i in item.free if task.reduce is not Reduce.ARGMAX or i in task.axes]
        joins = None
        if not task.circles and outside.isdisjoint(ground.links.before[item.task]):
            joins = joining(item.task, options, group, ground)
        if joins is None:
            outside.add(item.task)
        else:
            group.opened[item.task] = joins.symbol
            group.items.append(item)
    return group


def _kept_bytes(group: Group, ground: Ground) -> int:
    """What products pass to each other, or to what is around them, in a loop of `group`."""
    links, total = ground.links, 0
    for item in group.items:
        task = links.tasks[item.task]
        readers = links.readers.get(task.out, ())
        own = group.opened[item.task] in {a.symbol for a in task.axes} and task.store is None
        near = own and task.out not in (ground.needed or ()) and all(r in group.opened for r in readers)
        if near and any(t in ground.contractions for t in (item.task, *readers)):
            total += bytes_of(task.formula.dtype) * ground.sizes.points(i.extent for i in item.free if i in task.axes)
    return total


def _strip_size(extent: int, kept: int) -> int:
    """The places of a strip, an even part of all, so that what is kept of it stays in the cache; 0: there is none."""
    fitting = (b for b in range(STRIP, 0, -LANES) if extent % b == 0 and kept * b <= STRIP_BYTES * extent)
    return next(fitting, 0)


def _stepped(item: Item, circle: Circle, groups: list[Group | Twig]) -> int:
    """Put `item` into the loop of its recurrence, which its first task opens; where that loop is."""
    numbers = [g.circle.number if isinstance(g, Group) and g.circle is not None else None for g in groups]
    if circle.number not in numbers:
        numbers.append(circle.number)
        groups.append(Group(circle.step, False, {}, circle=circle))
    at = numbers.index(circle.number)
    group = groups[at]
    assert isinstance(group, Group)
    group.opened[item.task] = circle.step.symbol
    group.items.append(item)
    return at


def _joined(
    item: Item, options: Sequence[Index], groups: Sequence[Group | Twig], earliest: int, ground: Ground
) -> tuple[int, Index | None]:
    """The latest group, not before `earliest`, whose loop `item` may share, and the index that it shares it with.

    First come those that compute what it reads: the value is at hand there.
    """
    for linked in (True, False):
        for at in range(len(groups) - 1, earliest - 1, -1):
            group = groups[at]
            if not isinstance(group, Group) or group.circle is not None or group.strip:
                continue
            if linked == is_linked(item.task, group, ground):
                index = joining(item.task, options, group, ground)
                if index is not None:
                    return at, index
    return -1, None


def is_linked(task: int, group: Group, ground: Ground) -> bool:
    return any(p in group.opened for p in ground.links.before[task])


def joining(task: int, options: Sequence[Index], group: Group, ground: Ground) -> Index | None:
    """The index with which `task` may join `group`, if there is one that is good for something."""
    before = ground.links.before[task]
    linked = [p for p in group.opened if p in before]
    fitting = []
    for index in options:
        if index.extent != group.index.extent or ground.blocked(task, index) != group.blocked:
            continue
        if ground.strip(task, index) != group.inside:
            continue
        if all((group.opened[p], index.symbol) in before[p] for p in linked):
            fitting.append(index)
    if linked or not fitting:
        return fitting[0] if fitting else None
    first, band = next(iter(group.opened.items())), ground.links.tasks[task].band
    if band is not None and (other := ground.links.tasks[first[0]].band) is not None:  # all of a band is one nest
        return next((i for i in fitting if (first[1], i.symbol) in other.alike(band)), None)
    for index in fitting:
        pairs = ((p, (a, index.symbol)) for p, a in group.opened.items())
        if any(ground.shares_a_read(p, task, pair) for p, pair in pairs):
            return index
    return fitting[0] if group.blocked else None


def _best(item: Item, options: Sequence[Index], following: Sequence[Item], ground: Ground) -> Index:
    """The index over which most of the following work may join; a loop that walks memory in strides counts for less."""
    if len(options) == 1:
        return options[0]
    return max(options, key=lambda index: (gain(item.task, index, following, ground), -options.index(index)))


def gain(task: int, index: Index, following: Sequence[Item], ground: Ground) -> float:
    """The points of the work that could join a loop of `task` over `index`, its own included.

    A small update must not turn the loops of a large product inside out.
    """
    tasks = ground.links.tasks
    members = joinable(task, index, following, ground)
    points = sum(ground.sizes.points(i.extent for i in tasks[t].axes) for t in members)
    own = tasks[task]
    return points * (STRIDED if is_strided(own, index, own.axes) else 1.0)


def joinable(task: int, index: Index, following: Sequence[Item], ground: Ground) -> Iterable[int]:
    """`task`, and those of `following` that could join a loop of it over `index`."""
    group = Group(index, ground.blocked(task, index), {task: index.symbol}, inside=ground.strip(task, index))
    outside: set[int] = set()
    for item in following:
        joins = None
        if outside.isdisjoint(ground.links.before[item.task]):
            joins = joining(item.task, ground.may_open(item), group, ground)
        if joins is None:
            outside.add(item.task)
        else:
            group.opened[item.task] = joins.symbol
    return group.opened


def is_strided(task: Task, outer: Index, free: Sequence[Index]) -> bool:
    """Whether loops over the rest of `free` inside one over `outer` walk memory worse than one over `outer` inside."""
    rest = [task.jumps[i.symbol] for i in free if i.symbol != outer.symbol]
    return bool(rest) and min(rest) > task.jumps[outer.symbol]
