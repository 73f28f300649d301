"""Products of fragments: a warp multiplies matrices that its lanes hold together, on tensor cores.

    total[16, 16] += A[16, 8 words] B[8 words, 16]

A word is 32 bits that hold factors rounded to nearest: one of tf32, or two of bf16 that follow each other in the sum;
it counts as a float32, whose value means nothing. Which rows, columns and words an instruction takes for its first,
second, ... is free, so that a lane's are neighbours: lane 4 g + t has

    of A       the word 2t of the rows 2g and 2g + 1, then the word 2t + 1 of both
    of B       the words 2t and 2t + 1 of the column 2g, then of the column 2g + 1
    of total   the columns 4t to 4t + 3 of the row 2g, then of the row 2g + 1

So four words of two rows or columns, a quad, are one access of shared memory, and the registers of an instruction are
neighbours as they come. A panel has 16 words of each row or column; the quad of the rows 2p, 2p + 1 and the words 2q,
2q + 1 lies at `swizzled(32 * p + 4 * q)`: lanes that read or write quads at once never meet in a bank. Source: PTX ISA
9.0, 9.7.15.5 (mma.sync); from compute capability 8.0 on.
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

Words = tuple[Any, ...]


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


def mma_tf32(left: Words, right: Words, total: Words) -> Words:
    """This lane's part of total + A B, of words of tf32. All lanes of the warp take part."""
    return _alone(lambda word: [np.float32(word)], left, right, total)


def mma_bf16(left: Words, right: Words, total: Words) -> Words:
    """This lane's part of total + A B, of words of bf16. All lanes of the warp take part."""
    return _alone(_halves, left, right, total)


def _halves(word: Any) -> list[Any]:
    bits = int(np.float32(word).view(np.uint32))
    return [np.uint32(half).view(np.float32) for half in (bits << 16 & 0xFFFFFFFF, bits & 0xFFFF0000)]


def _alone(factors: Callable[[Any], list[Any]], left: Words, right: Words, total: Words) -> Words:
    """One lane stands alone: all others hold zeros, and it has the first two columns."""

    def product(row: int, column: int) -> Any:
        words = zip((left[row], left[row + 2]), (right[2 * column], right[2 * column + 1]), strict=True)
        return sum(a * b for x, y in words for a, b in zip(factors(x), factors(y), strict=True))

    return tuple(t + product(k // 4, k % 4) if k % 4 < 2 else t for k, t in enumerate(total))


def swizzled(at: int) -> int:
    """Where a word of a panel lies: the bank also depends on the row or column."""
    return at ^ at >> 4 & 28 ^ at >> 3 & 4


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
    for distance, bits in ((4, 28), (3, 4)):
        at = builder.xor(at, builder.and_(builder.lshr(args[0], I64(distance)), I64(bits)))
    return at


def multiplying(shape: str, kind: str) -> Callable[..., ir.Value]:
    """Two instructions: one for the even columns, one for the odd."""
    text = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
    text += "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        left, right = ([builder.bitcast(builder.extract_value(a, k), I32) for k in range(4)] for a in args[:2])
        total = [builder.extract_value(args[2], k) for k in range(8)]
        for odd in (0, 1):
            words = [*left, *right[2 * odd : 2 * odd + 2]]
            total[odd::2] = assembled(builder, text, "ffff", [*words, *total[odd::2]], convergent=True)
        return context.make_tuple(builder, sig.return_type, total)

    return emitter


PARTS = {mma_tf32: multiplying("m16n8k8", "tf32"), mma_bf16: multiplying("m16n8k16", "bf16")}


def _floats(count: int) -> Callable[..., Any]:
    def typer(*kinds: types.Type) -> Any:
        return (types.float32, *[types.float32] * count) if len(kinds) == count else None

    return typer


def _words(*kinds: types.Type) -> Any:
    """Tuples stay what they are: a total goes round a loop."""
    floats = [(types.float32,) * count for count in (4, 4, 8)]
    return (kinds[-1], *kinds) if [getattr(kind, "types", ()) for kind in kinds] == floats else None


def _place(at: types.Type) -> Any:
    return (types.int64, types.int64) if isinstance(at, types.Integer) else None


lowered(to_tf32, _floats(1), emit_tf32)
lowered(to_bf16, _floats(2), emit_bf16)
lowered(swizzled, _place, emit_swizzled)
for _function, _emitter in PARTS.items():
    lowered(_function, _words, _emitter)
