"""Derivatives written in the value of a function instead of its argument, so that the argument need not be kept.

For y = f(x) and a derived formula that holds f'(x): sigmoid's becomes y (1 - y), tanh's 1 - y^2, softplus's
-expm1(-y), relu's condition x > 0 becomes y > 0. Found by solving y = f(x), not by a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import sympy as sp

from chainrule.ir.expression import is_slot, slot, slot_number
from chainrule.ir.formula import Access, Formula
from chainrule.ir.graph import Graph
from chainrule.optimize.inverse import in_terms_of_value, is_accurate
from chainrule.optimize.rewrite import map_formulas


def output_form(graph: Graph) -> Graph:
    """Read a function's value in its derivative, where that frees its argument and keeps float32's accuracy.

    y[i] = tanh(x[i])
    x_bar[i] = y_bar[i] * (1 - tanh(x[i])^2)     ->     x_bar[i] = y_bar[i] * (1 - y[i]^2)

    Accepted where the error in float32 stays within 4 ulp of the greatest |f'|, as the frameworks do; relatively,
    y (1 - y) may be worse (6 % at x = 16): who cannot bear that leaves this pass out (`accurate`).
    """

    def change(g: Formula) -> Formula:
        f = graph.producers.get(g.origin.formula or "")
        if not isinstance(f, Formula) or f is g or f.over or f.where or not f.body.args or f.out in f.tensors:
            return g
        return _in_value(f, g, len(graph.tensors[f.out].shape)) or g

    return map_formulas(graph, change)


def _in_value(f: Formula, g: Formula, rank: int) -> Formula | None:
    """`g` reading f.out in place of what `f` reads; None where that is not possible, or not accurate enough."""
    for places, slots in _matches(f, g):
        if f.out in g.tensors and Access(f.out, places) not in g.reads:
            continue
        law = f.body.xreplace(slots)
        y = slot(len(g.reads))
        arguments = frozenset(s for s in law.free_symbols if is_slot(s))
        body = _solved(law, g.body, y, arguments)
        if body is not None and not any(s in c.free_symbols for s in arguments - body.free_symbols for c in g.where):
            return replace(g, body=body, reads=(*g.reads, Access(f.out, places)))
    return None


@lru_cache(maxsize=4096)
def _solved(law: sp.Expr, body: sp.Expr, y: sp.Symbol, arguments: frozenset[sp.Symbol]) -> sp.Expr | None:
    after = in_terms_of_value(law, body, y, arguments)
    if after is None or not (arguments & body.free_symbols) - after.free_symbols:
        return None
    return after if is_accurate(law, body, after, y) else None


def _matches(f: Formula, g: Formula) -> list[tuple[tuple[sp.Expr, ...], Mapping[sp.Basic, sp.Basic]]]:
    """Where `g` reads all that `f` reads: the places of f's axes in `g`, and f's slots as slots of `g`."""
    axes = {a.symbol for a in f.axes}
    found: list[tuple[dict[sp.Basic, sp.Basic], dict[sp.Basic, sp.Basic]]] = [({}, {})]
    for k, read in enumerate(f.reads):
        longer = []
        for places, slots in found:
            for j, other in enumerate(g.reads):
                bound = dict(places)
                if (
                    other.tensor == read.tensor
                    and other.outside == read.outside
                    and _bind(read, other, axes, bound, slots)
                ):
                    longer.append((bound, {**slots, **_sorts(k, j, f)}))
        found = longer[:8]
    indices = [a.symbol for a in f.axes]
    return [(tuple(places[i] for i in indices), slots) for places, slots in found if all(i in places for i in indices)]


def _bind(
    a: Access, b: Access, axes: set[sp.Symbol], places: dict[sp.Basic, sp.Basic], slots: Mapping[sp.Basic, sp.Basic]
) -> bool:
    for i, j in zip(a.indices, b.indices, strict=True):
        if i in axes:
            if places.setdefault(i, j) != j:
                return False
        elif i.xreplace({**places, **slots}) != j:
            return False
    return True


def _sorts(k: int, j: int, f: Formula) -> dict[sp.Basic, sp.Basic]:
    symbols = {s for s in f.body.free_symbols if is_slot(s) and slot_number(s) == k}
    symbols |= {s for r in f.reads for s in r.slots if slot_number(s) == k}
    return {s: sp.Symbol(slot(j).name, **_assumed(s)) for s in symbols}


def _assumed(s: sp.Symbol) -> dict[str, bool]:
    return {"integer": True} if s.is_integer else {"real": True}
