"""Recurrences in chunks: what the backward pass needs of the steps is computed again from one state a chunk.

    h[n, t] = f(h[n, t - 1; 0], x[n, t])                                    T steps in chunks of R
        ->
    h.chunk[n, s, r]  = f(h.before[n, s, r], x[n, s R + r])                 forward, of which one chunk is kept
    h.before[n, s, r] = h.chunk[n, s, r - 1] if r > 0 else h.last[n, s - 1; 0]
    h.last[n, s]      = h.chunk[n, s, R - 1]                                the checkpoints
    h.again[n, s, r]  = f(…)                                                backward, each chunk from its checkpoint

Places along s follow each other, forward upwards and backward downwards (`Dim.steps`), so a chunk's tensors are
scratch. With R = √T a recurrence takes √T chunks and √T checkpoints, for one more forward pass: Chen and others 2016,
*Training deep nets with sublinear memory cost*; Griewank and Walther 2000.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
import sympy as sp

from chainrule.ir.expression import Select, dim_symbol, index_symbol, is_slot, quotient, remainder, slot
from chainrule.ir.formula import Access, Extent, Formula, Index, Reduce
from chainrule.ir.graph import Dim, Graph, Node, in_order
from chainrule.ir.recurrence import Recurrence, recurrence_of
from chainrule.ir.rename import fresh_name

STEPS = 16
"""Of a chunk, where nothing says how many steps there are."""

CHUNK, STEP = index_symbol("_chunk"), index_symbol("_step")


def checkpoint(graph: Graph, every: int = 0) -> Graph:
    """Divide each recurrence whose gradient is taken into chunks of `every` steps; 0: of the root of their number.

    A recurrence that reads farther back than one step, or whose gradient is differentiated again, stays as it is.
    """
    for forward, backward in _pairs(graph):
        graph = _divided(graph, region_of(graph, forward, backward), every)
    return graph


def _pairs(graph: Graph) -> list[tuple[Recurrence, Recurrence]]:
    """Recurrences that are simple enough, each with the one that runs the other way and reads it."""
    found = []
    for group in graph.components:
        formulas = [node for node in group if isinstance(node, Formula)]
        if len(formulas) == len(group) and graph.is_recurrent(group[0].out):
            found.append(recurrence_of(formulas))
    simple = [r for r in found if not r.inner and {abs(r.distance(f, read)) for f, read in r.reads} <= {0, 1}]
    pairs = [
        (a, b)
        for a in simple
        for b in simple
        if a.ahead is not b.ahead and a.extent == b.extent and _derives(b.members, a.members)
    ]
    return [(a, b) for a, b in pairs if sum(a is c or b is d for c, d in pairs) == 1]


def _derives(gradient: Iterable[Formula], of: Iterable[Formula]) -> bool:
    names = {f.out for f in of}
    return any(f.origin.rule is not None and f.origin.formula in names for f in gradient)


def chunk_of(extent: Extent, every: int) -> int:
    """Steps of a chunk: near the root of their number, dividing it if that can be."""
    if every or not extent.is_Integer:
        return every or STEPS
    root = math.isqrt(max(int(extent) - 1, 0)) + 1
    even = [k for k in range(max(root // 2, 1), 2 * root + 1) if int(extent) % k == 0]
    return min(even, key=lambda k: abs(k - root), default=root)


@dataclass(frozen=True)
class Region:
    """What goes along the steps of a recurrence and of its gradient, formulas that step beside them too.

    times: of each formula the index that steps. up: those of the forward loop; down: those of the backward loop.
    earlier: -1, or 1 where the forward loop runs down.
    """

    times: Mapping[str, sp.Symbol]
    up: Mapping[str, Formula]
    down: Mapping[str, Formula]
    extent: Extent
    earlier: int

    def formula(self, name: str) -> Formula:
        return self.up[name] if name in self.up else self.down[name]

    def axis(self, name: str) -> int | None:
        """Which axis of a tensor steps; None: it is a sum over the steps."""
        axes = enumerate(self.formula(name).axes)
        return next((k for k, axis in axes if axis.symbol == self.times[name]), None)


def region_of(graph: Graph, forward: Recurrence, backward: Recurrence) -> Region:
    """The two recurrences with all that joins their loops: what only they read, and what reads the gradient's."""
    loops = (forward, backward)
    times = {f.out: loop.step(f).symbol for loop in loops for f in loop.members}
    up, down = ({f.out: f for f in loop.members} for loop in loops)
    found = Region(times, up, down, forward.extent, 1 if forward.ahead else -1)
    network = nx.DiGraph(graph.network)
    after = [nx.descendants(network, loop.members[0].out) for loop in loops]
    size = 0
    while size < len(found.times):
        size = len(found.times)
        for node in graph.nodes:
            if isinstance(node, Formula) and node.out not in found.times and not graph.is_recurrent(node.out):
                found = _with(found, node, graph, after)
    return found


