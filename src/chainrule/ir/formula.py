"""The formula: the one form that every operation of every network takes.

``out[axes] = reduce[over where ...] body``. The scalar law and the index maps are kept apart: sympy differentiates
the one, index algebra turns round the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache
from typing import TypeAlias

import sympy as sp

from chainrule.errors import Span
from chainrule.ir.expression import Sort, index_symbol, is_slot, slot, slot_number, symbols_in_order

Extent: TypeAlias = sp.Expr
"""A size: a sympy Integer or a plain dim symbol; derived sizes are named dims with a definition on the graph."""


class Reduce(Enum):
    """How values over the reduced indices become one; argmax: the first place of the greatest, flattened."""

    SUM = "sum"
    PROD = "prod"
    MAX = "max"
    MIN = "min"
    ARGMAX = "argmax"

    @property
    def identity(self) -> sp.Expr | None:
        """The value of the reduction of nothing; None: the product of the extents (argmax)."""
        return {"sum": sp.S.Zero, "prod": sp.S.One, "max": -sp.oo, "min": sp.oo, "argmax": None}[self.value]


class DType(Enum):
    """float is the program's, float32 unless asked; int is int64; bool counts as 0 and 1."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"

    @property
    def sort(self) -> Sort:
        return Sort.REAL if self is DType.FLOAT else Sort.INTEGER


def identity_of(reduce: Reduce, dtype: DType) -> sp.Expr:
    """What an accumulator starts at; the least and greatest int64 stand for the infinities."""
    identity = reduce.identity
    assert identity is not None
    if dtype is not DType.FLOAT and identity.is_infinite:
        return sp.Integer(-(2**63)) if identity.is_extended_negative else sp.Integer(2**63 - 1)
    return identity


@dataclass(frozen=True)
class Index:
    """A loop variable: 0 <= symbol < extent. Its pretty name prints, and is outside equality."""

    symbol: sp.Symbol
    extent: Extent
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Access:
    """A read of one element, ``tensor[indices]``; `outside` is its value beyond the bounds.

    An index may mention an integer slot: ``table[token[b], j]`` is the second of the reads
    ``(token[b], table[_0000, j])``.
    """

    tensor: str
    indices: tuple[sp.Expr, ...]
    outside: sp.Expr | None = None  # None: proved to stay inside

    @property
    def slots(self) -> frozenset[sp.Symbol]:
        """The slots that must be read before this access can be."""
        return _slots(self.indices)

    @property
    def places(self) -> dict[sp.Basic, sp.Expr]:
        """At which index each axis of the tensor is read, by the axis' canonical symbol."""
        return {index_symbol(f"_i{k:02}"): index for k, index in enumerate(self.indices)}

    def renamed(self, names: Mapping[sp.Basic, sp.Basic]) -> Access:
        indices = tuple(i.xreplace(names) for i in self.indices)
        return self if indices == self.indices else Access(self.tensor, indices, self.outside)


@lru_cache(maxsize=65536)  # equal layers read at equal places
def _slots(indices: tuple[sp.Expr, ...]) -> frozenset[sp.Symbol]:
    return frozenset(s for i in indices for s in i.free_symbols if is_slot(s))


@dataclass(frozen=True)
class Origin:
    """Where a formula was written, or which formula it was derived from and by what rule."""

    span: Span | None = None
    formula: str | None = None  # the out of the formula that it comes from
    rule: str | None = None  # "vjp", "accumulate", "stabilize", …
    layer: str = ""  # the path of the layer call that it belongs to, for pictures: "x.3.multi_head"


