"""Small identities: conditions that always hold, factors in common, sums of what does not change."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import sympy as sp

from chainrule.ir.affine import Facts, bounds_of, is_true, tidy
from chainrule.ir.expression import Select, Sort, is_slot, slot, slot_number, zero_unless
from chainrule.ir.formula import Access, Extent, Formula, Origin, Reduce
from chainrule.ir.graph import Dim, Graph, Node, Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.rename import fresh_name


def simplify(graph: Graph) -> Graph:
    """Drop what always holds, take out factors in common, and move factors out of the sums that they do not depend on.

    y[i] = sum[j < 3] a[i, j] * s[i]             y_sum[i] = sum[j < 3] a[i, j]
    z[i] = (if i >= 0 then x[i] else 0) / N  ->  y[i] = y_sum[i] * s[i]
           - x[i]^2 / N                          z[i] = (x[i] - x[i]^2) / N
    """
    nodes: list[Node] = []
    taken = set(graph.tensors)
    draws = {node.out for node in graph.nodes if isinstance(node, Primitive) and node.kind == "uniform"}
    simple: set[tuple[object, ...]] = set()  # laws that stay as they are, with what is known of the tensors read
    for node in graph.nodes:
        if not isinstance(node, Formula):
            nodes.append(node)
            continue
        law = (node.law, *[(graph.tensors[name].kind, name in draws) for name in node.tensors])
        if law in simple:
            nodes.append(node)
            continue
        f = _draws(node, draws) if draws.intersection(node.tensors) else node
        f = _unused_indices(_factored(_chosen(_inside(_conditions(f, graph.dims), graph))))
        made = _hoisted(f, graph.dims, taken)
        nodes += made
        if made[0] is node:
            simple.add(law)
    unchanged = len(nodes) == len(graph.nodes) and all(a is b for a, b in zip(nodes, graph.nodes, strict=True))
    return graph if unchanged else replace(graph, nodes=tuple(nodes))


def _conditions(f: Formula, dims: tuple[Dim, ...]) -> Formula:
    """`f` without the conditions on indices that their ranges decide."""
    choices = {e for e in f.body.atoms(Select) if not any(map(is_slot, e.args[0].free_symbols))}
    if not f.where and not choices and not any(i.args for r in f.reads for i in r.indices):
        return f
    facts = Facts({i.symbol: i.extent for i in f.indices}, {}, dims)
    where = tuple(c for c in f.where if not is_true(c, facts))
    reads = tuple(replace(r, indices=tuple(tidy(i, facts) for i in r.indices)) for r in f.reads)
    decided = {}
    for e in choices:
        c, a, b = e.args
        if is_true(c, facts):
            decided[e] = a
        elif is_true(sp.Not(c), facts):
            decided[e] = b
    body = f.body.xreplace(decided)
    unchanged = (where, reads, body) == (f.where, f.reads, f.body)
    return f if unchanged else replace(f, where=where, reads=reads, body=body)


def _draws(f: Formula, draws: set[str]) -> Formula:
    """`f` without the choices that no draw, which lies in (0, 1), decides: a dropout at rate 0 keeps all."""
    drawn = {slot(k, Sort.REAL) for k, read in enumerate(f.reads) if read.tensor in draws}
    decided = {}
    for e in f.body.atoms(Select):
        c, a, b = e.args
        if isinstance(c, sp.Lt | sp.Le) and c.lhs in drawn and c.rhs.is_number and not 0 < c.rhs < 1:
            decided[e] = a if c.rhs >= 1 else b
    return replace(f, body=f.body.xreplace(decided)) if decided else f


def _inside(f: Formula, graph: Graph) -> Formula:
    """`f` without the guards of reads that never leave their tensors."""
    if all(read.outside is None for read in f.reads):
        return f
    facts = Facts({i.symbol: i.extent for i in f.indices}, bounds_of(f.reads, graph.tensors), graph.dims)
    reads = tuple(replace(r, outside=None) if _stays(r, graph.tensors[r.tensor], facts) else r for r in f.reads)
    return f if reads == f.reads else replace(f, reads=reads)


def _stays(read: Access, of: Tensor, facts: Facts) -> bool:
    return read.outside is not None and all(
        facts.is_nonnegative(index) and facts.is_below(index, extent)
        for index, extent in zip(read.indices, of.shape, strict=True)
    )


def _chosen(f: Formula) -> Formula:
    """``sum[s] (if s > t then 0 else e)`` is ``sum[s where s <= t] e``, which may be a product."""
    if not f.over or f.reduce is not Reduce.SUM:
        return f
    where, factors = [], []
    for factor in sp.Mul.make_args(f.body):
        found = zero_unless(factor)
        if found is None or not isinstance(found[0], sp.core.relational.Relational):
            factors.append(factor)
            continue
        where.append(found[0])
        factors.append(found[1])
    return replace(f, body=sp.Mul(*factors), where=(*f.where, *where)) if where else f


def _factored(f: Formula) -> Formula:
    body = factored(f.body)
    return f if body == f.body else replace(f, body=body)


@lru_cache(maxsize=16384)
def factored(e: sp.Expr) -> sp.Expr:
    """`e` with the numbers and sizes that all terms of a sum share taken out: (a - if c then 1 else 0) / N.

    Only a power of sizes moves, with the number beside it: a number alone is best left to the terms.
    """
    if not isinstance(e, sp.Add):
        return e
    shared = None
    for term in e.args:
        scale = _scale(term)
        shared = scale if shared is None else shared & scale
        if not shared:
            return e
    assert shared is not None
    factor = sp.Mul(*shared)
    terms = [_without(term, factor) for term in e.args]
    return sp.Mul(factor, sp.Add(*terms))


def _scale(term: sp.Expr) -> frozenset[sp.Expr]:
    """The factors of a term that are powers of sizes, those of a choice with 0 among them."""
    if isinstance(term, Select):
        _, a, b = term.args
        return _scale(b) if a.is_zero else _scale(a) if b.is_zero else _scale(a) & _scale(b)
    return frozenset(f for f in sp.Mul.make_args(term) if f.free_symbols and _is_size(f))


def _is_size(f: sp.Expr) -> bool:
    """A power of a dim: finite and not 0 wherever there is an element to multiply."""
    base = f.base if isinstance(f, sp.Pow) else f
    return isinstance(base, sp.Symbol) and base.name[0] != "_"


def _without(term: sp.Expr, factor: sp.Expr) -> sp.Expr:
    if isinstance(term, Select):
        c, a, b = term.args
        return Select(c, _without(a, factor), _without(b, factor))
    return term / factor


def _unused_indices(f: Formula) -> Formula:
    """``sum[n < N] a[i]`` is ``a[i] * N``, unless 1 / N is a factor: of nothing, the sum is 0 and N / N is not."""
    if not f.over or f.reduce is not Reduce.SUM:
        return f
    used = f.body.free_symbols.union(
        *(c.free_symbols for c in f.where), *(i.free_symbols for r in f.reads for i in r.indices)
    )
    idle = [r for r in f.over if r.symbol not in used and not _divides(r.extent, f.body)]
    if not idle:
        return f
    kept = tuple(r for r in f.over if r not in idle)
    return replace(f, over=kept, body=sp.Mul(f.body, *(r.extent for r in idle)))


def _divides(extent: Extent, body: sp.Expr) -> bool:
    return any(p.exp.could_extract_minus_sign() and extent in p.base.free_symbols for p in body.atoms(sp.Pow))


def _hoisted(f: Formula, dims: tuple[Dim, ...], taken: set[str]) -> list[Node]:
    """`f` as it is, or as a sum and a map: the factors that no summed index reaches, multiplied once.

    Only where something is summed for sure: of nothing, 0 times an infinite factor is not the 0 that the sum is.
    """
    factors = sp.Mul.make_args(f.body)
    if not f.over or f.reduce is not Reduce.SUM or f.where or len(factors) < 2 or not _never_empty(f, dims):
        return [f]
    over = {r.symbol for r in f.over}
    outside = [g for g in factors if not _reaches(g, f, over)]
    slots = {s for g in outside for s in g.free_symbols if is_slot(s)}
    if not slots or len(outside) == len(factors) or f.out in f.tensors:
        return [f]
    inside = sp.Mul(*(g for g in factors if g not in outside))
    name = fresh_name(f"{f.out}_sum", taken)
    taken.add(name)
    origin = Origin(f.origin.span, f.origin.formula or f.out, f.origin.rule or "hoist", f.origin.layer)
    total = replace(f, out=name, body=inside, origin=origin)
    read = Access(name, tuple(a.symbol for a in f.axes))
    scaled = replace(f, over=(), body=sp.Mul(*outside, slot(len(f.reads))), reads=(*f.reads, read))
    return [total, scaled]


def _never_empty(f: Formula, dims: tuple[Dim, ...]) -> bool:
    minimum = {d.name: d.minimum for d in dims}
    return all((r.extent if r.extent.is_Integer else minimum.get(r.extent.name, 0)) >= 1 for r in f.over)


def _reaches(e: sp.Expr, f: Formula, over: set[sp.Symbol]) -> bool:
    """`e` depends on a summed index, itself or through a read."""
    waiting = list(e.free_symbols)
    while waiting:
        s = waiting.pop()
        if s in over:
            return True
        if is_slot(s):
            waiting.extend(x for i in f.reads[slot_number(s)].indices for x in i.free_symbols)
    return False
