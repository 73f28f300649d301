"""The forms that a function of one float32 may have in place of its composition; each is fitted when it is its turn.

A form is text: the lines of a function of ``u``. What is measured is that text, run as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy as sp
from sympy.codegen.cfunctions import expm1

from chainrule.codegen import fits
from chainrule.codegen.behaviour import Behaviour, Values, X
from chainrule.codegen.weights import DIVISION, FUNCTIONS

FITTED = 0.35
"""The part of the allowed error that the fit may have; the rest is for rounding."""

FARTHEST = 40.0
"""Up to where there are polynomials in u²."""

FLAT = 20.0
"""The exponent above which a quotient is its limit, to the last bit; four times that does not overflow. One for all,
so that functions beside each other share an exp."""

DEGREES = range(6, 23)
QUOTIENTS = ((4, 4), (5, 4), (5, 5), (6, 5), (6, 6), (7, 6))
NODES = 240
CHOICE = 2  # a comparison and a blend, as in `weights`

Lines = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """cost: of the function, as `weights` counts. make: the lines of its body, or None where no fit is near enough."""

    cost: float
    make: Callable[[], Lines | None]


def forms(b: Behaviour) -> Iterator[Form]:
    """All that may fit `b`."""
    yield from in_squares(b)
    for rate in rates(b.law):
        yield from in_exponential(b, rate)
        yield from beside_lines(b, rate)


# Polynomials and quotients in u², between asymptotes.


@dataclass(frozen=True)
class Squares:
    """f(u) = u^power g(u), with g(u) = center + u h(u²) (odd) or g(u) = h(u²), for |u| <= bound."""

    power: int
    odd: bool
    center: float
    bound: float
    low: str  # the asymptotes as text, towards -∞ and ∞
    high: str

    @property
    def around(self) -> float:
        """The cost of what stands around h: a square, what is multiplied and added, the choice of asymptotes."""
        return 1 + self.power + self.odd + CHOICE * (1 if self.low == self.high else 2)

    def lines(self, h: str) -> Iterator[str]:
        g = h
        if self.odd:
            g = f"fma(u, {h}, {_number(self.center)})" if self.center else f"u * {h}"
        if self.power:
            g = f"u * ({g})" if self.odd and not self.center else f"u * {g}"
        yield f"inside = {g}"
        if self.low == self.high:
            yield f"return where(absolute(u) > {_number(self.bound)}, {self.high}, inside)"
        else:
            yield f"below = where(u < {_number(-self.bound)}, {self.low}, inside)"
            yield f"return where(u > {_number(self.bound)}, {self.high}, below)"


def in_squares(b: Behaviour) -> Iterator[Form]:
    """h as a polynomial in s = 2 (u / bound)² - 1, which keeps its bits, or as a quotient in u²."""
    shape = squares_of(b)
    if shape is None:
        return
    r = shape.bound * (np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES) + 1) / 2
    with np.errstate(all="ignore"):
        g = b.at(r) / r**shape.power
        h = (g - shape.center) / r if shape.odd else g
        weight = r ** (shape.power + shape.odd) / np.minimum(b.allowed_at(r), b.allowed_at(-r))
    if not (np.isfinite(h).all() and np.isfinite(weight).all()):
        return
    for degree in DEGREES:
        yield Form(shape.around + 1 + degree, partial(_polynomial_in_squares, shape, r, h, weight, degree))
    for p, q in QUOTIENTS:
        yield Form(shape.around + p + q + DIVISION, partial(_quotient_in_squares, shape, r, h, weight, p, q))


def squares_of(b: Behaviour) -> Squares | None:
    """What there is of symmetry, and where the asymptotes begin."""
    between = b.bounds()
    if between is None or b.ends is None or (bound := max(-between[0], between[1])) > FARTHEST:
        return None
    (left, below), (right, above) = b.ends
    power = int((left, right) != (0.0, 0.0))
    if power and (below, above) != (0.0, 0.0):
        return None
    center = (left + right) / 2 if power else (below + above) / 2
    u = np.linspace(bound / 1000, bound, 400)
    there, here = b.at(u) / u**power, b.at(-u) / (-u) ** power
    near = 1e-9 * float(np.abs(there).max(initial=1e-300))
    if not np.isfinite(there).all() or not np.isfinite(here).all():
        return None
    texts = [_line(slope, offset) for slope, offset in b.ends]
    bound = float(np.nextafter(np.float32(bound), np.float32(np.inf)))
    if (np.abs(there + here - 2 * center) <= near).all():
        return Squares(power, True, center, bound, *texts)
    return Squares(power, False, 0.0, bound, *texts) if (np.abs(there - here) <= near).all() else None


def _polynomial_in_squares(shape: Squares, r: Values, h: Values, weight: Values, degree: int) -> Lines | None:
    scale = float(np.float32(2 / shape.bound**2))
    found = fits.polynomial(scale * r * r - 1, h, weight, degree, FITTED)
    if found.error > FITTED:
        return None
    first = f"s = fma({_number(scale)} * u, u, float32(-1.0))"
    return (first, *shape.lines(_polynomial("s", found.above)))


def _quotient_in_squares(shape: Squares, r: Values, h: Values, weight: Values, p: int, q: int) -> Lines | None:
    t = (r / shape.bound) ** 2
    powers = np.vander(t, max(p, q) + 1, increasing=True)
    found = fits.quotient(powers[:, : p + 1], powers[:, : q + 1], h, weight, FITTED)
    if found.error > FITTED:
        return None
    scale = shape.bound ** -(2.0 * np.arange(max(p, q) + 1))
    above, below = found.above * scale[: p + 1], found.below * scale[: q + 1]
    return ("t = u * u", *shape.lines(f"{_polynomial('t', above)} / {_polynomial('t', below)}"))


# Quotients in t = exp(rate u).


def rates(law: sp.Expr) -> tuple[float, ...]:
    """The k of the exponentials exp(k u) in a law, the slowest: others are its powers, or nothing is found."""
    found: set[float] = set()
    for f in law.atoms(sp.exp, expm1, sp.tanh):
        for term in (f.args[0], *f.args[0].atoms(sp.Mul), *f.args[0].atoms(sp.Symbol)):
            k = (term / X) * (2 if isinstance(f, sp.tanh) else 1)
            if k.is_Rational:
                found.add(abs(float(k)))
    return (min(found),) if found else ()


def in_exponential(b: Behaviour, rate: float) -> Iterator[Form]:
    """f(u) = u^power (sum a_k t^k + u sum b_k t^k) / sum d_k t^k, of degree up to four."""
    if b.ends is None:
        return
    (left, below), (right, above) = b.ends
    power = int((left, right) != (0.0, 0.0))
    if power and (below, above) != (0.0, 0.0):
        return
    ends = (left, right) if power else (below, above)
    sign = -1.0 if ends[0] and not ends[1] else 1.0
    for n in (1, 2, 3, 4):
        for mixed in (False, True):
            if mixed and n == 1:
                continue
            start = 0 if ends[0 if sign > 0 else 1] else 1  # the end at t = 0 is kept to the last bit
            cost = FUNCTIONS["exp"] + CHOICE + (rate != 1) + 2 * n + (n if mixed else 0) + DIVISION + power
            yield Form(cost, partial(_quotient_in_exponential, b, sign * rate, power, n, mixed, start))


def _quotient_in_exponential(b: Behaviour, rate: float, power: int, n: int, mixed: bool, start: int) -> Lines | None:
    e = np.concatenate([np.linspace(-60, -16, 40), np.linspace(-16, FLAT, NODES)]) + 0.01
    u = e / rate
    with np.errstate(all="ignore"):
        y, weight = b.at(u) / u**power, np.abs(u) ** power / b.allowed_at(u)
    if not (np.isfinite(y).all() and np.isfinite(weight).all()):
        return None
    t = np.exp(e)
    powers = t[:, None] ** np.arange(n + 1) / (1 + t[:, None]) ** n  # each at most 1
    middle = u[:, None] * powers[:, 1:n]
    above = np.hstack([powers[:, start:], middle] if mixed else [powers[:, start:]])
    found = fits.quotient(above, powers, y, weight, FITTED / 8)
    if found.error > FITTED:
        return None
    plain = np.concatenate([np.zeros(start), _snapped(found.above[: n + 1 - start])])
    times = np.concatenate([[0.0], _snapped(found.above[n + 1 - start :])])
    text = _polynomial("t", plain)
    if mixed:
        text = f"fma(v, {_polynomial('t', times)}, {text})"
    whole, limit = f"{text} / {_polynomial('t', _snapped(found.below))}", _number(FLAT / rate)
    return (
        f"v = where(u {'>' if rate > 0 else '<'} {limit}, {limit}, u)",
        f"t = exp({_times(rate, 'v')})",
        f"return {f'u * ({whole})' if power else whole}",
    )


# Asymptotes and what decays beside them.


def beside_lines(b: Behaviour, rate: float) -> Iterator[Form]:
    """f(u) = its asymptote + z h(z), z = exp(-rate |u|), where the rest is even."""
    if b.ends is None:
        return
    (left, below), (right, above) = b.ends
    u = np.linspace(0.01, 20, 100) / rate
    rest, mirrored = b.at(u) - (right * u + above), b.at(-u) - (-left * u + below)
    if below != above or not (np.abs(rest - mirrored) <= 1e-9 * np.abs(b.at(u)).max()).all():
        return
    lines = 0 if (left, right, above) == (0.0, 0.0, 0.0) else CHOICE + (right not in (0.0, 1.0)) + (left not in (0, 1))
    for degree in DEGREES:
        cost = FUNCTIONS["exp"] + 1 + (rate != 1) + degree + 1 + lines
        yield Form(cost, partial(_polynomial_beside_lines, b, rate, degree))


def _polynomial_beside_lines(b: Behaviour, rate: float, degree: int) -> Lines | None:
    assert b.ends is not None
    (left, below), (right, above) = b.ends
    z = (np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES) + 1) / 2
    u = -np.log(z) / rate  # of both sides the one on which the asymptote is nearer 0 tells the rest to the last bit
    side = 1.0 if abs(right) + abs(above) <= abs(left) + abs(below) else -1.0
    line = right * u + above if side > 0 else -left * u + below
    with np.errstate(all="ignore"):
        h = (b.at(side * u) - line) / z
        weight = z / np.minimum(b.allowed_at(u), b.allowed_at(-u))
    if not (np.isfinite(h).all() and np.isfinite(weight).all()):
        return None
    found = fits.polynomial(2 * z - 1, h, weight, degree, FITTED)
    if found.error > FITTED:
        return None
    shifted = np.polynomial.Polynomial(found.above)(np.polynomial.Polynomial([-1.0, 2.0])).coef
    rest = _polynomial("z", shifted)
    if (left, right, above) == (0.0, 0.0, 0.0):
        rest = f"z * {rest}"
    else:
        rest = f"fma(z, {rest}, where(u > float32(0.0), {_line(right, above)}, {_line(left, below)}))"
    return (f"z = exp({_times(-rate, 'absolute(u)')})", f"return {rest}")


# Text.


def _snapped(coefficients: Values) -> Values:
    """Those of a law that is such a quotient itself are small fractions."""
    near = np.round(coefficients * 720) / 720
    return np.where(np.abs(coefficients - near) < 1e-7 * np.maximum(np.abs(near), 1), near, coefficients)


def _number(x: float) -> str:
    return f"float32({float(np.float32(x))!r})"


def _line(slope: float, offset: float) -> str:
    """``slope u + offset``."""
    if not slope:
        return _number(offset)
    text = _times(slope, "u")
    return f"{text} + {_number(offset)}" if offset else text


def _times(k: float, x: str) -> str:
    return x if k == 1 else f"-{x}" if k == -1 else f"{_number(k)} * {x}"


def _polynomial(x: str, coefficients: Any) -> str:
    """Horner's rule, by `functions.polynomial`; a power of x in front where the lowest coefficients are 0."""
    c = [float(np.float32(k)) for k in coefficients]
    while len(c) > 1 and c[-1] == 0.0:
        c.pop()
    lead = ""
    while len(c) > 1 and c[0] == 0.0:
        c, lead = c[1:], f"{lead}{x} * "
    if len(c) == 1:
        return f"{lead}{_number(c[0])}" if c[0] != 1.0 or not lead else lead[:-3]
    return f"{lead}polynomial({x}, {', '.join(map(repr, c))})"
