"""A formula's canonical form: what may differ in the making comes out equal, and nothing else does."""

import itertools
from dataclasses import replace

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.expression import Select, Sort, dim_symbol, expression_text, index_symbol, remainder, slot
from chainrule.ir.formula import Access, Formula, Index, Reduce
from chainrule.ir.text import equation_text, formula_text

N, I, O = dim_symbol("batch"), sp.Integer(3), sp.Integer(4)
n, i, o = (index_symbol(name) for name in ("n", "i", "o"))
ROWS, INNER, COLUMNS = Index(n, N, "n"), Index(i, I, "i"), Index(o, O, "o")


def matmul(left: int, right: int) -> Formula:
    """z = x W, with x behind slot `left` and W behind slot `right`."""
    reads = {left: Access("x", (n, i)), right: Access("W", (i, o))}
    return Formula("z", (ROWS, COLUMNS), (INNER,), slot(0) * slot(1), (reads[0], reads[1]))


def test_index_symbols_are_named_by_position_and_pretty_names_are_outside_equality():
    f = matmul(0, 1)
    a, b, c = (index_symbol(name) for name in ("a", "b", "c"))
    g = Formula(
        "z", (Index(a, N), Index(c, O)), (Index(b, I),), slot(0) * slot(1), (Access("x", (a, b)), Access("W", (b, c)))
    )
    assert f == g
    assert formula_text(f) == "z[n < batch, o < 4] = sum[i < 3] x[n, i] * W[i, o]"
    assert equation_text(g) == "z[i0, i1] = sum[r0] x[i0, r0] * W[r0, i1]"


def test_equal_accesses_share_a_slot_and_unread_ones_are_left_out():
    x = Access("x", (n,))
    f = Formula("y", (ROWS,), (), slot(0) * slot(2) + slot(2), (x, Access("unread", (n,)), Access("x", (n,))))
    assert f.reads == (Access("x", (sp.Symbol("_i00", integer=True, nonnegative=True),)),)
    assert f.body == slot(0) ** 2 + slot(0)


def test_accesses_that_become_equal_by_sharing_share_too():
    j, k = slot(0, Sort.INTEGER), slot(1, Sort.INTEGER)
    reads = (Access("token", (n,)), Access("token", (n,)), Access("table", (j,)), Access("table", (k,)))
    f = Formula("y", (ROWS,), (), slot(2) + slot(3), reads)
    assert formula_text(f) == "y[n < batch] = 2 * table[token[n]]"


def test_a_read_stands_before_the_access_that_needs_it():
    f = Formula("y", (ROWS, COLUMNS), (), slot(0), (Access("table", (slot(1, Sort.INTEGER), o)), Access("token", (n,))))
    assert [read.tensor for read in f.reads] == ["token", "table"]


@given(st.permutations(range(4)))
def test_slots_come_out_by_the_text_whatever_their_numbers_were(order):
    names = ("a", "b", "c", "d")
    body = slot(order[0]) * (slot(order[1]) + sp.exp(slot(order[2]))) - slot(order[3]) / 3
    reads = [Access("", ())] * 4
    for name, place in zip(names, order, strict=True):
        reads[place] = Access(name, (n,))
    f = Formula("y", (ROWS,), (), body, tuple(reads))
    again = Formula(f.out, f.axes, f.over, f.body, f.reads, f.where)
    assert again == f
    text = formula_text(f)
    shown = sorted(names, key=lambda name: text.index(f"{name}[n]"))
    assert [read.tensor for read in f.reads] == shown


expressions = st.recursive(
    st.sampled_from([slot(0), slot(1), slot(2), sp.Integer(2), sp.Rational(-3, 4), sp.pi]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda ab: ab[0] + ab[1]),
        st.tuples(inner, inner).map(lambda ab: ab[0] * ab[1]),
        inner.map(sp.exp),
        inner.map(sp.tanh),
        st.tuples(inner, inner, inner).map(lambda abc: Select(abc[0] > 0, abc[1], abc[2])),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(expressions)
def test_normalising_twice_is_normalising_once(body):
    reads = tuple(Access(name, (n,)) for name in "abc")
    f = Formula("y", (ROWS,), (), body, reads)
    assert Formula(f.out, f.axes, f.over, f.body, f.reads, f.where) == f


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (1 - slot(0), "1 - _0000"),
        (-slot(0) * slot(1), "-_0000 * _0001"),
        (slot(0) * (1 - slot(1)), "_0000 * (1 - _0001)"),
        (2 * slot(0) / (3 * slot(1)), "2 * _0000 / 3 / _0001"),
        (1 / sp.sqrt(slot(0)), "1 / sqrt(_0000)"),
        (slot(0) ** sp.Rational(2, 3), "_0000^(2/3)"),
        (sp.exp(-slot(0)), "exp(-_0000)"),
        (Select(slot(0) > 0, slot(0), -sp.oo), "if _0000 > 0 then _0000 else -inf"),
        (1 + Select(slot(0) > 0, 1, 2), "(if _0000 > 0 then 1 else 2) + 1"),
        (remainder(n + 1, sp.Integer(2)), "(n + 1) % 2"),
        (sp.Pow(2, -slot(0)), "2^(-_0000)"),
    ],
)
def test_an_expression_reads_as_it_would_be_written(expression, text):
    assert expression_text(expression, {}) == text


def test_a_node_outside_the_closed_set_is_not_printed():
    with pytest.raises(TypeError, match="Heaviside has no place in a formula"):
        expression_text(sp.Heaviside(slot(0)), {})


def test_select_derives_the_branch_that_is_chosen():
    x = slot(0)
    assert sp.diff(Select(x > 0, x**2, 3), x) == Select(x > 0, 2 * x, 0)
    assert sp.diff(Select(x > 0, 1, 3), x) == 0


def test_the_identity_of_each_reduction_but_argmax_is_its_value_of_nothing():
    shown = {r.value: str(r.identity) for r in Reduce}
    assert shown == {"sum": "0", "prod": "1", "max": "-oo", "min": "oo", "argmax": "None"}


def test_equality_sees_extents_conditions_reductions_and_guards():
    f = matmul(0, 1)
    others = [
        replace(f, axes=(replace(f.axes[0], extent=sp.Integer(2)), f.axes[1])),
        replace(f, where=(sp.Eq(f.axes[1].symbol, 1, evaluate=False),)),
        replace(f, reduce=Reduce.MAX),
        replace(f, reads=(replace(f.reads[0], outside=sp.S.Zero), f.reads[1])),
        replace(f, stop=True),
    ]
    assert all(a != b for a, b in itertools.combinations([f, *others], 2))
