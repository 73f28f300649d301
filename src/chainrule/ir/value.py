"""The number that an expression stands for: elementwise over NumPy arrays, over the closed set of nodes.

A choice is made element by element after both sides were computed, so that neither the NaN nor the infinity of the
side not taken reaches the result. Nothing here is fast; it is what the fast code is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import mpmath
import numpy as np
import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or

from chainrule.ir.expression import Select, ceil, erfc, floor, quotient, remainder, round, sign

Array = Any  # an ndarray, or a number


def value(e: sp.Basic, values: Mapping[sp.Basic, Array], dtype: type[np.floating[Any]] = np.float64) -> Array:
    """`e` with its symbols replaced by `values`; rationals are rounded to `dtype`, integers stay integers.

    Raises TypeError on a node that is not of the closed set, KeyError on a symbol without a value.
    """

    def visit(e: sp.Basic) -> Array:
        match e:
            case sp.Symbol():
                return values[e]
            case sp.Integer():
                return int(e) if abs(e) < 2**63 else dtype(int(e))
            case sp.Rational():
                return dtype(int(e.p)) / dtype(int(e.q))
            case BooleanTrue() | BooleanFalse():
                return np.bool_(bool(e))
            case sp.Add():
                return reduce(np.add, map(visit, e.args))
            case sp.Mul():
                return reduce(np.multiply, map(visit, e.args))
            case sp.Pow():
                return _power(visit(e.base), e.exp, visit, dtype)
            case Select():
                c, a, b = map(visit, e.args)
                return np.where(c, a, b)
            case sp.Rel():
                return RELATIONS[type(e)](visit(e.lhs), visit(e.rhs))
            case And():
                return reduce(np.logical_and, map(visit, e.args))
            case Or():
                return reduce(np.logical_or, map(visit, e.args))
            case Not():
                return np.logical_not(visit(e.args[0]))
            case sp.Function() if type(e) in FUNCTIONS:
                return FUNCTIONS[type(e)](*(_number(visit(a), type(e), dtype) for a in e.args))
            case _:
                return _constant(e, dtype)

    with np.errstate(all="ignore"):
        return visit(e)


def _power(base: Array, exponent: sp.Expr, visit: Callable[[sp.Basic], Array], dtype: Any) -> Array:
    """The cases apart that are exact as a root, a quotient or a product."""
    if exponent.is_Integer and exponent > 0:
        return np.power(base, int(exponent))
    base = np.asarray(base, dtype)
    if exponent.is_Integer:
        return dtype(1) / np.power(base, -int(exponent))
    if exponent.is_Rational and exponent.q == 2:
        root = np.sqrt(base)
        return root ** int(exponent.p) if exponent.p > 0 else dtype(1) / root ** int(-exponent.p)
    return np.power(base, np.asarray(visit(exponent), dtype))


def _number(x: Array, function: Any, dtype: Any) -> Array:
    # integers stay what they are in // and %, elsewhere they count as reals
    return x if function in (quotient, remainder) else np.asarray(x, dtype)


def _constant(e: sp.Basic, dtype: Any) -> Array:
    match e:
        case sp.core.numbers.Infinity():
            return dtype(np.inf)
        case sp.core.numbers.NegativeInfinity():
            return dtype(-np.inf)
        case sp.core.numbers.NaN() | sp.core.numbers.ComplexInfinity():
            return dtype(np.nan)
        case sp.core.numbers.Pi():
            return dtype(math.pi)
        case sp.core.numbers.Exp1():
            return dtype(math.e)
        case _:
            raise TypeError(f"{type(e).__name__} has no place in a formula: {e}")


def _each(f: Callable[..., Any]) -> Callable[..., Array]:
    """`f` of plain floats, over arrays; a place where it has no value is NaN."""

    def one(*args: Any) -> float:
        try:
            return float(f(*args))
        except (ValueError, OverflowError):
            return math.nan

    many = np.vectorize(one, otypes=[np.float64])
    return lambda *args: many(*args)


def _polygamma(n: float, x: float) -> Any:
    return mpmath.polygamma(int(n), x)


RELATIONS: dict[Any, Callable[[Array, Array], Array]] = {
    sp.Eq: np.equal, sp.Ne: np.not_equal,
    sp.Lt: np.less, sp.Le: np.less_equal, sp.Gt: np.greater, sp.Ge: np.greater_equal,
}  # fmt: skip

FUNCTIONS: dict[Any, Callable[..., Array]] = {
    sp.exp: np.exp, sp.log: np.log, expm1: np.expm1, log1p: np.log1p,
    sp.sin: np.sin, sp.cos: np.cos, sp.tan: np.tan, sp.asin: np.arcsin, sp.acos: np.arccos, sp.atan: np.arctan,
    sp.sinh: np.sinh, sp.cosh: np.cosh, sp.tanh: np.tanh,
    sp.asinh: np.arcsinh, sp.acosh: np.arccosh, sp.atanh: np.arctanh,
    sp.erf: _each(math.erf), erfc: _each(math.erfc), sp.loggamma: _each(math.lgamma),
    sp.digamma: _each(mpmath.digamma), sp.polygamma: _each(_polygamma), sp.atan2: np.arctan2,
    floor: np.floor, ceil: np.ceil, round: np.rint, sign: np.sign,
    quotient: np.floor_divide, remainder: np.remainder,
}  # fmt: skip
