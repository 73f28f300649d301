"""What kernels need beside the elementwise functions: choice, casts, reductions' steps, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen.lowering import (
    LLVM,
    NUMBA,
    Traced,
    Vector,
    declare,
    element_name,
    float_of,
    lanes_of,
    lowered,
    splat,
)
from chainrule.codegen.lowering import where as _where
from chainrule.philox import LOW, MIX, MULTIPLIERS, ROUNDS, WEYL, uniforms

__all__ = ["accumulate", "float32", "float64", "int64", "uniform", "where"]


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b, without a branch; both are computed."""
    return _where(condition, a, b)


def accumulate(total: Any, term: Any) -> Any:
    """total + term, a reduction's step: LLVM may keep a partial sum in each lane of a vector, and add those last.

    The order is fixed when the kernel is compiled: it depends on no thread and on no value.
    """
    return total + term


def float32(x: Any) -> Any:
    """x as float32."""
    with np.errstate(all="ignore"):
        return np.float32(x)


def float64(x: Any) -> Any:
    """x as float64."""
    return np.float64(x)


def int64(x: Any) -> Any:
    """x as int64, cut off towards zero; what does not fit becomes the nearest that does, NaN 0."""
    cut = np.nan_to_num(np.trunc(x), nan=0.0, posinf=2.0**63, neginf=-(2.0**63)) if np.result_type(x).kind == "f" else x
    return np.int64(min(max(int(cut), -(2**63)), 2**63 - 1))


def uniform(seed: int, node: int, step: int, element: int, lane: int = 0) -> Any:
    """A uniform number in (0, 1) that depends on its arguments alone: see `chainrule.philox`; a float64."""
    return np.float64(uniforms(int(seed), int(node), int(step), int(element), int(lane)))


def _where_type(condition: types.Type, a: types.Type, b: types.Type) -> Any:
    names = element_name(condition), element_name(a), element_name(b)
    if names[0] != "bool" or None in names:
        return None
    lanes = max(map(lanes_of, (condition, a, b)))
    strong = {name for name, kind in zip(names[1:], (a, b), strict=True) if lanes_of(kind)} or set(names[1:])
    element = "float64" if "float64" in strong else "float32" if "float32" in strong else str(names[1])
    scalar = NUMBA[element]
    wide = [Vector(scalar, lanes) if lanes_of(k) else scalar for k in (a, b)]
    return (Vector(scalar, lanes) if lanes else scalar, condition, *wide)


def _emit_where(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    lanes = lanes_of(sig.return_type)
    values = [splat(builder, v, lanes) if lanes and not lanes_of(k) else v for k, v in zip(sig.args, args, strict=True)]
    return builder.select(*values)


def _accumulate_type(total: types.Type, term: types.Type) -> Any:
    if not isinstance(total, types.Float) or not isinstance(term, (types.Float, types.Integer, types.Boolean)):
        return None
    return total, total, total


def _emit_accumulate(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return builder.fadd(*args, flags=("reassoc", "contract"))


def _cast_to(element: str) -> Callable[..., Any]:
    def typer(x: types.Type) -> Any:
        if element_name(x) is None:
            return None
        lanes = lanes_of(x)
        return (Vector(NUMBA[element], lanes) if lanes else NUMBA[element]), x

    return typer


def _emit_cast(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    source, target = element_name(sig.args[0]), element_name(sig.return_type)
    value, lanes = args[0], lanes_of(sig.return_type)
    if source == target and not isinstance(sig.args[0], types.Integer):
        return value
    if isinstance(sig.args[0], (types.Integer, types.Boolean)) and not lanes:
        return context.cast(builder, value, sig.args[0], sig.return_type)
    kind = ir.VectorType(LLVM[str(target)], lanes) if lanes else LLVM[str(target)]
    if source == "bool":
        return (builder.uitofp if target != "int64" else builder.zext)(value, kind)
    if source == "int64":
        return builder.sitofp(value, kind)
    if target == "int64":
        suffix = f"v{lanes}" if lanes else ""
        name = f"llvm.fptosi.sat.{suffix}i64.{suffix}{'f32' if source == 'float32' else 'f64'}"
        return builder.call(declare(builder.module, name, kind, [value.type]), [value])
    return (builder.fptrunc if target == "float32" else builder.fpext)(value, kind)


def _uniform(seed: Traced, node: Traced, step: Traced, element: Traced, lane: Traced) -> Any:
    """`philox.uniforms` in 64-bit words, whose low halves are multiplied: one instruction each."""

    def word(number: int) -> Traced:
        return seed.const(number - 2**64 if number >= 2**63 else number)

    def shifted(x: Traced, by: int) -> Traced:
        return x.like(x.builder.lshr(x.value, word(by).value))

    z = seed + word(MIX[0])
    z = (z ^ shifted(z, 30)) * word(MIX[1])
    z = (z ^ shifted(z, 27)) * word(MIX[2])
    z = z ^ shifted(z, 31) ^ node
    c0, c1, c2, c3 = element & LOW, shifted(element, 32), step & LOW, shifted(step, 32)
    k0, k1 = z & LOW, shifted(z, 32)
    for _ in range(ROUNDS):
        p0, p1 = c0 * word(MULTIPLIERS[0]), c2 * word(MULTIPLIERS[1])
        c0, c1, c2, c3 = shifted(p1, 32) ^ c1 ^ k0, p1 & LOW, shifted(p0, 32) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    drawn = _where(lane == 0, c0, _where(lane == 1, c1, _where(lane == 2, c2, c3)))
    return (float_of(shifted(drawn, 9)) + 0.5) * 2.0**-23


def _uniform_type(*kinds: types.Type) -> Any:
    whole = len(kinds) in (4, 5) and all(isinstance(kind, types.Integer) for kind in kinds)
    return (types.float64, *[types.int64] * len(kinds)) if whole else None


def _emit_uniform(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    values = [Traced(builder, value, "int64") for value in args]
    return _uniform(*values, *([] if len(values) == 5 else [values[0].const(0)])).value


lowered(where, _where_type, _emit_where)
lowered(accumulate, _accumulate_type, _emit_accumulate)
lowered(float32, _cast_to("float32"), _emit_cast)
lowered(float64, _cast_to("float64"), _emit_cast)
lowered(int64, _cast_to("int64"), _emit_cast)
lowered(uniform, _uniform_type, _emit_uniform)
