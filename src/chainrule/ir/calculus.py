"""Derivatives of scalar laws in a form that stays finite: what sympy's `diff` gives, with its products put right.

Over the reals nothing changes here. In floating point two things would go wrong: the side of a choice that is not
taken times an infinite factor (0 · ∞), and exp(u) over a power of its own sum (∞ / ∞).
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from chainrule.ir.expression import Select


@lru_cache(maxsize=16384)
def derivative(body: sp.Expr, x: sp.Symbol) -> sp.Expr:
    """∂body/∂x, finite wherever it can be."""
    return finite(sp.diff(body, x))


def times(*factors: sp.Expr) -> sp.Expr:
    """The product of `factors`, finite wherever it can be: factors move into the branches of a choice.

    times(if c then 0 else a, b) is ``if c then 0 else a * b``: an infinite b does not meet the 0.
    """
    flat = [f for factor in factors for f in sp.Mul.make_args(factor)]
    for k, f in enumerate(flat):
        if isinstance(f, Select) and (f.args[1].is_zero or f.args[2].is_zero):
            c, a, b = f.args
            rest = flat[:k] + flat[k + 1 :]
            return Select(c, _branch(a, rest), _branch(b, rest))
    return _cancelled(flat)


def _branch(e: sp.Expr, rest: list[sp.Expr]) -> sp.Expr:
    return sp.S.Zero if e.is_zero else times(e, *rest)


@lru_cache(maxsize=16384)
def finite(e: sp.Expr) -> sp.Expr:
    """`e` with every product inside it made by `times`."""
    if not e.args or isinstance(e, sp.Rel):
        return e
    args = tuple(finite(a) for a in e.args)
    if isinstance(e, sp.Mul):
        return times(*args)
    return e if args == e.args else e.func(*args)


def _cancelled(factors: list[sp.Expr]) -> sp.Expr:
    """The product, without exp(u) over powers of a sum of it: E / (a + b E)^2 is 1 / ((a + b E) (a/E + b)).

    The first is ∞/∞ for large u; of the second, each factor may overflow, and the quotient is then 0, as it should be.
    """
    whole = sp.Mul(*factors)
    parts = list(sp.Mul.make_args(whole))
    for k, f in enumerate(parts):
        if not isinstance(f, sp.exp):
            continue
        for j, g in enumerate(parts):
            if not (isinstance(g, sp.Pow) and g.exp.is_Integer and g.exp < 0 and isinstance(g.base, sp.Add)):
                continue
            if f not in g.base.atoms(sp.exp):
                continue
            divided = sp.Add(*(_over(term, f) for term in g.base.args))
            rest = [p for i, p in enumerate(parts) if i not in (j, k)]
            return _cancelled([*rest, sp.Pow(g.base, g.exp + 1), 1 / divided])
    return whole


def _over(term: sp.Expr, f: sp.exp) -> sp.Expr:
    """term / f with one exponential: sympy leaves exp(a - b) * exp(b - a) as it is, which is ∞ · 0 far out."""
    factors = sp.Mul.make_args(term)
    exponent = sp.Add(*(g.args[0] for g in factors if isinstance(g, sp.exp)), -f.args[0])
    return sp.Mul(*(g for g in factors if not isinstance(g, sp.exp)), sp.exp(exponent))
