"""ONNX's functions of one element or of several, spread by NumPy's rules; comparisons, conversions, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from tests.conformance.elementwise import spread
from tests.conformance.page import NotExpressible, OutOfScope, Page, Value, broadcast, number

Row = Callable[..., Any]

# {x} is the element, other names are attributes
UNARY = {
    **{
        name: f"{name.lower()}({{x}})"
        for name in (
            *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor"),
            *("Log", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt"),
            *("Tan", "Tanh", "Mish"),
        )
    },
    "HardSwish": "hardswish({x})",
    "Identity": "{x}",
    "Neg": "-{x}",
}
NUMBERED: dict[str, tuple[str, dict[str, float]]] = {
    "Celu": ("celu({x}, alpha = {alpha})", {"alpha": 1}),
    "Elu": ("elu({x}, alpha = {alpha})", {"alpha": 1}),
    "HardSigmoid": ("min(max({alpha} * {x} + {beta}, 0), 1)", {"alpha": 0.2, "beta": 0.5}),
    "LeakyRelu": ("leaky_relu({x}, slope = {alpha})", {"alpha": 0.01}),
    "Selu": (
        "{gamma} * (if {x} > 0 then {x} else {alpha} * expm1({x}))",
        {"alpha": 1.6732631921768188, "gamma": 1.0507010221481323},
    ),
    "Shrink": (
        "if {x} < -{lambd} then {x} + {bias} else if {x} > {lambd} then {x} - {bias} else 0",
        {"lambd": 0.5, "bias": 0},
    ),
    "Swish": ("{x} * sigmoid({alpha} * {x})", {"alpha": 1}),
    "ThresholdedRelu": ("threshold({x}, bound = {alpha}, value = 0)", {"alpha": 1}),
}
BINARY = {
    "Add": "{x} + {y}",
    "Sub": "{x} - {y}",
    "Mul": "{x} * {y}",
    "PRelu": "if {x} > 0 then {x} else {y} * {x}",
}
COMPARISONS = {"Equal": "==", "Greater": ">", "GreaterOrEqual": ">=", "Less": "<", "LessOrEqual": "<="}
LOGICAL = {
    "And": "{x} and {y}",
    "Or": "{x} or {y}",
    "Xor": "{x} != {y}",
}


def each(w: Page, template: str, dtype: str = "", **values: Any) -> Value:
    """The template at every point of the shape that the tensors are spread to, as they are."""
    tensors = [v for v in values.values() if isinstance(v, Value)]
    dtype = dtype or ("float" if any(t.dtype == "float" for t in tensors) else tensors[0].dtype)

    def body(i: tuple[str, ...]) -> str:
        shown = {n: v.wide(i) if isinstance(v, Value) else number(v) for n, v in values.items()}
        return template.format(**shown)

    return w(broadcast(*(t.shape for t in tensors)), body, dtype=dtype)


def unary(template: str, **defaults: float) -> Row:
    def row(w: Page, x: Value, consumed_inputs: Any = None, **attributes: float) -> Value:
        return each(w, template, x=x, **{**defaults, **attributes})

    return row


def binary(template: str) -> Row:
    def row(w: Page, x: Value, y: Value) -> Value:
        return each(w, template, x=x, y=y)

    return row


def comparison(template: str) -> Row:
    def row(w: Page, x: Value, y: Value) -> Value:
        return each(w, template, dtype="bool", x=x, y=y)

    return row


def div(w: Page, x: Value, y: Value) -> Value:
    if x.dtype == "float":
        return each(w, "{x} / {y}", x=x, y=y)
    return each(w, "(if {x} < 0 then -1 else 1) * (if {y} < 0 then -1 else 1) * (abs({x}) // abs({y}))", x=x, y=y)


def mod(w: Page, x: Value, y: Value, fmod: int = 0) -> Value:
    if x.dtype == "float":
        return each(w, f"{'fmod' if fmod else 'remainder'}({{x}}, {{y}})", x=x, y=y)
    return each(w, "(if {x} < 0 then -1 else 1) * (abs({x}) % abs({y}))" if fmod else "{x} % {y}", x=x, y=y)


def power(w: Page, x: Value, y: Value) -> Value:
    if x.dtype == "float":
        return spread(w, "{x}^{y}", x=x, y=y)
    found = spread(w, "{x}^{y}", x=x, y=y)
    return w(found.shape, lambda i: f"int(round({found[i]}))", dtype="int")


def folded(template: str) -> Row:
    """Of any number of tensors: the first with the second, that with the third."""

    def row(w: Page, *xs: Value) -> Value:
        if len(xs) == 1:
            return each(w, "{x}", x=xs[0])
        return reduce(lambda a, b: each(w, template, x=a, y=b), xs)

    return row


def mean(w: Page, *xs: Value) -> Value:
    return each(w, "{x} / {n}", x=folded("{x} + {y}")(w, *xs), n=len(xs))


def negate(w: Page, x: Value) -> Value:
    return w(x.shape, lambda i: f"not {x[i]}", dtype="bool")


def where(w: Page, c: Value, x: Value, y: Value) -> Value:
    return each(w, "if {c} then {x} else {y}", dtype=x.dtype, c=c, x=x, y=y)


def clip(w: Page, x: Value, low: Any = None, high: Any = None, **named: float) -> Value:
    low, high = named.get("min", low), named.get("max", high)
    y = x if low is None else each(w, "max({x}, {m})", x=x, m=low)
    return each(w, "{x}", x=y) if high is None else each(w, "min({x}, {m})", x=y, m=high)


def is_inf(w: Page, x: Value, detect_negative: int = 1, detect_positive: int = 1) -> Value:
    signs = [s for s, wanted in (("-inf", detect_negative), ("inf", detect_positive)) if wanted]
    return w(x.shape, lambda i: " or ".join(f"{x[i]} == {s}" for s in signs) or "false", dtype="bool")


def is_nan(w: Page, x: Value) -> Value:
    return w(x.shape, lambda i: f"{x[i]} != {x[i]}", dtype="bool")


def gelu(w: Page, x: Value, approximate: str = "none") -> Value:
    return each(w, "gelu({x})" if approximate == "none" else "gelu_tanh({x})", x=x)


def swiglu(w: Page, a: Value, b: Value, alpha: float = 1) -> Value:
    return each(w, "{a} * sigmoid({alpha} * {a}) * {b}", a=a, b=b, alpha=alpha)


def dropout(w: Page, x: Value, ratio: Any = None, training: Any = None, seed: int = 0, **_: Any) -> Any:
    rate = 0.5 if ratio is None else float(getattr(ratio, "numbers", ratio))
    if training is not None and bool(training.numbers) and rate:
        raise OutOfScope("ONNX's own random numbers")
    return w(x.shape, lambda i: x[i]), w(x.shape, lambda i: "true", dtype="bool")


# conversions: what the types of the case are is seen by what comes in and is expected
KINDS = {1: "float", 11: "float", 9: "bool", **dict.fromkeys((2, 3, 4, 5, 6, 7, 12, 13), "int")}


def cast(w: Page, x: Value, to: int = 0, **_: Any) -> Value:
    return converted(w, x, KINDS.get(to, ""))


def cast_like(w: Page, x: Value, like: Value, **_: Any) -> Value:
    return converted(w, x, like.dtype)


def converted(w: Page, x: Value, to: str) -> Value:
    if not to:
        raise OutOfScope("another floating-point type than float32, 64")
    if to == "bool" and x.dtype != "bool":
        return w(x.shape, lambda i: f"{x[i]} != 0", dtype="bool")
    change = "" if x.dtype == to else to
    return w(x.shape, lambda i: f"{change}({x[i]})", dtype=to)


# quantization: numbers on a grid, as integers
def along(x: Value, s: Value | None, axis: int, block: int) -> Callable[[tuple[str, ...]], str]:
    """A scale of the whole tensor, of each place of an axis, or of blocks along it."""
    assert s is not None
    d = x.dim(axis)
    if s.size == 1 and s.rank < 2:
        return lambda i: s[("0",) * s.rank]
    if s.rank == 1:
        return lambda i: s[i[d]]
    return lambda i: s[tuple(f"{k} // {block}" if e == d else k for e, k in enumerate(i))]


def quantize(
    w: Page, x: Value, scale: Value, zero: Value | None = None, axis: int = 1, block_size: int = 0, **named: Any
) -> Value:
    if zero is None:
        low, high = {0: (0, 255), 2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767)}[
            named.get("output_dtype", 0)
        ]
    else:
        bits = zero.numbers.dtype.itemsize * 8
        low, high = (0, 2**bits - 1) if zero.numbers.dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    s = along(x, scale, axis, block_size)
    z = along(x, zero, axis, block_size) if zero is not None else lambda i: "0"
    return w(x.shape, lambda i: f"int(clip(round({x[i]} / {s(i)}) + float({z(i)}), {low}, {high}))", dtype="int")


def dequantize(
    w: Page, x: Value, scale: Value, zero: Value | None = None, axis: int = 1, block_size: int = 0, **_: Any
) -> Value:
    s = along(x, scale, axis, block_size)
    z = along(x, zero, axis, block_size) if zero is not None else lambda i: "0"
    return w(x.shape, lambda i: f"float({x[i]} - {z(i)}) * {s(i)}")


def dynamic_quantize(w: Page, x: Value) -> Any:
    at = ", ".join(f"r{k} < {n}" for k, n in enumerate(x.shape))
    e = x[tuple(f"r{k}" for k in range(x.rank))]
    low = w((), lambda i: f"min(min[{at}] {e}, 0)")
    scale = w((), lambda i: f"(max(max[{at}] {e}, 0) - {low.name}) / 255")
    zero = w((), lambda i: f"int(clip(round(-{low.name} / {scale.name}), 0, 255))", dtype="int")
    y = w(x.shape, lambda i: f"int(clip(round({x[i]} / {scale.name}) + float({zero.name}), 0, 255))", dtype="int")
    return y, scale, zero


def shift(w: Page, x: Value, y: Value, direction: str = "") -> Value:
    """By a negative number of places, or by more than there are, all go."""
    dtype, n = x.numbers.dtype, min(x.numbers.dtype.itemsize * 8, 62)
    by = each(w, "if {y} < 0 or {y} > {n} then {n} else {y}", y=y, n=n)
    factor = w(y.shape, lambda i: f"int(2^float({by[i]}))", dtype="int")
    if direction == "RIGHT":
        return each(w, "{x} // {f}", x=x, f=factor)
    if n == 62:
        return each(w, "{x} * {f}", x=x, f=factor)
    low = 0 if dtype.kind == "u" else 2 ** (n - 1)
    return each(w, "({x} * {f} + {low}) % {m} - {low}", x=x, f=factor, m=2**n, low=low)


def bits(template: str) -> Row:
    """Digit by digit in base 2, which negative numbers have to be brought to first."""

    def row(w: Page, x: Value, y: Value) -> Value:
        dtype = x.numbers.dtype
        n = dtype.itemsize * 8
        if n == 64:
            raise NotExpressible("integers beyond 2^63")
        a = each(w, f"{{x}} % {2**n}", x=x)
        b = each(w, f"{{x}} % {2**n}", x=y)
        p = w((n,), lambda i: f"int(2^float({i[0]}))", dtype="int")
        shape = broadcast(x.shape, y.shape)
        digit = template.format(a="({a} // {p} % 2)", b="({b} // {p} % 2)")

        def body(i: tuple[str, ...]) -> str:
            return f"sum[k < {n}] {p['k']} * ({digit.format(a=a.wide(i), b=b.wide(i), p=p['k'])})"

        z = w(shape, body, dtype="int")
        return z if dtype.kind == "u" else each(w, "if {z} < {h} then {z} else {z} - {m}", z=z, h=2 ** (n - 1), m=2**n)

    return row


def bitwise_not(w: Page, x: Value) -> Value:
    dtype = x.numbers.dtype
    return each(w, "-1 - {x}" if dtype.kind == "i" else f"{2 ** (dtype.itemsize * 8) - 1} - {{x}}", x=x)


def binarizer(w: Page, x: Value, threshold: float = 0) -> Value:
    return each(w, "if {x} > {t} then 1 else 0", x=x, t=threshold)


ROWS: dict[str, Row] = {
    **{name: unary(template) for name, template in UNARY.items()},
    **{name: unary(template, **defaults) for name, (template, defaults) in NUMBERED.items()},
    **{name: binary(template) for name, template in BINARY.items()},
    **{name: comparison(f"{{x}} {sign} {{y}}") for name, sign in COMPARISONS.items()},
    **{name: comparison(template) for name, template in LOGICAL.items()},
    "Div": div,
    "Mod": mod,
    "Pow": power,
    "Sum": folded("{x} + {y}"),
    "Max": folded("max({x}, {y})"),
    "Min": folded("min({x}, {y})"),
    "Mean": mean,
    "Not": negate,
    "Where": where,
    "Clip": clip,
    "IsInf": is_inf,
    "IsNaN": is_nan,
    "Gelu": gelu,
    "SwiGLU": swiglu,
    "Dropout": dropout,
    "Cast": cast,
    "CastLike": cast_like,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "BitShift": shift,
    "BitwiseAnd": bits("{a} * {b}"),
    "BitwiseOr": bits("max({a}, {b})"),
    "BitwiseXor": bits("({a} + {b}) % 2"),
    "BitwiseNot": bitwise_not,
    "ml.Binarizer": binarizer,
}
