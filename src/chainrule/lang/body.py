"""What one formula reads, and the proof that each read stays inside."""

from __future__ import annotations

import sympy as sp

from chainrule.errors import SourceError
from chainrule.ir.expression import is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType
from chainrule.ir.graph import Tensor
from chainrule.lang import syntax as s
from chainrule.lang.bounds import Facts, dim_facts
from chainrule.lang.draft import Scope, described
from chainrule.lang.ranges import Frame


class Body:
    """The reads of one formula, as its expression is built."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.reads: list[Access] = []
        self.places: dict[Access, int] = {}
        self.conditions: list[sp.Basic] = []
        self.sources: list[tuple[s.Expression, Frame]] = []  # the conditions as they were written

    def read(self, access: Access, dtype: DType) -> sp.Symbol:
        if access not in self.places:
            self.places[access] = len(self.reads)
            self.reads.append(access)
        return slot(self.places[access], dtype.sort)


def facts_at(scope: Scope, body: Body, frame: Frame) -> Facts:
    """What is known of the indices, the integers read and the conditions at this place."""
    facts = dim_facts(scope.draft.dims)
    for var in frame.visible:
        facts.between(var.symbol, 0, var.index.extent - 1)
    for number, read in enumerate(body.reads):
        source = scope.draft.tensors[read.tensor]
        if source.dtype is DType.INT and source.bound is not None and read.outside is None:
            facts.between(slot(number, DType.INT.sort), 0, source.bound - 1)
        elif source.dtype is DType.BOOL and read.outside is None:
            facts.between(slot(number, DType.INT.sort), 0, 1)
    for condition in body.conditions:
        facts.assume(condition)
    return facts


def prove(
    scope: Scope, index: sp.Expr, tensor: Tensor, axis: int, item: s.Expression, body: Body, frame: Frame
) -> None:
    """Show 0 <= index < extent, or say what is missing."""
    extent = tensor.shape[axis]
    facts = facts_at(scope, body, frame)
    low, high = facts.proves(index), facts.proves(extent - 1 - index)
    if low and high:
        return
    at = shown(index, body)
    missing = "be negative" if not low else f"reach {extent}"
    ranges = [f"{v.name} < {v.extent}" for v in frame.visible]
    reads = [
        f"{described(scope.draft.tensors[r.tensor])}, its values have no known range"
        for k, r in enumerate(body.reads)
        if slot(k, DType.INT.sort) in index.free_symbols and scope.draft.tensors[r.tensor].bound is None
    ]
    known = (described(tensor), *((f"known: {', '.join(ranges)}",) if ranges else ()), *reads)
    name = tensor.name if len(tensor.name) < 40 else "the tensor"
    way_out = f"read 0 outside with {name}[…; 0], restrict the index with `where`, or clip it"
    if reads:
        way_out = "declare the values' range with `: index n`, clip them, or read 0 outside with `; 0`"
    problem = f"axis {axis + 1} of {tensor.name} is read at {at}, which could {missing}"
    raise SourceError(item.span, problem, known, way_out)


def shown(index: sp.Expr, body: Body) -> str:
    """An index as a person wrote it, more or less."""
    names = {v.symbol: sp.Symbol(v.name) for v in body.frame.visible}
    for symbol in index.free_symbols:
        if is_slot(symbol):
            names[symbol] = sp.Symbol(f"{body.reads[slot_number(symbol)].tensor}[…]")
    return str(index.xreplace(names))
