"""Convolutions of few places by fewer multiplications, from Toom's and Cook's products of polynomials.

A polynomial of degree below α is known by its values at α points, ∞ (the leading coefficient) among them: the product
of two, of lengths m and r, takes α = m + r - 1 multiplications of values. With V(n)[k, j] = p_k^j, which takes n
coefficients to values, the transposed algorithm computes r terms each of m neighbouring places of a correlation:

    y[i] = sum[j] d[i + j] g[j] = sum[k] A[k, i] (sum[j] G[k, j] g[j]) (sum[a] B[k, a] d[a])
    A = V(m), G = V(r), B = transpose of the inverse of V(α)

Winograd 1980, "Arithmetic complexity of computations"; Lavin and Gray 2015, arXiv:1509.09308, nest it over two axes.
Which points are best is a matter of rounding: Barabasz and others 2018, arXiv:1803.10986.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, lcm

import sympy as sp

POINTS = tuple(map(sp.Rational, ("0", "1", "-1", "1/2", "-2", "-1/2", "2")))
"""The finite points, the best first: 1/2 with -2 in place of ±2 takes a third off the error of F(4, 3)."""


@dataclass(frozen=True)
class Bilinear:
    """F(m, r): ``y = Aᵀ((G g) ∘ (B d))``, row k of each matrix belonging to the k-th multiplication."""

    A: sp.ImmutableMatrix  # α × m
    B: sp.ImmutableMatrix  # α × α
    G: sp.ImmutableMatrix  # α × r


@lru_cache(maxsize=64)
def cook_toom(m: int, r: int) -> Bilinear:
    """F(m, r) over exact rationals; each row of B is scaled to integers without a common divisor, and G's back.

    B depends on m + r alone. Raises ValueError where there are too few points.
    """
    alpha = m + r - 1
    if alpha - 1 > len(POINTS):
        raise ValueError(f"F({m}, {r}) wants {alpha - 1} finite points, and {len(POINTS)} are known")
    B = values_at(alpha, alpha).inv().T
    rows = [B.row(k) for k in range(alpha)]
    scales = [sp.Rational(lcm(*(b.q for b in row)), gcd(*(b.p for b in row))) for row in rows]
    scale = sp.diag(*scales)
    return Bilinear(
        values_at(alpha, m), sp.ImmutableMatrix(scale * B), sp.ImmutableMatrix(scale.inv() * values_at(alpha, r))
    )


def values_at(alpha: int, n: int) -> sp.ImmutableMatrix:
    """V(n): a polynomial's values at the first α - 1 points and ∞, from its n coefficients."""
    finite = [[p**j for j in range(n)] for p in POINTS[: alpha - 1]]
    return sp.ImmutableMatrix([*finite, [*[0] * (n - 1), 1]])


def amplification(f: Bilinear) -> sp.Rational:
    """How much larger than |d|·|g| the terms can be whose sum is a place of y: the greatest of
    sum[k] |A[k, i]| (sum[j] |G[k, j]|) (sum[a] |B[k, a]|). A float32 result in two axes is off by some multiple of the
    last place of its square."""
    rows = range(f.B.rows)
    g, d = ([sum(map(abs, matrix.row(k))) for k in rows] for matrix in (f.G, f.B))
    return max(sum(abs(f.A[k, i]) * g[k] * d[k] for k in rows) for i in range(f.A.cols))