def _with(found: Region, f: Formula, graph: Graph, after: Sequence[set[str]]) -> Region:
    """`found`, with `f` where that may be computed in one of the loops."""
    readers = {node.out for node in graph.readers[f.out]}
    inside = readers <= found.times.keys() and bool(readers) and f.out not in graph.roots
    gradient = f.out in after[1]
    if not gradient and not inside:
        return found
    symbol = _time(f, found)
    if symbol is None and f.out not in after[0]:
        symbol = _time_read(f, found, [graph.producers[name] for name in readers])
    elsewhere = set(f.tensors) - found.times.keys()
    if symbol is None or elsewhere & after[1 if gradient else 0] or not _joins(f, symbol):
        return found
    first = f.out not in after[0] and not readers.isdisjoint(found.up)
    times = {**found.times, f.out: symbol}
    if first:
        return replace(found, times=times, up={**found.up, f.out: f})
    return replace(found, times=times, down={**found.down, f.out: f})


def _joins(f: Formula, symbol: sp.Symbol) -> bool:
    """Whether `f` along `symbol` is a map, or a sum whose terms can be added chunk by chunk and block by block."""
    if symbol in {axis.symbol for axis in f.axes}:
        return True
    return f.reduce is Reduce.SUM and not any(is_slot(s) for c in f.where for s in c.free_symbols)


def _time(f: Formula, found: Region) -> sp.Symbol | None:
    """The index of `f` at which it reads all that it reads of `found`, one step to either side at most."""
    reads = [read for read in f.reads if read.tensor in found.times]
    chosen = None
    for read in reads:
        k = found.axis(read.tensor)
        symbols = [] if k is None else [i.symbol for i in f.indices if _apart(read.indices[k], i.symbol) is not None]
        if not symbols or (chosen is not None and chosen not in symbols):
            return None
        chosen = chosen or symbols[0]
        apart = None if k is None else _apart(read.indices[k], chosen)
        if read.tensor in found.down and apart == found.earlier:
            return None  # the backward loop comes to that later
    return chosen if {i.extent for i in f.indices if i.symbol == chosen} == {found.extent} else None


def _time_read(f: Formula, found: Region, readers: Sequence[Node]) -> sp.Symbol | None:
    """The axis of `f` along which all of its readers, which are of `found`, read it at their step."""
    axes = set(range(len(f.axes)))
    for reader in readers:
        if not isinstance(reader, Formula):
            return None
        for read in (read for read in reader.reads if read.tensor == f.out):
            axes &= {k for k, e in enumerate(read.indices) if _apart(e, found.times[reader.out]) == 0}
    axes = {k for k in axes if f.axes[k].extent == found.extent}
    return f.axes[min(axes)].symbol if axes else None


def _apart(e: sp.Expr, symbol: sp.Symbol) -> int | None:
    """How far `e` is from `symbol`: -1, 0 or 1."""
    apart = sp.expand(e - symbol)
    return int(apart) if apart.is_Integer and abs(int(apart)) <= 1 else None


