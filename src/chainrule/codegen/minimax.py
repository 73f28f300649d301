"""Polynomials of least greatest error, by Remez's exchange in mpmath, for the functions of `functions.py`.

``python -m chainrule.codegen.minimax`` prints `coefficients.py`, which is checked in: importing runs no Remez.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import mpmath as mp

DIGITS = 50


@dataclass(frozen=True)
class Fit:
    """``f(x) ≈ sum[k] c_k x^k`` on [low, high], with the error weighed by `weight`."""

    name: str
    f: Callable[[mp.mpf], mp.mpf]
    weight: Callable[[mp.mpf], mp.mpf]
    degree: int
    low: mp.mpf
    high: mp.mpf


def remez(fit: Fit) -> tuple[tuple[mp.mpf, ...], mp.mpf]:
    """The coefficients, and the greatest weighed error.

    n + 2 points are kept on which the error alternates with one size E: solve for the coefficients and E, then move
    each point to the extremum of the error nearby, until the extrema are equal. Source: E. Ya. Remez, 1934.
    """
    n = fit.degree + 2
    middle, half = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    points = [middle - half * mp.cos(mp.pi * k / (n - 1)) for k in range(n)]
    for _ in range(30):
        rows = [[x**k for k in range(n - 1)] + [(-1) ** i / fit.weight(x)] for i, x in enumerate(points)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([fit.f(x) for x in points]))
        coefficients, level = tuple(solution[k] for k in range(n - 1)), abs(solution[n - 1])

        def error(x: mp.mpf, c: tuple[mp.mpf, ...] = coefficients) -> mp.mpf:
            return (mp.polyval(c[::-1], x) - fit.f(x)) * fit.weight(x)

        points = _extrema(error, points, fit)
        worst = max(abs(error(x)) for x in points)
        if worst <= level * (1 + mp.mpf(10) ** -6):
            break
    return coefficients, worst


def _extrema(error: Callable[[mp.mpf], mp.mpf], points: list[mp.mpf], fit: Fit) -> list[mp.mpf]:
    """Between neighbouring roots of the error, the place where it is greatest."""
    roots = [_root(error, a, b) for a, b in pairwise(points)]
    edges = [fit.low, *roots, fit.high]
    return [_peak(error, a, b) for a, b in pairwise(edges)]


def _root(error: Callable[[mp.mpf], mp.mpf], a: mp.mpf, b: mp.mpf) -> mp.mpf:
    below = error(a) < 0
    for _ in range(40):
        middle = (a + b) / 2
        a, b = (middle, b) if (error(middle) < 0) == below else (a, middle)
    return (a + b) / 2


def _peak(error: Callable[[mp.mpf], mp.mpf], a: mp.mpf, b: mp.mpf) -> mp.mpf:
    """By golden section; the ends count too, for there the error may still rise."""
    ends, ratio = (a, b), (mp.sqrt(5) - 1) / 2
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    at_c, at_d = abs(error(c)), abs(error(d))
    for _ in range(36):
        if at_c > at_d:
            b, d, at_d = d, c, at_c
            c = b - ratio * (b - a)
            at_c = abs(error(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + ratio * (b - a)
            at_d = abs(error(d))
    return max((*ends, (a + b) / 2), key=lambda x: abs(error(x)))


def fits() -> tuple[Fit, ...]:
    """What is approximated, where, and how the error counts: relatively to the function that it serves."""
    ln2, root2 = mp.log(2), mp.sqrt(2)

    def exp_tail(r: mp.mpf) -> mp.mpf:  # e^r = 1 + r + r² q(r)
        return mp.mpf("0.5") + r / 6 if abs(r) < mp.mpf(10) ** -16 else (mp.expm1(r) - r) / r**2

    def log_tail(f: mp.mpf) -> mp.mpf:  # log(1 + f) = f - f²/2 + f³ p(f)
        return mp.mpf(1) / 3 - f / 4 if abs(f) < mp.mpf(10) ** -12 else (mp.log1p(f) - f + f**2 / 2) / f**3

    def log_series(z: mp.mpf) -> mp.mpf:  # log((1+s)/(1-s)) = 2 s + s z p(z), z = s²
        if z < mp.mpf(10) ** -16:
            return mp.mpf(2) / 3 + 2 * z / 5
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) - 2 * s) / (s * z)

    def erfc_rate(a: mp.mpf) -> mp.mpf:  # 1 - erf(a) = e^(a p(a) - 9/8 a)
        if a < mp.mpf(10) ** -16:
            return mp.mpf("1.125") - 2 / mp.sqrt(mp.pi) - 2 * a / mp.pi
        return mp.log(mp.erfc(a)) / a + mp.mpf("1.125")

    def erf_weight(a: mp.mpf) -> mp.mpf:
        return a * mp.erfc(a) / mp.erf(a) if a else mp.sqrt(mp.pi) / 2

    def expm1_weight(r: mp.mpf) -> mp.mpf:
        return abs(r**2 / mp.expm1(r)) if r else mp.mpf(10) ** -12

    def log_weight(f: mp.mpf) -> mp.mpf:
        return abs(f**3 / mp.log1p(f)) if f else mp.mpf(10) ** -12

    least = mp.mpf(10) ** -12  # a weight of nothing would divide by it
    return (
        Fit("EXP_FLOAT32", exp_tail, lambda r: max(expm1_weight(r), least), 4, -ln2 / 2, ln2 / 2),
        Fit("EXP_FLOAT64", exp_tail, lambda r: max(expm1_weight(r), least), 9, -ln2 / 2, ln2 / 2),
        Fit("LOG_FLOAT32", log_tail, lambda f: max(log_weight(f), least), 7, root2 / 2 - 1, root2 - 1),
        Fit("LOG_FLOAT64", log_series, lambda z: max(z, least), 6, mp.mpf(0), (3 - 2 * root2) ** 2),
        Fit("ERF_FLOAT32", erfc_rate, erf_weight, 8, mp.mpf(0), mp.mpf(4)),
    )


def table() -> str:
    """The text of `coefficients.py`."""
    lines = [
        '"""Coefficients of minimax polynomials, lowest first; printed by `minimax.py`, not written by hand."""',
        "",
        "# fmt: off",
    ]
    with mp.workdps(DIGITS):
        for fit in fits():
            coefficients, error = remez(fit)
            lines += [
                f"{fit.name} = (  # weighed error {mp.nstr(error, 3)}",
                *(f"    {float(c)!r}," for c in coefficients),
                ")",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
