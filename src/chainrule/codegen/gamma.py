"""The derivatives of the logarithm of the gamma function: digamma and the polygammas, of orders that derivation meets.

For x > 0, with z = x + m: ψ_n(x) is a sum over m terms of the recurrence ψ_n(x) = ψ_n(x + 1) - (-1)^n n! / x^(n+1)
and the asymptotic series at z, whose first omitted term is below the last place. Below, the reflection
ψ_n(x) = (-1)^n ψ_n(1 - x) - π dⁿ/dxⁿ cot πx. Source: Abramowitz and Stegun 1964, 6.3 and 6.4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.codegen.functions import Source, _log, _plain, _polynomial, by_library
from chainrule.codegen.lowering import Traced, constant, elementwise
from chainrule.codegen.lowering import where as _where

__all__ = ["digamma", "polygamma1", "polygamma2", "polygamma3", "polygamma4", "polygamma5", "polygamma6"]

BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)  # B_2, B_4 …


def _whole(x: Any) -> Any:
    return x.intrinsic("llvm.rint") if isinstance(x, Traced) else np.rint(x)


def _cotangent(x: Any) -> Any:
    """cot πx."""
    return constant(x, 1.0) / by_library("tan", constant(x, math.pi) * (x - _whole(x)))


def _digamma(x: Any) -> Any:
    """ψ(x) = ψ(x + 8) - sum 1/(x + k), then the asymptotic series; reflected below 1/2."""
    one = constant(x, 1.0)
    below = x < 0.5
    y = _where(below, one - x, x)
    shift = constant(x, 0.0)
    for k in range(8):
        shift = shift + one / (y + constant(x, k))
    z = y + constant(x, 8.0)
    w = one / (z * z)
    series = [b / (2 * k) for k, b in enumerate(BERNOULLI[:7], 1)]
    value = _log(z) - constant(x, 0.5) / z - w * _polynomial(series, w) - shift
    return _where(below, value - constant(x, math.pi) * _cotangent(x), value)


def digamma(x: Any) -> Any:
    """The derivative of lgamma; relative error about 1e-6 in float32, 1e-14 in float64, away from its zeros."""
    return _plain(_digamma, x)


def cotangent_derivative(n: int) -> list[int]:
    """The polynomial P, lowest coefficient first, of which P(cot t) is the n-th derivative of cot t."""
    p = [0, 1]
    for _ in range(n):  # P(c)' = -(1 + c²) P'(c)
        slope = [k * c for k, c in enumerate(p)][1:]
        p = [0] * (len(slope) + 2)
        for k, c in enumerate(slope):
            p[k] -= c
            p[k + 2] -= c
    return p


def _power(x: Any, n: int) -> Any:
    return x if n == 1 else _power(x, n - 1) * x


def _polygamma(n: int) -> Source:
    terms, sign, factorial = 12, (-1) ** (n + 1), math.factorial(n)
    series = [b * math.factorial(2 * k + n - 1) / math.factorial(2 * k) for k, b in enumerate(BERNOULLI, 1)]

    def source(x: Any) -> Any:
        one = constant(x, 1.0)
        below = x < 0.0
        y = _where(below, one - x, x)
        total = constant(x, 0.0)
        for k in range(terms):
            total = total + one / _power(y + constant(x, k), n + 1)
        r = one / (y + constant(x, terms))
        tail = constant(x, math.factorial(n - 1)) + constant(x, factorial / 2) * r + r * r * _polynomial(series, r * r)
        value = constant(x, sign) * (constant(x, factorial) * total + _power(r, n) * tail)
        turned = constant(x, math.pi ** (n + 1)) * _polynomial(cotangent_derivative(n), _cotangent(x))
        return _where(below, constant(x, -sign) * value - turned, value)

    return source


def _make(n: int) -> Source:
    source = _polygamma(n)

    def function(x: Any) -> Any:
        return _plain(source, x)

    function.__name__ = f"polygamma{n}"
    function.__doc__ = f"The derivative of order {n} of digamma; relative error as digamma's."
    elementwise(function, source)
    return function


elementwise(digamma, _digamma)
polygamma1, polygamma2, polygamma3, polygamma4, polygamma5, polygamma6 = map(_make, range(1, 7))
