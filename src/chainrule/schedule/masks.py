"""What a causal mask leaves of a product: places that nobody looks at, and terms that are 0, are passed over.

    shown[t, s] = if s > t then -inf else score[t, s]      score is needed where s <= t
    p[t, s]     = exp(shown[t, s] - m[t]) / z[t]           is 0 where s > t
    y[t, e]     = sum[s] p[t, s] * v[s, e]                 needs s <= t

Followed are conditions that compare two indices, and the values 0 and −∞ that tensors have where they do not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy as sp

from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, Formula
from chainrule.schedule.product import Contraction
from chainrule.schedule.task import Task


@dataclass(frozen=True)
class Below:
    """``low <= high + shift``, of two indices."""

    low: sp.Symbol
    high: sp.Symbol
    shift: int

    @property
    def otherwise(self) -> Below:
        return Below(self.high, self.low, -self.shift - 1)

    def renamed(self, names: Mapping[sp.Basic, sp.Basic]) -> Below | None:
        """The same of other indices; None where one of them is none."""
        low, high = names.get(self.low), names.get(self.high)
        if isinstance(low, sp.Symbol) and isinstance(high, sp.Symbol):
            return Below(low, high, self.shift)
        return None

    @property
    def condition(self) -> sp.Basic:
        return sp.Le(self.low, self.high + self.shift)


def below(relation: sp.Basic, own: Sequence[sp.Symbol]) -> Below | None:
    """A comparison of two of the indices `own`, as one of whole numbers."""
    if not isinstance(relation, sp.Le | sp.Lt | sp.Ge | sp.Gt):
        return None
    room = sp.expand(relation.gts - relation.lts) - int(isinstance(relation, sp.Lt | sp.Gt))  # >= 0
    symbols = sorted(room.free_symbols, key=lambda s: s.name)
    if len(symbols) != 2 or not set(symbols) <= set(own):
        return None
    for low, high in (symbols, symbols[::-1]):
        shift = sp.expand(room - high + low)
        if shift.is_Integer:
            return Below(low, high, int(shift))
    return None


Outside = Mapping[str, Mapping[Below, sp.Expr]]
"""What tensors are, 0 or −∞, where a condition on their axes does not hold."""


def outside_of(formulas: Sequence[Formula]) -> Outside:
    """The values of masked tensors; `formulas` stand in an order that can run."""
    found: dict[str, dict[Below, sp.Expr]] = {}
    for f in formulas:
        if f.over or len(f.axes) < 2:
            continue
        axes = [axis.symbol for axis in f.axes]
        for condition in dict.fromkeys(_conditions(f, found)):
            if {condition.low, condition.high} <= set(axes):
                value = otherwise(f, condition, found)
                if value in (sp.S.Zero, -sp.oo):
                    found.setdefault(f.out, {})[condition] = value
    return found


def _conditions(f: Formula, outside: Outside) -> Iterator[Below]:
    """Those that `f` compares by, and those of the tensors that it reads."""
    own = [i.symbol for i in f.indices]
    for e in (f.body, *f.where):
        for relation in sorted(e.atoms(sp.Rel), key=str):
            if (condition := below(relation, own)) is not None:
                yield condition
                yield condition.otherwise
    for read in f.reads:
        for condition in outside.get(read.tensor, ()):
            if (mine := condition.renamed(read.places)) is not None:
                yield mine


def otherwise(f: Formula, condition: Below, outside: Outside) -> sp.Expr:
    """The body of `f` where `condition` does not hold."""
    own = [i.symbol for i in f.indices]
    known: dict[sp.Basic, sp.Basic] = {}
    for relation in set().union(*(e.atoms(sp.Rel) for e in (f.body, *f.where))):
        found = below(relation, own)
        if found is not None and {found.low, found.high} == {condition.low, condition.high}:
            if found == condition:
                known[relation] = sp.false
            elif found == condition.otherwise:
                known[relation] = sp.true
    if any(known.get(c) is sp.false for c in f.where):
        return sp.S.Zero
    for k, read in enumerate(f.reads):
        for theirs, value in outside.get(read.tensor, {}).items():
            if theirs.renamed(read.places) == condition:
                known[slot(k)] = value  # masks are of floats
    return f.body.xreplace(known) if known else f.body


def masked(
    tasks: Sequence[Task], contractions: Mapping[int, Contraction], roots: frozenset[str]
) -> dict[int, tuple[sp.Basic, ...]]:
    """For products, by task, conditions on their indices: places and terms where one does not hold may be left out.

    For other reductions those of which the same holds of terms: they change nothing there.
    """
    formulas = [task.formula for task in tasks]
    outside = outside_of(formulas)
    readers: dict[str, list[Formula]] = {}
    for f in formulas:
        for name in f.tensors:
            readers.setdefault(name, []).append(f)
    found = {}
    for t, c in contractions.items():
        f = tasks[t].formula
        conditions = set() if f.out in roots else _needed(f, readers.get(f.out, []), outside)
        for read in (c.left, c.right):
            zeros = (k for k, value in outside.get(read.tensor, {}).items() if value == 0)
            conditions |= {mine for k in zeros if (mine := k.renamed(read.places)) is not None}
        if conditions:
            found[t] = tuple(k.condition for k in sorted(conditions, key=str))
    for t, f in enumerate(formulas):
        if f.over and t not in contractions:
            conditions = {k for k in _conditions(f, outside) if otherwise(f, k, outside) == f.reduce.identity}
            if conditions:
                found[t] = tuple(k.condition for k in sorted(conditions, key=str))
    return found


def _needed(f: Formula, readers: Sequence[Formula], outside: Outside) -> set[Below]:
    """The conditions on axes of `f` outside which no reader's value depends on it."""
    every: set[Below] | None = None
    for g in readers:
        mine: set[Below] | None = None
        for k, read in enumerate(g.reads):
            if read.tensor == f.out:
                here = set(_unread(g, k, read, outside))
                mine = here if mine is None else mine & here
        every = mine if every is None else every & (mine or set())
    return every or set()


def _unread(g: Formula, k: int, read: Access, outside: Outside) -> Iterator[Below]:
    """The conditions, on the axes of what slot `k` of `g` reads, without which `g` does not depend on it."""
    axes = {index: axis for axis, index in read.places.items() if isinstance(index, sp.Symbol)}
    for condition in dict.fromkeys(_conditions(g, outside)):
        theirs = condition.renamed(axes)
        if theirs is not None:
            left = otherwise(g, condition, outside)
            if slot(k) not in left.free_symbols:
                yield theirs
