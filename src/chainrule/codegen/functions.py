"""The scalar functions of kernels: range reduction and a minimax polynomial, inlined where they are called.

Each is branch-free Python that runs on NumPy values (slowly, for debugging), on a scalar in a kernel, which LLVM
then makes part of a vector loop, and on a vector. They are right at NaN, infinities, overflow, denormals and
signed zeros; error bounds are in the docstrings, in units of the last place (ulp), and tested. Where a bound names
libm, the C library's function is called, one element at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen import coefficients as table
from chainrule.codegen.lowering import (
    LLVM,
    Library,
    Traced,
    bits_of,
    constant,
    declare,
    element_name,
    element_of,
    elementwise,
    float_of,
    lanes_of,
    library_of,
    lowered,
    muladd,
    of_bits,
)
from chainrule.codegen.lowering import where as _where
from chainrule.codegen.scalars import accumulate, float32, float64, int64, uniform, where

LIBM = (
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "erfc",
    "lgamma",
)

__all__ = [
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc", "lgamma",
    "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "power", "atan2", "sqrt", "sign",
    "absolute", "floor", "ceil", "rint", "maximum", "minimum", "fma", "polynomial", "inf", "nan",
    "accumulate", "float32", "float64", "int64", "uniform", "where",
]  # fmt: skip

inf, nan = math.inf, math.nan

LOG2E = 1.4426950408889634
C = Library("", {})
LN2 = {
    "float32": (0.693359375, -2.12194440054690583e-4),
    "float64": (6.93147180369123816490e-01, 1.90821492927058770e-10),
}
MANTISSA = {"float32": 23, "float64": 52}
BIAS = {"float32": 127, "float64": 1023}
FINITE_EXP = {"float32": (-104.0, 89.0), "float64": (-746.0, 710.0)}  # beyond: 0 and infinity
LEAST_EXPM1 = {"float32": -30.0, "float64": -50.0}  # below: -1
LARGEST_TANH = {"float32": 10.0, "float64": 20.0}  # beyond: 1
ROOT_HALF = {"float32": 0x3F3504F3, "float64": 0x3FE6A09E667F3BCD}  # the bits of sqrt(1/2)
LEAST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}

Source = Callable[..., Any]


def _plain(source: Source, *arguments: Any) -> Any:
    """`source` on NumPy values; Python's floats become float64."""
    with np.errstate(all="ignore"):
        return source(*(a if isinstance(a, (np.ndarray, np.generic)) else np.float64(a) for a in arguments))


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """Horner's rule, lowest coefficient first."""
    value = constant(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = muladd(value, x, constant(x, c))
    return value


def _power_of_two(i: Any, element: str) -> Any:
    """2^i for an integer i whose power is a normal number."""
    return of_bits((i + BIAS[element]) << MANTISSA[element])


def _reduce(x: Any, offset: int = 0, scale: int = 1) -> tuple[Any, Any]:
    """(k, r) with scale·x = i ln 2 + scale·r, i the nearest integer, and i + offset in the lowest bits of k.

    By adding 1.5·2^mantissa, which defines NaN's i too.
    """
    element = element_of(x)
    magic = constant(x, 1.5 * 2.0 ** MANTISSA[element] + offset)
    shifted = muladd(x, constant(x, scale * LOG2E), magic)
    n = shifted - magic
    high, low = LN2[element]
    r = muladd(n, constant(x, -low / scale), muladd(n, constant(x, -high / scale), x))
    return bits_of(shifted), r


def _reduce_normal(x: Any, offset: int = 0, scale: int = 1) -> tuple[Any, Any]:
    """(2^(i + offset), r), a normal number, and r as `_reduce` has it: the exponent is shifted to its place."""
    element = element_of(x)
    k, r = _reduce(x, BIAS[element] + offset, scale)
    return of_bits(k << MANTISSA[element]), r


def _scaled(x: Any, i: Any) -> Any:
    """x 2^i, rounded once, where 2^i itself may be no normal number."""
    element = element_of(x)
    if isinstance(x, Traced) and getattr(x.builder.module, "scales", False):
        return x.scaled(i)
    half = i >> 1
    return x * _power_of_two(half, element) * _power_of_two(i - half, element)


def _tail(r: Any) -> tuple[float, ...]:
    """q with e^r = 1 + r + r² q(r) for |r| <= ln(2)/2."""
    return table.EXP_FLOAT32 if element_of(r) == "float32" else table.EXP_FLOAT64


def _expm1_reduced(r: Any) -> Any:
    """e^r - 1 for |r| <= ln(2)/2."""
    return muladd(r * r, _polynomial(_tail(r), r), r)


def _exp_reduced(r: Any) -> Any:
    """e^r for |r| <= ln(2)/2."""
    return _polynomial((1.0, 1.0, *_tail(r)), r)


def _exp_finite(x: Any) -> Any:
    """e^x for x that is not infinite."""
    k, r = _reduce(x)
    return _scaled(_exp_reduced(r), k - bits_of(constant(x, 1.5 * 2.0 ** MANTISSA[element_of(x)])))


def _exp(x: Any) -> Any:
    least, most = FINITE_EXP[element_of(x)]
    zero = constant(x, 0.0)
    vanishes = x < least  # not computed and rounded: a result below the normal numbers costs twenty times as much
    x = _where(vanishes, zero, x)
    return _where(vanishes, zero, _exp_finite(_where(x > most, constant(x, most), x)))


def exp(x: Any) -> Any:
    """e^x; at most 1.1 ulp."""
    return _plain(_exp, x)


def _expm1(x: Any) -> Any:
    element = element_of(x)
    least, most = LEAST_EXPM1[element], FINITE_EXP[element][1]
    within = _where(x < least, constant(x, least), x)
    within = _where(within > most, constant(x, most), within)
    s, r = _reduce_normal(within, -1)  # half, for 2^i overflows before the result does
    value = constant(x, 2.0) * muladd(s, _expm1_reduced(r), s - constant(x, 0.5))
    return _where(x == 0, x, value)  # keeps -0


def expm1(x: Any) -> Any:
    """e^x - 1; at most 2 ulp, near 0 too."""
    return _plain(_expm1, x)


def _log_normal(m: Any, e: Any, f: Any) -> Any:
    """log(m 2^e) where m = 1 + f lies in [sqrt(1/2), sqrt(2))."""
    element = element_of(f)
    high, low = (constant(f, part) for part in LN2[element])
    if element == "float32":
        tail = muladd(f * f, _polynomial((-0.5, *table.LOG_FLOAT32), f), e * low)
        return muladd(e, high, f + tail)
    square = constant(f, 0.5) * f * f
    s = f / (constant(f, 2.0) + f)
    z = s * s
    series = z * _polynomial(table.LOG_FLOAT64, z)
    return e * high - ((square - (s * (square + series) + e * low)) - f)


def _split(x: Any) -> tuple[Any, Any]:
    """(m, e) with x = m 2^e for positive normal x; e as a float."""
    element = element_of(x)
    bits, root = MANTISSA[element], ROOT_HALF[element]
    i = bits_of(x) - root
    return of_bits((i & (2**bits - 1)) + root), float_of(i >> bits)


def _log(x: Any) -> Any:
    element = element_of(x)
    scale = 2.0 ** MANTISSA[element]
    small = x < LEAST_NORMAL[element]
    m, e = _split(_where(small, x * constant(x, scale), x))
    e = _where(small, e - constant(x, MANTISSA[element]), e)
    value = _log_normal(m, e, m - constant(x, 1.0))
    value = _where(x < inf, value, x)  # infinity and NaN
    return _where(x > 0, value, _where(x == 0, constant(x, -inf), constant(x, nan)))


def log(x: Any) -> Any:
    """The natural logarithm; at most 1 ulp. -inf at 0, NaN below."""
    return _plain(_log, x)


def _log1p(x: Any) -> Any:
    one = constant(x, 1.0)
    u = x + one
    lost = (x - (u - one)) / u  # what rounding 1 + x lost, to first order
    value = _log(u)
    value = _where((u > 0) & (u < inf), value + lost, value)
    return _where(u == 1, x, value)


def log1p(x: Any) -> Any:
    """log(1 + x); at most 2 ulp, near 0 too. Source of the correction: W. Kahan."""
    return _plain(_log1p, x)


def _magnitude(x: Any) -> Any:
    return x.intrinsic("llvm.fabs") if isinstance(x, Traced) else np.abs(x)


def _with_sign(x: Any, of: Any) -> Any:
    return x.intrinsic("llvm.copysign", of) if isinstance(x, Traced) else np.copysign(x, of)


def _tanh(x: Any) -> Any:
    most = constant(x, LARGEST_TANH[element_of(x)])
    a = _magnitude(x)
    s, r = _reduce_normal(_where(a > most, most, a), scale=2)
    half = _polynomial([c * 2.0 ** (k + 1) for k, c in enumerate(_tail(x))], r)  # (e^2r - 1) / 2 = r + r² half
    u = muladd(s, muladd(r * r, half, r), muladd(s, constant(x, 0.5), constant(x, -0.5)))
    return _with_sign(u / (u + constant(x, 1.0)), x)


def tanh(x: Any) -> Any:
    """u / (u + 1) where u = (e^2x - 1) / 2, which keeps the bits near 0; at most 3 ulp."""
    return _plain(_tanh, x)


def _sigmoid(x: Any) -> Any:
    one = constant(x, 1.0)
    least = constant(x, FINITE_EXP[element_of(x)][0])
    a = -_magnitude(x)
    z = _exp_finite(_where(a < least, least, a))
    return _where(x < 0, z, one) / (one + z)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x); at most 2.5 ulp, for x far below 0 too."""
    return _plain(_sigmoid, x)


def _erf(x: Any) -> Any:
    if element_of(x) == "float64":
        return by_library("erf", x)
    a = _magnitude(x)
    a = _where(a > 4.0, constant(x, 4.0), a)
    # log(1 - erf a); -9/8 is exact, so near 0 but one rounding counts
    s, r = _reduce_normal(muladd(a, constant(x, -1.125), a * _polynomial(table.ERF_FLOAT32, a)))
    return _with_sign(muladd(-s, _expm1_reduced(r), constant(x, 1.0) - s), x)


def erf(x: Any) -> Any:
    """The error function: float32 at most 2 ulp, float64 as libm."""
    return _plain(_erf, x)


def by_library(name: str, *values: Any) -> Any:
    """The function of the machine's library, C's on a CPU, lane by lane."""
    x = values[0]
    if not isinstance(x, Traced):
        function = getattr(math, name)
        return np.vectorize(lambda *a: _guarded(function, *a), otypes=[element_of(x)])(*values)[()]
    library = library_of(x) or C
    if (name, x.element) in library.sources:
        return library.sources[name, x.element](*values)
    return called(name, *values)


def called(name: str, *values: Traced) -> Traced:
    """A call of the library's own function, lane by lane."""
    x, library = values[0], library_of(values[0]) or C
    kind = LLVM[x.element]
    known = declare(x.builder.module, library.named(name, x.element), kind, [kind] * len(values))
    known.attributes.add("nounwind")
    if not x.lanes:
        return x.like(x.builder.call(known, [v.value for v in values]))
    result = ir.Constant(x.type_of(x.element), ir.Undefined)
    for k in range(x.lanes):
        lane = ir.Constant(LLVM["int32"], k)
        one = x.builder.call(known, [x.builder.extract_element(v.value, lane) for v in values])
        result = x.builder.insert_element(result, one, lane)
    return x.like(result)