@dataclass
class Chunks:
    """The formulas of a region, chunk by chunk; they are made when somebody asks for them.

    A tensor is asked for by its name and by the loop: in the backward loop, what the forward loop computed is
    computed again.
    """

    region: Region
    length: int
    counts: tuple[sp.Symbol, sp.Symbol]  # how many chunks, as the forward and the backward loop has it
    finals: frozenset[str]  # whose last step is read after the loop
    taken: set[str]
    made: list[Formula] = field(default_factory=list)
    names: dict[tuple[object, ...], str] = field(default_factory=dict)

    @property
    def is_padded(self) -> bool:
        """Whether the last chunk may have steps that are none."""
        extent = self.region.extent
        return not (extent.is_Integer and int(extent) % self.length == 0)

    @property
    def place(self) -> sp.Expr:
        return CHUNK * self.length + STEP

    def name(self, key: tuple[object, ...], wanted: str) -> tuple[str, bool]:
        """The name for `key`, and whether it is new."""
        if key in self.names:
            return self.names[key], False
        self.names[key] = fresh_name(wanted, self.taken)
        self.taken.add(self.names[key])
        return self.names[key], True

    def steps(self, name: str, back: bool) -> str:
        """The tensor `name` as [chunk, step]."""
        f = self.region.formula(name)
        again = back and name in self.region.up
        out, new = self.name((name, back), f"{name}.again" if again else f"{name}.chunk")
        if new:
            self.made.append(self.rewritten(f, out, back))
        return out

    def rewritten(self, f: Formula, out: str, back: bool) -> Formula:
        """`f` as a part of one of the loops."""
        time = self.region.times[f.out]
        here = {time: self.place}
        reads = tuple(self.read(read, f, back) for read in f.reads)
        body, where = f.body.xreplace(here), tuple(c.xreplace(here) for c in f.where)
        exists = sp.Lt(self.place, self.region.extent)
        if not self.is_padded:
            pass
        elif f.out in self.finals and not back and self.region.earlier < 0:  # steps that are none keep the last state
            k = self.region.axis(f.out)
            before = Access(f.out, tuple(a.symbol - int(j == k) for j, a in enumerate(f.axes)), sp.S.Zero)
            body = Select(exists, body, slot(len(reads), f.dtype.sort))
            reads = (*reads, self.read(before, f, back))
        elif f.is_map or any(r.symbol == time for r in f.over):
            where = (*where, exists)
        origin = f.origin
        if back and f.out in self.region.up:
            origin = replace(origin, rule="recompute", formula=origin.formula or f.out)
        axes, over = (self.split(indices, time, back) for indices in (f.axes, f.over))
        return replace(f, out=out, axes=axes, over=over, body=body, where=where, reads=reads, origin=origin)

    def split(self, indices: Sequence[Index], time: sp.Symbol, back: bool) -> tuple[Index, ...]:
        pair = (Index(CHUNK, self.counts[back], "chunk"), Index(STEP, sp.Integer(self.length), "step"))
        return tuple(i for index in indices for i in (pair if index.symbol == time else (index,)))

    def read(self, read: Access, f: Formula, back: bool) -> Access:
        """What `f` reads, in its loop; a step that is none reads nothing outside what there is."""
        time = self.region.times[f.out]
        indices = [i.xreplace({time: self.place}) for i in read.indices]
        if read.tensor not in self.region.times:
            guarded = self.is_padded and any(time in i.free_symbols for i in read.indices)
            outside = sp.S.Zero if guarded and read.outside is None else read.outside
            return Access(read.tensor, tuple(indices), outside)
        k = self.region.axis(read.tensor)
        assert k is not None
        apart = _apart(read.indices[k], time)
        name = self.steps(read.tensor, back) if not apart else self.shifted(read, apart, back)
        axes = [axis.extent for axis in self.region.formula(read.tensor).axes]
        extents = {i.symbol: i.extent for i in f.indices}
        inside = all(extents.get(e) == axes[j] for j, e in enumerate(read.indices) if j != k)
        outside = None if inside else read.outside
        return Access(name, (*indices[:k], CHUNK, STEP, *indices[k + 1 :]), outside)

    def shifted(self, read: Access, apart: int, back: bool) -> str:
        """A tensor of the steps one before (-1) or after (1), which for the first or last is in another chunk."""
        of, outside = read.tensor, sp.S.Zero if read.outside is None else read.outside
        out, new = self.name((of, apart, outside, back), f"{of}.{'before' if apart < 0 else 'after'}")
        if not new:
            return out
        f = self.region.formula(of)
        checkpoint = of in self.region.up and apart == self.region.earlier
        edge = self.edge(of, apart, back and not checkpoint)
        axes = self.split(f.axes, self.region.times[of], back)
        places = tuple(axis.symbol for axis in axes)
        inside = tuple(p + apart if p == STEP else p for p in places)
        beyond = tuple(p + apart if p == CHUNK else p for p in places if p != STEP)
        reads = (Access(self.steps(of, back), inside, sp.S.Zero), Access(edge, beyond, outside))
        within = sp.Gt(STEP, 0) if apart < 0 else sp.Lt(STEP, self.length - 1)
        body = Select(within, slot(0, f.dtype.sort), slot(1, f.dtype.sort))
        if self.is_padded and apart > 0:
            body = Select(sp.Lt(self.place + 1, self.region.extent), body, outside)
        self.made.append(_like(f, out, axes, body, reads))
        return out

    def edge(self, of: str, apart: int, back: bool) -> str:
        """The last step of each chunk (-1), or the first (1)."""
        out, new = self.name((of, apart, back), f"{of}.{'last' if apart < 0 else 'first'}")
        if new:
            f = self.region.formula(of)
            axes = self.split(f.axes, self.region.times[of], back)
            step = sp.Integer(self.length - 1 if apart < 0 else 0)
            places = tuple(step if axis.symbol == STEP else axis.symbol for axis in axes)
            left = tuple(axis for axis in axes if axis.symbol != STEP)
            self.made.append(_like(f, out, left, slot(0, f.dtype.sort), (Access(self.steps(of, back), places),)))
        return out

    def final(self, read: Access) -> Access:
        """The last step that the forward loop computes."""
        k = self.region.axis(read.tensor)
        assert k is not None
        last = self.counts[0] - 1 if self.region.earlier < 0 else sp.S.Zero
        edge = self.edge(read.tensor, self.region.earlier, False)
        return Access(edge, (*read.indices[:k], last, *read.indices[k + 1 :]), read.outside)

    def whole(self, name: str) -> None:
        """The tensor as it was, for those outside the loops."""
        f, k = self.region.formula(name), self.region.axis(name)
        if k is None:
            self.made.append(self.rewritten(f, name, True))
            return
        time, length = f.axes[k].symbol, sp.Integer(self.length)
        pair = (quotient(time, length), remainder(time, length))
        places = [axis.symbol for axis in f.axes]
        read = Access(self.steps(name, name in self.region.down), (*places[:k], *pair, *places[k + 1 :]))
        self.made.append(_like(f, name, f.axes, slot(0, f.dtype.sort), (read,)))


