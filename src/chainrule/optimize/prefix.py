"""Sums and products of all up to a place are recurrences: one step for each place, where each had begun anew."""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import Select, slot
from chainrule.ir.formula import Access, Formula, Index, Reduce
from chainrule.ir.graph import Graph, Node
from chainrule.ir.rename import fresh_name


def prefix(graph: Graph) -> Graph:
    """Write each sum or product over the places before (or after) an axis' own as a recurrence along that axis.

    y[n, t] = sum[s, j where s <= t] x[n, s, j] * w[j]   ->   y_each[n, t] = sum[j] x[n, t, j] * w[j]
                                                              y[n, t] = y[n, t - 1; 0] + y_each[n, t]

    Its gradient is such a sum from the other end.
    """
    nodes: list[Node] = []
    taken = set(graph.tensors)
    for node in graph.nodes:
        found = _recurrence(node, taken) if isinstance(node, Formula) else None
        nodes += [node] if found is None else found
    return graph if len(nodes) == len(graph.nodes) else replace(graph, nodes=tuple(nodes))


def _recurrence(f: Formula, taken: set[str]) -> list[Node] | None:
    """`f` as a recurrence, with what each place adds; None where it is no prefix of a sum or product."""
    if f.reduce not in (Reduce.SUM, Reduce.PROD) or f.out in f.tensors:
        return None
    for condition in f.where:
        for axis in f.axes:
            for over in (r for r in f.over if r.extent == axis.extent):
                way = _way(condition, over.symbol, axis.symbol)
                if way is not None and _stands_still(f, condition, axis.symbol):
                    return _along(f, condition, axis, over, *way, taken)
    return None


def _way(condition: sp.Basic, s: sp.Symbol, t: sp.Symbol) -> tuple[int, int] | None:
    """(1, c) where the condition says s <= t - c, (-1, c) where it says s >= t + c, for c >= 0."""
    if not isinstance(condition, sp.Le | sp.Lt | sp.Ge | sp.Gt):
        return None
    apart = sp.expand(condition.gts - condition.lts)  # >= 0, or >= 1 where it is strict
    strict = int(isinstance(condition, sp.Lt | sp.Gt))
    for way in (1, -1):
        shift = sp.expand(apart - way * (t - s))  # way (t - s) >= strict - shift
        if shift.is_Integer and strict - shift >= 0:
            return way, int(strict - shift)
    return None


def _stands_still(f: Formula, condition: sp.Basic, t: sp.Symbol) -> bool:
    """Whether what is added knows nothing of `t` but the condition."""
    parts = (f.body, *(c for c in f.where if c != condition), *(i for read in f.reads for i in read.indices))
    return all(t not in part.free_symbols for part in parts)


def _along(
    f: Formula, condition: sp.Basic, axis: Index, over: Index, way: int, apart: int, taken: set[str]
) -> list[Node]:
    each = fresh_name(f"{f.out}_each", taken)
    taken.add(each)
    here = {over.symbol: axis.symbol}
    term = replace(
        f,
        out=each,
        over=tuple(r for r in f.over if r != over),
        body=f.body.xreplace(here),
        reads=tuple(read.renamed(here) for read in f.reads),
        where=tuple(c.xreplace(here) for c in f.where if c != condition),
        bound=None,
    )
    nothing = f.reduce.identity
    if not term.over:  # a map is 0 where its conditions do not hold, a product of nothing is 1
        body = term.body if f.reduce is Reduce.SUM else Select(sp.And(*term.where), term.body, nothing)
        term = replace(term, body=body, where=term.where if f.reduce is Reduce.SUM else (), reduce=Reduce.SUM)

    def at(k: int) -> tuple[sp.Expr, ...]:
        return tuple(a.symbol - k if a == axis else a.symbol for a in f.axes)

    reads = (Access(f.out, at(way), nothing), Access(each, at(way * apart), nothing if apart else None))
    a, b = slot(0, f.dtype.sort), slot(1, f.dtype.sort)
    body = a + b if f.reduce is Reduce.SUM else a * b
    return [term, replace(f, over=(), where=(), body=body, reads=reads, reduce=Reduce.SUM)]
