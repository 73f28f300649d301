"""Substitute what is not worth a tensor of its own: constants, copies, draws, and the parts of an accumulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import sympy as sp

from chainrule.ir.affine import Facts, bounds_of
from chainrule.ir.calculus import finite
from chainrule.ir.cost import operations
from chainrule.ir.expression import Select, is_slot, slot
from chainrule.ir.formula import Access, DType, Formula, Law
from chainrule.ir.graph import Graph, Node, in_order
from chainrule.ir.primitive import Primitive
from chainrule.ir.rename import form_of, instance, rename
from chainrule.optimize.dead import drop_dead
from chainrule.optimize.simplify import factored

CHEAP = 6  # operations that may be done again for each element instead of once a row
LARGE = 60  # operations of one body: beyond, a formula is no longer read, nor derived, easily


def inline(graph: Graph) -> Graph:
    """Put the formulas that are constants, copies, functions of draws, or terms of a cotangent into their readers.

    one = 1                                      y_bar[n] = if label[n] == 0 then -1 / N else 0
    a[n] = one / N where label[n] == 0     ->
    y_bar[n] = -a[n]
    """
    # first what needs no tensor, so that then every reader left is one that counts
    return _inlined(drop_dead(_inlined(graph, _is_free)), _is_term)


Wanted = Callable[[Formula, Formula, Graph, Mapping[str, Node]], bool]


def _inlined(graph: Graph, wanted: Wanted) -> Graph:
    made: dict[str, Node] = {}
    for node in graph.nodes:
        made[node.out] = _filled(node, graph, made, wanted) if isinstance(node, Formula) else node
    nodes = tuple(made.values())
    return graph if nodes == graph.nodes else in_order(replace(graph, nodes=nodes))


def _filled(f: Formula, graph: Graph, made: Mapping[str, Node], wanted: Wanted) -> Formula:
    """`f` with those of its reads replaced that should be, again and again."""
    if f.out in f.tensors:
        return f
    ahead: set[str] = set()  # what is read before it stands there, in a recurrence: each only once
    while True:
        for k, read in enumerate(f.reads):
            g = made.get(read.tensor)
            if g is None and read.tensor not in ahead and graph.is_recurrent(read.tensor):
                ahead.add(read.tensor)
                g = graph.producers[read.tensor]
            if isinstance(g, Formula) and not g.over and wanted(f, g, graph, made) and _may(f, k, g, graph):
                f = _substituted(f, k, _readable(g, graph))
                break
        else:
            return _with_body(f, factored(f.body)) if f.origin.rule == "accumulate" else f


def _with_body(f: Formula, body: sp.Expr) -> Formula:
    return f if body == f.body else replace(f, body=body)


def _may(f: Formula, k: int, g: Formula, graph: Graph) -> bool:
    """The map `g` has an expression that its reader can hold in place of the k-th read."""
    if g.out in g.tensors or (f.stop and not g.stop):
        return False
    read = f.reads[k]
    if any(slot(k, DType.INT.sort) in r.slots for r in f.reads):  # an index is a read, not an expression
        return _is_copy(g) and (read.outside is None or _is_whole_copy(g, graph))
    if read.outside is None:
        return True
    return _is_whole_copy(g, graph) or (g.body == read.outside and not g.where)


def _is_free(f: Formula, g: Formula, graph: Graph, made: Mapping[str, Node]) -> bool:
    return _is_plain(g.law) or _is_drawn(g, made)


@lru_cache(maxsize=4096)
def _is_plain(law: Law) -> bool:
    """A constant or a copy."""
    return _is_constant(form_of(law)) or _is_copy(form_of(law))


def _is_term(f: Formula, g: Formula, graph: Graph, made: Mapping[str, Node]) -> bool:
    """A term of the cotangent `f` that nothing else reads, or that is cheap."""
    if _is_free(f, g, graph, made):
        return True
    alone = len(graph.readers[g.out]) == 1 and g.out not in graph.roots
    if f.origin.rule != "accumulate" or f.over or operations(f.body) + operations(g.body) > LARGE:
        return False
    if g.origin.rule is None:  # the forward pass's formulas are what is kept for the backward
        return False
    return alone if len(g.axes) == len(f.axes) else operations(g.body) <= CHEAP and _is_arithmetic(g.body)


def _is_arithmetic(body: sp.Expr) -> bool:
    return not body.has(sp.Function) and all(p.exp.is_Integer and abs(p.exp) <= 2 for p in body.atoms(sp.Pow))


def _is_constant(g: Formula) -> bool:
    return not g.reads and not g.where and not any(i.symbol in g.body.free_symbols for i in g.indices)


def _is_copy(g: Formula) -> bool:
    """A map of one read, at places that no other read decides."""
    return len(g.reads) == 1 and is_slot(g.body) and not g.where


def _is_whole_copy(g: Formula, graph: Graph) -> bool:
    """A copy of a whole tensor, its axes perhaps in another order: the bounds are the same."""
    if not _is_copy(g) or g.reads[0].outside is not None:
        return False
    extents = {axis.symbol: axis.extent for axis in g.axes}
    shape = graph.tensors[g.reads[0].tensor].shape
    places = g.reads[0].indices
    plain = sorted(places, key=str) == sorted(extents, key=str)
    return plain and all(extents[i] == n for i, n in zip(places, shape, strict=True))


def _is_drawn(g: Formula, made: Mapping[str, Node]) -> bool:
    """A function of draws and positions alone: as its draws, it is computed where it is read."""
    return bool(g.reads) and all(isinstance(made.get(t), Primitive) for t in g.tensors)


def _readable(g: Formula, graph: Graph) -> Formula:
    """`g` with guards on the reads that only its conditions keep inside: a reader makes them in any case."""
    if not g.where:
        return g
    facts = Facts({i.symbol: i.extent for i in g.indices}, bounds_of(g.reads, graph.tensors), graph.dims)

    def stays(read: Access) -> bool:
        shape = graph.tensors[read.tensor].shape
        return all(facts.is_nonnegative(i) and facts.is_below(i, n) for i, n in zip(read.indices, shape, strict=True))

    reads = (read if read.outside is not None or stays(read) else replace(read, outside=sp.S.Zero) for read in g.reads)
    return replace(g, reads=tuple(reads))


def _substituted(f: Formula, k: int, g: Formula) -> Formula:
    """`substitute`, done once for all formulas that differ in the names of tensors alone."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys((*f.tensors, f.out, *g.tensors)))}
    form = _substitute(f.law, k, g.law, tuple([numbers[name] for name in g.tensors]))
    names = {f"_{number}": name for name, number in numbers.items()}
    return instance(form, names, [a.name for a in f.axes], [r.name for r in f.over], f.origin)


