"""Eliminating x between y = f(x) and an expression that holds f'(x), and what it costs in accuracy."""

from __future__ import annotations

import numpy as np
import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

from chainrule.ir.calculus import finite
from chainrule.ir.expression import Select, is_slot
from chainrule.ir.value import value

Arguments = frozenset[sp.Symbol]


def in_terms_of_value(law: sp.Expr, e: sp.Expr, y: sp.Symbol, x: Arguments) -> sp.Expr | None:
    """`e` with symbols of `x` eliminated by y = law(x), as far as that is possible; None where it is not.

    A law by cases is solved case by case: the cases must agree, or be told apart by the sign of y.
    """
    if not e.free_symbols & x:
        return e
    direct = None if law.is_number else e.subs(law, y)
    if direct is not None and not direct.free_symbols & x:
        return finite(direct)
    solved = _by_cases(law, e, y, x)
    if solved is not None or direct is None:
        return solved
    return finite(direct) if len(direct.free_symbols & x) < len(e.free_symbols & x) else None


def _by_cases(law: sp.Expr, e: sp.Expr, y: sp.Symbol, x: Arguments) -> sp.Expr | None:
    condition = _condition(law, x)
    if condition is None:
        u = _exponent(law, x)
        return None if u is None else _by_exponential(law, e, y, x, u)
    there = in_terms_of_value(_taken(law, condition, True), _taken(e, condition, True), y, x)
    elsewhere = in_terms_of_value(_taken(law, condition, False), _taken(e, condition, False), y, x)
    if there is None or elsewhere is None:
        return None
    if there == elsewhere:
        return there
    by_sign = _by_sign(law, condition, y)
    return None if by_sign is None else Select(by_sign, there, elsewhere)


def _condition(law: sp.Expr, x: Arguments) -> sp.Basic | None:
    """The condition on x of a choice in `law`, an outermost one first."""
    for part in sp.preorder_traversal(law):
        if isinstance(part, Select) and part.args[0].free_symbols & x:
            return part.args[0]
    return None


def _taken(e: sp.Expr, condition: sp.Basic, holds: bool) -> sp.Expr:
    """`e` where the condition holds, or where it does not."""
    if not e.has(Select):
        return e
    if isinstance(e, Select) and e.args[0] == condition:
        return _taken(e.args[1 if holds else 2], condition, holds)
    if isinstance(e, Select) and e.args[0] == sp.Not(condition):
        return _taken(e.args[2 if holds else 1], condition, holds)
    args = tuple(_taken(a, condition, holds) if isinstance(a, sp.Expr) else a for a in e.args)
    return e if args == e.args else e.func(*args)


def _by_sign(law: sp.Expr, condition: sp.Basic, y: sp.Symbol) -> sp.Basic | None:
    """The condition u > 0 (or <, <=, >=) on the argument as the same one on the value, where signs agree."""
    if not (isinstance(law, Select) and isinstance(condition, sp.Gt | sp.Ge | sp.Lt | sp.Le) and condition.rhs == 0):
        return None
    u, kind = condition.lhs, type(condition)
    for branch, signs in ((law.args[1], _signs(kind)), (law.args[2], {-1, 0, 1} - _signs(kind))):
        found = _signs_of(branch, u, signs)
        if found is None or not (found <= _signs(kind) if signs == _signs(kind) else not found & _signs(kind)):
            return None
    return kind(y, 0)


def _signs(kind: type) -> set[int]:
    return {sp.Gt: {1}, sp.Ge: {0, 1}, sp.Lt: {-1}, sp.Le: {-1, 0}}[kind]


def _signs_of(e: sp.Expr, u: sp.Expr, signs: set[int]) -> set[int] | None:
    """The signs that `e` can have where u has one of `signs`: e is a number, or a multiple of an odd-signed f(u)."""
    if e.is_number:
        return {int(sp.sign(e))}
    c, rest = e.as_coeff_Mul()
    if rest == u or (isinstance(rest, expm1 | sp.tanh | sp.sinh | sp.atan | sp.erf) and rest.args[0] == u):
        return {s * int(sp.sign(c)) for s in signs}
    c, rest = (e / u).as_coeff_Mul()
    return {s * int(sp.sign(c)) for s in signs} if rest == 1 else None


def _exponent(law: sp.Expr, x: Arguments) -> sp.Expr | None:
    """The u of which `law` holds an exponential."""
    for part in (*law.atoms(sp.exp), *law.atoms(expm1)):
        if part.free_symbols & x:
            return part.args[0]
    return None


def _by_exponential(law: sp.Expr, e: sp.Expr, y: sp.Symbol, x: Arguments, u: sp.Expr) -> sp.Expr | None:
    """With t = exp(u), y = (a t + b) / (c t + d), or its logarithm: t by y, and that put into `e`."""
    t = sp.Symbol("t", positive=True)
    inside, logarithm = _rational(law, t, u), False
    if inside is None or not _is_fraction(inside, t):
        inside, logarithm = _rational(_exponentiated(law), t, u), True
    target = _rational(e, t, u)
    if inside is None or target is None or not _is_fraction(inside, t) or target.free_symbols & x:
        return None
    top, bottom = (sp.Poly(p, t) for p in sp.fraction(sp.cancel(inside)))
    if max(top.degree(), bottom.degree()) != 1:
        return None
    (a, b), (c, d) = ((p.coeff_monomial(t), p.coeff_monomial(1)) for p in (top, bottom))
    q = sp.Symbol("q", positive=True)  # exp(-y) for a logarithm: exp(+y) would overflow
    v = 1 / q if logarithm else y
    solution = (d * v - b) / (a - c * v)
    after = _put(target, t, solution)
    if not logarithm:
        return after
    if any(p.exp.is_negative and q in p.base.free_symbols for p in after.atoms(sp.Pow)):
        return None
    return _in_exponentials(after, q, y)


