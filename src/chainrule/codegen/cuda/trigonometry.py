"""sin, cos and tan in float32 by float32 and integers alone: libdevice's take float64 for large arguments.

x = q π/2 + r with |r| <= π/4, exactly enough: three fused multiply-adds up to 105615 (Cody and Waite); beyond, which
few threads take, the bits of 2/π that count, multiplied as integers (Payne and Hanek, 1983). Errors are below 2.2 ulp
for sin and cos, 4 ulp for tan; infinities and NaN give NaN. Source of the polynomials: S. Moshier's Cephes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import mpmath
from llvmlite import ir

from chainrule.codegen.lowering import Traced, bits_of, constant, muladd, where

I32, I64 = ir.IntType(32), ir.IntType(64)

HALF_PI = (-1.57079601287841796875, -3.1391647326017846e-07, -5.390302529957765e-15)  # minus π/2 in three parts
LARGEST = 105615.0  # where q times the first part is still exact
SINE = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
COSINE = (-0.5, 4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)

with mpmath.workprec(320):
    _DIGITS = int(mpmath.floor(mpmath.mpf(2) / mpmath.pi * mpmath.mpf(2) ** 224))
WORDS = (0, *((_DIGITS >> (192 - 32 * k)) & 0xFFFFFFFF for k in range(7)))
"""The bits of 2/π: the first word ends at the binary point."""


def _long(x: Traced) -> tuple[ir.Value, ir.Value]:
    """(q mod 4, r) for a finite |x| of 1/2 or more.

    With x = m 2^e, m of 24 bits: bits of 2/π of weight 4 and more in 2^e 2/π change nothing, so 96 bits from there on
    and their product with m, of which the upper 64 count: two before the point, 62 after it.
    """
    b = x.builder
    bits = b.bitcast(x.value, I32)
    exponent = b.and_(b.lshr(bits, I32(23)), I32(255))
    mantissa = b.zext(b.or_(b.and_(bits, I32(0x7FFFFF)), I32(0x800000)), I64)
    place = b.sub(exponent, I32(120))  # of the first bit that counts, from that of the first word
    word, by = b.lshr(place, I32(5)), b.zext(b.and_(place, I32(31)), I64)
    found = []
    for k in range(4):
        chosen: ir.Value = I64(WORDS[k])
        for j in range(1, 5):
            chosen = b.select(b.icmp_unsigned("==", word, I32(j)), I64(WORDS[min(j + k, 7)]), chosen)
        found.append(chosen)
    pairs = [b.or_(b.shl(high, I64(32)), low) for high, low in pairwise(found)]
    window = [b.and_(b.lshr(b.shl(pair, by), I64(32)), I64(0xFFFFFFFF)) for pair in pairs]
    low = b.mul(window[2], mantissa)
    middle = b.add(b.mul(window[1], mantissa), b.lshr(low, I64(32)))
    product = b.add(b.shl(b.mul(window[0], mantissa), I64(32)), middle)
    q = b.lshr(b.add(product, I64(1 << 61)), I64(62))
    rest = b.sitofp(b.sub(product, b.shl(q, I64(62))), ir.FloatType())
    r = b.fmul(rest, x.const(math.pi / 2 * 2.0**-62).value)
    negative = b.icmp_signed("<", bits, I32(0))
    q32 = b.trunc(q, I32)
    minus = b.fsub(x.const(-0.0).value, r)
    return b.select(negative, b.sub(I32(0), q32), q32), b.select(negative, minus, r)


def _reduced(x: Traced) -> tuple[Traced, Traced]:
    """(q, r) with x = q π/2 + r; the lowest two bits of q are right. NaN of what is not finite."""
    b = x.builder
    magic = constant(x, 1.5 * 2.0**23)
    shifted = muladd(x, constant(x, 2 / math.pi), magic)
    n, r = shifted - magic, x
    for part in HALF_PI:
        r = muladd(n, constant(x, part), r)
    q = bits_of(shifted).value
    start = b.block
    large = b.fcmp_ordered(">", x.intrinsic("llvm.fabs").value, x.const(LARGEST).value)
    with b.if_then(large, likely=False):
        far_q, far_r = _long(x)
        end = b.block
    chosen = b.phi(I32), b.phi(ir.FloatType())
    for phi, near, far in zip(chosen, (q, r.value), (far_q, far_r), strict=True):
        phi.add_incoming(near, start)
        phi.add_incoming(far, end)
    finite = x.intrinsic("llvm.fabs") < math.inf
    return x.like(chosen[0], "int32"), where(finite, x.like(chosen[1]), x.const(math.nan))


def _horner(coefficients: tuple[float, ...], z: Traced) -> Any:
    value: Any = constant(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = muladd(value, z, constant(z, c))
    return value


def _sine_of(r: Traced) -> Any:
    z = r * r
    return muladd(z * _horner(SINE, z), r, r)


def _cosine_of(r: Traced) -> Any:
    z = r * r
    return muladd(_horner(COSINE, z), z, constant(z, 1.0))


def _wave(q: Traced, r: Traced) -> Any:
    """sin(q π/2 + r)."""
    value = where((q & 1) == 0, _sine_of(r), _cosine_of(r))
    return where((q & 2) == 0, value, -value)


def sine(x: Traced) -> Any:
    """sin x; keeps -0."""
    q, r = _reduced(x)
    return where(x == 0, x, _wave(q, r))


def cosine(x: Traced) -> Any:
    """cos x."""
    q, r = _reduced(x)
    return _wave(q + 1, r)


def tangent(x: Traced) -> Any:
    """tan x; keeps -0."""
    q, r = _reduced(x)
    s, c = _sine_of(r), _cosine_of(r)
    even = (q & 1) == 0
    return where(x == 0, x, where(even, s, -c) / where(even, c, s))
