"""What scalar expressions cost in vector loops, in multiply-adds: for choices, not for predictions of time.

Measured with AVX-512 over 64 Ki elements: what a loop takes beyond one that copies, by what a multiply-add takes.
"""

from __future__ import annotations

from collections.abc import Iterable

import sympy as sp

from chainrule.ir.expression import LocallyConstant, Select

FUNCTIONS = {"exp": 16, "expm1": 18, "log": 33, "log1p": 55, "tanh": 28, "sigmoid": 34, "erf": 40}
"""The functions that run in vectors."""

CALLED = 60
"""The C library's, one element at a time."""

LANES = 16
"""Elements that are computed at once by everything else."""

DIVISION = 14
"""A division or a root: the divider is busy as long."""


class Generated(sp.Function):
    """A function that `direct` made, of one argument; each is a class of its own, with its cost."""

    nargs = (1,)
    cost = 0.0


def is_plain(f: sp.Basic) -> bool:
    return isinstance(f, Select | LocallyConstant)


def calls(e: sp.Basic) -> bool:
    """Whether some function of it does not run in vectors."""
    return any(map(_is_called, e.atoms(sp.Function)))


def weight(e: sp.Basic) -> float:
    """The cost of one evaluation, where nothing is shared."""
    return float(sum(map(_own, sp.preorder_traversal(e))))


def distinct(several: Iterable[sp.Basic]) -> float:
    """The cost of several expressions beside each other in a vector loop, equal parts counted once, as LLVM does."""
    parts = {part for e in several for part in sp.preorder_traversal(e)}
    return float(sum(_own(part) * (LANES if _is_called(part) else 1) for part in parts))


def _is_called(f: sp.Basic) -> bool:
    known = is_plain(f) or isinstance(f, Generated) or type(f).__name__ in FUNCTIONS
    return isinstance(f, sp.Function) and not known


def _own(part: sp.Basic) -> float:
    if not part.free_symbols:
        return 0  # a number
    if isinstance(part, sp.Add):
        products = sum(isinstance(a, sp.Mul) for a in part.args)
        return max(len(part.args) - 1 - products, 0)  # a product and a sum are one instruction
    if isinstance(part, sp.Mul):
        return len(part.args) - 1
    if isinstance(part, sp.Pow):
        return 1 if part.exp.is_Integer and part.exp > 0 else DIVISION
    if isinstance(part, Generated):
        return part.cost
    if isinstance(part, sp.Function):
        return 2 if is_plain(part) else FUNCTIONS.get(type(part).__name__, CALLED)
    return 0
