"""A scalar expression as Python source, every operand typed: what Numba and plain Python compute alike.

Three printers call each other: `real` (the program's float), `integer` (int64) and `condition`. In Numba a float32
with an int is a float64, so each literal and each integer that meets a float is cast where it stands. The nodes are
a closed set: anything else is an error, and nothing is printed by its own `str`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or

from chainrule.codegen.weights import Generated
from chainrule.errors import ChainruleError
from chainrule.ir.expression import RELATIONS, Select, ceil, erfc, floor, quotient, remainder, round, sign

Kind = Literal["real", "integer", "condition"]

CALLS = {
    sp.exp: "exp", sp.log: "log", expm1: "expm1", log1p: "log1p",
    sp.sin: "sin", sp.cos: "cos", sp.tan: "tan", sp.asin: "asin", sp.acos: "acos", sp.atan: "atan",
    sp.sinh: "sinh", sp.cosh: "cosh", sp.tanh: "tanh", sp.asinh: "asinh", sp.acosh: "acosh", sp.atanh: "atanh",
    sp.erf: "erf", erfc: "erfc", sp.loggamma: "lgamma", sp.digamma: "digamma", sp.atan2: "atan2",
    floor: "floor", ceil: "ceil", round: "rint", sign: "sign",
}  # fmt: skip
"""The generated functions of `functions.py` that stand for sympy's."""

CHOICE, CONDITIONS, COMPARISON, BITS, SUM, PRODUCT, UNARY, ATOM = range(8)
"""How tightly Python binds; conditions are joined with & and |, which make no branch, so a loop stays a vector's."""

LARGEST = 2**63 - 1
HIGHEST_POLYGAMMA = 6
LONGEST_PRODUCT = 16  # a power of a higher exponent is a call


class Term(NamedTuple):
    """A piece of source, and how tightly it binds."""

    text: str
    binds: int

    def within(self, place: int) -> str:
        return self.text if self.binds >= place else f"({self.text})"


@dataclass(frozen=True)
class Symbol:
    """What stands for a symbol in the source. moves: the loop indices that it changes with."""

    text: str
    kind: Kind
    moves: frozenset[sp.Symbol] = frozenset()


@dataclass(frozen=True)
class Scope:
    """What the symbols of an expression stand for, and the float they are computed in.

    inner: the innermost loop's index. What does not move with it is printed first, so that it is computed once.
    """

    symbols: Mapping[sp.Symbol, Symbol]
    element: Literal["float32", "float64"]
    inner: sp.Symbol | None = None
    used: set[str] = field(default_factory=set)  # the functions that were called

    def call(self, name: str, *arguments: str) -> Term:
        self.used.add(name)
        return Term(f"{name}({', '.join(arguments)})", ATOM)

    def known(self, symbol: sp.Symbol) -> Symbol:
        found = self.symbols.get(symbol)
        if found is None:
            raise ChainruleError(f"no loop, size or read stands for {symbol.name} in a kernel")
        return found

    def moves(self, e: sp.Basic) -> bool:
        """Whether `e` changes within the innermost loop."""
        if self.inner is None:
            return False
        return any(s == self.inner or self.inner in self.known(s).moves for s in e.free_symbols)


Printer = Callable[[sp.Basic, Scope], Term]


def kind_of(e: sp.Basic, scope: Scope) -> Kind:
    """condition: a truth value; integer: made of integers by exact operations alone; else real."""
    if isinstance(e, sp.Symbol):
        return scope.known(e).kind
    if isinstance(e, sp.Rel | And | Or | Not | BooleanTrue | BooleanFalse):
        return "condition"
    if isinstance(e, sp.Integer):
        return "integer"
    exact: tuple[sp.Basic, ...] = ()
    if isinstance(e, Select):
        exact = e.args[1:]
    elif isinstance(e, sp.Pow) and e.exp.is_Integer and e.exp > 0:
        exact = e.args[:1]
    elif isinstance(e, sp.Add | sp.Mul | quotient | remainder | sign):
        exact = e.args
    whole = exact and all(kind_of(part, scope) != "real" for part in exact)  # a truth value counts as 0 or 1
    return "integer" if whole else "real"


def real(e: sp.Basic, scope: Scope) -> Term:
    """`e` in the program's float."""
    if isinstance(e, sp.Number | sp.NumberSymbol):
        return literal(e, scope)
    if isinstance(e, Select):
        return _choice(e, scope, real)
    kind = kind_of(e, scope)
    if isinstance(e, sp.Symbol) and kind == "real":
        return Term(scope.known(e).text, ATOM)
    if kind == "integer":
        return scope.call(scope.element, integer(e, scope).text)
    if kind == "condition":
        return Term(f"{_one(scope)} if {condition(e, scope).within(COMPARISON)} else {_zero(scope)}", CHOICE)
    if isinstance(e, sp.Add):
        return _sum(e, scope, real)
    if isinstance(e, sp.Mul):
        return _product(e, scope)
    if isinstance(e, sp.Pow):
        return _power(e, scope)
    return _call(e, scope)


