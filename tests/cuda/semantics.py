"""What PTX instructions compute: for each, a function of arrays and the types that it takes and gives.

``meaning(instruction) -> (function, types of the sources, type of the result)``. Arrays have one element a lane, or are
NumPy scalars where every lane has the same value; the functions change none of them. Source: PTX ISA 9.0, chapter 9.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda import bits
from tests.cuda.conversions import convert
from tests.cuda.ptx import Instruction, PTXError
from tests.cuda.rounding import flush, rounded

Op = Callable[..., Any]
Meaning = tuple[Op, tuple[type, ...], type]

SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
ROUNDINGS = ("rn", "rz", "rm", "rp")


def dtype_of(kind: str) -> type:
    """The NumPy type whose arithmetic is that of the PTX type `kind`; untyped bits are signed."""
    if kind in FLOATS:
        return FLOATS[kind]
    if kind == "pred":
        return np.bool_
    if kind in ("bf16", "bf16x2", "f16x2", "tf32"):
        return {"bf16": np.int16, "tf32": np.int32}.get(kind, np.int32)
    width = int(kind[1:])
    return UNSIGNED[width] if kind[0] == "u" else SIGNED[width]


def meaning(ins: Instruction) -> Meaning:
    """What `ins` computes; raises PTXError for one that this table has not."""
    rule = RULES.get(ins.opcode)
    if rule is None:
        raise PTXError(f"an instruction that this machine does not know: {ins.text}")
    return rule(ins)


def known(ins: Instruction, *allowed: str) -> None:
    """Refuse modifiers that would change what is computed, but are not among `allowed`."""
    strange = [m for m in ins.modifiers[:-1] if m not in allowed]
    if strange:
        raise PTXError(f"a modifier .{strange[0]} that this machine does not know: {ins.text}")


def floating(ins: Instruction, f: Op, count: int) -> Meaning:
    """`f` over `count` floats, with .ftz and .sat where they stand."""
    kind = FLOATS[ins.type]
    if "ftz" in ins.modifiers:
        plain = f

        def f(*args: Any) -> Any:
            return flush(plain(*map(flush, args)))

    if "sat" in ins.modifiers:
        unclipped = f

        def f(*args: Any) -> Any:
            return saturated(unclipped(*args))

    return f, (kind,) * count, kind


def saturated(x: Any) -> Any:
    """`x` clipped to [0, 1]; NaN becomes 0."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    return np.fmin(np.fmax(x, zero), one) + zero


def rounding(ins: Instruction) -> str:
    return next((m for m in ins.modifiers if m in ROUNDINGS), "rn")


def arithmetic(ins: Instruction) -> Meaning:
    """add, sub, mul over floats; over integers modulo 2^n."""
    name = ins.opcode
    if ins.type in FLOATS:
        known(ins, *ROUNDINGS, "ftz", "sat")
        way = rounding(ins)
        f = getattr(operator, name) if way == "rn" else rounded(name, way)
        return floating(ins, f, 2)
    if name == "mul":
        return product(ins)
    known(ins, "sat")
    kind = dtype_of(ins.type)
    if "sat" in ins.modifiers:
        wide = getattr(operator, name)
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        f = lambda a, b: np.clip(wide(a.astype(np.int64), b.astype(np.int64)), low, high).astype(kind)  # noqa: E731
        return f, (kind, kind), kind
    return getattr(operator, name), (kind, kind), kind


WIDER = {np.int16: np.int32, np.uint16: np.uint32, np.int32: np.int64, np.uint32: np.uint64}


def high_half(kind: type) -> Op:
    if kind in WIDER:
        wide, bits = WIDER[kind], np.iinfo(kind).bits
        return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(kind)

    def high(a: Any, b: Any) -> Any:
        """Of 64 by 64 bits: schoolbook in halves of 32, signs put right afterwards."""
        u, v = a.astype(np.uint64), b.astype(np.uint64)
        mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        u0, u1, v0, v1 = u & mask, u >> half, v & mask, v >> half
        middle = u1 * v0 + ((u0 * v0) >> half)
        cross = (middle & mask) + u0 * v1
        found = u1 * v1 + (middle >> half) + (cross >> half)
        if kind is np.int64:
            zero = np.uint64(0)
            found = found - np.where(a < 0, v, zero) - np.where(b < 0, u, zero)
        return found.astype(kind)

    return high


def product(ins: Instruction) -> Meaning:
    known(ins, "lo", "hi", "wide")
    kind = dtype_of(ins.type)
    if "hi" in ins.modifiers:
        return high_half(kind), (kind, kind), kind
    if "wide" in ins.modifiers:
        wide = WIDER[kind]
        return (lambda a, b: a.astype(wide) * b.astype(wide)), (kind, kind), wide
    return operator.mul, (kind, kind), kind


