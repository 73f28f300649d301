"""Forms that neither overflow nor cancel, before derivation: the gradient of a stable form is stable.

Rules of one expression, over the reals each an identity; sums of exponentials are `log_sum_exp`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

from chainrule.ir.expression import Select, is_slot, slot, slot_number
from chainrule.ir.formula import DType, Formula, Reduce
from chainrule.ir.graph import Graph
from chainrule.optimize.inline import substitute
from chainrule.optimize.log_sum_exp import log_of, log_sum_exp
from chainrule.optimize.rewrite import map_formulas


def stabilize(graph: Graph) -> Graph:
    """Rewrite what overflows or cancels in floating point into what does not.

    log(sigmoid(x))          ->  -log(1 + exp(-x)), as a softplus
    log(1 + exp(x))          ->  (if x > 0 then x else 0) + log1p(exp(-|x|))
    exp(x) - 1, log(1 + x)   ->  expm1(x), log1p(x)
    log(exp(a) + exp(b))     ->  if a > b then a + log1p(exp(b - a)) else b + log1p(exp(a - b))
    x / (exp(x) - 1)         ->  its power series near 0
    sin(x) / x               ->  the same
    sqrt(sum of squares)     ->  if it is 0 then 0 else its root: the gradient there is 0
    sum[k] exp(z[k])         ->  exp(max) * sum[k] exp(z[k] - max), in all its readers
    """
    graph = map_formulas(graph, lambda f: _logarithms(f, graph))
    graph = log_sum_exp(graph)
    return map_formulas(graph, lambda f: _roots(_with_body(f, stable(f.body)), graph))


def _with_body(f: Formula, body: sp.Expr) -> Formula:
    return f if body == f.body else replace(f, body=body)


@lru_cache(maxsize=16384)
def stable(e: sp.Expr) -> sp.Expr:
    """`e` with the rules of one expression applied from the inside."""
    if not e.args or not e.has(sp.exp, sp.log, sp.sin):
        return e
    args = tuple(stable(a) for a in e.args)
    e = e if args == e.args else e.func(*args)
    for rule in RULES:
        after = rule(e)
        if after is not None:
            return after
    return e


def softplus(e: sp.Expr) -> sp.Expr | None:
    """log(1 + exp(u)) = max(u, 0) + log1p(exp(-|u|)), whose argument is at most 1."""
    if not isinstance(e, sp.log | log1p):
        return None
    inside = e.args[0] if isinstance(e, log1p) else e.args[0] - 1
    if not isinstance(inside, sp.exp):
        return None
    u = inside.args[0]
    if isinstance(u, Select) and u == _minus_absolute(u.args[1]):  # it is one already
        return None
    return Select(u > 0, u, sp.S.Zero) + log1p(sp.exp(_minus_absolute(u)))


def _minus_absolute(u: sp.Expr) -> sp.Expr:
    return Select(u > 0, -u, u)


def difference(e: sp.Expr) -> sp.Expr | None:
    """c exp(u) - c = c expm1(u), which keeps the bits that the difference loses near u = 0."""
    if not isinstance(e, sp.Add):
        return None
    for term in e.args:
        c, rest = term.as_coeff_Mul()
        for f in sp.Mul.make_args(rest):
            other = -c * (rest / f)
            if isinstance(f, sp.exp) and other in e.args:
                left = [t for t in e.args if t not in (term, other)]
                return sp.Add(*left, sp.Mul(c, rest / f, expm1(f.args[0])))
    return None


LEAST = -3 * sp.Integer(10) ** 38
"""Of both floats: what lies below is a logarithm of 0."""


def larger_first(e: sp.Expr) -> sp.Expr | None:
    """log(e^u + e^v) = max + log1p(e^-|u - v|); where both are -inf, so is it."""
    if not (isinstance(e, sp.log) and isinstance(e.args[0], sp.Add) and len(e.args[0].args) == 2):
        return None
    if not all(isinstance(term, sp.exp) for term in e.args[0].args):
        return None
    u, v = (term.args[0] for term in e.args[0].args)
    second = Select(v > LEAST, v + log1p(sp.exp(u - v)), v)
    return Select(u > v, u + log1p(sp.exp(v - u)), second)


def logarithm(e: sp.Expr) -> sp.Expr | None:
    """log(1 + u) = log1p(u), and logarithms of products of exponentials taken apart."""
    if not isinstance(e, sp.log):
        return None
    inside = e.args[0]
    if isinstance(inside, sp.Add) and sp.S.One in inside.args:
        return log1p(sp.Add(*(t for t in inside.args if t != 1)))
    after = log_of(inside)
    return None if after == e else stable(after)


# B_2k / (2k)!: x/(e^x - 1) = 1 - x/2 + Σ B_2k x^2k / (2k)!, to 1e-17 for |x| < 1
_SERIES = tuple(sp.bernoulli(2 * k) / sp.factorial(2 * k) for k in range(1, 11))
# sin(x)/x = 1 + Σ (-1)^k x^2k / (2k + 1)!
_SINC = tuple((-1) ** k / sp.factorial(2 * k + 1) for k in range(1, 11))


def removable(e: sp.Expr) -> sp.Expr | None:
    """x / expm1(x) and sin(x) / x, 0/0 at 0: power series where |x| < 1, so that derivatives are right there too."""
    if not isinstance(e, sp.Mul):
        return None
    for f in e.args:
        if isinstance(f, sp.Pow) and f.exp == -1 and isinstance(f.base, expm1):
            x, near = f.base.args[0], -f.base.args[0] / 2
            found = _near_zero(e, (x, f), x, 1 + near + _even(_SERIES, x))
        elif isinstance(f, sp.sin):
            x = f.args[0]
            found = _near_zero(e, (f, *sp.Mul.make_args(1 / x)), x, 1 + _even(_SINC, x))
        else:
            continue
        if found is not None:
            return found
    return None


def _even(coefficients: tuple[sp.Expr, ...], x: sp.Expr) -> sp.Expr:
    return sp.Add(*(c * x ** (2 * k) for k, c in enumerate(coefficients, 1)))


def _near_zero(e: sp.Mul, quotient: tuple[sp.Expr, ...], x: sp.Expr, near: sp.Expr) -> sp.Expr | None:
    """`e` with the factors `quotient` of it replaced by `near` where |x| < 1."""
    rest = list(e.args)
    for f in quotient:
        if f not in rest:
            return None
        rest.remove(f)
    return sp.Mul(*rest, Select(sp.And(x < 1, x > -1), near, sp.Mul(*quotient)))


def filled(e: sp.Expr) -> sp.Expr | None:
    """``if x == 0 then c else`` a form that has the value c at 0 by itself: that form, with its derivatives there."""
    if not (isinstance(e, Select) and isinstance(e.args[0], sp.Eq) and e.args[0].rhs.is_zero):
        return None
    condition, c, rest = e.args
    if not (isinstance(rest, Select) and isinstance(rest.args[0], sp.And)):
        return None
    at_zero = {condition.lhs: sp.S.Zero}
    holds = rest.args[0].xreplace(at_zero) is sp.true
    return rest if holds and rest.args[1].xreplace(at_zero) == c else None


RULES: tuple[Callable[[sp.Expr], sp.Expr | None], ...] = (
    softplus,
    larger_first,
    difference,
    logarithm,
    removable,
    filled,
)


def _logarithms(f: Formula, graph: Graph) -> Formula:
    """`f` with log(p), p a map that is a product of exponentials or of what is positive, read through p.

    log(p[n]) with p[n] = 1 / (1 + exp(-x[n]))  ->  log(1 / (1 + exp(-x[n]))), for the rules to take apart.
    """
    if f.stop or not f.body.has(sp.log):
        return f
    for argument in {e.args[0] for e in f.body.atoms(sp.log)}:
        if is_slot(argument):
            k = slot_number(argument)
            made = graph.producers.get(f.reads[k].tensor)
            if isinstance(made, Formula) and f.reads[k].outside is None and _splits(made):
                inside = substitute(_alone(f, k), 0, made)
                return _logarithms(_put_log(f, k, inside), graph)
    return f


def _splits(made: Formula) -> bool:
    """A map that is a product with an exponential, or 1 / (1 + exp(u))."""
    if made.over or made.where or made.stop:
        return False
    factors = sp.Mul.make_args(made.body)
    return any(isinstance(f, sp.exp) or (isinstance(f, sp.Pow) and f.exp == -1 and f.base.has(sp.exp)) for f in factors)


def _alone(f: Formula, k: int) -> Formula:
    """log of the k-th read of `f`, as a formula of its own."""
    return (
        replace(f, body=sp.log(slot(0)), reads=(f.reads[k],), over=f.over, where=(), reduce=Reduce.SUM)
        if not f.reads[k].slots
        else f
    )


def _put_log(f: Formula, k: int, inside: Formula) -> Formula:
    offset = len(f.reads)
    moved = {slot(j, kind.sort): slot(offset + j, kind.sort) for j in range(len(inside.reads)) for kind in DType}
    reads = (*f.reads, *(r.renamed(moved) for r in inside.reads))
    return replace(f, body=f.body.xreplace({sp.log(slot(k)): inside.body.xreplace(moved)}), reads=reads)


def _roots(f: Formula, graph: Graph) -> Formula:
    """sqrt(S), S a sum of squares, has the gradient 0 where S is 0."""
    if f.stop:
        return f
    changes = {}
    for e in f.body.atoms(sp.Pow):
        if e.exp == sp.Rational(1, 2) and _is_sum_of_squares(e.base, f, graph):
            changes[e] = Select(sp.Eq(e.base, 0, evaluate=False), sp.S.Zero, e)
    return _with_body(f, f.body.xreplace(changes)) if changes else f


def _is_sum_of_squares(e: sp.Expr, f: Formula, graph: Graph) -> bool:
    """Every term is an even power, with a positive factor perhaps; or a read of a tensor that is such a sum."""

    def square(factor: sp.Expr) -> bool:
        if isinstance(factor, sp.Pow) and factor.exp.is_Integer and factor.exp % 2 == 0:
            return True
        if is_slot(factor):
            made = graph.producers.get(f.reads[slot_number(factor)].tensor)
            return (
                isinstance(made, Formula) and made.reduce is Reduce.SUM and _is_sum_of_squares(made.body, made, graph)
            )
        return False

    terms = sp.Add.make_args(e)
    return all(
        any(square(g) for g in sp.Mul.make_args(t)) and all(square(g) or g.is_nonnegative for g in sp.Mul.make_args(t))
        for t in terms
    )
