"""Max and min have no VJP of their own: before derivation they become gathers through argmax.

(A product keeps its form: `derive.vjp` has a rule for it, right at zeros and to any order.)
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from chainrule.ir.affine import may_be_empty
from chainrule.ir.expression import Select, dim_symbol, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Origin, Reduce
from chainrule.ir.graph import Dim, Graph, Node
from chainrule.ir.rename import fresh_name


def expand_reductions(graph: Graph) -> Graph:
    """Write max and min as the term at the place where it is greatest; of nothing, as their identity.

    m[n] = max[j] x[n, j]     ->     m_place[n] : index J + 1 = argmax[j] x[n, j]
                                     m[n] = if m_place[n] == J then -inf else x[n, m_place[n]; 0]

    Several indices share one place, taken apart with // and %. Where there always is a place (no conditions, and J is
    at least 1), it stays below J, and there is no choice. The first greatest term wins, so the whole cotangent goes to
    it. What `stop` marks, and what is no float, has no gradient and stays.
    """
    expanded: list[Node] = []
    dims = {dim.name: dim for dim in graph.dims}
    taken = set(graph.tensors)
    for node in graph.nodes:
        if not isinstance(node, Formula) or not _has_gradient(node):
            expanded.append(node)
            continue
        place = fresh_name(f"{node.out}_place", taken)
        taken.add(place)
        total = sp.Mul(*(r.extent for r in node.over))
        empty = may_be_empty(node.over, node.where, graph.dims)
        bound = _named(total + int(empty), place, dims)
        expanded += [_argmax(node, place, bound), _gather(node, place, total, empty)]
    if len(expanded) == len(graph.nodes):
        return graph
    return replace(graph, dims=tuple(dims.values()), nodes=tuple(expanded))


def _has_gradient(f: Formula) -> bool:
    return bool(f.over) and f.reduce in (Reduce.MAX, Reduce.MIN) and f.dtype is DType.FLOAT and not f.stop


def _named(total: sp.Expr, place: str, dims: dict[str, Dim]) -> Extent:
    """A dim for a size that is computed from dims: a bound is an integer or a plain dim."""
    if total.is_Integer or total.is_Symbol:
        return total
    for dim in dims.values():
        if dim.definition == total:
            return dim_symbol(dim.name)
    name = fresh_name(f"{place}_count".replace(".", "_"), dims)
    dims[name] = Dim(name, definition=total)
    return dim_symbol(name)


def _argmax(f: Formula, place: str, bound: Extent) -> Formula:
    sign = 1 if f.reduce is Reduce.MAX else -1
    origin = Origin(f.origin.span, f.out, "expand", f.origin.layer)
    return replace(f, out=place, body=sign * f.body, reduce=Reduce.ARGMAX, dtype=DType.INT, bound=bound, origin=origin)


def _gather(f: Formula, place: str, total: sp.Expr, empty: bool) -> Formula:
    """The body of `f` at the place; where `f` may be empty, every read that depends on it is guarded."""
    here = slot(len(f.reads), DType.INT.sort)
    values: dict[sp.Basic, sp.Basic] = {}
    stride: sp.Expr = sp.S.One
    for r in reversed(f.over):
        whole = quotient(here, stride)
        values[r.symbol] = whole if r is f.over[0] else remainder(whole, r.extent)
        stride = stride * r.extent
    at = Access(place, tuple(a.symbol for a in f.axes))
    if not empty:
        reads = (*(read.renamed(values) for read in f.reads), at)
        return replace(f, over=(), body=f.body.xreplace(values), reads=reads, reduce=Reduce.SUM)
    reads = tuple(_guarded(read, values) for read in f.reads)
    identity = f.reduce.identity
    assert identity is not None
    body = Select(sp.Eq(here, total, evaluate=False), identity, f.body.xreplace(values))
    return replace(f, over=(), body=body, reads=(*reads, at), where=(), reduce=Reduce.SUM)


def _guarded(read: Access, values: dict[sp.Basic, sp.Basic]) -> Access:
    moved = read.renamed(values)
    if moved == read:
        return read
    return moved if read.outside is not None else replace(moved, outside=sp.S.Zero)
