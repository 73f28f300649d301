"""Scalar expressions: the symbols they are made of, the functions they may hold, and how they read.

Expressions are sympy's, over a closed set of nodes: numbers, symbols, sums, products, powers, relations, and, or,
not, and the functions of `FUNCTIONS`. Choice is our own `Select`, not Piecewise: Piecewise rewrites its conditions
as sets whenever it is rebuilt, which is slow and can stall, and `diff(Max(x, 0), x)` is a Heaviside with 1/2 at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or


class Sort(Enum):
    """What sympy may assume of a slot: booleans are the integers 0 and 1."""

    REAL = "real"
    INTEGER = "integer"


@lru_cache(maxsize=4096)  # sympy looks at a symbol's assumptions each time it is asked for one
def slot(k: int, sort: Sort = Sort.REAL) -> sp.Symbol:
    """The scalar that stands in a formula's body for its k-th read."""
    # leading zeros, or sympy sorts _10 before _2
    return sp.Symbol(f"_{k:04}", real=True) if sort is Sort.REAL else sp.Symbol(f"_{k:04}", integer=True)


def is_slot(symbol: sp.Basic) -> bool:
    return isinstance(symbol, sp.Symbol) and symbol.name[0] == "_" and symbol.name[1:].isdigit()


def slot_number(symbol: sp.Symbol) -> int:
    return int(symbol.name[1:])


@lru_cache(maxsize=4096)
def index_symbol(name: str) -> sp.Symbol:
    """A loop variable. Formulas name theirs by position: ``_i00`` for axes, ``_r00`` for reduced indices."""
    return sp.Symbol(name, integer=True, nonnegative=True)


@lru_cache(maxsize=4096)
def dim_symbol(name: str) -> sp.Symbol:
    """A size that is known when inputs are, by its name on the graph."""
    return sp.Symbol(name, integer=True, nonnegative=True)


TRAINING = sp.Symbol("_training", integer=True, nonnegative=True)
"""1 in a program that trains, 0 in one that evaluates; `optimize.specialize` puts the number in."""


class Select(sp.Function):
    """``if c then a else b``: the other branch's NaN or infinity reaches neither value nor gradient."""

    nargs = (3,)

    @classmethod
    def eval(cls, c: sp.Basic, a: sp.Expr, b: sp.Expr) -> sp.Expr | None:
        if c is sp.true or a == b:
            return a
        return b if c is sp.false else None

    def _eval_derivative(self, s: sp.Symbol) -> sp.Expr:
        c, a, b = self.args
        return Select(c, a.diff(s), b.diff(s))

    def _eval_is_extended_real(self) -> bool | None:
        return True if self.args[1].is_extended_real and self.args[2].is_extended_real else None

    def _eval_is_integer(self) -> bool | None:
        return True if self.args[1].is_integer and self.args[2].is_integer else None


def zero_unless(e: sp.Expr) -> tuple[sp.Basic, sp.Expr] | None:
    """The condition on indices without which `e` is 0, and what it is where that holds; None of an `e` without one."""
    if not isinstance(e, Select) or any(map(is_slot, e.args[0].free_symbols)):
        return None
    c, a, b = e.args
    return (sp.Not(c), b) if a.is_zero else (c, a) if b.is_zero else None


class erfc(sp.Function):
    """1 - erf(x). Ours, since sympy's writes erfc(-x) as 2 - erfc(x), which is 0 below the last place of 2."""

    nargs = (1,)
    is_real = True

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return sp.erfc(x) if x.is_number and not sp.erfc(x).has(sp.erfc) else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return -2 * sp.exp(-(self.args[0] ** 2)) / sp.sqrt(sp.pi)


class LocallyConstant(sp.Function):
    """A function with derivative 0 wherever it has one; by decision also where it has none."""

    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.S.Zero


class floor(LocallyConstant):
    """The greatest integer below or at x."""

    nargs = (1,)

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return sp.floor(x) if x.is_Rational else None


class ceil(LocallyConstant):
    """The least integer above or at x."""

    nargs = (1,)

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return sp.ceiling(x) if x.is_Rational else None


class round(LocallyConstant):
    """The nearest integer, ties to even."""

    nargs = (1,)

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        if not x.is_Rational:
            return None
        below, rest = sp.floor(x), x - sp.floor(x)
        up = rest > sp.Rational(1, 2) or (rest == sp.Rational(1, 2) and below % 2 == 1)
        return below + 1 if up else below


