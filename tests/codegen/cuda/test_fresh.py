"""A clear goes where what follows stores each of its places once, and stays wherever it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy as sp

from chainrule.codegen.cuda.fresh import stored_once
from chainrule.codegen.cuda.team import Kept, Mapped, Spread, Team
from chainrule.codegen.cuda.turns import Tree
from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Kernel, Range, Statement

I, J, N = index_symbol("i"), index_symbol("j"), sp.Integer(8)
X, Y = Access("x", (I,)), Access("y", (J,))
TREE = Tree(Kernel("k", ()), {name: Buffer(name, (N,), DType.FLOAT, "arena") for name in ("x", "y")})
ZERO, VALUE = sp.S.Zero, slot(0)


def over(symbol: sp.Symbol, *body: Statement, stop: sp.Expr = N) -> Spread:
    return Spread((Range(symbol, sp.S.Zero, stop),), Team.BLOCK, Team.THREAD, body)


CLEAR = over(I, Statement(X, ZERO))
ADD = Statement(Access("x", (J,)), VALUE, (Y,), reduce=Reduce.SUM)


def test_a_sum_that_covers_what_was_cleared_stores() -> None:
    assert stored_once((CLEAR, over(J, ADD)), TREE) == (over(J, replace(ADD, reduce=None)),)


def test_a_clear_of_two_tensors_keeps_the_other() -> None:
    both = over(I, Statement(X, ZERO), Statement(Access("y", (I,)), ZERO))
    (left, _) = stored_once((both, over(J, replace(ADD, reads=(Access("z", (J,)),)))), TREE)
    assert isinstance(left, Spread) and left.body == both.body[1:]


def test_parts_of_members_are_stored_where_nothing_was() -> None:
    kept = Kept(Access("x", (J,)), Reduce.SUM, "x_own", (Range(J, sp.S.Zero, N),))
    rows = (Range(index_symbol("n"), sp.S.Zero, N),)
    adding = Spread(rows, Team.BLOCK, Team.WARP, (Statement(Y, ZERO),), (), (kept,))
    assert stored_once((CLEAR, adding), TREE) == (replace(adding, kept=(replace(kept, fresh=True),)),)


@pytest.mark.parametrize(
    "following",
    [
        (over(J, ADD, stop=sp.Integer(4)),),  # half of the places
        (over(J, replace(ADD, where=(sp.Lt(J, 3),))),),
        (over(J, replace(ADD, reduce=Reduce.MAX)),),  # which begins elsewhere
        (over(J, replace(ADD, target=Access("x", (sp.S.Zero,)))),),  # one place many times
        (over(J, replace(ADD, reads=(Access("x", (J,)),))),),
        (over(J, Statement(Access("y", (J,)), VALUE, (Access("x", (J,)),))), over(J, ADD)),  # read between
        (replace(over(J, ADD), team=Team.WARP),),
    ],
)
def test_a_clear_that_is_needed_stays(following: tuple[Mapped, ...]) -> None:
    assert stored_once((CLEAR, *following), TREE) == (CLEAR, *following)