@dataclass(frozen=True)
class Formula:
    """``out[axes] = reduce[over where ...] body``; slot k of the body is the value of reads[k].

    A formula of no `over` is a map; where its `where` does not hold it is 0. Formulas that differ only in tensor
    names have equal bodies, so their derivatives are found once. Made in any symbols, it comes out in canonical ones:
    ``_i00 …`` for axes, ``_r00 …`` for reduced indices, slots numbered as the text shows them.
    """

    out: str
    axes: tuple[Index, ...]
    over: tuple[Index, ...]
    body: sp.Expr
    reads: tuple[Access, ...] = ()
    where: tuple[sp.Basic, ...] = ()
    reduce: Reduce = Reduce.SUM  # of no index: a map
    dtype: DType = DType.FLOAT
    bound: Extent | None = None  # of an int: 0 <= value < bound
    stop: bool = False  # no gradient flows through
    origin: Origin = field(default=Origin(), compare=False)

    def __post_init__(self) -> None:
        normalise(self)

    @cached_property
    def shape(self) -> tuple[Extent, ...]:
        return tuple(axis.extent for axis in self.axes)

    @property
    def indices(self) -> tuple[Index, ...]:
        return self.axes + self.over

    @property
    def is_map(self) -> bool:
        return not self.over

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The tensors read, each once, in order."""
        return tuple(dict.fromkeys(read.tensor for read in self.reads))

    @cached_property
    def law(self) -> Law:
        """All that is neither a name nor an origin; of formulas that are equal but for these, the same object.

        What a pass finds of a law it need not find again: a deep network has thousands of formulas, and few laws.
        """
        places = {name: k for k, name in enumerate(self.tensors)}
        return _law(
            self.shape,
            tuple([r.extent for r in self.over]),
            self.body,
            tuple([(places[read.tensor], read.indices, read.outside) for read in self.reads]),
            self.where,
            (self.reduce, self.dtype, self.bound, self.stop, places.get(self.out)),
        )


@dataclass(frozen=True, eq=False)
class Law:
    """What formulas have in common that differ in names alone; equal where it is the same object.

    reads: the number of each read's tensor among those read, its indices, its value outside.
    """

    shape: tuple[Extent, ...]
    over: tuple[Extent, ...]
    body: sp.Expr
    reads: tuple[tuple[int, tuple[sp.Expr, ...], sp.Expr | None], ...]
    where: tuple[sp.Basic, ...]
    kind: tuple[Reduce, DType, Extent | None, bool, int | None]  # the last: the number of the tensor that it makes

    @cached_property
    def count(self) -> int:
        """How many tensors it reads."""
        return len({number for number, _, _ in self.reads})

    @cached_property
    def symbols(self) -> frozenset[sp.Symbol]:
        """Those of its body."""
        return frozenset(self.body.free_symbols)


_law = lru_cache(maxsize=65536)(Law)


def normalise(f: Formula) -> None:
    """Give `f` its canonical index symbols, one slot for equal accesses, none unread, in the order of its text.

    Sympy orders a product's factors by name, so renumbering can change the text's order: it is repeated until
    nothing moves (or, in a circle, until the least of its bodies, which is as canonical).
    """
    places = {axis.symbol: index_symbol(f"_i{k:02}") for k, axis in enumerate(f.axes)}
    places |= {index.symbol: index_symbol(f"_r{k:02}") for k, index in enumerate(f.over)}
    body, where, reads = f.body, f.where, f.reads
    if moved := {old: new for old, new in places.items() if old != new}:
        body, where = body.xreplace(moved), tuple(c.xreplace(moved) for c in where)
        reads = tuple(read.renamed(moved) for read in reads)
    body, where, reads = _merge(body, where, reads)
    seen: list[tuple[sp.Expr, tuple[sp.Basic, ...], tuple[Access, ...]]] = []
    while (body, where, reads) not in seen:
        seen.append((body, where, reads))
        body, where, reads = _renumber(body, where, reads)
    circle = seen[seen.index((body, where, reads)) :]
    body, where, reads = min(circle, key=lambda form: str(form) if len(circle) > 1 else "")
    values = {
        "axes": tuple(Index(places[a.symbol], a.extent, a.name or f"i{k}") for k, a in enumerate(f.axes)),
        "over": tuple(Index(places[r.symbol], r.extent, r.name or f"r{k}") for k, r in enumerate(f.over)),
        "body": body,
        "where": tuple(dict.fromkeys(c for c in where if c is not sp.true)),
        "reads": reads,
    }
    for name, value in values.items():
        object.__setattr__(f, name, value)


_Form = tuple[sp.Expr, tuple[sp.Basic, ...], tuple[Access, ...]]


def _merge(body: sp.Expr, where: tuple[sp.Basic, ...], reads: tuple[Access, ...]) -> _Form:
    """Equal accesses share the first one's slot; to a fixed point, since accesses may hold slots."""
    while len(set(reads)) < len(reads):
        first: dict[Access, int] = {}
        same: dict[sp.Basic, sp.Basic] = {}
        for k, read in enumerate(reads):
            keep = first.setdefault(read, k)
            if keep != k:
                same |= {slot(k, sort): slot(keep, sort) for sort in Sort}
        body, where = body.xreplace(same), tuple(c.xreplace(same) for c in where)
        kept = sorted(first.values())
        reads = tuple(reads[k].renamed(same) for k in kept)
        body, where, reads = _substitute({old: new for new, old in enumerate(kept)}, body, where, reads)
    return body, where, reads


def _substitute(
    numbers: Mapping[int, int], body: sp.Expr, where: tuple[sp.Basic, ...], reads: tuple[Access, ...]
) -> _Form:
    """Slot old becomes slot numbers[old], all at once; the order of `reads` is left to the caller."""
    names = {slot(old, sort): slot(new, sort) for old, new in numbers.items() if old != new for sort in Sort}
    if not names:
        return body, where, reads
    return (
        body.xreplace(names),
        tuple(c.xreplace(names) for c in where),
        tuple(r.renamed(names) for r in reads),
    )


def _renumber(body: sp.Expr, where: tuple[sp.Basic, ...], reads: tuple[Access, ...]) -> _Form:
    order: dict[int, None] = {}

    def visit(e: sp.Basic) -> None:
        for symbol in symbols_in_order(e):
            if is_slot(symbol):
                k = slot_number(symbol)
                for index in reads[k].indices:  # token[b] comes before the access table[token[b], j] that needs it
                    visit(index)
                order.setdefault(k)

    for e in (body, *where):
        visit(e)
    numbers = {old: new for new, old in enumerate(order)}
    kept = tuple(reads[old] for old in order)
    return _substitute(numbers, body, where, kept)


def free_symbols(expressions: Iterable[sp.Basic]) -> set[sp.Symbol]:
    return set().union(*(e.free_symbols for e in expressions))
