"""Where a tensor matters: the choices under which its readers look at it, carried to the VJPs that need them.

What only a branch not taken reads has cotangent 0 there, and the derivative of what it was made by may be infinite or
NaN: ``if u > 0 then log(u) else 0`` at u = 0, with the logarithm a formula of its own. 0 · ∞ is NaN, so such a VJP is
itself a choice, ``if u > 0 then l_bar / u else 0``, and not ``l_bar / u``.

A choice is carried through plain reads (``l[n, k]``, the axes in any order) and wherever it does not depend on an index
that the read does not have; not through shifted or computed reads, and not beyond `LARGEST`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce

import sympy as sp

from chainrule.ir.calculus import derivative
from chainrule.ir.expression import Select, Sort, erfc, index_symbol, is_slot, slot, slot_number
from chainrule.ir.formula import Access, Formula, Reduce
from chainrule.ir.graph import Graph

LARGEST = 8  # choices that one VJP is given


@dataclass(frozen=True)
class Support:
    """``mask`` is 1 where a tensor matters and 0 where no reader looks, a tree of choices with only these leaves.

    Its index symbols are those of the tensor's axes, ``_i00 …``; slot k is the value of reads[k].
    """

    mask: sp.Expr = sp.S.One
    reads: tuple[Access, ...] = ()


EVERYWHERE = Support()


def supports(graph: Graph, active: frozenset[str], seeds: frozenset[str]) -> dict[str, Support]:
    """Where each active tensor matters to the others; those that matter everywhere are left out."""
    found: dict[str, Support] = {}
    for node in reversed(graph.nodes):
        if node.out not in active or node.out in seeds or not isinstance(node, Formula):
            continue
        support = _of_readers(node.out, graph, active, found)
        if support.mask != 1:
            found[node.out] = support
    return found


def _of_readers(name: str, graph: Graph, active: frozenset[str], found: Mapping[str, Support]) -> Support:
    total = Support(sp.S.Zero)
    for g in graph.readers[name]:
        if g.out in active and not isinstance(g, Formula):
            return EVERYWHERE
        if g.out not in active or not isinstance(g, Formula) or g.stop:
            continue
        for k, read in enumerate(g.reads):
            if read.tensor == name:
                total = _either(total, _through(g, k, found.get(g.out, EVERYWHERE)))
                if total.mask == 1 or total.mask.count(Select) > LARGEST:
                    return EVERYWHERE
    return EVERYWHERE if total.mask == 0 else total


def _through(g: Formula, k: int, of_g: Support) -> Support:
    """Where the k-th read of `g` matters, in the read tensor's axes."""
    read = g.reads[k]
    local = _mask(derivative(g.body, slot(k)))
    if g.where:
        local = Select(sp.And(*g.where), local, sp.S.Zero)
    if local == 0:
        return Support(sp.S.Zero)
    mask = _and(local, _moved(of_g.mask, len(g.reads)))
    if mask == 1:
        return EVERYWHERE
    reads = (*g.reads, *(_offset(r, len(g.reads)) for r in of_g.reads))
    plain = {i.symbol for i in g.indices}
    places = {i: index_symbol(f"_i{j:02}") for j, i in enumerate(read.indices)}
    if len(places) < len(read.indices) or not set(places) <= plain:
        return EVERYWHERE
    if _indices(mask, reads) & plain - set(places):
        return EVERYWHERE
    kept = sorted(_slots(mask, reads))
    numbers = {slot(old, sort): slot(new, sort) for new, old in enumerate(kept) for sort in Sort}
    values: dict[sp.Basic, sp.Basic] = {**places, **numbers}
    return Support(mask.xreplace(values), tuple(reads[j].renamed(values) for j in kept))


def _mask(d: sp.Expr) -> sp.Expr:
    """1 where the derivative `d` has a value, 0 where a choice left it out."""
    if isinstance(d, Select):
        c, a, b = d.args
        return Select(c, _mask(a), _mask(b))
    if isinstance(d, sp.Add):
        return reduce(_or, map(_mask, d.args))
    if isinstance(d, sp.Mul):
        return reduce(_and, map(_mask, d.args))
    return sp.S.Zero if d.is_zero else sp.S.One


