"""Polynomials and quotients of small weighed error in float64, found in milliseconds: Lawson's iteration.

`minimax.py` takes seconds for fifty digits, and is for what is checked in; this is for what a compilation meets.
Least squares, with weights that grow where the error is greatest, tend to the least greatest error. Source:
C. L. Lawson 1961; for quotients, linearised by the last denominator: C. K. Sanathanan and J. Koerner 1963.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]

ROUNDS = 16
HOPELESS = 50.0  # times the error that is wanted, at the first round; a third of that at the third


class Fitted(NamedTuple):
    """Coefficients above and below, lowest first (below starts with 1), and the greatest weighed error."""

    above: Vector
    below: Vector
    error: float


def polynomial(x: Vector, y: Vector, weight: Vector, degree: int, wanted: float) -> Fitted:
    """``y ≈ sum[k] above_k x^k`` on [-1, 1]; in Chebyshev's polynomials, which keep the bits, until the end."""
    found = quotient(np.polynomial.chebyshev.chebvander(x, degree), np.ones((len(x), 1)), y, weight, wanted)
    above = np.polynomial.chebyshev.cheb2poly(found.above)
    return Fitted(np.pad(above, (0, degree + 1 - len(above))), found.below, found.error)


def quotient(above: Any, below: Any, y: Vector, weight: Vector, wanted: float) -> Fitted:
    """``y ≈ (above · a) / (below · d)`` with d_0 = 1, for columns of values.

    wanted: the error with which the iteration ends. Infinite where no denominator is found that keeps its sign.
    """
    count, last, lawson = above.shape[1], below.sum(axis=1), np.ones(len(y))
    best = Fitted(np.zeros(count), np.ones(below.shape[1]), np.inf)
    for k in range(ROUNDS if below.shape[1] == 1 else 2 * ROUNDS):
        scale = weight * np.sqrt(lawson) / last
        matrix = np.hstack([above, -y[:, None] * below[:, 1:]]) * scale[:, None]
        norms = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
        solution = np.linalg.lstsq(matrix / norms, y * below[:, 0] * scale, rcond=None)[0] / norms
        a, d = solution[:count], np.concatenate([[1.0], solution[count:]])
        last = below @ d
        if not (np.isfinite(solution).all() and (last > 0).all()):
            break
        error = np.abs(weight * (above @ a / last - y))
        greatest = float(error.max())
        if greatest < best.error:
            best = Fitted(a, d, greatest)
        if greatest < wanted or best.error > HOPELESS * wanted / (k + 1):
            break
        lawson *= error / greatest + 1e-3
        lawson /= lawson.max()
    return best
