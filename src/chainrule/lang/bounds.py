"""Proofs that a read stays inside: goals ``g >= 0`` over integers, from facts of the same form.

A goal's newest variable is cancelled by a fact that holds it with the same sign: from f >= 0 and g - λ f >= 0 with
λ >= 0 follows g >= 0. Variables are ordered: dims, indices, slots, then quotients, whose facts are the two
inequalities k q <= a <= k q + k - 1. Polynomials are dictionaries from monomials (sorted tuples of variables) to
fractions, since sympy would take longer than the whole elaboration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import sympy as sp

from chainrule.ir.expression import Select, quotient, remainder
from chainrule.ir.graph import Dim

Monomial = tuple[int, ...]
Polynomial = dict[Monomial, Fraction]
BUDGET = 3000  # steps of a proof; real ones take fewer than 50


class TooHard(Exception):
    """An expression that is no polynomial over integer atoms."""


def add(a: Polynomial, b: Polynomial, factor: Fraction = Fraction(1)) -> Polynomial:
    total = dict(a)
    for m, c in b.items():
        value = total.get(m, Fraction(0)) + factor * c
        if value:
            total[m] = value
        else:
            total.pop(m, None)
    return total


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    product: Polynomial = {}
    for m, c in a.items():
        for n, d in b.items():
            key = tuple(sorted(m + n))
            value = product.get(key, Fraction(0)) + c * d
            if value:
                product[key] = value
            else:
                product.pop(key, None)
    if len(product) > 200:
        raise TooHard
    return product


def constant(value: int | Fraction) -> Polynomial:
    return {(): Fraction(value)} if value else {}


@dataclass
class Facts:
    """Variables in order of age, and for each the facts in which it is the newest."""

    variables: dict[sp.Basic, int] = field(default_factory=dict)
    natural: set[int] = field(default_factory=set)  # those that are never negative
    known: dict[int, list[Polynomial]] = field(default_factory=dict)
    definitions: Mapping[sp.Symbol, sp.Expr] = field(default_factory=dict)

    def variable(self, e: sp.Basic) -> int:
        if e not in self.variables:
            self.variables[e] = len(self.variables)
        return self.variables[e]

    def learn(self, fact: Polynomial) -> None:
        """Assume fact >= 0."""
        newest = max((v for m in fact for v in m), default=None)
        if newest is not None:
            self.known.setdefault(newest, []).append(fact)

    def between(self, symbol: sp.Basic, low: sp.Expr | int, high: sp.Expr | int | None) -> None:
        """Assume low <= symbol <= high, with bounds over older variables."""
        if high is not None:
            bound = self.polynomial(sp.Integer(high) if isinstance(high, int) else high)
        least = self.polynomial(sp.Integer(low) if isinstance(low, int) else low)
        v: Polynomial = {(self.variable(symbol),): Fraction(1)}
        if all(c >= 0 for c in least.values()):
            self.natural.add(self.variable(symbol))
        self.learn(add(v, least, Fraction(-1)))
        if high is not None:
            self.learn(add(bound, v, Fraction(-1)))

    def assume(self, condition: sp.Basic, holds: bool = True) -> None:
        """Learn what a condition says about integers; what it says otherwise is left out."""
        if (isinstance(condition, sp.And) and holds) or (isinstance(condition, sp.Or) and not holds):
            for part in condition.args:
                self.assume(part, holds)
        elif isinstance(condition, sp.Not):
            self.assume(condition.args[0], not holds)
        elif isinstance(condition, sp.Rel):
            kind: type[sp.Basic] = type(condition) if holds else type(condition.negated)
            try:
                gap = add(self.polynomial(condition.rhs), self.polynomial(condition.lhs), Fraction(-1))
            except TooHard:
                return
            self._assume(kind, gap)

    def _assume(self, kind: type[sp.Basic], gap: Polynomial) -> None:
        """What ``left kind right`` says, where gap = right - left."""
        back = {m: -c for m, c in gap.items()}
        if kind in (sp.Le, sp.Eq):
            self.learn(gap)
        if kind in (sp.Ge, sp.Eq):
            self.learn(back)
        if kind is sp.Lt:
            self.learn(add(gap, constant(-1)))
        if kind is sp.Gt:
            self.learn(add(back, constant(-1)))

    # ------------------------------------------------------------ polynomials

    def polynomial(self, e: sp.Basic) -> Polynomial:
        if isinstance(e, sp.Rational):
            return constant(Fraction(int(e.p), int(e.q)))
        if isinstance(e, sp.Symbol):
            if e in self.definitions and e not in self.variables:
                return self._defined(e)
            return {(self.variable(e),): Fraction(1)}
        if isinstance(e, sp.Add):
            total: Polynomial = {}
            for term in e.args:
                total = add(total, self.polynomial(term))
            return total
        if isinstance(e, sp.Mul):
            product = constant(1)
            for factor in e.args:
                product = multiply(product, self.polynomial(factor))
            return product
        if isinstance(e, sp.Pow) and e.exp.is_Integer and 0 < e.exp <= 4:
            return self.polynomial(sp.Mul(*[e.base] * int(e.exp), evaluate=False))
        if isinstance(e, quotient):
            return self._quotient(e)
        if isinstance(e, remainder):
            a, k = e.args
            return add(self.polynomial(a), multiply(self.polynomial(k), self._quotient(quotient(a, k))), Fraction(-1))
        raise TooHard

    def _defined(self, symbol: sp.Symbol) -> Polynomial:
        """A derived dim is its definition."""
        return self.polynomial(self.definitions[symbol])

    def _quotient(self, e: sp.Basic) -> Polynomial:
        if not isinstance(e, quotient):  # it evaluated to a number
            return self.polynomial(e)
        if e not in self.variables:
            a, k = (self.polynomial(arg) for arg in e.args)
            q: Polynomial = {(self.variable(e),): Fraction(1)}
            kq = multiply(k, q)
            below = add(a, kq, Fraction(-1))
            self.learn(below)
            self.learn(add(add(k, constant(-1)), below, Fraction(-1)))
            if all(c >= 0 for c in a.values()) and all(v in self.natural for m in a for v in m):
                self.natural.add(self.variable(e))
                self.learn(q)
        return {(self.variables[e],): Fraction(1)}

    # ------------------------------------------------------------ proofs

    def proves(self, goal: sp.Expr) -> bool:
        """Whether goal >= 0 follows; a Select is proved in both its cases."""
        for choice in goal.atoms(Select) if goal.has(Select) else ():
            if not choice.args[0].has(Select):
                condition, yes, no = choice.args
                return self._under(condition, True, goal.xreplace({choice: yes})) and self._under(
                    condition, False, goal.xreplace({choice: no})
                )
        try:
            return _Proof(self).shows(self.polynomial(goal))
        except TooHard:
            return False

    def _under(self, condition: sp.Basic, holds: bool, goal: sp.Expr) -> bool:
        known = {v: list(facts) for v, facts in self.known.items()}
        facts = Facts(dict(self.variables), set(self.natural), known, self.definitions)
        facts.assume(condition, holds)
        return facts.proves(goal)


class _Proof:
    """One search, with its budget."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.left = facts, BUDGET

    def shows(self, goal: Polynomial) -> bool:
        """A goal of integers: what is above -1 is at least 0."""
        self.left -= 1
        if self.left < 0:
            return False
        natural = all(v in self.facts.natural for m in goal for v in m)
        if natural and all(c >= 0 or not m for m, c in goal.items()) and goal.get((), Fraction(0)) > -1:
            return True
        newest = max((v for m in goal for v in m), default=None)
        if newest is None:
            return goal.get((), Fraction(0)) > -1
        parts = {m: c for m, c in goal.items() if newest in m}
        if any(m.count(newest) > 1 for m in parts):
            return False
        return any(self._cancel(goal, newest, parts, fact) for fact in self.facts.known.get(newest, ()))

    def _cancel(self, goal: Polynomial, v: int, parts: Polynomial, fact: Polynomial) -> bool:
        """Whether goal minus a multiple of `fact`, without v, is shown."""
        inside = {_without(m, v): c for m, c in fact.items() if v in m}
        if len(inside) != 1:
            return self._subtract(goal, v, fact)
        ((scale, c),) = inside.items()
        if any(u not in self.facts.natural for u in scale) or any(m.count(v) > 1 for m in fact if v in m):
            return False
        rests = {m: _over(_without(m, v), scale) for m in parts}
        if any(rest is None for rest in rests.values()):
            # times scale >= 1: g >= 0 follows from g * scale + scale - 1 >= 0
            one: Polynomial = {scale: Fraction(1)}
            goal = add(add(multiply(goal, one), one), constant(-1))
            rests = {m: _without(m, v) for m in parts}
        for m, d in parts.items():
            rest = rests[m] or ()
            if d * c < 0 or any(u not in self.facts.natural for u in rest):
                return False
            goal = add(goal, multiply({rest: d / c}, fact), Fraction(-1))
        if any(v in m for m in goal):
            return False
        return self.shows(goal)

    def _subtract(self, goal: Polynomial, v: int, fact: Polynomial) -> bool:
        """Whether all of v goes with a multiple of a fact that holds v in several terms: i n - i >= 0, say."""
        m = next(m for m in fact if v in m)
        ratio = goal.get(m, Fraction(0)) / fact[m]
        rest = add(goal, fact, -ratio)
        return ratio > 0 and not any(v in n for n in rest) and self.shows(rest)


def _over(m: Monomial, scale: Monomial) -> Monomial | None:
    """m / scale, if it is a monomial."""
    for v in scale:
        if v not in m:
            return None
        m = _without(m, v)
    return m


def _without(m: Monomial, v: int) -> Monomial:
    at = m.index(v)
    return m[:at] + m[at + 1 :]


def dim_facts(dims: Mapping[str, Dim]) -> Facts:
    """What the dims' declarations say."""
    symbols = {sp.Symbol(name, integer=True, nonnegative=True): dim for name, dim in dims.items()}
    definitions = {symbol: dim.definition for symbol, dim in symbols.items() if dim.definition is not None}
    facts = Facts(definitions=definitions)
    for symbol, dim in symbols.items():
        if dim.definition is None:
            facts.between(symbol, dim.minimum, dim.maximum)
    return facts


def provable(facts: Facts, conditions: Iterable[sp.Basic], goals: Iterable[sp.Expr]) -> bool:
    for condition in conditions:
        facts.assume(condition)
    return all(facts.proves(goal) for goal in goals)
