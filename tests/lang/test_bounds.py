"""What is proved of integers holds for all of them; and what people write is proved."""

import itertools

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.expression import Select, dim_symbol, index_symbol, quotient, remainder
from chainrule.ir.graph import Dim
from chainrule.lang.bounds import dim_facts

N, M = dim_symbol("n"), dim_symbol("m")
I, J = index_symbol("i"), index_symbol("j")

SMALL = st.integers(-3, 3).map(sp.Integer)
TERMS = st.one_of(SMALL, st.sampled_from([N, M, I, J]))


def combined(inner):
    positive = st.sampled_from([sp.Integer(1), sp.Integer(2), sp.Integer(3), N])
    return st.one_of(
        st.builds(lambda a, b: sp.Add(a, b), inner, inner),
        st.builds(lambda a, b: sp.Mul(a, b), SMALL, inner),
        st.builds(lambda a, b: sp.Mul(a, b), st.sampled_from([N, M]), inner),
        st.builds(quotient, inner, positive),
        st.builds(remainder, inner, positive),
    )


GOALS = st.recursive(TERMS, combined, max_leaves=6)
RELATIONS = st.sampled_from([sp.Lt, sp.Le, sp.Gt, sp.Ge, sp.Eq])


def known(conditions):
    facts = dim_facts({"n": Dim("n", 1, 3), "m": Dim("m", 0)})
    facts.between(I, 0, N - 1)
    facts.between(J, 0, 2 * M)
    for condition in conditions:
        facts.assume(condition)
    return facts


def cases():
    for n, m in itertools.product(range(1, 4), range(4)):
        for i, j in itertools.product(range(n), range(2 * m + 1)):
            yield {N: n, M: m, I: i, J: j}


@settings(max_examples=250, deadline=None)
@given(goal=GOALS, condition=st.one_of(st.none(), st.builds(lambda r, a, b: (r, a, b), RELATIONS, GOALS, GOALS)))
def test_what_is_proved_is_true(goal, condition):
    conditions = [] if condition is None else [condition[0](condition[1], condition[2], evaluate=False)]
    if not known(conditions).proves(goal):
        return
    for case in cases():
        if all(bool(c.func(*(a.subs(case) for a in c.args))) for c in conditions):
            assert goal.subs(case) >= 0, (goal, conditions, case)


@pytest.mark.parametrize(
    "goal",
    [
        I,
        N - 1 - I,
        2 * M - J,
        N * (2 * M + 1) - 1 - (I * (2 * M + 1) + J),
        N - 1 - quotient(I, 2),
        2 - remainder(J, 3),
        quotient(I + J, 4),
        Select(sp.Lt(I, J, evaluate=False), J - I - 1, I - J),
    ],
)
def test_what_people_write_is_proved(goal):
    assert known([]).proves(goal)


def test_hard_goals_are_given_up_not_searched_for_ever():
    facts = dim_facts({f"d{k}": Dim(f"d{k}") for k in range(12)})
    symbols = [dim_symbol(f"d{k}") for k in range(12)]
    for a, b, c in itertools.combinations(symbols, 3):
        facts.assume(sp.Le(a + b, c + 1, evaluate=False))
    assert not facts.proves(symbols[0] + symbols[1] - sum(symbols[2:]))
