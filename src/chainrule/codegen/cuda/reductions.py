"""Reductions over the threads of a warp and of a block, in an order that is fixed: the same bits in every run.

A warp's lanes exchange registers with lanes whose number differs in one bit, so that every lane has the same result
(a sum of two floats does not depend on which comes first). A block's warps meet twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen.cuda.intrinsics import I32, I64, WARP, meeting, own_warp, register, shared_array
from chainrule.codegen.lowering import Traced, declare, element_name, lanes_of, lowered

__all__ = [
    "warp_sum", "warp_max", "warp_min", "warp_prod", "block_sum", "block_max", "block_min", "block_prod",
]  # fmt: skip


def _exchanged(x: Traced, distance: int) -> Traced:
    """x of the lane whose number differs in the bit `distance`."""
    b = x.builder
    if x.element in ("float64", "int64"):
        bits = b.bitcast(x.value, I64)
        halves = [b.trunc(bits, I32), b.trunc(b.lshr(bits, I64(32)), I32)]
        low, high = (b.zext(_butterfly(b, half, distance), I64) for half in halves)
        return x.like(b.bitcast(b.or_(low, b.shl(high, I64(32))), x.value.type))
    return x.like(b.bitcast(_butterfly(b, b.bitcast(x.value, I32), distance), x.value.type))


def _butterfly(builder: ir.IRBuilder, word: ir.Value, distance: int) -> ir.Value:
    known = declare(builder.module, "llvm.nvvm.shfl.sync.bfly.i32", I32, [I32] * 4)
    return builder.call(known, [I32(-1), word, I32(distance), I32(WARP - 1)])


def within(x: Traced, combine: Callable[..., Any], width: int) -> Traced:
    """The combination of `width` neighbouring lanes, in all of them, in an order that is the same in all."""
    distance = width // 2
    while distance:
        x = combine(x, _exchanged(x, distance))
        distance //= 2
    return x


def across(context: Any, x: Traced, combine: Callable[..., Any], name: str, warps: int, neutral: float) -> Traced:
    """The combination of all lanes of all `warps` warps: a row of shared memory holds one value of each warp."""
    b = x.builder
    x = within(x, combine, WARP)
    if warps == 1:
        return x
    row = b.module.globals.get(name)
    row = shared_array(b, x.value.type, WARP, name) if row is None else b.gep(row, [I32(0), I32(0)], inbounds=True)
    here, first = register(b, "laneid", WARP), own_warp(context, b, None, [])
    meet = meeting("llvm.nvvm.barrier0")
    meet(context, b, None, [])  # the row of the last reduction has been read
    with b.if_then(b.icmp_unsigned("==", here, I64(0))):
        b.store(x.value, b.gep(row, [first], inbounds=True))
    meet(context, b, None, [])
    width = 1 << (warps - 1).bit_length()
    place = b.and_(here, I64(width - 1))
    read = b.load(b.gep(row, [place], inbounds=True))
    if width != warps:
        read = b.select(b.icmp_unsigned("<", place, I64(warps)), read, x.const(neutral).value)
    return within(x.like(read), combine, width)


def _limit(x: Traced, most: bool) -> float:
    """What a maximum (or minimum) over nothing is."""
    low, high = (-np.inf, np.inf) if x.is_float else (-(2**63), 2**63 - 1)
    return low if most else high


REDUCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Traced], float]]] = {
    "sum": (lambda a, b: a + b, lambda x: 0),
    "prod": (lambda a, b: a * b, lambda x: 1),
    "max": (lambda a, b: larger(a, b), lambda x: _limit(x, True)),
    "min": (lambda a, b: smaller(a, b), lambda x: _limit(x, False)),
}
"""How two values become one, and the value that changes nothing."""


def larger(a: Traced, b: Traced) -> Traced:
    """The larger; NaN if one is."""
    return _extreme(a, b, ">", "max")


def smaller(a: Traced, b: Traced) -> Traced:
    """The smaller; NaN if one is."""
    return _extreme(a, b, "<", "min")


def _extreme(a: Traced, b: Traced, sign: str, name: str) -> Traced:
    b = a.lift(b)
    if a.element == "float32":  # one instruction, since sm_80
        kind = ir.FunctionType(a.value.type, [a.value.type] * 2)
        return a.like(a.builder.asm(kind, f"{name}.NaN.f32 $0, $1, $2;", "=f,f,f", [a.value, b.value], False))
    first = a.compare(sign, b)
    if a.is_float:
        first = first | a.compare("!=", a)
    return a.like(a.builder.select(first.value, a.value, b.value))


def _over_warp(name: str) -> Any:
    combine, _ = REDUCTIONS[name]

    def reduce(x: Any, width: int = WARP) -> Any:
        return x

    reduce.__name__ = f"warp_{name}"
    reduce.__doc__ = f"The {name} over the lanes of a warp (over each `width` of them, a literal); every lane has it."

    def typer(x: types.Type, width: types.Type | None = None) -> Any:
        good = width is None or isinstance(width, types.IntegerLiteral)
        if not good or element_name(x) in (None, "bool") or lanes_of(x):
            return None
        kind = types.unliteral(x)  # type: ignore[attr-defined]
        return (kind, kind) if width is None else (kind, kind, width)

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        width = sig.args[1].literal_value if len(sig.args) == 2 else WARP
        x = Traced(builder, args[0], str(element_name(sig.return_type)))
        return within(x, combine, width).value

    lowered(reduce, typer, emitter)
    return reduce


def _over_block(name: str) -> Any:
    combine, neutral = REDUCTIONS[name]

    def reduce(x: Any, warps: int) -> Any:
        return x

    reduce.__name__ = f"block_{name}"
    reduce.__doc__ = f"The {name} over the threads of a block of `warps` warps (a literal); every thread has it."

    def typer(x: types.Type, warps: types.Type) -> Any:
        literal = isinstance(warps, types.IntegerLiteral)
        if not literal or element_name(x) in (None, "bool") or lanes_of(x):
            return None
        kind = types.unliteral(x)  # type: ignore[attr-defined]
        return kind, kind, warps

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        x = Traced(builder, args[0], str(element_name(sig.return_type)))
        row = f"row_{x.element}"
        return across(context, x, combine, row, sig.args[1].literal_value, neutral(x)).value

    lowered(reduce, typer, emitter)
    return reduce


warp_sum, warp_max, warp_min, warp_prod = map(_over_warp, ("sum", "max", "min", "prod"))
block_sum, block_max, block_min, block_prod = map(_over_block, ("sum", "max", "min", "prod"))