class sign(LocallyConstant):
    """-1, 0 or 1."""

    nargs = (1,)

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return sp.sign(x) if x.is_Rational else None


class quotient(LocallyConstant):
    """``a // b``, rounded down. Ours, since sympy's floor(a/b) splits and no longer shows a and b."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, a: sp.Expr, b: sp.Expr) -> sp.Expr | None:
        if b is sp.S.One:
            return a
        if a.is_Integer and b.is_Integer and b != 0:
            return sp.Integer(int(a) // int(b))
        return None


class remainder(LocallyConstant):
    """``a % b``, with the sign of b; not differentiated: a is an integer."""

    nargs = (2,)
    is_integer = True

    @classmethod
    def eval(cls, a: sp.Expr, b: sp.Expr) -> sp.Expr | None:
        if b is sp.S.One:
            return sp.S.Zero
        if a.is_Integer and b.is_Integer and b != 0:
            return sp.Integer(int(a) % int(b))
        return None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": sp.exp, "log": sp.log, "expm1": expm1, "log1p": log1p, "sqrt": sp.sqrt,
    "sin": sp.sin, "cos": sp.cos, "tan": sp.tan, "asin": sp.asin, "acos": sp.acos, "atan": sp.atan,
    "sinh": sp.sinh, "cosh": sp.cosh, "tanh": sp.tanh, "asinh": sp.asinh, "acosh": sp.acosh, "atanh": sp.atanh,
    "erf": sp.erf, "erfc": erfc, "lgamma": sp.loggamma, "digamma": sp.digamma, "polygamma": sp.polygamma,
    "atan2": sp.atan2, "floor": floor, "ceil": ceil, "round": round, "sign": sign,
}  # fmt: skip
"""The functions of the language, by their names there; max, min, abs, clip are written with `Select`."""

NAMES: dict[Any, str] = {f: name for name, f in FUNCTIONS.items() if name != "sqrt"}

Text = Mapping[sp.Basic, str]
"""What to print for a symbol; one that is missing prints as its name."""

# how tightly a form binds, as in the grammar: if, or, and, not, comparison, sum, product, unary minus, power, atom
IF, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)
RELATIONS = {
    sp.Eq: "==", sp.Ne: "!=", sp.Lt: "<", sp.Le: "<=", sp.Gt: ">", sp.Ge: ">=",
}  # fmt: skip


def expression_text(e: sp.Basic, names: Text, within: int = IF) -> str:
    """`e` in the language's notation, in parentheses where its place asks for them.

    Raises TypeError on a node that is not of the closed set: nothing unknown is ever printed.
    """
    text, binds = _text(e, names)
    return f"({text})" if binds < within else text


def _text(e: sp.Basic, names: Text) -> tuple[str, int]:
    def show(part: sp.Basic, within: int) -> str:
        return expression_text(part, names, within)

    if isinstance(e, sp.Symbol):
        return names.get(e, e.name), ATOM
    if isinstance(e, sp.Number | sp.NumberSymbol) or e is sp.nan or e is sp.zoo:
        return _number(e)
    if isinstance(e, sp.Add):
        return _sum(e, show), SUM
    if isinstance(e, sp.Mul):
        return _product(e, show)
    if isinstance(e, sp.Pow):
        return _power(e, show)
    if isinstance(e, sp.exp):
        return f"exp({show(e.args[0], IF)})", ATOM
    if isinstance(e, Select):
        c, a, b = e.args
        return f"if {show(c, OR)} then {show(a, OR)} else {show(b, IF)}", IF
    if isinstance(e, quotient | remainder):
        sign = "//" if isinstance(e, quotient) else "%"
        return f"{show(e.args[0], PRODUCT)} {sign} {show(e.args[1], POWER)}", PRODUCT
    if isinstance(e, sp.Eq | sp.Ne) and TRAINING in e.args and sp.S.Zero in e.args:
        mode = names.get(TRAINING, TRAINING.name)
        return (mode, ATOM) if isinstance(e, sp.Ne) else (f"not {mode}", NOT)
    if isinstance(e, sp.Rel):
        return f"{show(e.lhs, SUM)} {RELATIONS[type(e)]} {show(e.rhs, SUM)}", COMPARE
    if isinstance(e, And):
        return " and ".join(show(c, NOT) for c in _sorted(e.args, names)), AND
    if isinstance(e, Or):
        return " or ".join(show(c, AND) for c in _sorted(e.args, names)), OR
    if isinstance(e, Not):
        return f"not {show(e.args[0], COMPARE)}", NOT
    if isinstance(e, BooleanTrue | BooleanFalse):
        return ("1 == 1" if e else "1 == 0"), COMPARE
    if isinstance(e, sp.Function) and type(e) in NAMES:
        return f"{NAMES[type(e)]}({', '.join(show(a, IF) for a in e.args)})", ATOM
    raise TypeError(f"{type(e).__name__} has no place in a formula: {e}")


def _sorted(args: tuple[sp.Basic, ...], names: Text) -> list[sp.Basic]:
    return sorted(args, key=sp.default_sort_key)


def _number(e: sp.Basic) -> tuple[str, int]:
    match e:
        case sp.Integer():
            return str(e.p), ATOM if e.p >= 0 else UNARY
        case sp.Rational():
            return f"{e.p}/{e.q}", PRODUCT if e.p >= 0 else SUM
        case sp.core.numbers.Infinity():
            return "inf", ATOM
        case sp.core.numbers.NegativeInfinity():
            return "-inf", UNARY
        case sp.core.numbers.NaN() | sp.core.numbers.ComplexInfinity():
            return "nan", ATOM
        case sp.core.numbers.Pi():
            return "pi", ATOM
        case sp.core.numbers.Exp1():
            return "exp(1)", ATOM
        case _:
            raise TypeError(f"{e} is no exact number: write it as a fraction")


def _sum(e: sp.Add, show: Callable[[sp.Basic, int], str]) -> str:
    # positive terms first and numbers after them: `1 - y`, `n + 1`; the order is otherwise sympy's, which is canonical
    terms = sorted(e.args, key=lambda t: (_is_negative(t), t.is_Number))
    text = show(terms[0], SUM)
    for term in terms[1:]:
        if _is_negative(term):
            text += f" - {show(-term, PRODUCT)}"
        else:
            text += f" + {show(term, PRODUCT)}"
    return text


def _is_negative(term: sp.Basic) -> bool:
    return bool(term.as_coeff_Mul()[0].is_negative)


def _product(e: sp.Mul, show: Callable[[sp.Basic, int], str]) -> tuple[str, int]:
    coefficient, factors = e.as_coeff_mul(rational=True)
    above = [f for f in factors if not _divides(f)]
    below = [sp.Pow(f.base, -f.exp) for f in factors if _divides(f)]
    sign, p, q = ("-" if coefficient.p < 0 else ""), abs(coefficient.p), coefficient.q
    if p != 1 or not above:
        above.insert(0, sp.Integer(p))
    if q != 1:
        below.insert(0, sp.Integer(q))
    text = sign + " * ".join(show(f, UNARY if sign else PRODUCT + 1) for f in above)
    for f in below:
        text += f" / {show(f, POWER)}"
    return text, SUM if sign else PRODUCT


def _divides(f: sp.Basic) -> bool:
    # a rational exponent only: a^(-x) stays a power, exp(-x) stays exp
    return isinstance(f, sp.Pow) and f.exp.is_Rational and f.exp < 0


def _power(e: sp.Pow, show: Callable[[sp.Basic, int], str]) -> tuple[str, int]:
    base, exponent = e.base, e.exp
    if exponent == sp.Rational(1, 2):
        return f"sqrt({show(base, IF)})", ATOM
    if exponent.is_Rational and exponent < 0:
        return f"1 / {show(sp.Pow(base, -exponent), POWER)}", PRODUCT
    return f"{show(base, ATOM)}^{show(exponent, ATOM)}", POWER


@lru_cache(maxsize=65536)
def symbols_in_order(e: sp.Basic) -> tuple[sp.Symbol, ...]:
    """The symbols of `e` as its text shows them, from the left, each once."""
    marks: dict[str, sp.Symbol] = {}
    names: dict[sp.Basic, str] = {}
    for k, symbol in enumerate(sorted(e.free_symbols, key=lambda s: s.name)):
        names[symbol] = mark = f"\x00{k}\x01"
        marks[mark] = symbol
    parts = expression_text(e, names).split("\x00")[1:]
    return tuple(marks[mark] for mark in dict.fromkeys("\x00" + p[: p.index("\x01") + 1] for p in parts))


def product(factors: Any) -> sp.Expr:
    """One n-ary product: `a * b * c` made in steps distributes a number over a sum on the way."""
    return sp.Mul(*factors)