def _or(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    if isinstance(a, Select):
        c, yes, no = a.args
        return Select(c, _or(yes, b), _or(no, b))
    return b if a == 0 else a


def _and(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    if isinstance(a, Select):
        c, yes, no = a.args
        return Select(c, _and(yes, b), _and(no, b))
    return b if a == 1 else a


def _either(a: Support, b: Support) -> Support:
    by = len(a.reads)
    return Support(_or(a.mask, _moved(b.mask, by)), (*a.reads, *(_offset(r, by) for r in b.reads)))


def _moved(e: sp.Expr, by: int) -> sp.Expr:
    """`e` with its slots numbered from `by` on."""
    return e.xreplace(_later(e.free_symbols, by))


def _offset(read: Access, by: int) -> Access:
    return read.renamed(_later(read.slots, by))


def _later(symbols: Set[sp.Symbol], by: int) -> dict[sp.Basic, sp.Basic]:
    return {slot(slot_number(s), sort): slot(slot_number(s) + by, sort) for s in symbols if is_slot(s) for sort in Sort}


def _slots(e: sp.Basic, reads: tuple[Access, ...]) -> set[int]:
    """The reads that `e` needs, those in their indices too."""
    found: set[int] = set()
    waiting = [slot_number(s) for s in e.free_symbols if is_slot(s)]
    while waiting:
        k = waiting.pop()
        if k not in found:
            found.add(k)
            waiting += [slot_number(s) for s in reads[k].slots]
    return found


def _indices(e: sp.Basic, reads: tuple[Access, ...]) -> set[sp.Symbol]:
    """The symbols in `e` and in the reads that it needs."""
    return set(e.free_symbols).union(*(i.free_symbols for k in _slots(e, reads) for i in reads[k].indices))


def masked(support: Support, body: sp.Expr, reads: tuple[Access, ...]) -> tuple[sp.Expr, tuple[Access, ...]]:
    """`body`, over `reads`, where `support` holds, and 0 elsewhere; with the reads that this takes."""
    added = tuple(_offset(r, len(reads)) for r in support.reads)
    return _where(_moved(support.mask, len(reads)), body), (*reads, *added)


def _where(mask: sp.Expr, body: sp.Expr) -> sp.Expr:
    """`body` at the leaves of `mask` that are 1; written once where that can be said without negating a condition,
    which NaN would turn into another one."""
    condition = _condition(mask)
    if condition is not None:
        return Select(condition, body, sp.S.Zero)
    c, a, b = mask.args
    return Select(c, _where(a, body), _where(b, body))


def _condition(mask: sp.Expr) -> sp.Basic | None:
    if not isinstance(mask, Select):
        return sp.true if mask == 1 else sp.false
    c, a, b = mask.args
    yes, no = _condition(a), _condition(b)
    if yes is None or no is None:
        return None
    if no is sp.false:
        return sp.And(c, yes)
    return sp.Or(c, no) if yes is sp.true else None


# ---------------------------------------------------------------- which derivatives may be infinite or NaN


class Sign(IntEnum):
    """What is known of a value."""

    ANY = 0
    NOT_NEGATIVE = 1
    POSITIVE = 2


BOUNDED = (sp.tanh, sp.sin, sp.cos, sp.erf, erfc, sp.atan)


@dataclass(frozen=True)
class Hazards:
    """The tensors that may hold infinity or NaN though inputs and parameters do not, and the signs of the others."""

    tensors: frozenset[str]
    signs: Mapping[str, Sign]

    def meets(self, e: sp.Expr, f: Formula) -> bool:
        """`e`, over the slots of `f`, may be infinite or NaN."""
        return any(f.reads[k].tensor in self.tensors for k in _slots(e, f.reads)) or not _is_finite(
            e, lambda s: self.signs.get(f.reads[slot_number(s)].tensor, Sign.ANY)
        )


def hazards(graph: Graph) -> Hazards:
    """By the scalar laws alone: a division, a logarithm, a root or an exponential that nothing bounds."""
    tensors: set[str] = set()
    signs: dict[str, Sign] = {}
    for f in graph.nodes:
        if not isinstance(f, Formula):
            continue
        known = Hazards(frozenset(tensors), signs)
        if known.meets(f.body, f):
            tensors.add(f.out)
        sign = _sign(f.body, lambda s, f=f: signs.get(f.reads[slot_number(s)].tensor, Sign.ANY))  # type: ignore[misc]
        outside = any(r.outside is not None for r in f.reads)
        if outside or (not f.is_map and f.reduce is not Reduce.SUM):
            sign = Sign.ANY
        elif f.over or f.where:
            sign = min(sign, Sign.NOT_NEGATIVE)
        signs[f.out] = sign
    return Hazards(frozenset(tensors), signs)


Known = Callable[[sp.Symbol], Sign]


def _is_finite(e: sp.Expr, known: Known) -> bool:
    if isinstance(e, sp.Symbol | sp.Rel | sp.logic.boolalg.Boolean):
        return True
    if isinstance(e, sp.Number | sp.NumberSymbol):
        return bool(e.is_finite)
    if isinstance(e, sp.Pow):
        whole = e.exp.is_Integer and e.exp > 0
        sign = Sign.ANY if whole else _sign(e.base, known)
        rooted = e.exp.is_Rational and e.exp > 0 and sign is Sign.NOT_NEGATIVE
        return bool(whole or rooted or (e.exp.is_Rational and sign is Sign.POSITIVE)) and _is_finite(e.base, known)
    plain = isinstance(e, (sp.Add, sp.Mul, Select, *BOUNDED))
    return plain and all(_is_finite(a, known) for a in e.args)


def _sign(e: sp.Expr, known: Known) -> Sign:
    if isinstance(e, sp.Symbol):
        return known(e) if is_slot(e) else Sign.POSITIVE  # of no element, a size is 0 and nothing is divided by it
    if isinstance(e, sp.Number | sp.NumberSymbol):
        return Sign.POSITIVE if e.is_positive else Sign.NOT_NEGATIVE if e.is_zero else Sign.ANY
    if isinstance(e, sp.exp | sp.cosh):
        return Sign.POSITIVE
    parts = [_sign(a, known) for a in (e.args[1:] if isinstance(e, Select) else e.args)]
    if isinstance(e, sp.Add):
        return max(parts) if min(parts) is not Sign.ANY else Sign.ANY
    if isinstance(e, sp.Mul | Select):
        return min(parts)
    if isinstance(e, sp.Pow):
        even = e.exp.is_Integer and e.exp % 2 == 0
        return parts[0] if parts[0] is not Sign.ANY else Sign.NOT_NEGATIVE if even else Sign.ANY
    return Sign.ANY
