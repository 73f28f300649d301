"""What is known when the graph is made: sizes, numbers and truth values of arguments, `let` and declarations."""

from __future__ import annotations

import sympy as sp

from chainrule.errors import SourceError, Span, nearest
from chainrule.ir.expression import FUNCTIONS, quotient, remainder
from chainrule.lang import syntax as s
from chainrule.lang.draft import Scope, Static

WORDS: dict[str, Static] = {
    "true": True,
    "false": False,
    "inf": sp.oo,
    "nan": sp.nan,
    "pi": sp.pi,
}
POWER_BITS = 4096  # a constant power beyond is not folded: 2^(2^100) would fill any memory
SPECIAL = ("lgamma", "digamma", "polygamma")  # sympy sums a series for a large integer
REDUCTIONS = ("sum", "prod", "max", "min", "mean", "any", "all", "argmax", "argmin")
ABSENT = (sp.zoo, sp.nan)


def is_static(e: s.Expression, scope: Scope) -> bool:
    """Whether `e` holds sizes and numbers alone: no tensor, no index, no call of a layer."""
    match e:
        case s.Number():
            return True
        case s.Name(path):
            if scope.find(path) is not None or path in scope.scalars:
                return False
            return path in scope.numbers or path in scope.axes or path in WORDS
        case s.Call(function, arguments):
            if function == "size":
                return True
            inner = all(is_static(a.value, scope) for a in arguments)
            return inner and function in STATIC_FUNCTIONS and function not in scope.own
        case s.Sum(terms):
            return all(is_static(t, scope) for _, t in terms)
        case s.Product(factors):
            return all(is_static(f, scope) for _, f in factors)
        case s.Negate(value) | s.Not(value):
            return is_static(value, scope)
        case s.Power(base, exponent):
            return is_static(base, scope) and is_static(exponent, scope)
        case s.Compare(_, left, right):
            return is_static(left, scope) and is_static(right, scope)
        case s.Junction(_, parts):
            return all(is_static(p, scope) for p in parts)
        case s.Choice(condition, yes, no):
            return all(is_static(p, scope) for p in (condition, yes, no))
        case _:
            return False


STATIC_FUNCTIONS = {*FUNCTIONS, "max", "min", "abs", "clip", "size"}


def is_builtin(function: str) -> bool:
    """Whether the language has this function itself, unless the model's own text hides it."""
    return function in STATIC_FUNCTIONS or function in ("float", "int", "norm", *REDUCTIONS)


def number(e: s.Expression, scope: Scope) -> sp.Expr:
    value = static(e, scope)
    if isinstance(value, bool):
        raise SourceError(e.span, "a truth value where a number belongs", (), "write `if … then 1 else 0`")
    return value


def truth(e: s.Expression, scope: Scope) -> bool:
    value = static(e, scope)
    if not isinstance(value, bool):
        raise SourceError(e.span, "a number where a condition belongs", (), "compare it: n > 0")
    return value


def size(e: s.Expression, scope: Scope) -> sp.Expr:
    """The value in a size position, where ``/`` must divide exactly."""
    value = number(e, scope)
    if value.is_Rational and not value.is_Integer:
        raise SourceError(e.span, f"the size is {value}, no integer", _division(e, scope), "round down with //")
    if value in ABSENT or value.is_infinite:
        raise SourceError(e.span, f"the size is {value}", (), "write a number or a dim")
    return value


def _division(e: s.Expression, scope: Scope) -> tuple[str, ...]:
    """The values that do not divide."""
    if not isinstance(e, s.Product):
        return ()
    for k, (sign, factor) in enumerate(e.factors):
        if sign == "/":
            above = static(s.Product(e.factors[:k], e.span), scope) if k > 1 else static(e.factors[0][1], scope)
            return (f"{above} / {static(factor, scope)} leaves a remainder",)
    return ()


def static(e: s.Expression, scope: Scope) -> Static:
    """The value of `e`. Raises SourceError where a name is no size or a value is not known before run time."""
    match e:
        case s.Number(value):
            return sp.Integer(value.numerator) if value.denominator == 1 else sp.Rational(value)
        case s.Name(path, span):
            return _name(path, span, scope)
        case s.Sum(terms):
            return sp.expand(sp.Add(*(sign * number(t, scope) for sign, t in terms)))
        case s.Product(factors, span):
            return _product([(sign, number(f, scope)) for sign, f in factors], span)
        case s.Negate(value):
            return -number(value, scope)
        case s.Power(base, exponent, span):
            return power(number(base, scope), number(exponent, scope), span)
        case s.Compare(sign, left, right):
            return _compare(sign, e, static(left, scope), static(right, scope))
        case s.Junction(word, parts):
            values = (truth(p, scope) for p in parts)
            return all(values) if word == "and" else any(values)
        case s.Not(value):
            return not truth(value, scope)
        case s.Choice(condition, yes, no):
            return static(yes if truth(condition, scope) else no, scope)
        case s.Call():
            return _call(e, scope)
        case s.Indexed() | s.Reduction():
            raise SourceError(e.span, "this is known only at run time, and a size must be known before", (), WAY_OUT)
    raise AssertionError(e)


WAY_OUT = "sizes are numbers, dims, arguments and `let` values"


def _name(path: str, span: Span, scope: Scope) -> Static:
    if path in scope.numbers:
        return scope.numbers[path]
    if path in scope.axes:
        return scope.axes[path]
    if path in WORDS:
        return WORDS[path]
    if path == "training":
        raise SourceError(span, "`training` is a mode, not a number", (), "use it as `if training then a else b`")
    if path in scope.tensors or path in scope.scalars:
        problem = f"'{path}' is a tensor, and a size or number must be known before run time"
        raise SourceError(span, problem, (), WAY_OUT)
    raise SourceError(span, f"unknown size '{path}'", (), nearest(path, {*scope.numbers, *scope.axes, *scope.tensors}))


