"""How equations read in pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.render.notation import lines, pretty


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("y[n] = sum[i] x[n, i]^2 * w[i]", "y[n] = Σ[i] x[n, i]²·w[i]"),
        ("p = prod[i] sqrt(x[i])", "p = Π[i] √(x[i])"),
        ("y = if a <= b and a != c then inf else -inf", "y = if a ≤ b and a ≠ c then ∞ else -∞"),
        ("y = x^(-2) + x^(1/2) + x^12", "y = x⁻² + x^(1/2) + x^12"),
        ("loss_sum[n] = h.sum[n] + info", "loss_sum[n] = h.sum[n] + info"),
    ],
)
def test_signs_are_the_mathematicians_and_names_stay(text, shown):
    assert pretty(text) == shown


def test_long_equations_break_before_operators():
    text = "y[n, o] = first_long_name[n, o] + second_long_name[n, o] + third_long_name[n, o]"
    assert lines(text, width=40) == [
        "y[n, o] = first_long_name[n, o]",
        "    + second_long_name[n, o]",
        "    + third_long_name[n, o]",
    ]


@given(st.text("ab +-·=,[]", max_size=400), st.integers(10, 60))
def test_breaking_loses_nothing_but_spaces_until_the_last_line(text, width):
    found = lines(text, width, most=1000)
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) <= width for line in found[:-1])


def test_endless_equations_are_cut():
    found = lines("x = " + " + ".join(["abcdefgh"] * 500))
    assert len(found) == 8
    assert found[-1].endswith("…")
