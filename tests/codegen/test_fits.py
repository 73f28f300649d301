"""Lawson's iteration against Remez's exchange, and on what is a quotient itself."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest

from chainrule.codegen import fits, minimax


def test_a_polynomials_error_is_nearly_the_least_possible():
    x = np.cos(np.pi * (np.arange(300) + 0.5) / 300)
    found = fits.polynomial(x, np.exp(x), np.ones(300), 5, 0.0)
    with mp.workdps(30):
        _, least = minimax.remez(minimax.Fit("exp", mp.exp, lambda x: mp.mpf(1), 5, mp.mpf(-1), mp.mpf(1)))
    assert float(least) * 0.99 <= found.error <= float(least) * 1.1
    assert np.abs(np.polynomial.Polynomial(found.above)(x) - np.exp(x)).max() == pytest.approx(found.error, rel=1e-6)


def test_a_quotient_is_found_again():
    t = np.linspace(0, 1, 200)
    powers = np.vander(t, 3, increasing=True)
    y = (1 + 2 * t) / (1 + 0.5 * t + 3 * t**2)
    found = fits.quotient(powers[:, :2], powers, y, np.ones(200), 1e-12)
    assert found.error < 1e-12
    np.testing.assert_allclose(found.above, [1, 2], rtol=1e-9)
    np.testing.assert_allclose(found.below, [1, 0.5, 3], rtol=1e-9)


def test_weights_say_where_the_error_counts():
    x = np.cos(np.pi * (np.arange(300) + 0.5) / 300)
    weight = np.where(x < 0, 100.0, 1.0)
    found = fits.polynomial(x, np.exp(2 * x), weight, 3, 0.0)
    error = np.abs(np.polynomial.Polynomial(found.above)(x) - np.exp(2 * x))
    assert error[x < 0].max() * 10 < error[x >= 0].max()


def test_a_hopeless_fit_ends_at_once():
    x = np.linspace(-1, 1, 100)
    assert fits.polynomial(x, np.sign(x), np.ones(100), 4, 1e-6).error > 0.1
