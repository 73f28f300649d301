"""What a library may do with a product is found by its formulas, whatever they are called; and nothing else is."""

from __future__ import annotations

import pytest
import sympy as sp

from chainrule.ir.expression import Select, dim_symbol, index_symbol, slot
from chainrule.ir.formula import Access
from chainrule.ir.matrices import multiplied
from chainrule.ir.program import Product, Range, Statement

BATCH = dim_symbol("batch")
N, O, I = (index_symbol(name) for name in ("_n", "_o", "_i"))
ROWS, COLUMNS, INNER = (Range(s, sp.S.Zero, sp.sympify(e)) for s, e in ((N, BATCH), (O, 10), (I, 64)))
SHAPES = {
    "x": (BATCH, 64), "w": (64, 10), "h": (BATCH, 10), "r": (BATCH, 10), "q": (BATCH, 10), "b": (10,), "c": (BATCH,),
    "t": (10, BATCH),
}  # fmt: skip
SUM = Access("z", ())
A, B = slot(0), slot(1)
TANH = sp.sqrt(2) * (B + 44715 * B**3 / sp.Integer(10) ** 6) / sp.sqrt(sp.pi)


def at(tensor: str, *indices: sp.Expr) -> Access:
    return Access(tensor, indices)


BIAS, RESIDUAL, INTO = at("b", O), at("r", N, O), at("h", N, O)


def found(*then: Statement, target: Access = SUM, scale: sp.Expr = sp.S.One):
    """Of a product that is a place of the loops around it."""
    product = Product(target, at("x", N, I), at("w", I, O), (), (), (INNER,), scale=scale)
    return multiplied(product, (ROWS, COLUMNS), then, SHAPES)


def to(target: Access, value: sp.Expr, *reads: Access, **more) -> Statement:
    return Statement(target, value, reads, **more)


def test_a_bias_a_residual_and_an_activation_are_an_epilogue():
    y, u = at("y"), at("u")
    m = found(to(y, A + B, SUM, BIAS), to(u, A / 2 - 3 * B, y, RESIDUAL), to(INTO, Select(A <= 0, 0, A), u))
    assert m is None  # half of the bias is none
    m = found(to(y, A + B, SUM, BIAS), to(u, A - 3 * B, y, RESIDUAL), to(INTO, Select(A <= 0, 0, A), u))
    assert (m.scale, m.beta, m.activation) == (1, -3, "relu")
    assert (m.bias.buffer, m.bias.down, m.bias.across) == ("b", 0, 1)
    assert (m.added.buffer, m.added.down, m.added.across) == ("r", 10, 1)
    assert (m.rows, m.columns, m.inner) == (BATCH, 10, 64)


@pytest.mark.parametrize("form", [Select(A + B < 0, 0, A + B), Select(A + B > 0, A + B, 0)])
def test_a_relu_of_a_sum_in_one_formula_is_one(form):
    m = found(to(INTO, form, SUM, BIAS), scale=sp.Rational(1, 2))
    assert (m.activation, m.bias.buffer, m.scale) == ("relu", "b", sp.Rational(1, 2))


def test_gelu_is_its_approximation_by_tanh_whose_argument_may_be_clipped_where_that_is_1():
    y, u = at("y"), at("u")
    biased = to(y, A + B, SUM, BIAS)

    def clipped(c: int) -> Statement:
        return to(u, Select(-c > A, -c, Select(c < A, c, A)), y)

    whole = to(INTO, A * (sp.tanh(TANH) + 1) / 2, y, u)
    assert found(biased, clipped(10), whole).activation == "gelu"
    assert found(biased, clipped(2), whole) is None
    own = to(INTO, A * (sp.tanh(TANH.subs(B, A)) + 1) / 2, y)
    assert found(biased, own).activation == "gelu"
    exact = to(INTO, A * (1 + sp.erf(A / sp.sqrt(2))) / 2, y)
    assert found(biased, exact) is None


def test_an_update_in_place_adds_to_the_target():
    m = found(to(INTO, A - B / 10, INTO, SUM))
    assert (m.added, m.beta, m.scale) == (m.target, 1, -sp.Rational(1, 10))
    product = Product(INTO, at("x", N, I), at("w", I, O), (ROWS,), (COLUMNS,), (INNER,), accumulate=True)
    assert multiplied(product, (), (), SHAPES).added == m.target


def test_a_part_of_a_matrix_begins_where_it_is_read():
    m = found(to(INTO, A + B, SUM, at("r", N + 1, O)))
    assert (m.added.offset, m.added.down) == (10, 10)


def test_a_target_in_columns_has_its_bias_along_them():
    into = at("t", O, N)
    assert found(to(into, A + B, SUM, at("c", N))).bias.buffer == "c"
    assert found(to(into, A + B, SUM, BIAS)) is None


NOTHING = {
    "a bias across the target's lines": [to(INTO, A + B, SUM, at("c", N))],
    "a residual that lies the other way": [to(INTO, A + B, SUM, at("t", O, N))],
    "two residuals": [to(INTO, A + B + slot(2), SUM, RESIDUAL, at("q", N, O))],
    "a product of two reads": [to(INTO, A * B, SUM, BIAS)],
    "a bias after the activation": [to(at("y"), Select(A <= 0, 0, A), SUM), to(INTO, A + B, at("y"), BIAS)],
    "a guarded read": [to(INTO, A + B, SUM, Access("r", (N, O), sp.S.Zero))],
    "a condition": [to(INTO, A, SUM, where=(sp.Lt(N, 3),))],
    "a leak": [to(INTO, Select(A <= 0, A / 10, A), SUM)],
    "two results": [to(at("q", N, O), A + B, SUM, BIAS), to(INTO, Select(A <= 0, 0, A), at("q", N, O))],
    "a constant": [to(INTO, A + 1, SUM)],
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_else_is_one(case):
    assert found(to(INTO, A, SUM)) is not None
    assert found(*NOTHING[case]) is None


def test_a_product_that_others_read_too_is_stored_and_no_library_s():
    assert found(to(INTO, A + B, at("q", N, O), BIAS), target=at("q", N, O)) is None