@lru_cache(maxsize=4096)
def _substitute(law: Law, k: int, of: Law, numbers: tuple[int, ...]) -> Formula:
    """numbers: of the tensors that `of` reads, among those of both."""
    f, g = form_of(law), form_of(of)
    names = {f"_{place}": f"_{number}" for place, number in enumerate(numbers)}
    return substitute(f, k, rename(g, names))


def substitute(f: Formula, k: int, g: Formula) -> Formula:
    """`f` with the map `g` in place of its k-th read, which reads g.out; where g's conditions fail it is 0.

    a[j] = x[j] where j > 3
    y[i] = 2 * a[i + 1]         ->     y[i] = 2 * (if i + 1 > 3 then x[i + 1] else 0)
    """
    read = f.reads[k]
    places: dict[sp.Basic, sp.Basic] = {a.symbol: i for a, i in zip(g.axes, read.indices, strict=True)}
    offset = len(f.reads)
    for j in range(len(g.reads)):
        for kind in DType:
            places[slot(j, kind.sort)] = slot(offset + j, kind.sort)
    body, where = g.body.xreplace(places), tuple(c.xreplace(places) for c in g.where)
    if where:
        body = Select(sp.And(*where), body, sp.S.Zero)
    reads = [*f.reads]
    for inner in g.reads:
        moved = inner.renamed(places)
        whole = is_slot(g.body) and read.outside is not None
        reads.append(replace(moved, outside=read.outside) if whole else moved)
    values: dict[sp.Basic, sp.Basic] = {slot(k): body, slot(k, DType.INT.sort): body}
    index_values = values if is_slot(body) else {}
    moved_reads = tuple(_with(r, index_values) for r in reads)
    new_where = tuple(c.xreplace(values) for c in f.where)
    return replace(f, body=finite(f.body.xreplace(values)), reads=moved_reads, where=new_where)


def _with(read: Access, values: dict[sp.Basic, sp.Basic]) -> Access:
    return read.renamed(values) if values and read.slots & set(values) else read
