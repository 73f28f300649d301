"""What a task costs: a polynomial in the dims for the run side, a number at typical sizes for the scheduler's choices.

Three constants of one core stand for the machine. They need not be exact, for they only decide whether work is worth
a block, a kernel or a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import sympy as sp

from chainrule.ir.cost import BYTES, operations
from chainrule.ir.formula import DType, Extent
from chainrule.ir.graph import Dim, Graph
from chainrule.ir.machine import CPU, Machine
from chainrule.ir.value import value
from chainrule.schedule.task import Task

MANY = 4096
"""The size that dims are scheduled for, unless the call says one, that inputs count through, as edges do through
nodes, and how many of these there are. A dim with a greatest size is scheduled for that, if it is no more than this."""

PRODUCT_NS = sp.Rational(1, 64)
"""Nanoseconds of one multiply-add in a register tile: 128 GFLOP/s, half of what AVX-512 reaches."""

PLAIN_NS = sp.Rational(1, 8)
"""Nanoseconds of one operation in a vectorised loop, loads and stores included."""

FUNCTION_NS = sp.Rational(1, 2)
"""Nanoseconds of an exp, a logarithm or a division."""


class Sizes:
    """The sizes that choices are made for; the program is right for every other."""

    def __init__(self, graph: Graph, given: Mapping[str, int] | None = None, machine: Machine = CPU) -> None:
        self.typical = machine.typical
        self.known: dict[sp.Basic, int] = {}
        self.bounds = {_dim(d.name): sp.Integer(d.maximum) for d in graph.dims if d.maximum is not None}
        indices = [t for t in graph.inputs if t.bound is not None and not t.bound.is_Integer]
        self.many = {s.name for t in indices for e in (t.bound, *t.shape) if e is not None for s in e.free_symbols}
        for dim in graph.dims:
            self.define(dim, (given or {}).get(dim.name))

    def __str__(self) -> str:
        return ", ".join(f"{dim} = {size}" for dim, size in self.known.items() if str(dim)[0] != "_")

    def define(self, dim: Dim, size: int | None = None) -> None:
        if size is None and dim.definition is not None:
            size = max(int(value(dim.definition, self.known)), 0)
        elif size is None:
            usual = MANY if dim.name in self.many or dim.maximum is not None else self.typical
            greatest = usual if dim.maximum is None else min(dim.maximum, usual)
            size = max(greatest, dim.minimum)
        self.known[_dim(dim.name)] = size

    def of(self, e: sp.Expr) -> int:
        """The value of an extent or of a polynomial, rounded up."""
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            return self.known[e]
        return -int(-value(e, self.known) // 1)

    def most(self, e: Extent) -> Extent:
        """The greatest size that an extent may have; itself, where there is none."""
        return self.bounds.get(e, e)

    def points(self, extents: Iterable[Extent]) -> int:
        total = 1
        for extent in extents:
            total *= self.of(extent)
        return total


def _dim(name: str) -> sp.Symbol:
    return sp.Symbol(name, integer=True, nonnegative=True)


@lru_cache(maxsize=65536)
def _each(body: sp.Expr) -> sp.Rational:
    """Nanoseconds of one evaluation outside a product, as an exact number."""
    costly = sum(1 for e in sp.preorder_traversal(body) if isinstance(e, sp.Pow | sp.Function))
    return (operations(body) + 1) * PLAIN_NS + costly * FUNCTION_NS


def each_ns(task: Task, *, product: bool) -> sp.Rational:
    return PRODUCT_NS if product else _each(task.body) + (PLAIN_NS if task.over else 0)


def cost_at(task: Task, sizes: Sizes, *, product: bool) -> float:
    """Nanoseconds at the typical sizes."""
    return float(each_ns(task, product=product)) * sizes.points(extents_of(task))


def cost_of(task: Task, *, product: bool) -> sp.Expr:
    """Nanoseconds over the dims."""
    return sp.Mul(each_ns(task, product=product), *extents_of(task))


def flops_of(task: Task) -> sp.Expr:
    """Operations over the dims; a scatter makes one for each term, wherever that goes."""
    return sp.Mul(operations(task.body) + (1 if task.over else 0), *extents_of(task))


def extents_of(task: Task) -> tuple[Extent, ...]:
    """What its loops run over, the steps of its recurrence too."""
    return (*(circle.step.extent for circle in task.circles), *(i.extent for i in task.free))


def bytes_of(dtype: DType) -> int:
    return BYTES[dtype]
