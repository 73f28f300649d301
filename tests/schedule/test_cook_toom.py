"""F(m, r) computes m places of a correlation of r terms, exactly."""

from __future__ import annotations

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.schedule.cook_toom import POINTS, Bilinear, amplification, cook_toom

INTEGERS = st.integers(-99, 99)


def correlated(f: Bilinear, d: sp.Matrix, g: sp.Matrix) -> sp.Matrix:
    return f.A.T * (f.G * g).multiply_elementwise(f.B * d)


@settings(max_examples=25)
@given(m=st.integers(1, 6), r=st.integers(1, 6), data=st.data())
def test_the_identity_holds_in_rationals(m, r, data):
    if m + r - 2 > len(POINTS):
        return
    d = data.draw(st.lists(INTEGERS, min_size=m + r - 1, max_size=m + r - 1))
    g = data.draw(st.lists(INTEGERS, min_size=r, max_size=r))
    found = correlated(cook_toom(m, r), sp.Matrix(d), sp.Matrix(g))
    assert list(found) == [sum(d[i + j] * g[j] for j in range(r)) for i in range(m)]


def test_the_matrices_are_exact_and_b_is_of_whole_numbers():
    f = cook_toom(4, 3)
    assert all(e.is_Integer for e in f.B) and all(e.is_Rational for matrix in (f.A, f.G) for e in matrix)
    assert f.B.shape == (6, 6) and f.A.shape == (6, 4) and f.G.shape == (6, 3)


def test_f_2_3_is_the_textbooks():
    f = cook_toom(2, 3)
    half = sp.Rational(1, 2)
    assert f.G.tolist() == [[1, 0, 0], [half, half, half], [half, -half, half], [0, 0, 1]]
    assert f.B.tolist() == [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]


def test_a_filter_and_a_result_of_equal_sum_share_what_the_image_becomes():
    assert cook_toom(4, 3).B == cook_toom(3, 4).B == cook_toom(2, 5).B


def test_longer_tiles_amplify_more():
    assert [amplification(cook_toom(m, 3)) for m in (2, 4)] == [8, sp.Rational(148, 5)]


def test_too_many_points_are_refused():
    with pytest.raises(ValueError, match=r"F\(7, 3\) wants 8 finite points, and 7 are known"):
        cook_toom(7, 3)
