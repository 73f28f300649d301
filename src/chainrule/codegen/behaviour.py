"""What a function of one float32 does: its values, what an approximation may be off, where it becomes a straight line.

An approximation may be off by 4 ulp of the result, or by what the composition may where that is more, up to 4 ulp of
the greatest result nearer 0. In a composition each step rounds, and each function keeps the bound that `functions`
states; that is propagated from step to step (Higham 2002, section 3.3).
u (1 + erf(u / sqrt 2)) / 2 has no bit of its result for sure at u = -6, since erf there is -1 to the last place. The
law is evaluated in float64, whose rounding is 2^-29 of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np
import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

from chainrule.ir.expression import Select
from chainrule.ir.value import value

X = sp.Symbol("_x", real=True)
"""The argument of a law."""

ULPS = 4.0
"""What a result may be off, in its last place."""

BOUNDS = {sp.exp: 1.1, expm1: 2.0, log1p: 2.0, sp.tanh: 3.0, sp.erf: 2.0}
"""Of the functions' errors, in ulp, as `functions` states them; the others' is about 1."""

HALF_ULP = 2.0**-24
LEAST = 2.0**-149
FAR = 2.0**40
DENSE = (120.0, 20.0, 4.0)  # ranges of evenly spaced samples, each ...
COUNT = 1501
MANTISSAS = np.array([1.0, 1.0000001, 1.137, 1.31, 1.5, 1.618, 1.77, 1.93, 1.9999999])
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)

Values = Any  # arrays of floats
Line = tuple[float, float]  # slope, offset


@dataclass(frozen=True)
class Behaviour:
    """A law of `X` on samples."""

    law: sp.Expr

    def at(self, u: Values) -> Values:
        """In float64."""
        return _of(self.law, np.asarray(u, np.float64))

    @cached_property
    def exact(self) -> Values:
        return self.at(samples())

    @cached_property
    def ulp(self) -> Values:
        """Of each result."""
        rounded = np.abs(self.exact).astype(np.float32)
        return np.spacing(np.where(np.isfinite(rounded), rounded, np.float32(1))).astype(np.float64)

    @cached_property
    def lost(self) -> Values:
        """What the composition may lose at most."""
        return loss(self.law, samples().astype(np.float64))

    @cached_property
    def allowed(self) -> Values:
        """The error that an approximation may have: at `samples`, which are as many on both sides of 0."""
        value = np.fmax(np.abs(self.exact[::-1]), np.abs(self.exact))[len(self.exact) // 2 :]
        greatest = np.fmax.accumulate(np.where(np.isfinite(value), value, 0.0))
        most = ULPS * np.spacing(greatest.astype(np.float32)).astype(np.float64)
        return np.fmax(ULPS * self.ulp, np.fmin(self.lost, np.concatenate([most[::-1], most])))

    def allowed_at(self, u: Values) -> Values:
        """The same between samples."""
        return np.exp(np.interp(u, samples(), np.log(self.allowed)))

    @cached_property
    def ends(self) -> tuple[Line, Line] | None:
        """The straight lines that the law becomes towards -∞ and ∞; None where it becomes none."""
        left, right = self._end(-1.0), self._end(1.0)
        return None if left is None or right is None else (left, right)

    def _end(self, sign: float) -> Line | None:
        u = sign * np.array([FAR, 2.0**10, 2.0**14, 2.0**20])
        y = self.at(u)
        if not np.isfinite(y).all():
            return None
        slope = _tidy(y[0] / u[0])
        offset = _tidy(y[1] - slope * u[1])
        line = slope * u + offset
        return (slope, offset) if (np.abs(y - line) <= 2.0**-26 * np.abs(line) + 1e-30).all() else None

    def bounds(self) -> tuple[float, float] | None:
        """(low, high), outside of which the lines are near enough."""
        if self.ends is None:
            return None
        u, (left, right) = samples(), self.ends
        with np.errstate(all="ignore"):
            high = u[np.abs(right[0] * u + right[1] - self.exact) > self.allowed / 2]
            low = u[np.abs(left[0] * u + left[1] - self.exact) > self.allowed / 2]
        if not len(high) or not len(low):
            return None
        with np.errstate(over="ignore"):
            return float(np.nextafter(low[0], -np.inf)), float(np.nextafter(high[-1], np.inf))

    def judged(self, found: Values, limits: Values) -> tuple[float, float] | None:
        """How far `found` at the samples, and `limits` at `SPECIAL`, are off: in ulp where the composition may lose
        no more than 8, and as a part of what it may lose elsewhere. None where an error is not allowed.
        """
        with np.errstate(all="ignore"):
            rounded = self.exact.astype(np.float32)
            error = np.abs(found.astype(np.float64) - self.exact)
        finite = np.isfinite(rounded)
        if not self._same(found[~finite], rounded[~finite]) or not self._has_limits(limits):
            return None
        if not np.isfinite(found[finite]).all() or (error[finite] > self.allowed[finite]).any():
            return None
        strict = finite & ~(self.lost > 2 * ULPS * self.ulp)
        loose = finite & ~strict
        ulps = float((error[strict] / self.ulp[strict]).max(initial=0.0))
        return ulps, float((error[loose] / self.allowed[loose]).max(initial=0.0))

    def _same(self, a: Values, b: Values) -> bool:
        return bool(np.array_equal(a, b, equal_nan=True))

    def _has_limits(self, found: Values) -> bool:
        """NaN stays NaN, zeros keep the composition's sign, infinities give its value or the asymptote's."""
        composed = _of(self.law, SPECIAL.astype(np.float64)).astype(np.float32)
        zeros = self._same(found[:2], composed[:2]) and self._same(np.signbit(found[:2]), np.signbit(composed[:2]))
        if not zeros or not np.isnan(found[4]):
            return False
        for k, side in ((2, 1), (3, 0)):
            slope, offset = (np.nan, np.nan) if self.ends is None else self.ends[side]
            limit = slope * float(SPECIAL[k]) if slope else offset
            if not any(self._same(found[k], np.float32(other)) for other in (composed[k], limit)):
                return False
        return True


@cache
def samples() -> Values:
    """Sorted float32 numbers without zeros: some of each binade, and many where functions turn."""
    powers = np.ldexp(MANTISSAS[None, :], np.arange(-149, 128)[:, None]).ravel()
    dense = np.concatenate([np.linspace(0, end, COUNT) for end in DENSE])
    positive = np.concatenate([powers, dense]).astype(np.float32)
    positive = np.unique(positive[np.isfinite(positive) & (positive > 0)])
    return np.concatenate([-positive[::-1], positive])


def _of(law: sp.Basic, u: Values) -> Values:
    return np.broadcast_to(value(law, {X: u}), u.shape)


def loss(law: sp.Expr, u: Values) -> Values:
    """A bound of the error at each u of `law` composed in float32, to first order."""
    known: dict[sp.Basic, tuple[Values, Values]] = {}

    def visit(e: sp.Basic) -> tuple[Values, Values]:
        """The value of `e`, and a bound of its error."""
        if e not in known:
            known[e] = _step(e, u, visit)
        return known[e]

    with np.errstate(all="ignore"):
        return np.broadcast_to(visit(law)[1], u.shape)


def _step(e: sp.Basic, u: Values, visit: Callable[[sp.Basic], tuple[Values, Values]]) -> tuple[Values, Values]:
    if not e.args or not e.has(X):
        found = _of(e, u)
        return found, np.abs(found - found.astype(np.float32))
    if isinstance(e, Select):
        c, (a, off_a), (b, off_b) = value(e.args[0], {X: u}), visit(e.args[1]), visit(e.args[2])
        return np.where(c, a, b), np.where(c, off_a, off_b)
    parts = [visit(a) for a in (e.args[:1] if isinstance(e, sp.Pow) else e.args)]
    values = [v for v, _ in parts]
    match e:
        case sp.Add():
            found, moved = reduce(np.add, values), reduce(np.add, [d for _, d in parts])
            between = reduce(np.fmax, map(np.abs, values)) if len(parts) > 2 else 0.0  # about a partial sum
            steps, moved = 1.0, moved + (len(parts) - 2) * HALF_ULP * between
        case sp.Mul():
            found, steps = reduce(np.multiply, values), len(parts) - 1.0
            others = [reduce(np.multiply, values[:k] + values[k + 1 :]) for k in range(len(parts))]
            moved = reduce(np.add, [d * np.abs(rest) for (_, d), rest in zip(parts, others, strict=True)])
        case _:
            f = sp.Pow(X, e.exp) if isinstance(e, sp.Pow) else e.func(X)
            (v, d) = parts[0]
            found = _of(f, v)
            moved = np.fmax(np.abs(_of(f, v + d) - found), np.abs(_of(f, v - d) - found))
            whole = isinstance(e, sp.Pow) and e.exp.is_Integer
            steps = max(abs(int(e.exp)) - 1, 1) if whole else 2 * BOUNDS.get(type(e), 1.0)
    return found, moved + steps * np.maximum(HALF_ULP * np.abs(found), LEAST / 2)


def _tidy(number: float) -> float:
    """`number` as a float32, or the small fraction that it is but for rounding."""
    near = round(number * 720) / 720
    return near if abs(number - near) < 1e-9 else float(number)
