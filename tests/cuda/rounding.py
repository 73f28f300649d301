"""Arithmetic that NumPy lacks: fused multiply-add, and results rounded down, up or towards zero.

A directed result is the nearest one, moved by one place where the sign of its error asks for it; the error's sign
comes from error-free transforms. Source: Boldo and Muller, "Exact and approximated error of the FMA", 2011.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types, vectorize
from numba.extending import intrinsic

Op = Callable[..., Any]


@intrinsic
def fused(typing, a, b, c):
    def generate(context, builder, signature, args):
        kind = args[0].type
        name = "llvm.fma.f32" if isinstance(kind, ir.FloatType) else "llvm.fma.f64"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(kind, (kind,) * 3), name
        )
        return builder.call(function, args)

    return a(a, a, a), generate


@functools.cache
def fma() -> Op:
    """``a * b + c``, rounded once; compiled, as NumPy has none."""
    return vectorize([f"{t}({t}, {t}, {t})" for t in (types.float32, types.float64)])(lambda a, b, c: fused(a, b, c))


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def sum_error(s: Any, a: Any, b: Any) -> Any:
    near, rest = two_sum(a, b)
    return (near - s) + rest


def product_error(p: Any, a: Any, b: Any) -> Any:
    return fma()(a, b, -p)


def quotient_error(q: Any, a: Any, b: Any) -> Any:
    return np.copysign(1, b) * fma()(-q, b, a)


def root_error(r: Any, a: Any) -> Any:
    return fma()(-r, r, a)


def fma_error(x: Any, a: Any, b: Any, c: Any) -> Any:
    high = a * b
    low = fma()(a, b, -high)
    s, t = two_sum(c, low)
    u, v = two_sum(high, s)
    return ((u - x) + v) + t


def reciprocal(a: Any) -> Any:
    return a.dtype.type(1) / a


def reciprocal_error(q: Any, a: Any) -> Any:
    return quotient_error(q, a.dtype.type(1), a)


def towards(way: str, nearest: Any, error: Any) -> Any:
    """`nearest` + `error` rounded: rm down, rp up, rz towards zero; `error` needs only its sign."""
    down = nearest.dtype.type(-np.inf)
    lower, upper = np.nextafter(nearest, down), np.nextafter(nearest, -down)
    match way:
        case "rm":
            return np.where(error < 0, lower, nearest)
        case "rp":
            return np.where(error > 0, upper, nearest)
        case "rz":
            beyond = np.where(nearest > 0, error < 0, error > 0) & (nearest != 0)
            return np.where(beyond, np.nextafter(nearest, nearest.dtype.type(0)), nearest)
    raise ValueError(way)


ERRORS: dict[str, tuple[Callable[[], Op], Op]] = {
    "add": (lambda: np.add, sum_error),
    "sub": (lambda: np.subtract, lambda s, a, b: sum_error(s, a, -b)),
    "mul": (lambda: np.multiply, product_error),
    "div": (lambda: np.divide, quotient_error),
    "rcp": (lambda: reciprocal, reciprocal_error),
    "sqrt": (lambda: np.sqrt, root_error),
    "fma": (fma, fma_error),
}


def rounded(name: str, way: str) -> Op:
    """The operation `name`, rounded by `way`: rn, rz, rm or rp."""
    make, error = ERRORS[name]
    nearest = make()
    if way == "rn":
        return nearest

    def directed(*args: Any) -> Any:
        found = nearest(*args)
        # The error of a float32 may lie below all of them; among float64 it does not.
        return towards(way, found, error(*(np.float64(x) for x in (found, *args))))

    return directed


def narrowed(way: str, x: Any, to: type) -> Any:
    """`x` in the narrower float type `to`."""
    found = x.astype(to)
    return found if way == "rn" else towards(way, found, x - found.astype(x.dtype))


def flush(x: Any) -> Any:
    """`x` with subnormals as zero, their sign kept (`.ftz`)."""
    tiny = np.abs(x) < np.finfo(x.dtype).tiny
    return np.where(tiny, np.copysign(x.dtype.type(0), x), x) if np.any(tiny) else x


def to_bf16(x: Any) -> Any:
    """A float32's nearest bfloat16, ties to even, as uint16; NaN becomes 0x7fff."""
    bits = x.view(np.uint32)
    near = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), near.astype(np.uint16))


def from_bf16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(x: Any) -> Any:
    """A float32's nearest number of 10 fraction bits, ties away from zero (cvt.rna.tf32.f32)."""
    near = ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), near, x)
