"""cvt: between numbers of all types, with every rounding and saturation. Source: PTX ISA 9.0, 9.7.9.22."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx import Instruction, PTXError
from tests.cuda.rounding import flush, from_bf16, narrowed, to_bf16, to_tf32

FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
Meaning = tuple[Callable[..., Any], tuple[type, ...], type]


def integer_type(kind: str) -> type:
    return np.dtype(f"{'u' if kind[0] == 'u' else ''}int{kind[1:]}").type


def convert(ins: Instruction) -> Meaning:
    *how, to, source = ins.modifiers
    strange = set(how) - {"rn", "rz", "rm", "rp", "rna", "sat", "ftz", *WHOLE}
    if strange:
        raise PTXError(f"a modifier .{strange.pop()} that this machine does not know: {ins.text}")
    way = next((m for m in how if m[0] == "r"), "rn")
    if to in ("bf16", "bf16x2", "tf32") and how != (["rna"] if to == "tf32" else ["rn"]):
        raise PTXError(f"a rounding that this machine does not know: {ins.text}")
    if to == "bf16x2":
        pack = lambda a, b: (to_bf16(a).astype(np.uint32) << np.uint32(16)) | to_bf16(b)  # noqa: E731
        return pack, (np.float32, np.float32), np.uint32
    if to == "f16x2":
        half = lambda x: narrowed(way, x, np.float16).view(np.uint16)  # noqa: E731
        pack = lambda a, b: (half(a).astype(np.uint32) << np.uint32(16)) | half(b)  # noqa: E731
        return pack, (np.float32, np.float32), np.uint32
    if to == "bf16":
        return to_bf16, (np.float32,), np.uint16
    if to == "tf32":
        return to_tf32, (np.float32,), np.float32
    if source == "bf16":
        return from_bf16, (np.uint16,), np.float32
    floats = (to in FLOATS, source in FLOATS)
    rule = {(True, True): between_floats, (False, True): to_integer, (True, False): from_integer}
    return rule.get(floats, between_integers)(how, way, to, source)


def between_floats(how: list[str], way: str, to: str, source: str) -> Meaning:
    wide, result = FLOATS[source], FLOATS[to]

    def f(x: Any) -> Any:
        if "ftz" in how and wide is np.float32:
            x = flush(x)
        if way in WHOLE:
            x = WHOLE[way](x)
        found = narrowed(way, x, result) if np.dtype(result).itemsize < x.dtype.itemsize else x.astype(result)
        if "ftz" in how and result is np.float32:
            found = flush(found)
        if "sat" in how:
            found = np.fmin(np.fmax(found, result(0)), result(1)) + result(0)
        return found

    return f, (wide,), result


def to_integer(how: list[str], way: str, to: str, source: str) -> Meaning:
    """Clamped to the range; NaN becomes 0, or the sign bit alone where a type has 64 bits."""
    wide, result = FLOATS[source], integer_type(to)
    low, high = np.iinfo(result).min, np.iinfo(result).max
    bits = np.iinfo(result).bits
    none = result(0) if source != "f64" and bits < 64 else np.uint64(2 ** (bits - 1)).astype(result)
    top = float(high)  # of 64 bits: 2^63 or 2^64, the first float that is too large

    def f(x: Any) -> Any:
        if "ftz" in how and wide is np.float32:
            x = flush(x)
        whole = WHOLE[way](x.astype(np.float64))
        over, under = whole >= top, whole <= float(low)
        inside = np.where(over | under | np.isnan(whole), 0.0, whole).astype(result)
        return np.where(np.isnan(whole), none, np.where(over, result(high), np.where(under, result(low), inside)))

    return f, (wide,), result


def from_integer(how: list[str], way: str, to: str, source: str) -> Meaning:
    whole, result = integer_type(source), FLOATS[to]
    if way == "rn":
        return (lambda x: x.astype(result)), (whole,), result
    if np.iinfo(whole).bits > 32:
        raise PTXError(f"cvt.{way}.{to}.{source} is not known to this machine")
    return (lambda x: narrowed(way, x.astype(np.float64), result)), (whole,), result


def between_integers(how: list[str], way: str, to: str, source: str) -> Meaning:
    given, result = integer_type(source), integer_type(to)
    if "sat" not in how:
        return (lambda x: x.astype(result)), (given,), result
    low = max(np.iinfo(result).min, np.iinfo(given).min)
    high = min(np.iinfo(result).max, np.iinfo(given).max)
    return (lambda x: np.clip(x, given(low), given(high)).astype(result)), (given,), result
