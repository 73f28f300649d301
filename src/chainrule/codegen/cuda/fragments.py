"""Products of fragments: a warp multiplies matrices that its lanes hold together, on tensor cores.

    total[16, 8] += A[16, 16 words] B[16 words, 8]

A word is 32 bits that hold factors rounded to nearest: one of tf32, or two of bf16 that follow each other in the sum;
it counts as a float32, whose value means nothing. Which words of a row meet which of a column is free, as long as they
are the same, so that a lane takes four neighbours from each: lane 4 g + t has

    of A       words 4t to 4t + 3 of the rows g (`upper`) and g + 8 (`lower`)
    of B       words 4t to 4t + 3 of the column g (`right`)
    of total   the columns 2t and 2t + 1 of the row g, then those of the row g + 8

In shared memory a row or column has 16 words, and word 16 i + w lies at `swizzled` of that: lanes that read or write
four words at once never meet in a bank. Source: PTX ISA 9.0, 9.7.15.5 (mma.sync); from compute capability 8.0 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen.cuda.intrinsics import I32, I64
from chainrule.codegen.lowering import lowered

__all__ = ["mma_bf16", "mma_tf32", "swizzled", "to_bf16", "to_tf32"]

F32 = ir.FloatType()
LEAST = 80  # of the architectures that have these
WORDS = 16  # of a row or column

Four = tuple[Any, Any, Any, Any]


def to_tf32(x: Any) -> Any:
    """A word: x rounded to 10 bits behind the point, halves away from zero."""
    near = np.asarray((np.float32(x).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
    return near.view(np.float32)[()] if np.isfinite(x) else np.float32(x)


def to_bf16(first: Any, second: Any) -> Any:
    """A word: two floats, each rounded to 7 bits behind the point, halves to even."""
    word = np.asarray(_bits(first) | _bits(second) << 16, np.uint32)
    return word.view(np.float32)[()]


def _bits(x: Any) -> int:
    bits = int(np.float32(x).view(np.uint32))
    return 0x7FFF if np.isnan(x) else bits + 0x7FFF + (bits >> 16 & 1) >> 16


def mma_tf32(upper: Four, lower: Four, right: Four, total: Four) -> Four:
    """This lane's part of total + A B, of words of tf32. All lanes of the warp take part."""
    return _alone(lambda word: [np.float32(word)], upper, lower, right, total)


def mma_bf16(upper: Four, lower: Four, right: Four, total: Four) -> Four:
    """This lane's part of total + A B, of words of bf16. All lanes of the warp take part."""
    return _alone(_halves, upper, lower, right, total)


def _halves(word: Any) -> list[Any]:
    bits = int(np.float32(word).view(np.uint32))
    return [np.uint32(half).view(np.float32) for half in (bits << 16 & 0xFFFFFFFF, bits & 0xFFFF0000)]


def _alone(factors: Callable[[Any], list[Any]], upper: Four, lower: Four, right: Four, total: Four) -> Four:
    """One lane stands alone: all others hold zeros, and it has the first of the columns."""
    sums = [
        sum(a * b for x, y in zip(row, right, strict=True) for a, b in zip(factors(x), factors(y), strict=True))
        for row in (upper, lower)
    ]
    return total[0] + sums[0], total[1], total[2] + sums[1], total[3]


def swizzled(at: int) -> int:
    """Where a word of a panel lies: among eight rows that are four apart, the same words lie in different banks."""
    return at ^ at >> 4 & 28


# What becomes of them.


def assembled(
    builder: ir.IRBuilder, text: str, results: Sequence[str], values: Sequence[ir.Value], convergent: bool = False
) -> list[ir.Value]:
    """The registers that an instruction of PTX gives. results: "r" for a word of bits, "f" for a float."""
    kinds = [I32 if r == "r" else F32 for r in results]
    result = kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
    given = ["r" if v.type == I32 else "f" for v in values]
    code = ir.InlineAsm(
        ir.FunctionType(result, [v.type for v in values]), text, ",".join([*(f"={r}" for r in results), *given]), False
    )
    found = builder.call(code, list(values), attrs=("convergent",) if convergent else ())
    return [found] if len(kinds) == 1 else [builder.extract_value(found, k) for k in range(len(kinds))]


def emit_tf32(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    (word,) = assembled(builder, "cvt.rna.tf32.f32 $0, $1;", "r", args)
    return builder.bitcast(word, F32)


def emit_bf16(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    (word,) = assembled(builder, "cvt.rn.bf16x2.f32 $0, $2, $1;", "r", args)
    return builder.bitcast(word, F32)


def emit_swizzled(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    (at,) = args
    return builder.xor(at, builder.and_(builder.lshr(at, I64(4)), I64(28)))


def multiplying(shape: str, kind: str) -> Callable[..., ir.Value]:
    """Two instructions: words 0 and 1 of each four, then 2 and 3."""
    text = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
    text += "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        upper, lower, right, total = ([builder.extract_value(a, k) for k in range(4)] for a in args)
        upper, lower, right = ([builder.bitcast(word, I32) for word in four] for four in (upper, lower, right))
        for k in (0, 2):
            words = [upper[k], lower[k], upper[k + 1], lower[k + 1], right[k], right[k + 1]]
            total = assembled(builder, text, "ffff", [*words, *total], convergent=True)
        return context.make_tuple(builder, sig.return_type, total)

    return emitter


PARTS = {mma_tf32: multiplying("m16n8k8", "tf32"), mma_bf16: multiplying("m16n8k16", "bf16")}


def _floats(count: int) -> Callable[..., Any]:
    def typer(*kinds: types.Type) -> Any:
        return (types.float32, *[types.float32] * count) if len(kinds) == count else None

    return typer


def _fours(*kinds: types.Type) -> Any:
    """Tuples stay what they are: a total goes round a loop."""
    four = (types.float32,) * 4
    return (kinds[-1], *kinds) if len(kinds) == 4 and all(getattr(k, "types", ()) == four for k in kinds) else None


def _place(at: types.Type) -> Any:
    return (types.int64, types.int64) if isinstance(at, types.Integer) else None


lowered(to_tf32, _floats(1), emit_tf32)
lowered(to_bf16, _floats(2), emit_bf16)
lowered(swizzled, _place, emit_swizzled)
for _function, _emitter in PARTS.items():
    lowered(_function, _fours, _emitter)
