"""A statement's value in steps that read well: what is used twice is named, and nothing nests too deep.

Only pure arithmetic is moved: reads that a condition guards are made safe where they are printed, so any step may be
computed before it is known whether it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sympy as sp
from sympy.logic.boolalg import Boolean

from chainrule.ir.expression import Select, is_slot, slot
from chainrule.ir.formula import Access, DType

DEEPEST = 24  # CPython refuses 200 nested parentheses; a level of ours needs up to three


class Steps(NamedTuple):
    """``symbol = expression`` for each of `named`, in order; then `value` in their terms."""

    named: tuple[tuple[sp.Symbol, sp.Basic], ...]
    value: sp.Basic


def plan(value: sp.Basic) -> Steps:
    """`value` with its repeated parts, the bases of its powers, and what nests too deep, as steps of their own."""
    count = iter(range(1_000_000))
    named: list[tuple[sp.Symbol, sp.Basic]] = []

    def symbols() -> Iterator[sp.Symbol]:
        while True:
            yield step_symbol(next(count))

    repeated, (value,) = sp.cse(value, symbols=symbols(), order="none") if _repeats(value) else ((), (value,))

    def step(e: sp.Basic) -> sp.Symbol:
        symbol = step_symbol(next(count))
        named.append((symbol, e))
        return symbol

    def shallow(e: sp.Basic) -> tuple[sp.Basic, int]:
        if not e.args:
            return e, 0
        parts = [shallow(a) for a in e.args]
        parts = [(step(a), 0) if deep >= DEEPEST and not isinstance(a, Boolean) else (a, deep) for a, deep in parts]
        args = [a for a, _ in parts]
        if isinstance(e, sp.Pow) and args[0].args and e.exp.is_Rational and abs(e.exp) > 1:
            args[0] = step(args[0])  # x * x needs the name of x
        if all(new is old for new, old in zip(args, e.args, strict=True)):
            return e, 1 + max(deep for _, deep in parts)
        return e.func(*args), 1 + max(deep for _, deep in parts)

    for symbol, e in repeated:
        e, _ = shallow(e)
        named.append((symbol, e))
    value, _ = shallow(value)
    return Steps(tuple(named), value)


def step_symbol(k: int) -> sp.Symbol:
    """The name of a step; booleans too are named by it. No user's name starts with an underscore."""
    return sp.Symbol(f"_t{k:04}", real=True)


def _repeats(e: sp.Basic) -> bool:
    """Whether some part of `e` that costs something stands in it twice."""
    seen: set[sp.Basic] = set()
    for part in sp.preorder_traversal(e):
        if part.args:
            if part in seen:
                return True
            seen.add(part)
    return False


def always_read(value: sp.Basic, reads: tuple[Access, ...], others: tuple[sp.Basic, ...]) -> set[int]:
    """The reads that are needed whichever way the choices in `value` go; `others` are evaluated anyway."""
    needed: set[sp.Symbol] = set()

    def visit(e: sp.Basic) -> None:
        if isinstance(e, Select):
            visit(e.args[0])
        elif isinstance(e, sp.Symbol):
            needed.add(e)
        else:
            for part in e.args:
                visit(part)

    for e in (value, *others):
        visit(e)
    always: set[int] = set()
    for k in reversed(range(len(reads))):  # a read comes after those that its indices need
        if any(slot(k, dtype.sort) in needed for dtype in (DType.FLOAT, DType.INT)):
            always.add(k)
            needed |= {s for i in reads[k].indices for s in i.free_symbols if is_slot(s)}
    return always
