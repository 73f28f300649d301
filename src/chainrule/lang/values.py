"""Scalar laws with their types, and the functions of the language that are written as choices.

Kinks are decided here, as the reference states them: at a tie of two variables half each, nothing at equality with
a constant, clip passes at its bounds, the derivative of abs at 0 is 0, and NaN passes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from chainrule.errors import SourceError, Span
from chainrule.ir.expression import Select, ceil, floor, is_slot
from chainrule.ir.formula import DType
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Static

RELATIONS = {"==": sp.Eq, "!=": sp.Ne, "<": sp.Lt, "<=": sp.Le, ">": sp.Gt, ">=": sp.Ge}


@dataclass(frozen=True)
class Value:
    """A scalar law: a number, or a condition where `kind` is BOOL; `kind` None: weak, it takes its partner's."""

    expr: sp.Expr
    kind: DType | None = None
    integral: bool = False  # an integer, whatever its kind

    bit: sp.Expr | None = None  # of a condition: the 0 or 1 that it was read as

    @property
    def number(self) -> sp.Expr:
        """1 where a condition holds, else 0; a number is itself."""
        if self.kind is not DType.BOOL:
            return self.expr
        return Select(self.expr, sp.S.One, sp.S.Zero) if self.bit is None else self.bit


def relation(sign: str, left: sp.Expr, right: sp.Expr) -> sp.Basic:
    if sp.nan in (left, right):  # sympy refuses to compare it
        return sp.true if sign == "!=" else sp.false
    if left.is_number and right.is_number:
        return RELATIONS[sign](left, right)
    return RELATIONS[sign](left, right, evaluate=False)


def constant(value: Static) -> Value:
    if isinstance(value, bool):
        return Value(sp.true if value else sp.false, DType.BOOL, True)
    return Value(value, None, bool(value.is_integer))


def typed(read: sp.Symbol, dtype: DType) -> Value:
    if dtype is DType.BOOL:
        return Value(sp.Ne(read, 0, evaluate=False), DType.BOOL, True, read)
    return Value(read, dtype, dtype is DType.INT)


def numeric(kind: DType | None) -> DType | None:
    return DType.INT if kind is DType.BOOL else kind


def absolute(x: sp.Expr) -> sp.Expr:
    """|x|, with derivative 0 at 0; NaN passes."""
    return Select(relation("==", x, sp.S.Zero), sp.S.Zero, Select(relation("<", x, sp.S.Zero), -x, x))


def closed(e: sp.Expr) -> sp.Expr:
    """`e` in the closed set of nodes: sympy writes sqrt(x^2) as Abs(x)."""
    return e.replace(sp.Abs, absolute) if e.has(sp.Abs) else e


def is_variable(x: sp.Expr) -> bool:
    """Whether x depends on a tensor; at equality with what does not, a choice is no tie."""
    return any(is_slot(symbol) for symbol in x.free_symbols)


def greater(a: sp.Expr, b: sp.Expr, up: bool) -> sp.Expr:
    """max(a, b), or min for up False: half each at a tie of two variables, nothing at equality with a constant."""
    above, at_most = (">", "<=") if up else ("<", ">=")
    if not is_variable(a) and not is_variable(b):
        return Select(relation(above, a, b), a, b)
    if not is_variable(a) or not is_variable(b):
        x, bound = (a, b) if is_variable(a) else (b, a)
        return Select(relation(at_most, x, bound), bound, x)
    half = sp.Mul(sp.Rational(1, 2), sp.Add(a, b))
    return Select(relation(above, a, b), a, Select(relation(above, b, a), b, half))


def builtin(e: s.Call, values: list[Value], kind: DType | None) -> Value:
    """max, min, abs, clip, float, int and the functions of `ir.expression`."""
    name, numbers = e.function, [v.number for v in values]
    integral = all(v.integral for v in values)
    if name in ("float", "int"):
        if len(values) != 1:
            raise SourceError(e.span, f"{name} takes one argument", (), f"write {name}(x)")
        if name == "float":
            return Value(numbers[0], DType.FLOAT, integral)
        x = numbers[0]
        toward_zero = x if integral else Select(relation("<", x, sp.S.Zero), ceil(x), floor(x))
        return Value(toward_zero, DType.INT, True)
    if name in ("max", "min", "clip", "abs"):
        if all(n.is_number for n in numbers):
            return Value(static.chosen(name, numbers, e.span), kind, integral)
        return Value(_chosen(name, numbers, e.span), kind, integral)
    if name in ("any", "all", "sum", "prod", "mean", "argmax", "argmin"):
        raise SourceError(e.span, f"{name} takes one argument, or indices", (), f"write {name}[i] x[i]")
    value = closed(static.apply(name, numbers, e.span))
    if name in ("floor", "ceil", "round", "sign"):
        return Value(value, kind, True)
    return Value(value, DType.FLOAT if kind is DType.INT else kind, bool(value.is_Integer))


def _chosen(name: str, numbers: list[sp.Expr], span: Span) -> sp.Expr:
    static.chosen(name, [sp.S.One] * len(numbers), span)  # the number of arguments
    if name == "abs":
        return absolute(numbers[0])
    if name == "clip":
        x, low, high = numbers
        return Select(relation("<", x, low), low, Select(relation(">", x, high), high, x))
    total = numbers[0]
    for number in numbers[1:]:
        total = greater(total, number, name == "max")
    return total