def integer(e: sp.Basic, scope: Scope) -> Term:
    """`e` in int64; what is no integer is cut off towards zero, as `int` does."""
    if isinstance(e, sp.Integer):
        if not -LARGEST - 1 <= int(e) <= LARGEST:
            raise ChainruleError(f"the integer {int(e)} needs more than 64 bits")
        return Term(str(int(e)), ATOM if e >= 0 else UNARY)
    if isinstance(e, Select):
        return _choice(e, scope, integer)
    kind = kind_of(e, scope)
    if kind == "condition":
        return Term(f"1 if {condition(e, scope).within(COMPARISON)} else 0", CHOICE)
    if kind == "real":
        return scope.call("int64", real(e, scope).text)
    if isinstance(e, sp.Symbol):
        return Term(scope.known(e).text, ATOM)
    if isinstance(e, sp.Add):
        return _sum(e, scope, integer)
    if isinstance(e, sp.Mul):
        minus, factors = _signed(e)
        text = " * ".join(integer(f, scope).within(PRODUCT + 1) for f in _still_first(factors, scope))
        return Term(f"-{text}" if minus else text, UNARY if minus and len(factors) == 1 else PRODUCT)
    if isinstance(e, sp.Pow):
        return _repeated(integer(e.base, scope).within(PRODUCT + 1), int(e.exp))
    if isinstance(e, quotient | remainder):
        a, b = (integer(part, scope) for part in e.args)
        mark = "//" if isinstance(e, quotient) else "%"
        return Term(f"{a.within(PRODUCT)} {mark} {b.within(PRODUCT + 1)}", PRODUCT)
    if isinstance(e, sign):
        x = e.args[0]
        return integer(Select(x > 0, sp.S.One, Select(x < 0, sp.S.NegativeOne, sp.S.Zero)), scope)
    raise _unknown(e)


def condition(e: sp.Basic, scope: Scope) -> Term:
    """`e` as a truth value. Comparisons of integers are exact."""
    if isinstance(e, BooleanTrue | BooleanFalse):
        return Term("True" if e is sp.true else "False", ATOM)
    if isinstance(e, sp.Symbol) and scope.known(e).kind == "condition":
        return Term(scope.known(e).text, ATOM)
    if isinstance(e, sp.Rel):
        truth = _of_truth(e, scope)
        if truth is not None:
            return truth
        exact = all(kind_of(side, scope) != "real" for side in e.args)
        show = integer if exact else real
        left, right = (show(side, scope).within(SUM) for side in (e.lhs, e.rhs))
        return Term(f"{left} {RELATIONS[type(e)]} {right}", COMPARISON)
    if isinstance(e, And | Or):
        parts = [condition(part, scope).within(BITS) for part in sorted(e.args, key=sp.default_sort_key)]
        return Term((" & " if isinstance(e, And) else " | ").join(parts), CONDITIONS)
    if isinstance(e, Not):
        inner = e.args[0]
        if isinstance(inner, sp.Eq | sp.Ne):
            return condition(inner.negated, scope)
        # not (a < b) is no a >= b: it holds for NaN
        return Term(f"not {condition(inner, scope).within(ATOM)}", CONDITIONS)
    raise _unknown(e)


def _of_truth(e: sp.Rel, scope: Scope) -> Term | None:
    """``flag != 0`` and ``flag == 0`` of a truth value: itself, or its opposite."""
    if e.rhs != 0 or not isinstance(e, sp.Eq | sp.Ne) or kind_of(e.lhs, scope) != "condition":
        return None
    flag = condition(e.lhs, scope)
    return flag if isinstance(e, sp.Ne) else Term(f"not {flag.within(ATOM)}", CONDITIONS)


def literal(e: sp.Basic, scope: Scope) -> Term:
    """A number in the program's float, rounded from its exact value."""
    number = number_text(e)
    if number.lstrip("-") in ("inf", "nan"):
        scope.used.add(number.lstrip("-"))
    if scope.element == "float64" and number not in ("inf", "-inf", "nan"):
        return Term(number, UNARY if number[0] == "-" else ATOM)
    return scope.call(scope.element, number)


def number_text(e: sp.Basic) -> str:
    """The nearest float64 of an exact number, as Python writes it; what is no finite number is named."""
    if isinstance(e, sp.Rational):
        try:
            return repr(int(e.p) / int(e.q))
        except OverflowError:
            return "inf" if e > 0 else "-inf"
    if e is sp.oo or e is sp.S.NegativeInfinity:
        return "inf" if e is sp.oo else "-inf"
    if e is sp.nan or e is sp.zoo:
        return "nan"
    if e is sp.pi or e is sp.E:
        return repr(float(e))
    raise _unknown(e)


def _one(scope: Scope) -> str:
    return literal(sp.S.One, scope).text


def _zero(scope: Scope) -> str:
    return literal(sp.S.Zero, scope).text


def _choice(e: Select, scope: Scope, show: Printer) -> Term:
    c, a, b = e.args
    chosen, other = show(a, scope).within(CONDITIONS), show(b, scope).text
    return Term(f"{chosen} if {condition(c, scope).within(CONDITIONS)} else {other}", CHOICE)