def _guarded(function: Source, *values: float) -> float:
    """Python's math raises where C returns NaN or infinity."""
    try:
        return float(function(*map(float, values)))
    except ValueError:
        return nan
    except OverflowError:
        return inf


def _unary(name: str) -> Source:
    def function(x: Any) -> Any:
        return _plain(lambda y: by_library(name, y), x)

    function.__name__ = name
    function.__doc__ = f"{name}(x), as libm."
    elementwise(function, lambda x: by_library(name, x))
    return function


sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh, erfc, lgamma = map(_unary, LIBM)


def atan2(y: Any, x: Any) -> Any:
    """The angle of (x, y), as libm."""
    return np.arctan2(y, x)


def power(x: Any, y: Any) -> Any:
    """x^y, as libm."""
    with np.errstate(all="ignore"):
        return np.power(x, y)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded: an instruction."""
    with np.errstate(all="ignore"):
        return np.sqrt(x)


def absolute(x: Any) -> Any:
    """|x|."""
    return np.abs(x)


def floor(x: Any) -> Any:
    """The greatest whole number that is not above x, as a float."""
    return np.floor(x)


def ceil(x: Any) -> Any:
    """The least whole number that is not below x, as a float."""
    return np.ceil(x)


def rint(x: Any) -> Any:
    """The nearest whole number, the even one of two, as a float."""
    return np.rint(x)


def _sign(x: Any) -> Any:
    one = constant(x, 1.0)
    return _where(x > 0, one, _where(x < 0, -one, x))


def sign(x: Any) -> Any:
    """-1, 0 or 1; NaN of NaN."""
    return _plain(_sign, x)


def maximum(a: Any, b: Any) -> Any:
    """The larger; NaN if one is."""
    return np.maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller; NaN if one is."""
    return np.minimum(a, b)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the CPU can."""
    return _plain(muladd, a, b, c)


def polynomial(x: Any, *coefficients: float) -> Any:
    """c0 + c1 x + c2 x² …, in the type of x."""
    return _plain(lambda y: _polynomial(coefficients, y), x)


def _polynomial_type(*kinds: types.Type) -> Any:
    known = len(kinds) > 1 and element_name(kinds[0]) in ("float32", "float64")
    return (kinds[0], kinds[0], *[types.float64] * (len(kinds) - 1)) if known else None


def _emit_polynomial(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.args[0]
    x = Traced(builder, args[0], element_name(kind) or "", lanes_of(kind))
    return _polynomial([c.constant for c in args[1:]], x).value


lowered(polynomial, _polynomial_type, _emit_polynomial)

for _function, _source in (
    (exp, _exp),
    (expm1, _expm1),
    (log, _log),
    (log1p, _log1p),
    (tanh, _tanh),
    (sigmoid, _sigmoid),
    (erf, _erf),
    (sign, _sign),
    (fma, muladd),
    (power, lambda x, y: by_library("pow", x, y)),
    (atan2, lambda y, x: by_library("atan2", y, x)),
    (sqrt, lambda x: x.intrinsic("llvm.sqrt")),
    (floor, lambda x: x.intrinsic("llvm.floor")),
    (ceil, lambda x: x.intrinsic("llvm.ceil")),
    (rint, lambda x: x.intrinsic("llvm.rint")),
):
    elementwise(_function, _source)


def _choose(floating: str, integer: str) -> Source:
    return lambda a, b: a.intrinsic(floating if a.is_float else integer, b)


elementwise(absolute, lambda x: x.intrinsic("llvm.fabs") if x.is_float else _where(x < 0, -x, x), integers=True)
elementwise(maximum, _choose("llvm.maximum", "llvm.smax"), integers=True)
elementwise(minimum, _choose("llvm.minimum", "llvm.smin"), integers=True)