def multiply_add(ins: Instruction) -> Meaning:
    """mad and fma."""
    if ins.type in FLOATS:
        known(ins, *ROUNDINGS, "ftz", "sat")
        return floating(ins, rounded("fma", rounding(ins)), 3)
    f, sources, result = product(ins)
    return (lambda a, b, c: f(a, b) + c), (*sources, result), result


def division(ins: Instruction) -> Meaning:
    """div and rem: integers towards zero; .approx and .full as exact as .rn."""
    if ins.type in FLOATS:
        known(ins, *ROUNDINGS, "ftz", "approx", "full")
        f = operator.truediv if rounding(ins) == "rn" else rounded("div", rounding(ins))
        return floating(ins, approximate_quotient if "approx" in ins.modifiers else f, 2)
    known(ins)
    kind = dtype_of(ins.type)
    if ins.opcode == "rem":
        return np.fmod, (kind, kind), kind
    if ins.type[0] == "u":
        return operator.floordiv, (kind, kind), kind
    return (lambda a, b: (a - np.fmod(a, b)) // b), (kind, kind), kind


def approximate_quotient(a: Any, b: Any) -> Any:
    """div.approx.f32: a divisor beyond 2^126 gives 0, under an infinity NaN."""
    large = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    return np.where(large, np.where(np.isinf(a), np.float32(np.nan), np.copysign(0, a * b)), a / b)


def extreme(ins: Instruction) -> Meaning:
    """min and max: a NaN loses (with .NaN wins), and -0 < +0."""
    known(ins, "ftz", "NaN")
    least = ins.opcode == "min"
    if ins.type not in FLOATS:
        kind = dtype_of(ins.type)
        return np.minimum if least else np.maximum, (kind, kind), kind
    wins = "NaN" in ins.modifiers
    plain = (np.minimum if least else np.maximum) if wins else (np.fmin if least else np.fmax)
    signs = np.logical_or if least else np.logical_and

    def f(a: Any, b: Any) -> Any:
        found = plain(a, b)
        zeros = found == 0
        if np.any(zeros):
            both = zeros & (a == 0) & (b == 0)
            sign = np.where(signs(np.signbit(a), np.signbit(b)), -0.0, 0.0).astype(found.dtype)
            found = np.where(both, sign, found)
        return found

    return floating(ins, f, 2)


def unary(ins: Instruction, f: Op) -> Meaning:
    known(ins, "ftz", "approx", *ROUNDINGS)
    if ins.type in FLOATS:
        return floating(ins, f, 1)
    kind = dtype_of(ins.type)
    return f, (kind,), kind


def root(ins: Instruction) -> Meaning:
    known(ins, "ftz", "approx", *ROUNDINGS)
    return floating(ins, rounded("sqrt", rounding(ins)), 1)


def inverse(ins: Instruction) -> Meaning:
    known(ins, "ftz", "approx", *ROUNDINGS)
    if ins.type == "f64" and "approx" in ins.modifiers:
        return floating(ins, lambda x: coarse(1 / x), 1)
    return floating(ins, rounded("rcp", rounding(ins)), 1)


def inverse_root(ins: Instruction) -> Meaning:
    known(ins, "ftz", "approx")
    if ins.type == "f64":
        return floating(ins, lambda x: coarse(1 / np.sqrt(x)), 1)
    return unary(ins, through_double(lambda x: 1 / np.sqrt(x)))


def coarse(x: Any) -> Any:
    """A float64 as rcp.approx.f64 gives it: the lower half of its bits is zero, so Newton's steps are needed."""
    cut = (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    return np.where(np.isfinite(x), cut, x)


def through_double(f: Op) -> Op:
    """`f` of a float32 in float64, rounded: better than the hardware's approximation, never worse."""
    return lambda x: f(x.astype(np.float64)).astype(x.dtype)


def compare(ins: Instruction) -> Meaning:
    """setp and set: a comparison, joined with a predicate by and, or, xor."""
    kind = ins.type
    words = [m for m in ins.modifiers[:-1] if m != "ftz"]
    joined = next((m for m in words if m in ("and", "or", "xor")), None)
    relation = words[0]
    dtype = dtype_of(kind)
    if kind not in FLOATS and relation in ("lo", "ls", "hi", "hs"):
        relation = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[relation]
        dtype = UNSIGNED[int(kind[1:])]
    f = RELATIONS[relation] if kind in FLOATS else getattr(operator, relation)
    if "ftz" in ins.modifiers:
        plain = f
        f = lambda a, b: plain(flush(a), flush(b))  # noqa: E731
    sources: tuple[type, ...] = (dtype, dtype)
    if joined:
        bare, join = f, {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[joined]
        f = lambda a, b, p: join(bare(a, b), p)  # noqa: E731
        sources = (dtype, dtype, np.bool_)
    if ins.opcode == "setp":
        return f, sources, np.bool_
    result = dtype_of(next(m for m in words if m[0] in "usbf" and m[1:].isdigit()))
    true = result(1) if result is np.float32 else result(-1) if np.issubdtype(result, np.signedinteger) else ~result(0)
    test = f
    return (lambda *args: np.where(test(*args), true, result(0))), sources, result


def unordered(f: Op) -> Op:
    return lambda a, b: f(a, b) | np.isnan(a) | np.isnan(b)


RELATIONS: dict[str, Op] = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
RELATIONS |= {f"{name}u": unordered(RELATIONS[name]) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
# Python's != is true of NaN; the ordered one is not.
RELATIONS["ne"] = lambda a, b: (a != b) & (a == a) & (b == b)
RELATIONS["num"] = lambda a, b: (a == a) & (b == b)
RELATIONS["nan"] = lambda a, b: (a != a) | (b != b)


def choose(a: Any, b: Any, p: Any) -> Any:
    return (a if p else b) if p.ndim == 0 else np.where(p, a, b)


def select(ins: Instruction) -> Meaning:
    kind = dtype_of(ins.type)
    return choose, (kind, kind, np.bool_), kind


def select_by_sign(ins: Instruction) -> Meaning:
    known(ins, "ftz", *FLOATS, "b32", "b64", "s32", "u32", "s64", "u64")
    kind, by = dtype_of(ins.modifiers[-2]), dtype_of(ins.type)
    return (lambda a, b, c: np.where(c >= 0, a, b)), (kind, kind, by), kind


def logic(ins: Instruction, f: Op, count: int = 2) -> Meaning:
    known(ins)
    kind = dtype_of(ins.type)
    return f, (kind,) * count, kind


def shift(ins: Instruction) -> Meaning:
    """An amount beyond the width counts as the width."""
    known(ins)
    kind = dtype_of(ins.type)
    if ins.opcode == "shr" and ins.type[0] == "b":
        kind = UNSIGNED[int(ins.type[1:])]
    f = operator.lshift if ins.opcode == "shl" else operator.rshift
    width = np.uint32(np.iinfo(kind).bits)
    return (lambda a, n: f(a, np.minimum(n, width).astype(kind))), (kind, np.uint32), kind


def table(ins: Instruction) -> Meaning:
    """lop3: the truth table's minterms, joined."""

    def f(a: Any, b: Any, c: Any, lut: Any) -> Any:
        found = np.int32(0)
        for k in range(8):
            if int(lut) >> k & 1:
                found = found | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
        return found

    return f, (np.int32,) * 4, np.int32


def magnitude(x: Any) -> Any:
    return np.abs(x)


def exclusive_not(x: Any) -> Any:
    return ~x


def dot(ins: Instruction) -> Meaning:
    """dp4a, dp2a: four numbers of 8 bits, or two of 16, times bytes of a word, added to a third operand."""
    bits, count = (8, 4) if ins.opcode == "dp4a" else (16, 2)
    first = 2 if "hi" in ins.modifiers else 0
    kinds = ins.modifiers[-2:]

    def part(x: Any, bits: int, k: int, kind: str) -> Any:
        wide = np.asarray(x).astype(np.int64) >> bits * k & (1 << bits) - 1
        return wide - (wide >> bits - 1 << bits) if kind[0] == "s" else wide

    def f(a: Any, b: Any, c: Any) -> Any:
        terms = (part(a, bits, k, kinds[0]) * part(b, 8, first + k, kinds[1]) for k in range(count))
        return (np.asarray(c).astype(np.int64) + sum(terms)).astype(np.int32)

    return f, (np.int32,) * 3, np.int32


RULES: dict[str, Callable[[Instruction], Meaning]] = {
    **dict.fromkeys(("add", "sub", "mul"), arithmetic),
    **dict.fromkeys(("mad", "fma"), multiply_add),
    **dict.fromkeys(("div", "rem"), division),
    **dict.fromkeys(("min", "max"), extreme),
    **dict.fromkeys(("setp", "set"), compare),
    **dict.fromkeys(("shl", "shr"), shift),
    "abs": functools.partial(unary, f=magnitude),
    "neg": functools.partial(unary, f=operator.neg),
    "sqrt": root,
    "rcp": inverse,
    "rsqrt": inverse_root,
    "ex2": functools.partial(unary, f=through_double(np.exp2)),
    "lg2": functools.partial(unary, f=through_double(np.log2)),
    "sin": functools.partial(unary, f=through_double(np.sin)),
    "cos": functools.partial(unary, f=through_double(np.cos)),
    "tanh": functools.partial(unary, f=through_double(np.tanh)),
    "copysign": lambda ins: floating(ins, lambda a, b: np.copysign(b, a), 2),
    "selp": select,
    "slct": select_by_sign,
    "and": functools.partial(logic, f=operator.and_),
    "or": functools.partial(logic, f=operator.or_),
    "xor": functools.partial(logic, f=operator.xor),
    "not": functools.partial(logic, f=exclusive_not, count=1),
    "lop3": table,
    **dict.fromkeys(("dp2a", "dp4a"), dot),
    "cvt": convert,
    **bits.RULES,
}
