"""Sums of exponentials that cannot overflow: one rule for logsumexp, softmax and all that is built from them.

S[o] = sum[r] w · exp(u) is *represented* as s[o] · exp(m[o]) with m[o] = max[r] u, and so is every exp(u) that S sums.
A reader is rewritten by an algebra of pairs: an expression is e · exp(Σ d·m), e free of overflow; products add the d,
powers multiply them, logarithms turn them into terms, sums need equal ones. The rule is used where no reader is left
with exp(m); m is a constant to derivation (`stop`), since what is represented does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import sympy as sp

from chainrule.ir.expression import Select, is_slot, slot, slot_number
from chainrule.ir.formula import Access, Formula, Origin, Reduce
from chainrule.ir.graph import Graph, Node
from chainrule.ir.rename import fresh_name
from chainrule.optimize.inline import substitute
from chainrule.optimize.rewrite import in_order

Degrees = Mapping[sp.Symbol, sp.Expr]
"""How often exp of each maximum (by its slot) is a factor."""


class Kept(Exception):
    """An exp(m) would be left: this sum stays as it is."""


@dataclass(frozen=True)
class _Scaled:
    """tensor[o] is `name`[o] · exp(m[places])^degree, `places` being expressions in the axes of the tensor."""

    name: str
    places: tuple[sp.Expr, ...]
    degree: sp.Expr


def log_sum_exp(graph: Graph) -> Graph:
    """Represent each sum of exponentials by its greatest term and a sum that cannot overflow.

    S[n] = sum[k] exp(z[n, k])       S_max[n] = stop max[k] z[n, k]
    p[n, k] = exp(z[n, k]) / S[n]  ->  S_scaled[n] = sum[k] exp(z[n, k] - S_max[n])
    l[n] = log(S[n])                 p[n, k] = exp(z[n, k] - S_max[n]) / S_scaled[n]
                                     l[n] = log(S_scaled[n]) + S_max[n]
    """
    for node in graph.nodes:
        found = _summed(node, graph)
        if found is not None and graph.readers[node.out] and node.out not in graph.roots:
            try:
                graph = _Shift(graph, *found).graph_after()
            except Kept:
                continue
    return graph


def _summed(node: Node, graph: Graph) -> tuple[Formula, Formula, sp.Expr] | None:
    """(S, the same with what it counts as its body and its conditions, u) where `node` is a sum of w · exp(u).

    The maps that it sums are put in, and choices of 0 are conditions: sum[k] (if c[k] then exp(z[k]) else 0).
    """
    if not isinstance(node, Formula) or not node.over or node.reduce is not Reduce.SUM or node.stop:
        return None
    whole = node
    for name in node.tensors:
        made = graph.producers.get(name)
        if isinstance(made, Formula) and _is_exponential(made):
            k = next(k for k, read in enumerate(whole.reads) if read.tensor == name)
            if whole.reads[k].outside is None:
                whole = substitute(whole, k, made)
    conditions, factors = _counted(whole.body)
    if conditions:
        whole = replace(whole, body=sp.Mul(*factors), where=(*whole.where, *conditions))
        factors = list(sp.Mul.make_args(whole.body))  # its slots are numbered anew
    exponents = [f.args[0] for f in factors if isinstance(f, sp.exp)]
    if len(exponents) != 1 or any(f.has(sp.exp) for f in factors if not isinstance(f, sp.exp)):
        return None
    u = exponents[0]
    over = {r.symbol for r in whole.over}
    reads = [whole.reads[slot_number(s)] for s in u.free_symbols if is_slot(s)]
    moves = any(over & i.free_symbols for read in reads for i in read.indices) or over & u.free_symbols
    # what already reads a maximum was made stable, by us or by the writer
    if not moves or any(getattr(graph.producers.get(r.tensor), "stop", False) for r in reads):
        return None
    return node, whole, u


def _is_exponential(f: Formula) -> bool:
    return not f.over and not f.stop and any(isinstance(x, sp.exp) for x in _counted(f.body)[1])


def _counted(term: sp.Expr) -> tuple[list[sp.Basic], list[sp.Expr]]:
    """`term` as a product that counts under conditions: a · (if c then b · exp(u) else 0) is a · b · exp(u) where c."""
    conditions: list[sp.Basic] = []
    factors: list[sp.Expr] = []
    for f in sp.Mul.make_args(term):
        if isinstance(f, Select) and f.has(sp.exp) and sp.S.Zero in f.args[1:]:
            c, a, b = f.args
            inner, rest = _counted(a if b == 0 else b)
            conditions += [c if b == 0 else sp.Not(c), *inner]
            factors += rest
        else:
            factors.append(f)
    return conditions, factors


@dataclass
class _Shift:
    """The rule at one sum: the tensors represented so far, and the formulas rewritten."""

    graph: Graph
    total: Formula
    whole: Formula
    u: sp.Expr
    scaled: dict[str, _Scaled] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def graph_after(self) -> Graph:
        """The graph with the sum represented. Raises Kept where that leaves an exp(m)."""
        self.taken = set(self.graph.tensors)
        self.maximum = self._name("max")
        self.shift = self._name("shift") if self._may_be_empty() else self.maximum
        nodes: list[Node] = []
        summed = {name for name in self.total.tensors if self._is_represented_with(name)}
        placed = False
        for node in self.graph.nodes:
            concerned = isinstance(node, Formula) and (
                node.out == self.total.out or node.out in summed or any(t in self.scaled for t in node.tensors)
            )
            if not concerned:
                nodes.append(node)
                continue
            if not placed:
                nodes += self._maxima()
                placed = True
            assert isinstance(node, Formula)
            after = self._rewritten(node)
            if node.out in self.graph.roots and after.out != node.out:
                raise Kept
            nodes.append(after)
        return replace(self.graph, nodes=in_order(self.graph, nodes))

    def _name(self, suffix: str) -> str:
        name = fresh_name(f"{self.total.out}_{suffix}", self.taken)
        self.taken.add(name)
        return name

    def _is_represented_with(self, name: str) -> bool:
        made = self.graph.producers.get(name)
        return isinstance(made, Formula) and _is_exponential(made) and name not in self.whole.tensors

    def _may_be_empty(self) -> bool:
        """Every term may be left out, or be exp(-inf): then the maximum is -inf, and no shift."""
        if self.whole.where:
            return True
        names = [self.whole.reads[slot_number(s)].tensor for s in self.u.free_symbols if is_slot(s)]
        seen: set[str] = set()  # a recurrence reads itself
        while names:
            name = names.pop()
            made = None if name in seen else self.graph.producers.get(name)
            seen.add(name)
            if isinstance(made, Formula):
                if made.body.has(-sp.oo) or any(r.outside == -sp.oo for r in made.reads):
                    return True
                if not made.over:
                    names.extend(made.tensors)
        return False

    def _maxima(self) -> list[Node]:
        f = self.whole
        origin = Origin(f.origin.span, f.out, "stabilize", f.origin.layer)
        top = replace(f, out=self.maximum, body=self.u, reduce=Reduce.MAX, stop=True, origin=origin)
        if self.shift == self.maximum:
            return [top]
        places = tuple(a.symbol for a in f.axes)
        body = Select(sp.Eq(slot(0), -sp.oo, evaluate=False), sp.S.Zero, slot(0))
        read = Access(self.maximum, places)
        return [top, Formula(self.shift, f.axes, (), body, (read,), stop=True, origin=origin)]

    def _rewritten(self, f: Formula) -> Formula:
        """`f` under its representation; of degree 0 it keeps its name and value."""
        pairs = _Pairs(self, f)
        e, degrees = pairs.of(f.body)
        reads = tuple(
            replace(r, tensor=self.scaled[r.tensor].name) if r.tensor in self.scaled else r for r in pairs.reads
        )
        if self.shift != self.maximum:
            e = _divided_by_something(e, {slot(k) for k, r in enumerate(f.reads) if r.tensor in self.scaled})
        after = replace(f, body=e, reads=reads)
        if not degrees:
            return after
        if len(degrees) != 1 or f.reduce is not Reduce.SUM:
            raise Kept
        ((m, degree),) = degrees.items()
        places = pairs.reads[slot_number(m)].indices
        axes = {a.symbol for a in f.axes}
        if any(not i.free_symbols <= axes for i in places):
            raise Kept
        name = self._name("scaled") if f.out == self.total.out else fresh_name(f"{f.out}_scaled", self.taken)
        self.taken.add(name)
        self.scaled[f.out] = _Scaled(name, places, degree)
        # the places are expressions in the axes of f, whose symbols are canonical
        return replace(after, out=name)


class _Pairs:
    """Expressions of one formula as (e, degrees): e · exp(Σ degree · m)."""

    def __init__(self, shift: _Shift, f: Formula) -> None:
        self.shift, self.f = shift, f
        self.reads: list[Access] = list(f.reads)

    def of(self, e: sp.Expr) -> tuple[sp.Expr, Degrees]:
        match e:
            case sp.Symbol() if is_slot(e) and self.f.reads[slot_number(e)].tensor in self.shift.scaled:
                return self._represented(e)
            case sp.exp():
                return self._exponential(e)
            case sp.Mul():
                parts = [self.of(a) for a in e.args]
                return sp.Mul(*(p for p, _ in parts)), _sum(d for _, d in parts)
            case sp.Pow() if e.exp.is_number:
                base, degrees = self.of(e.base)
                return sp.Pow(base, e.exp), {m: d * e.exp for m, d in degrees.items()}
            case sp.log():
                inside, degrees = self.of(e.args[0])
                return sp.Add(log_of(inside), *(d * m for m, d in degrees.items())), {}
            case sp.Add():
                return self._equal(e, e.args)
            case Select():
                c, a, b = e.args
                after, degrees = self._equal(Select(c, a, b), (a, b))
                return Select(self._condition(c), *after.args[1:]) if isinstance(after, Select) else after, degrees
            case _:
                return self._untouched(e)

    def _untouched(self, e: sp.Expr) -> tuple[sp.Expr, Degrees]:
        """A function of what has no exp(m) as a factor."""
        parts = [self.of(a) for a in e.args]
        if any(d for _, d in parts):
            raise Kept
        args = tuple(p for p, _ in parts)
        return (e if args == e.args else e.func(*args)), {}

    def _equal(self, e: sp.Expr, args: tuple[sp.Expr, ...]) -> tuple[sp.Expr, Degrees]:
        parts = [self.of(a) for a in args]
        degrees = [d for p, d in parts if p != 0]
        if any(d != degrees[0] for d in degrees):
            raise Kept
        new = [p for p, _ in parts]
        after = sp.Add(*new) if isinstance(e, sp.Add) else e.func(e.args[0], *new, evaluate=False)
        return after, degrees[0] if degrees else {}

    def _condition(self, c: sp.Basic) -> sp.Basic:
        """A condition must not speak of what is represented, unless it compares it with 0."""
        touched = {s for s in c.free_symbols if is_slot(s) and self.f.reads[slot_number(s)].tensor in self.shift.scaled}
        if touched and not (isinstance(c, sp.Rel) and c.lhs in touched and c.rhs == 0):
            raise Kept
        return c

    def _represented(self, s: sp.Symbol) -> tuple[sp.Expr, Degrees]:
        read = self.f.reads[slot_number(s)]
        if read.outside is not None:
            raise Kept
        rule = self.shift.scaled[read.tensor]
        made = self.shift.graph.producers[read.tensor]
        assert isinstance(made, Formula)
        inside = {a.symbol: i for a, i in zip(made.axes, read.indices, strict=True)}
        return s, {self._maximum(tuple(p.xreplace(inside) for p in rule.places)): rule.degree}

    def _maximum(self, places: tuple[sp.Expr, ...]) -> sp.Symbol:
        """The slot of m at `places`."""
        read = Access(self.shift.shift, places)
        if read not in self.reads:
            self.reads.append(read)
        return slot(self.reads.index(read))

    def _exponential(self, e: sp.exp) -> tuple[sp.Expr, Degrees]:
        """exp(v) is exp(v - m) · exp(m) where v is a u that the sum with maximum m holds."""
        for places in self._matches(e.args[0]):
            m = self._maximum(places)
            return sp.exp(e.args[0] - m), {m: sp.S.One}
        inside, degrees = self.of(e.args[0])
        if degrees:
            raise Kept
        return sp.exp(inside), {}

    def _matches(self, v: sp.Expr) -> Iterator[tuple[sp.Expr, ...]]:
        """The places o such that `v` is u at some (o, r)."""
        whole, u = self.shift.whole, self.shift.u
        mine = sorted((s for s in u.free_symbols if is_slot(s)), key=str)
        theirs = sorted((s for s in v.free_symbols if is_slot(s)), key=str)
        if len(mine) != len(theirs):
            return
        options = [
            [t for t in theirs if self.f.reads[slot_number(t)].tensor == whole.reads[slot_number(s)].tensor]
            for s in mine
        ]
        for choice in product(*options):
            if len(set(choice)) < len(choice):
                continue
            bound: dict[sp.Basic, sp.Basic] = dict(zip(mine, choice, strict=True))
            reads = (
                (whole.reads[slot_number(s)], self.f.reads[slot_number(t)]) for s, t in zip(mine, choice, strict=True)
            )
            if all(_unify(a, b, bound, {i.symbol for i in whole.indices}) for a, b in reads):
                places = [bound.get(a.symbol) for a in whole.axes]
                if all(p is not None for p in places) and u.xreplace(bound) == v:
                    yield tuple(p for p in places if p is not None)


def _unify(a: Access, b: Access, bound: dict[sp.Basic, sp.Basic], free: set[sp.Symbol]) -> bool:
    """Read `a`, its free indices replaced by what `bound` says or comes to say, is read `b`."""
    if a.outside != b.outside:
        return False
    for i, j in zip(a.indices, b.indices, strict=True):
        if i in free:
            if bound.setdefault(i, j) != j:
                return False
        elif i.xreplace(bound) != j:
            return False
    return True


def _sum(all_degrees: Iterator[Degrees]) -> Degrees:
    total: dict[sp.Symbol, sp.Expr] = {}
    for degrees in all_degrees:
        for m, d in degrees.items():
            total[m] = total.get(m, sp.S.Zero) + d
    return {m: d for m, d in total.items() if d != 0}


def log_of(e: sp.Expr) -> sp.Expr:
    """log(e), with factors exp(v) and powers of what is positive taken out: log(exp(v) / s) is v - log(s)."""
    terms, rest = [], []
    for f in sp.Mul.make_args(e):
        if isinstance(f, sp.exp):
            terms.append(f.args[0])
        elif isinstance(f, sp.Pow) and f.exp.is_Rational and (f.exp == -1 or f.base.is_positive):
            terms.append(f.exp * sp.log(f.base))
        else:
            rest.append(f)
    if not terms:
        return sp.log(e)
    return sp.Add(*terms, sp.log(sp.Mul(*rest)) if rest else sp.S.Zero)


def _divided_by_something(e: sp.Expr, sums: set[sp.Symbol]) -> sp.Expr:
    """1 / s is 1 where s is 0: a row of which everything is masked has softmax 0, and not NaN."""
    below = {
        part: sp.Pow(part.base.xreplace({s: Select(sp.Eq(s, 0, evaluate=False), sp.S.One, s) for s in sums}), part.exp)
        for part in e.atoms(sp.Pow)
        if part.exp.is_number and part.exp < 0 and part.free_symbols & sums
    }
    return e.xreplace(below)