def _product(factors: list[tuple[str, sp.Expr]], span: Span) -> sp.Expr:
    total: sp.Expr = sp.S.One
    for sign, factor in factors:
        total = combined(sign, total, factor, span)
    return sp.expand(total) if total.free_symbols else total


def combined(sign: str, left: sp.Expr, right: sp.Expr, span: Span) -> sp.Expr:
    """``left sign right`` of numbers."""
    if sign == "*":
        return left * right
    if right.is_zero:
        raise SourceError(span, "division by zero", (f"{left} {sign} {right}",), "check the sizes")
    if sign == "/":
        return left / right
    if (left.is_Rational and not left.is_Integer) or (right.is_Rational and not right.is_Integer):
        ratio = sp.floor(left / right)
        return ratio if sign == "//" else left - right * ratio
    return quotient(left, right) if sign == "//" else remainder(left, right)


def power(base: sp.Expr, exponent: sp.Expr, span: Span) -> sp.Expr:
    """base^exponent, if it is no constant of thousands of digits."""
    if base.is_Rational and exponent.is_Rational:
        if base.is_zero and exponent < 0:
            raise SourceError(span, "division by zero", (f"{base}^{exponent}",), "check the exponent")
        bits = max(int(base.p).bit_length(), int(base.q).bit_length())
        if base not in (0, 1, -1) and (bits * abs(exponent) > POWER_BITS or bits > POWER_BITS or exponent.q > 1000):
            raise SourceError(span, "this constant power is too large to be exact", (), "write it as a decimal: 1e30")
        if base < 0 and not exponent.is_Integer:
            raise SourceError(span, f"{base}^{exponent} is no real number", (), "take the power of something ≥ 0")
    return sp.Pow(base, exponent)


def apply(function: str, values: list[sp.Expr], span: Span) -> sp.Expr:
    """A named function of scalars, guarded where sympy would compute for ever."""
    if function in SPECIAL and any(v.is_number and v.is_finite and abs(v) > 50 for v in values):
        raise SourceError(span, f"{function} of a constant beyond 50", (), "write its value as a decimal")
    arity = {"atan2": 2, "polygamma": 2}.get(function, 1)
    if len(values) != arity:
        problem = f"{function} takes {arity} argument{'s' * (arity > 1)}, not {len(values)}"
        raise SourceError(span, problem, (), f"write {function}({', '.join('xy'[:arity])})")
    value = FUNCTIONS[function](*values)
    if value.has(sp.I):
        raise SourceError(span, f"{function} of this constant is no real number", (), "check the argument")
    return value


def _call(e: s.Call, scope: Scope) -> Static:
    if e.function == "size":
        return size_of(e, scope)
    if e.function not in STATIC_FUNCTIONS or any(a.name for a in e.arguments):
        problem = f"{e.function}(…) is known only at run time, and a size must be known before"
        raise SourceError(e.span, problem, (), WAY_OUT)
    values = [number(a.value, scope) for a in e.arguments]
    if e.function in ("max", "min", "clip", "abs"):
        if any(v.free_symbols for v in values):
            raise SourceError(e.span, f"{e.function} of a dim is not known before run time", (), "declare a dim for it")
        return chosen(e.function, values, e.span)
    return apply(e.function, values, e.span)


def chosen(function: str, values: list[sp.Expr], span: Span) -> sp.Expr:
    """max, min, clip, abs of constants."""
    wanted = {"abs": (1, 1), "clip": (3, 3)}.get(function, (2, 16))
    if not wanted[0] <= len(values) <= wanted[1]:
        problem = f"{function} takes {wanted[0]} argument{'s' * (wanted[0] > 1)}, not {len(values)}"
        raise SourceError(span, problem, (), f"write {function}({', '.join('xab'[: wanted[0]])})")
    if function == "abs":
        return sp.Abs(values[0])
    if function == "clip":
        return sp.Min(sp.Max(values[0], values[1]), values[2])
    return sp.Max(*values) if function == "max" else sp.Min(*values)


def size_of(e: s.Call, scope: Scope) -> Static:
    """``size(d)``: the extent of the signature's axis d, or a dim."""
    if len(e.arguments) != 1 or not isinstance(e.arguments[0].value, s.Name):
        raise SourceError(e.span, "size takes the name of an axis", (), "write size(d)")
    name = e.arguments[0].value
    if name.path in scope.axes:
        return scope.axes[name.path]
    value = scope.numbers.get(name.path)
    if value is None or isinstance(value, bool):
        known = {*scope.axes, *scope.numbers}
        raise SourceError(name.span, f"'{name.path}' is no axis of the signature", (), nearest(name.path, known))
    return value


def _compare(sign: str, e: s.Compare, left: Static, right: Static) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        if sign in ("==", "!=") and isinstance(left, bool) and isinstance(right, bool):
            return (left == right) == (sign == "==")
        raise SourceError(e.span, "a truth value compared with a number", (), "write `c` or `not c`")
    if sp.nan in (left, right):  # sympy refuses to compare it
        return sign == "!="
    relation = RELATIONS[sign](left, right)
    if relation not in (sp.true, sp.false):
        raise SourceError(e.span, f"whether {relation} is not known before run time", (), "compare integers")
    return relation is sp.true


RELATIONS = {"==": sp.Eq, "!=": sp.Ne, "<": sp.Lt, "<=": sp.Le, ">": sp.Gt, ">=": sp.Ge}
