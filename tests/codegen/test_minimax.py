"""Remez's exchange, and the table that it made."""

from __future__ import annotations

from itertools import pairwise

import mpmath as mp
import pytest

from chainrule.codegen import coefficients, minimax


def test_the_checked_in_coefficients_are_those_that_remez_finds():
    # all six take five seconds; two show that the table is what the script prints
    with mp.workdps(minimax.DIGITS):
        for fit in minimax.fits():
            if fit.name in ("EXP_FLOAT32", "ERF_FLOAT32"):
                found, _ = minimax.remez(fit)
                assert tuple(float(c) for c in found) == getattr(coefficients, fit.name)


def test_the_error_of_a_minimax_polynomial_alternates():
    with mp.workdps(30):
        fit = minimax.Fit("cube root", lambda x: mp.cbrt(x), lambda x: mp.mpf(1), 3, mp.mpf(1), mp.mpf(2))
        found, worst = minimax.remez(fit)
        errors = [mp.polyval(found[::-1], x) - mp.cbrt(x) for x in mp.linspace(1, 2, 2001)]
        assert float(max(map(abs, errors))) == pytest.approx(float(worst), rel=1e-5)
        signs = [e > 0 for e in errors]
        assert sum(a != b for a, b in pairwise(signs)) == fit.degree + 1


def test_the_tables_errors_are_below_the_elements_own():
    with mp.workdps(minimax.DIGITS):
        for fit in minimax.fits():
            c = getattr(coefficients, fit.name)
            points = mp.linspace(fit.low, fit.high, 201)
            worst = max(abs((mp.polyval(c[::-1], x) - fit.f(x)) * fit.weight(x)) for x in points)
            assert worst < (2.0**-25 if "32" in fit.name else 2.0**-54)
