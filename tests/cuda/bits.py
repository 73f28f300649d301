"""Instructions on bits: fields, bytes, funnels and counts, as `semantics` has the arithmetic.

Source: PTX ISA 9.0, 9.7.1 and 9.7.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx import Instruction, PTXError

Meaning = tuple[Callable[..., Any], tuple[type, ...], type]
U32, U64 = np.uint32, np.uint64


def unsigned(ins: Instruction) -> type:
    return U64 if ins.type.endswith("64") else U32


def count(ins: Instruction) -> Meaning:
    """popc and clz."""
    kind = unsigned(ins)
    bits = np.iinfo(kind).bits

    def leading(x: Any) -> Any:
        for k in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
            x = x | (x >> kind(k))
        return (bits - np.bitwise_count(x)).astype(U32)

    return (leading if ins.opcode == "clz" else lambda x: np.bitwise_count(x).astype(U32)), (kind,), U32


def reverse(ins: Instruction) -> Meaning:
    kind = unsigned(ins)
    bits = np.iinfo(kind).bits

    def f(x: Any) -> Any:
        found = x & kind(0)
        for k in range(bits):
            found = found | (((x >> kind(k)) & kind(1)) << kind(bits - 1 - k))
        return found

    return f, (kind,), kind


def highest(ins: Instruction) -> Meaning:
    """bfind: the place of the highest bit that is no sign bit, 0xffffffff if there is none."""
    kind = unsigned(ins)
    bits = np.iinfo(kind).bits
    signed = np.dtype(f"int{bits}").type
    shifted = "shiftamt" in ins.modifiers

    def f(x: Any) -> Any:
        if ins.type[0] == "s":
            x = np.where(x.view(signed) < 0, ~x, x)
        for k in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
            x = x | (x >> kind(k))
        place = np.bitwise_count(x).astype(np.int64) - 1
        return np.where(place < 0, -1, bits - 1 - place if shifted else place).astype(U32)

    return f, (kind,), U32


def extract(ins: Instruction) -> Meaning:
    """bfe: `c` bits of a from bit b on, sign or zero above."""
    kind = unsigned(ins)
    bits = np.iinfo(kind).bits
    signed = np.dtype(f"int{bits}").type

    def f(a: Any, b: Any, c: Any) -> Any:
        start, length = (b & U32(255)).astype(np.int64), (c & U32(255)).astype(np.int64)
        value = a >> np.minimum(start, bits).astype(kind)
        kept = np.minimum(length, bits).astype(kind)
        mask = ~(~kind(0) << kept)
        found = value & mask
        if ins.type[0] == "s":
            last = np.minimum(start + length - 1, bits - 1)
            sign = (length > 0) & (((a >> np.maximum(last, 0).astype(kind)) & kind(1)) != 0)
            span = np.maximum(np.minimum(start + length, bits) - start, 0)  # beyond a's end: the sign again
            found = np.where(sign, found | (~kind(0) << np.minimum(span, bits).astype(kind)), found)
            return found.view(signed)
        return found

    return f, (kind, U32, U32), signed if ins.type[0] == "s" else kind


def insert(ins: Instruction) -> Meaning:
    """bfi: b with the low `d` bits of a from bit c on."""
    kind = unsigned(ins)
    bits = np.iinfo(kind).bits

    def f(a: Any, b: Any, c: Any, d: Any) -> Any:
        start = np.minimum(c & U32(255), U32(bits)).astype(kind)
        length = np.minimum(d & U32(255), U32(bits)).astype(kind)
        mask = ~(~kind(0) << length) << start
        return (b & ~mask) | ((a << start) & mask)

    return f, (kind, kind, U32, U32), kind


def funnel(ins: Instruction) -> Meaning:
    """shf: 64 bits, the high half b, shifted; the high (l) or the low (r) half of the result."""
    if ins.type != "b32":
        raise PTXError(f"an instruction that this machine does not know: {ins.text}")
    left, wrap = ins.modifiers[0] == "l", ins.modifiers[1] == "wrap"

    def f(a: Any, b: Any, c: Any) -> Any:
        n = (c & U32(31) if wrap else np.minimum(c, U32(32))).astype(U64)
        whole = (b.astype(U64) << U64(32)) | a.astype(U64)
        return ((whole << n) >> U64(32) if left else whole >> n).astype(U32)

    return f, (U32, U32, U32), U32


def permute(ins: Instruction) -> Meaning:
    """prmt: each byte of the result is one of the eight of a and b, or its sign."""
    if ins.modifiers != ("b32",):
        raise PTXError(f"an instruction that this machine does not know: {ins.text}")

    def f(a: Any, b: Any, c: Any) -> Any:
        whole = (b.astype(U64) << U64(32)) | a.astype(U64)
        found = U32(0)
        for k in range(4):
            chosen = (c >> U32(4 * k)) & U32(15)
            byte = ((whole >> (U64(8) * (chosen & U32(7)).astype(U64))) & U64(255)).astype(U32)
            sign = np.where(byte & U32(128), U32(255), U32(0))
            found = found | (np.where(chosen & U32(8), sign, byte) << U32(8 * k))
        return found

    return f, (U32, U32, U32), U32


def carried(ins: Instruction) -> tuple[Callable[..., tuple[Any, Any]], tuple[type, ...], type]:
    """add, sub and mad with a carry: (a, b[, c], carry) to (result, carry)."""
    kind = unsigned(ins)
    name = ins.opcode.removesuffix("c") if ins.opcode in ("addc", "subc", "madc") else ins.opcode

    def total(a: Any, b: Any, carry: Any) -> tuple[Any, Any]:
        s = a + b
        t = s + carry.astype(kind)
        return t, (s < a) | (t < s)

    def difference(a: Any, b: Any, borrow: Any) -> tuple[Any, Any]:
        s = a - b
        return s - borrow.astype(kind), (a < b) | (s < borrow.astype(kind))

    def multiplied(a: Any, b: Any, c: Any, carry: Any) -> tuple[Any, Any]:
        if "lo" in ins.modifiers:
            return total(a * b, c, carry)
        signed = ins.type == "s32"
        if kind is not U32:
            raise PTXError(f"an instruction that this machine does not know: {ins.text}")
        wide = np.int64 if signed else U64
        narrow = np.int32 if signed else U32
        product = a.view(narrow).astype(wide) * b.view(narrow).astype(wide)
        return total((product >> wide(32)).astype(U32), c, carry)

    f = {"add": total, "sub": difference, "mad": multiplied}[name]
    return f, (kind,) * (3 if name == "mad" else 2), kind


RULES: dict[str, Callable[[Instruction], Meaning]] = {
    "popc": count,
    "clz": count,
    "brev": reverse,
    "bfind": highest,
    "bfe": extract,
    "bfi": insert,
    "shf": funnel,
    "prmt": permute,
}
