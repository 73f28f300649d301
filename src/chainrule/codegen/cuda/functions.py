"""The scalar functions of a GPU's kernels: the CPU's where they are arithmetic, the GPU's own library elsewhere.

A source that traces to arithmetic (`codegen.functions`, `codegen.gamma`) is right on every machine. What a GPU has
instructions for, exponentials above all, is NVIDIA's libdevice instead, inlined: it computes float32 without a single
operation in float64, and keeps NaN, infinities, denormals and signed zeros.

Largest errors in float32, in ulp, over all kinds of numbers, the hardware's ex2, lg2 and rcp taken as exact (they are
within 2^-22): log, log1p 0.9; exp, erf, atan 1.2; expm1 1.3; asin, acos 1.4; asinh 1.5; sinh, cosh, acosh 1.7; tanh
1.8; sin, cos 2.2; atanh 2.4; sigmoid 2.5; erfc 3.4; tan 3.6; power 0.8 and atan2 1.4 where that was measured. Division
and sqrt are rounded correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen import scalars
from chainrule.codegen.cuda.intrinsics import I32, I64
from chainrule.codegen.cuda.reductions import larger, smaller
from chainrule.codegen.cuda.trigonometry import cosine, sine, tangent
from chainrule.codegen.functions import (
    absolute,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    called,
    ceil,
    cos,
    cosh,
    erf,
    erfc,
    exp,
    expm1,
    floor,
    fma,
    inf,
    lgamma,
    log,
    log1p,
    maximum,
    minimum,
    nan,
    power,
    rint,
    sigmoid,
    sign,
    sin,
    sinh,
    sqrt,
    tan,
    tanh,
)  # fmt: skip
from chainrule.codegen.gamma import (
    digamma,
    polygamma1,
    polygamma2,
    polygamma3,
    polygamma4,
    polygamma5,
    polygamma6,
)  # fmt: skip
from chainrule.codegen.lowering import Library, Traced, constant, declare, element_name, lowered
from chainrule.codegen.lowering import where as _where
from chainrule.codegen.scalars import accumulate, float32, float64, where
from chainrule.philox import LOW, MIX, MULTIPLIERS, ROUNDS, WEYL

__all__ = [
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc", "lgamma",
    "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "power", "atan2", "sqrt", "sign",
    "absolute", "floor", "ceil", "rint", "maximum", "minimum", "fma", "inf", "nan",
    "accumulate", "float32", "float64", "int64", "uniform", "where",
    "digamma", "polygamma1", "polygamma2", "polygamma3", "polygamma4", "polygamma5", "polygamma6",
]  # fmt: skip

Source = Callable[..., Any]


def _sigmoid(x: Traced) -> Any:
    """z / (1 + z) or 1 / (1 + z) with z = e^-|x|: small values keep their bits. Of numbers in [1, 2] the hardware's
    reciprocal is within an ulp.
    """
    one = constant(x, 1.0)
    z = called("exp", -x.intrinsic("llvm.fabs"))
    above = _where(x < 0, z, one)
    return above * _reciprocal(one + z) if x.element == "float32" else above / (one + z)


def _reciprocal(x: Traced) -> Traced:
    kind = ir.FunctionType(x.value.type, [x.value.type])
    return x.like(x.builder.asm(kind, "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x.value], False))


def _whole(name: str) -> Source:
    """libdevice's function of that name."""
    return lambda x: called(name, x)


SOURCES: dict[str, Source] = {
    **{name: _whole(name) for name in ("exp", "expm1", "log", "log1p", "tanh")},
    "sigmoid": _sigmoid,
    "maximum": larger,
    "minimum": smaller,
}

LIBRARY = Library(
    "__nv_",
    {
        **{(name, element): source for element in ("float32", "float64") for name, source in SOURCES.items()},
        ("erf", "float32"): _whole("erf"),
        ("maximum", "int64"): larger,
        ("minimum", "int64"): smaller,
        ("sin", "float32"): sine,
        ("cos", "float32"): cosine,
        ("tan", "float32"): tangent,
    },
)
"""The GPU's own sources for the CPU's functions, and the names of all others."""


def int64(x: Any) -> Any:
    """x as int64, cut off towards zero; what does not fit becomes the nearest that does, NaN 0."""
    return scalars.int64(x)


def uniform(seed: int, node: int, step: int, element: int, lane: int = 0) -> Any:
    """The uniform number of `chainrule.philox`: a multiple of 2^-24, so a float32 that any float holds exactly."""
    return np.float32(scalars.uniform(seed, node, step, element, lane))


def _integer_type(x: types.Type) -> Any:
    return (types.int64, x) if element_name(x) else None


def _emit_integer(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """The GPU's conversion keeps what does not fit at the ends; NaN it sends to the least."""
    element, (value,) = element_name(sig.args[0]), args
    if element not in ("float32", "float64"):
        return context.cast(builder, value, sig.args[0], types.int64)
    name = "llvm.nvvm.f2ll.rz" if element == "float32" else "llvm.nvvm.d2ll.rz"
    whole = builder.call(declare(builder.module, name, I64, [value.type]), [value])
    return builder.select(builder.fcmp_unordered("uno", value, value), I64(0), whole)


def _words(x: Traced) -> tuple[Traced, Traced]:
    """The low and the high 32 bits of an int64."""
    b = x.builder
    return Traced(b, b.trunc(x.value, I32), "int32"), Traced(b, b.trunc(b.lshr(x.value, I64(32)), I32), "int32")


def _product(word: Traced, by: int) -> tuple[Traced, Traced]:
    """The low and the high half of a product of 32 bits by 32: one wide multiplication."""
    b = word.builder
    return _words(Traced(b, b.mul(b.zext(word.value, I64), I64(by)), "int64"))


def _uniform(seed: Traced, node: Traced, step: Traced, element: Traced, lane: Traced) -> Traced:
    """`philox.uniforms`, in words of 32 bits."""
    b = seed.builder

    def shifted(x: Traced, by: int) -> Traced:
        return x.like(b.lshr(x.value, x.value.type(by)))

    def word(number: int, bits: int = 32) -> int:
        return number - 2**bits if number >= 2 ** (bits - 1) else number

    z = seed + word(MIX[0], 64)
    z = (z ^ shifted(z, 30)) * word(MIX[1], 64)
    z = (z ^ shifted(z, 27)) * word(MIX[2], 64)
    z = z ^ shifted(z, 31) ^ node
    (c0, c1), (c2, c3), (k0, k1) = _words(element), _words(step), _words(z)
    for turn in range(ROUNDS):
        (low0, high0), (low1, high1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        r0, r1 = (k + word(turn * w & LOW) for k, w in zip((k0, k1), WEYL, strict=True))
        c0, c1, c2, c3 = high1 ^ c1 ^ r0, low1, high0 ^ c3 ^ r1, low0
    drawn = _where(lane == 0, c0, _where(lane == 1, c1, _where(lane == 2, c2, c3)))
    kept = b.uitofp(shifted(drawn, 9).value, ir.FloatType())
    x = Traced(b, kept, "float32")
    return (x + 0.5) * 2.0**-23


def _uniform_type(*kinds: types.Type) -> Any:
    whole = len(kinds) in (4, 5) and all(isinstance(kind, types.Integer) for kind in kinds)
    return (types.float32, *[types.int64] * len(kinds)) if whole else None


def _emit_uniform(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    values = [Traced(builder, value, "int64") for value in args]
    return _uniform(*values, *([] if len(values) == 5 else [values[0].const(0)])).value


lowered(int64, _integer_type, _emit_integer)
lowered(uniform, _uniform_type, _emit_uniform)
