"""Functions of one number, of two, and of few: a template each, spread by NumPy's rules of broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tests.conformance.page import OutOfScope, Page, Value, broadcast, number

Row = Callable[..., Any]

# {x} is the element
UNARY = {
    "abs": "abs({x})",
    "acos": "acos({x})",
    "acosh": "acosh({x})",
    "asin": "asin({x})",
    "asinh": "asinh({x})",
    "atan": "atan({x})",
    "atanh": "atanh({x})",
    "ceil": "ceil({x})",
    "cos": "cos({x})",
    "cosh": "cosh({x})",
    "deg2rad": "{x} * pi / 180",
    "rad2deg": "{x} * 180 / pi",
    "digamma": "digamma({x})",
    "erf": "erf({x})",
    "erfc": "erfc({x})",
    "exp": "exp({x})",
    "exp2": "2^{x}",
    "expm1": "expm1({x})",
    "floor": "floor({x})",
    "frac": "{x} - (if {x} > 0 then floor({x}) else ceil({x}))",
    "lgamma": "lgamma({x})",
    "log": "log({x})",
    "log10": "log({x}) / log(10)",
    "log1p": "log1p({x})",
    "log2": "log({x}) / log(2)",
    "neg": "-{x}",
    "positive": "{x}",
    "real": "{x}",
    "conj": "{x}",
    "conj_physical": "{x}",
    "resolve_conj": "{x}",
    "resolve_neg": "{x}",
    "clone": "{x}",
    "contiguous": "{x}",
    "alias_copy": "{x}",
    "double": "{x}",
    "reciprocal": "1 / {x}",
    "round": "round({x})",
    "rsqrt": "1 / sqrt({x})",
    "sigmoid": "sigmoid({x})",
    "sign": "sign({x})",
    "sgn": "sign({x})",
    "sin": "sin({x})",
    "sinc": "if {x} == 0 then 1 else sin(pi * {x}) / (pi * {x})",
    "sinh": "sinh({x})",
    "sqrt": "sqrt({x})",
    "square": "{x}^2",
    "tan": "tan({x})",
    "tanh": "tanh({x})",
    "trunc": "if {x} > 0 then floor({x}) else ceil({x})",
    "zero_": "0",
    "angle": "if {x} < 0 then pi else 0",
    "nn.functional.hardsigmoid": "if {x} <= -3 then 0 else if {x} >= 3 then 1 else {x} / 6 + 1 / 2",
    "nn.functional.hardswish": "if {x} <= -3 then 0 else if {x} >= 3 then {x} else {x} * ({x} + 3) / 6",
    "nn.functional.logsigmoid": "-softplus(-{x})",
    "nn.functional.mish": "{x} * tanh(softplus({x}))",
    "nn.functional.relu": "relu({x})",
    "nn.functional.relu6": "if {x} >= 6 then 6 else max({x}, 0)",
    "nn.functional.silu": "silu({x})",
    "nn.functional.softsign": "{x} / (1 + abs({x}))",
    "nn.functional.tanhshrink": "{x} - tanh({x})",
    "erfinv": "erfinv({x})",
    "special.ndtri": "ndtri({x})",
    "special.entr": "if {x} == 0 then 0 else if {x} < 0 then -inf else -{x} * log({x})",
    "special.ndtr": "erfc(-{x} / sqrt(2)) / 2",
}

# {x} and {y}: the elements, spread
BINARY = {
    "atan2": "atan2({x}, {y})",
    "div.no_rounding_mode": "{x} / {y}",
    "true_divide": "{x} / {y}",
    "div.trunc_rounding": "if {x} / {y} > 0 then floor({x} / {y}) else ceil({x} / {y})",
    "div.floor_rounding": "floor({x} / {y})",
    "fmax": "max({x}, {y})",
    "fmin": "min({x}, {y})",
    "max.binary": "max({x}, {y})",
    "min.binary": "min({x}, {y})",
    "maximum": "max({x}, {y})",
    "minimum": "min({x}, {y})",
    "clamp_max": "min({x}, {y})",
    "clamp_min": "max({x}, {y})",
    "mul": "{x} * {y}",
    "__radd__": "{x} + {y}",
    "__rdiv__": "{y} / {x}",
    "__rmul__": "{x} * {y}",
    "__rsub__": "{y} - {x}",
    "__rpow__": "{y}^{x}",
    "pow": "{x}^{y}",
    "float_power": "{x}^{y}",
    "fmod": "{x} - {y} * (if {x} / {y} > 0 then floor({x} / {y}) else ceil({x} / {y}))",
    "remainder": "{x} - {y} * floor({x} / {y})",
    "__rmod__": "{y} - {x} * floor({y} / {x})",
    "hypot": "sqrt({x}^2 + {y}^2)",
    "ldexp": "{x} * 2^{y}",
    "logaddexp": "log(exp({x}) + exp({y}))",
    "logaddexp2": "log(2^{x} + 2^{y}) / log(2)",
    "nextafter": "{x}",
    "xlogy": "if {x} == 0 then 0 else {x} * log({y})",
    "special.xlog1py": "if {x} == 0 then 0 else {x} * log1p({y})",
    "copysign": "if {y} < 0 then -abs({x}) else abs({x})",
}


def text(value: Value | float, i: tuple[str, ...]) -> str:
    if not isinstance(value, Value):
        return number(value)
    read = value.wide(i)
    return read if value.dtype == "float" else f"float({read})"


def shape(*values: Any) -> tuple[int, ...]:
    return broadcast(*(v.shape for v in values if isinstance(v, Value)))


def spread(w: Page, template: str, **values: Any) -> Value:
    """The template at every point of the shape that the tensors are spread to."""
    return w(shape(*values.values()), lambda i: template.format(**{n: text(v, i) for n, v in values.items()}))


def unary(template: str) -> Row:
    def row(w: Page, x: Value, memory_format: Any = None) -> Value:
        return spread(w, template, x=x)

    return row


def binary(template: str) -> Row:
    def row(w: Page, x: Value, y: Value | float, rounding_mode: Any = None) -> Value:
        return spread(w, template, x=x, y=y)

    return row


def add(w: Page, x: Value, y: Value | float, alpha: float = 1) -> Value:
    return spread(w, "{x} + {a} * {y}", x=x, y=y, a=alpha)


def sub(w: Page, x: Value, y: Value | float, alpha: float = 1) -> Value:
    return spread(w, "{x} - {a} * {y}", x=x, y=y, a=alpha)


def rsub(w: Page, x: Value, y: Value | float, alpha: float = 1) -> Value:
    return spread(w, "{y} - {a} * {x}", x=x, y=y, a=alpha)


def addcmul(w: Page, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return spread(w, "{x} + {a} * {y} * {z}", x=x, y=y, z=z, a=value)


def addcdiv(w: Page, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return spread(w, "{x} + {a} * {y} / {z}", x=x, y=y, z=z, a=value)


def clamp(w: Page, x: Value, min: Any = None, max: Any = None) -> Value:
    lower = x if min is None else spread(w, "if {x} < {m} then {m} else {x}", x=x, m=min)
    return lower if max is None else spread(w, "if {x} > {m} then {m} else {x}", x=lower, m=max)


def where(w: Page, x: Value, condition: Value, y: Value | float) -> Value:
    return w(shape(x, condition, y), lambda i: f"if {condition.wide(i)} then {text(x, i)} else {text(y, i)}")


def lerp(w: Page, x: Value, y: Value, weight: Value | float) -> Value:
    return spread(w, "{x} + {t} * ({y} - {x})", x=x, y=y, t=weight)


def logit(w: Page, x: Value, eps: float | None = None) -> Value:
    z = x if eps is None else spread(w, "clip({x}, {a}, {b})", x=x, a=eps, b=1 - eps)
    return spread(w, "log({x} / (1 - {x}))", x=z)


def nan_to_num(w: Page, x: Value, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Value:
    top = number(1.7976931348623157e308 if posinf is None else posinf)
    low = number(-1.7976931348623157e308 if neginf is None else neginf)
    return spread(
        w,
        f"if {{x}} == inf then {top} else if {{x}} == -inf then {low} else "
        f"if {{x}} != {{x}} then {number(nan)} else {{x}}",
        x=x,
    )


def polygamma(w: Page, n: int, x: Value) -> Value:
    return spread(w, f"polygamma({n}, {{x}})" if n else "digamma({x})", x=x)


def mvlgamma(w: Page, x: Value, p: int) -> Value:
    terms = " + ".join(f"lgamma({{x}} - {number(j / 2)})" for j in range(p))
    return spread(w, f"{number(p * (p - 1) / 4 * math.log(math.pi))} + {terms}", x=x)


def round_to(w: Page, x: Value, decimals: int = 0) -> Value:
    return spread(
        w, "round({x} * {p}) / {p}" if decimals >= 0 else "round({x} / {p}) * {p}", x=x, p=10 ** abs(decimals)
    )


def masked_fill(w: Page, x: Value, mask: Value, value: Any) -> Value:
    return w(shape(x, mask), lambda i: f"if {mask.wide(i)} then {text(value, i)} else {text(x, i)}")


def fill(w: Page, x: Value, value: Any) -> Value:
    return w(x.shape, lambda i: text(value, i))


# activations with numbers
def elu(w: Page, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return spread(w, f"elu({{x}}, alpha = {number(alpha)})", x=x)


def celu(w: Page, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return spread(w, "if {x} > 0 then {x} else {a} * expm1({x} / {a})", x=x, a=alpha)


def selu(w: Page, x: Value, inplace: bool = False) -> Value:
    a, s = 1.6732632423543772, 1.0507009873554805
    return spread(w, "{s} * (if {x} > 0 then {x} else {a} * expm1({x}))", x=x, a=a, s=s)


def leaky_relu(w: Page, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return spread(w, f"leaky_relu({{x}}, slope = {number(negative_slope)})", x=x)


def prelu(w: Page, x: Value, weight: Value) -> Value:
    one = weight.size == 1
    at = lambda i: weight[("0",) * weight.rank if one else (i[1],)]  # noqa: E731
    return w(x.shape, lambda i: f"if {x[i]} > 0 then {x[i]} else {at(i)} * {x[i]}")


def rrelu(w: Page, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, **_: Any) -> Value:
    if training and lower != upper:
        raise OutOfScope("PyTorch's own random numbers")
    return spread(w, f"leaky_relu({{x}}, slope = {number((lower + upper) / 2)})", x=x)


def glu(w: Page, x: Value, dim: int = -1) -> Value:
    d = x.dim(dim)
    half = x.shape[d] // 2
    out = (*x.shape[:d], half, *x.shape[d + 1 :])
    return w(out, lambda i: f"{x[i]} * sigmoid({x[(*i[:d], f'{i[d]} + {half}', *i[d + 1 :])]})")


def gelu(w: Page, x: Value, approximate: str = "none") -> Value:
    return spread(w, "gelu({x})" if approximate == "none" else "gelu_tanh({x})", x=x)


def softplus(w: Page, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    return spread(w, "if {b} * {x} > {t} then {x} else softplus({b} * {x}) / {b}", x=x, b=beta, t=threshold)


def softshrink(w: Page, x: Value, lambd: float = 0.5) -> Value:
    return spread(w, "if {x} > {l} then {x} - {l} else if {x} < -{l} then {x} + {l} else {x} * 0", x=x, l=lambd)


def hardshrink(w: Page, x: Value, lambd: float = 0.5) -> Value:
    return spread(w, "if {x} > {l} then {x} else if {x} < -{l} then {x} else 0", x=x, l=lambd)


def hardtanh(w: Page, x: Value, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> Value:
    return spread(w, "if {x} <= {a} then {a} else if {x} >= {b} then {b} else {x}", x=x, a=min_val, b=max_val)


def threshold(w: Page, x: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    return spread(w, "if {x} > {t} then {x} else {v}", x=x, t=threshold, v=value)


def relu(w: Page, x: Value, inplace: bool = False) -> Value:
    return spread(w, "relu({x})", x=x)


def complex_pair(w: Page, x: Value, y: Value) -> Value:
    return w((*shape(x, y), 2), lambda i: f"if {i[-1]} == 0 then {text(x, i[:-1])} else {text(y, i[:-1])}")


def polar(w: Page, r: Value, a: Value) -> Value:
    return w(
        (*shape(r, a), 2),
        lambda i: f"{text(r, i[:-1])} * (if {i[-1]} == 0 then cos({text(a, i[:-1])}) else sin({text(a, i[:-1])}))",
    )


def view_as_complex(w: Page, x: Value) -> Value:
    return w(x.shape, lambda i: x[i])


def log_ndtr(w: Page, x: Value) -> Value:
    return spread(w, "log(erfc(-{x} / sqrt(2)) / 2)", x=x)


def i0(w: Page, x: Value) -> Value:
    """The integral (1/pi) ∫ exp(x cos t) dt by the midpoint rule, which converges geometrically on a period."""
    n = 64
    return w(x.shape, lambda i: f"sum[k < {n}] exp({x[i]} * cos(pi * (k + 1 / 2) / {n})) / {n}")


def i0e(w: Page, x: Value) -> Value:
    n = 64
    return w(x.shape, lambda i: f"sum[k < {n}] exp({x[i]} * cos(pi * (k + 1 / 2) / {n}) - abs({x[i]})) / {n}")


def i1(w: Page, x: Value) -> Value:
    n, c = 64, "cos(pi * (k + 1 / 2) / 64)"
    return w(x.shape, lambda i: f"sum[k < {n}] exp({x[i]} * {c}) * {c} / {n}")


def i1e(w: Page, x: Value) -> Value:
    n, c = 64, "cos(pi * (k + 1 / 2) / 64)"
    return w(x.shape, lambda i: f"sum[k < {n}] exp({x[i]} * {c} - abs({x[i]})) * {c} / {n}")


def erfcx(w: Page, x: Value) -> Value:
    return spread(w, "exp({x}^2) * erfc({x})", x=x)


ROWS: dict[str, Row] = {
    **{name: unary(template) for name, template in UNARY.items()},
    **{name: binary(template) for name, template in BINARY.items()},
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "clamp": clamp,
    "where": where,
    "lerp": lerp,
    "logit": logit,
    "nan_to_num": nan_to_num,
    **{f"polygamma.polygamma_n_{n}": (lambda w, x, n: polygamma(w, n, x)) for n in range(5)},
    "special.polygamma.special_polygamma_n_0": lambda w, x, n: polygamma(w, n, x),
    **{f"mvlgamma.mvlgamma_p_{p}": mvlgamma for p in (1, 3, 5)},
    **{f"round.decimals_{d}": round_to for d in ("0", "3", "neg_3")},
    "masked_fill": masked_fill,
    "fill": fill,
    "nn.functional.elu": elu,
    "nn.functional.celu": celu,
    "nn.functional.selu": selu,
    "nn.functional.relu": relu,
    "nn.functional.leaky_relu": leaky_relu,
    "nn.functional.prelu": prelu,
    "nn.functional.rrelu": rrelu,
    "nn.functional.glu": glu,
    "nn.functional.gelu": gelu,
    "nn.functional.softplus": softplus,
    "nn.functional.softshrink": softshrink,
    "nn.functional.hardshrink": hardshrink,
    "nn.functional.hardtanh": hardtanh,
    "nn.functional.threshold": threshold,
    "complex": complex_pair,
    "polar": polar,
    "view_as_complex": view_as_complex,
    "special.log_ndtr": log_ndtr,
    "i0": i0,
    "special.i0e": i0e,
    "special.i1": i1,
    "special.i1e": i1e,
    "special.erfcx": erfcx,
}