def _still_first(parts: Iterable[sp.Basic], scope: Scope) -> list[sp.Basic]:
    """What stands still in the innermost loop first: Python adds and multiplies from the left."""
    return sorted(parts, key=scope.moves)


def _sum(e: sp.Add, scope: Scope, show: Printer) -> Term:
    terms = sorted(e.args, key=lambda t: (_negative(t), t.is_Number))  # `1 - y`, `n + 1`
    if show is real and sum(not scope.moves(t) for t in terms) > 1:
        terms = _still_first(terms, scope)
    text = show(terms[0], scope).within(SUM)
    for term in terms[1:]:
        if _negative(term):
            text += f" - {show(sp.Mul(-1, term), scope).within(SUM + 1)}"
        else:
            text += f" + {show(term, scope).within(SUM + 1)}"
    return Term(text, SUM)


def _negative(term: sp.Basic) -> bool:
    return bool(term.as_coeff_Mul()[0].is_negative)


def _signed(e: sp.Mul) -> tuple[bool, list[sp.Basic]]:
    """Whether there is a minus in front, and the factors without it."""
    coefficient, factors = e.as_coeff_mul(rational=True)
    minus = bool(coefficient.is_negative)
    coefficient = -coefficient if minus else coefficient
    return minus, [*(() if coefficient == 1 else (coefficient,)), *factors]


def _product(e: sp.Mul, scope: Scope) -> Term:
    minus, factors = _signed(e)
    above = _still_first((f for f in factors if not _divides(f)), scope)
    below = _still_first((sp.Pow(f.base, -f.exp) for f in factors if _divides(f)), scope)
    still = [f for f in below if not scope.moves(f)] if scope.inner is not None else []
    text = " * ".join(real(f, scope).within(PRODUCT + (k > 0)) for k, f in enumerate(above) if not scope.moves(f))
    if still and any(map(scope.moves, (*above, *below))):  # one division outside the loop, not one an element
        text = f"{text or _one(scope)} / {_below(still, scope)}"
        below = below[len(still) :]
    moving = [f for f in above if scope.moves(f)]
    text = " * ".join([*([text] if text else []), *(real(f, scope).within(PRODUCT + 1) for f in moving)])
    text = text or _one(scope)
    if below:
        text += f" / {_below(below, scope)}"
    return Term(f"-{text}" if minus else text, UNARY if minus and len(factors) == 1 else PRODUCT)


def _below(factors: list[sp.Basic], scope: Scope) -> str:
    parts = [real(f, scope).within(PRODUCT + 1) for f in factors]
    return parts[0] if len(parts) == 1 else f"({' * '.join(parts)})"


def _divides(f: sp.Basic) -> bool:
    return isinstance(f, sp.Pow) and bool(f.exp.is_Rational) and bool(f.exp < 0)


def _repeated(base: str, times: int) -> Term:
    return Term(" * ".join([base] * times), PRODUCT if times > 1 else ATOM)


def _power(e: sp.Pow, scope: Scope) -> Term:
    """Products and roots where the exponent is small and known; else the power function."""
    base, exponent = e.base, e.exp
    if exponent.is_Rational and exponent < 0:
        return Term(f"{_one(scope)} / {real(sp.Pow(base, -exponent), scope).within(PRODUCT + 1)}", PRODUCT)
    if exponent.is_Rational and exponent.q in (1, 2) and exponent <= LONGEST_PRODUCT:
        whole, x = int(exponent), real(base, scope)
        root = [scope.call("sqrt", x.text).text] if exponent.q == 2 else []
        factors = [*[x.within(PRODUCT + 1)] * whole, *root]
        return Term(" * ".join(factors), PRODUCT if len(factors) > 1 else ATOM)
    return scope.call("power", real(base, scope).text, real(exponent, scope).text)


def _call(e: sp.Basic, scope: Scope) -> Term:
    if isinstance(e, quotient | remainder):
        a, b = (real(part, scope) for part in e.args)
        whole = scope.call("floor", f"{a.within(PRODUCT)} / {b.within(PRODUCT + 1)}")
        if isinstance(e, quotient):
            return whole
        return Term(f"{a.within(SUM)} - {b.within(PRODUCT)} * {whole.text}", SUM)
    if isinstance(e, sp.polygamma):
        order = e.args[0]
        if order not in range(HIGHEST_POLYGAMMA + 1):
            problem = f"polygamma of order {order} has no code: orders are 0 to {HIGHEST_POLYGAMMA}"
            raise ChainruleError(problem)
        name = "digamma" if order == 0 else f"polygamma{order}"  # sympy's digamma becomes polygamma(0, x)
        return scope.call(name, real(e.args[1], scope).text)
    if isinstance(e, Generated):
        return scope.call(type(e).__name__, real(e.args[0], scope).text)
    if type(e) in CALLS:
        return scope.call(CALLS[type(e)], *(real(part, scope).text for part in e.args))
    raise _unknown(e)


def _unknown(e: sp.Basic) -> ChainruleError:
    return ChainruleError(f"{type(e).__name__} has no code yet: it is not of the closed set of expressions")
