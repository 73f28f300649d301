"""Laws and forms: what formulas have in common that differ in names alone, and how each is made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir import formula as noun
from chainrule.ir.formula import DType, Formula, Origin
from chainrule.ir.rename import amend, canonical, form_of, instance, rename
from tests.formulas import EXAMPLES, T, formula, i, n, x0, x1

FORMULAS = [f for g in EXAMPLES.values() for f in g.nodes if isinstance(f, Formula)]
NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=8, unique=True)


def named(f: Formula, names: list[str]) -> Formula:
    """`f` with each of its tensors called by another name."""
    return rename(f, dict(zip(dict.fromkeys((*f.tensors, f.out)), names, strict=False)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMULAS), NAMES)
def test_formulas_that_differ_in_names_alone_have_one_law(f, names):
    other = amend(named(f, names), origin=Origin(rule="vjp"))
    assert other.law is f.law
    assert form_of(other.law) is form_of(f.law)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMULAS), NAMES)
def test_a_formula_is_an_instance_of_the_form_of_its_law(f, names):
    other = named(f, names)
    form, back = canonical(other)
    again = instance(form, back, [a.name for a in f.axes], [r.name for r in f.over], f.origin)
    assert again == other
    assert again.law is replace(again).law  # as a formula that is made anew has it


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMULAS), st.sampled_from(FORMULAS))
def test_formulas_of_one_law_have_equal_forms(f, g):
    assert (f.law is g.law) == (canonical(f)[0] == canonical(g)[0])


CHANGES = {
    "a condition": {"where": (sp.Gt(n, 1),)},
    "a value outside": {"reads": (T("x", 0)[n, i], T("W")[i])},
    "a place": {"reads": (T("x")[n, 0], T("W")[i])},
    "one tensor twice": {"reads": (T("x")[n, i], T("x")[i])},
    "its own tensor": {"reads": (T("y")[n, i], T("W")[i])},
    "a body": {"body": x0 + x1},
    "a dtype": {"dtype": DType.INT},
    "no gradient": {"stop": True},
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_what_is_no_name_is_in_the_law(change):
    given = {"left": "y n<N", "over": "i<4", "body": x0 * x1, "reads": (T("x")[n, i], T("W")[i])} | CHANGES[change]
    left, over, body, reads = (given.pop(name) for name in ("left", "over", "body", "reads"))
    assert formula(left, over, body, *reads, **given).law is not SUM.law


SUM = formula("y n<N", "i<4", x0 * x1, T("x")[n, i], T("W")[i])


def test_two_tensors_that_become_one_are_read_once():
    form, back = canonical(formula("y n<N", "", x0 + x1, T("a")[n], T("b")[n]))
    made = instance(form, back | {"_1": "a"}, ["n"], [], Origin())
    assert made == formula("y n<N", "", 2 * x0, T("a")[n])
    assert made.law is replace(made).law


def test_a_law_that_forgets_a_condition_is_noticed(monkeypatch):
    real = noun._law
    monkeypatch.setattr(
        noun, "_law", lambda shape, over, body, reads, where, kind: real(shape, over, body, reads, (), kind)
    )
    f = formula("y n<N", "i<4", x0, T("x")[n, i], where=(sp.Lt(i, 2),))
    form, back = canonical(f)
    assert instance(form, back, ["n"], ["i"], Origin()) != f