def _rational(e: sp.Expr, t: sp.Symbol, u: sp.Expr) -> sp.Expr | None:
    """`e` with exp(k u) as t^k; None where an exponential is of something else."""
    values = {}
    for part in (*e.atoms(sp.exp), *e.atoms(expm1)):
        k = part.args[0] / u
        if not k.is_Integer:
            if part.free_symbols & u.free_symbols:
                return None
            continue
        values[part] = t**k - (1 if isinstance(part, expm1) else 0)
    return e.xreplace(values)


def _is_fraction(e: sp.Expr, t: sp.Symbol) -> bool:
    return e.free_symbols == {t} and bool(e.is_rational_function(t))


def _exponentiated(law: sp.Expr) -> sp.Expr:
    """exp(law), for a law that is a sum of terms, one of them a logarithm."""
    factors = []
    for term in sp.Add.make_args(law):
        match term:
            case log1p():
                factors.append(1 + term.args[0])
            case sp.log():
                factors.append(term.args[0])
            case _:
                factors.append(sp.exp(term))
    return sp.Mul(*factors)


def _put(e: sp.Expr, t: sp.Symbol, solution: sp.Expr) -> sp.Expr:
    """`e` at t = solution, each product's part in t brought to its simplest form, and nothing else touched."""
    if t not in e.free_symbols:
        return e
    factors = [f for f in sp.Mul.make_args(e) if t in f.free_symbols]
    part = sp.Mul(*factors)
    if all(s == t for s in part.free_symbols):
        rest = [f for f in sp.Mul.make_args(e) if f not in factors]
        return sp.Mul(*rest, _upright(sp.factor(sp.cancel(part.xreplace({t: solution})))))
    return e.func(*(_put(a, t, solution) if isinstance(a, sp.Expr) else a for a in e.args))


def _upright(e: sp.Expr) -> sp.Expr:
    """y (1 - y) instead of -y (y - 1)."""
    c, factors = e.as_coeff_mul()
    for k, f in enumerate(factors):
        if c == -1 and isinstance(f, sp.Add) and -1 in f.args:
            return sp.Mul(*factors[:k], sp.Add(*(-term for term in f.args)), *factors[k + 1 :])
    return e


def _in_exponentials(e: sp.Expr, q: sp.Symbol, y: sp.Symbol) -> sp.Expr:
    """q is exp(-y), and q - 1 is expm1(-y), which keeps its bits."""
    if isinstance(e, sp.Add):
        numbers = [a for a in e.args if a.is_number]
        for term in e.args:
            c, rest = term.as_coeff_Mul()
            if rest == q and numbers == [-c]:
                others = [a for a in e.args if a is not term and a not in numbers]
                return sp.Add(*(_in_exponentials(a, q, y) for a in others), c * expm1(-y))
    if e == q:
        return sp.exp(-y)
    if not e.args or q not in e.free_symbols:
        return e
    return e.func(*(_in_exponentials(a, q, y) for a in e.args))


ULP = 2.0**-23


def is_accurate(law: sp.Expr, before: sp.Expr, after: sp.Expr, y: sp.Symbol) -> bool:
    """`after`, in float32 with y rounded, stays within 4 ulp of the greatest |before| over the arguments tried.

    Also where y is no number: sqrt(x) <= 0 is not x <= 0 for a negative x.
    """
    rng = np.random.default_rng(0)
    near = np.concatenate([np.linspace(-20, 20, 801), np.logspace(-6, 1, 100), -np.logspace(-6, 1, 100)])
    arguments = sorted((s for s in law.free_symbols if is_slot(s)), key=str)
    values = {s: near if k == 0 else rng.permutation(np.abs(near)) for k, s in enumerate(arguments)}
    others = {s: np.ones(()) for s in (before.free_symbols | after.free_symbols | law.free_symbols) - set(values) - {y}}
    rounded = {s: v.astype(np.float32) for s, v in (values | others).items()}
    exact_y = value(law, {s: v.astype(np.float64) for s, v in rounded.items()})
    with np.errstate(over="ignore", invalid="ignore"):
        rounded[y] = np.asarray(exact_y, np.float32)
    exact = np.broadcast_to(value(before, {s: v.astype(np.float64) for s, v in rounded.items()}), near.shape)
    found = np.broadcast_to(value(after, rounded, np.float32), exact.shape)
    known = np.isfinite(exact)
    if not known.any():
        return False
    error = np.abs(found[known] - exact[known])
    return bool(np.all(error <= 4 * ULP * max(np.abs(exact[known]).max(), 1e-30)))