def _like(f: Formula, out: str, axes: tuple[Index, ...], body: sp.Expr, reads: tuple[Access, ...]) -> Formula:
    """A map of the type of `f`."""
    return Formula(out, axes, (), body, reads, dtype=f.dtype, bound=f.bound, stop=f.stop, origin=f.origin)


def _divided(graph: Graph, region: Region, every: int) -> Graph:
    """`graph`, with the formulas of `region` in chunks."""
    extent = region.extent
    length = chunk_of(extent, every)
    if extent.is_Integer and extent <= max(length, 3):
        return graph
    count, known = quotient(extent + length - 1, sp.Integer(length)), {dim.name for dim in graph.dims}
    base = f"{extent}_chunks" if extent.is_Symbol else "chunks"
    runs_up = region.earlier < 0
    there = Dim(fresh_name(base, known), definition=count, steps="up" if runs_up else "down")
    back = Dim(fresh_name(f"{base}_back", {*known, there.name}), definition=count, steps="down" if runs_up else "up")
    outside = [node for node in graph.nodes if node.out not in region.times]
    finals = frozenset(read.tensor for node in outside for read in _finals(node, region))
    chunks = Chunks(region, length, (dim_symbol(there.name), dim_symbol(back.name)), finals, set(graph.tensors))
    nodes: list[Node] = []
    kept = dict.fromkeys(name for name in graph.roots if name in region.times)
    for node in outside:
        if isinstance(node, Formula):
            final = _finals(node, region)
            node = replace(node, reads=tuple(chunks.final(r) if r in final else r for r in node.reads))
        nodes.append(node)
        kept |= dict.fromkeys(name for name in node.tensors if name in region.times)
    for name in kept:
        chunks.whole(name)
    return in_order(replace(graph, dims=(*graph.dims, there, back), nodes=(*nodes, *chunks.made)))


def _finals(node: Node, region: Region) -> list[Access]:
    """What `node`, which is in no loop, reads of the last step of the forward loop."""
    last = region.extent - 1 if region.earlier < 0 else sp.S.Zero
    return [
        read
        for read in (node.reads if isinstance(node, Formula) else ())
        if read.tensor in region.up and region.up[read.tensor].is_map
        for k in [region.axis(read.tensor)]
        if k is not None and read.indices[k] == last
    ]
