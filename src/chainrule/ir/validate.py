"""What a legal graph is; run after every pass. A graph that breaks it is a defect of the pass, not of the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import NamedTuple

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or

from chainrule.errors import ChainruleError
from chainrule.ir.affine import may_be_empty
from chainrule.ir.expression import FUNCTIONS, LocallyConstant, Select, dim_symbol, is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType, Extent, Formula, Reduce, free_symbols
from chainrule.ir.graph import Graph, Node
from chainrule.ir.text import formula_text

LEGAL = (
    sp.Symbol, sp.Number, sp.core.numbers.Pi, sp.core.numbers.Exp1, sp.core.numbers.NaN, sp.core.numbers.Infinity,
    sp.core.numbers.NegativeInfinity, sp.Add, sp.Mul, sp.Pow, sp.Rel, And, Or, Not, BooleanTrue, BooleanFalse,
    Select, LocallyConstant, expm1, log1p, *(f for f in FUNCTIONS.values() if isinstance(f, type)),
)  # fmt: skip
"""The closed set of nodes: no Derivative, Subs, DiracDelta, Heaviside, Piecewise or float gets past it."""


class IllegalGraph(ChainruleError):
    """A pass made what no graph may be; the message names the node."""


def validate(graph: Graph, before: Graph | None = None) -> None:
    """Raise IllegalGraph unless every name is made once, before it is read, with the rank and symbols that it needs.

    before: a legal graph; what stands there too, and reads the same tensors, is not looked at again.
    """
    for problem in problems(graph, before):
        raise IllegalGraph(f"graph {graph.name}: {problem}")


def problems(graph: Graph, before: Graph | None = None) -> Iterator[str]:
    """What is illegal about `graph`, in order."""
    dims: frozenset[sp.Symbol] = frozenset()
    for dim in graph.dims:
        if dim.definition is not None and not dim.definition.free_symbols <= dims:
            yield f"dim {dim.name} is defined by dims that come after it"
        dims |= {sp.Symbol(dim.name, integer=True, nonnegative=True)}
    given = [t.name for t in graph.inputs] + [p.tensor.name for p in graph.params]
    given += [s.tensor.name for s in graph.states] + [s.name for s in graph.scalars]
    known: set[str] = set()
    for name in given:
        if name in known:
            yield f"{name} is given twice"
        known.add(name)
    tensors = graph.tensors
    legal: set[Hashable] = set()
    was = {} if before is None or before.dims is not graph.dims else before.producers
    same = set() if before is None else _same(graph, before)
    for node in graph.nodes:
        if node.out in known:
            yield f"{node.out} is made twice"
        for name in node.tensors:
            if name not in known and not (graph.is_recurrent(name) and graph.is_recurrent(node.out)):
                yield f"{node.out} reads {name}{' before it is made' if name in tensors else ', which nothing makes'}"
        known.add(node.out)
        if was.get(node.out) is node and same.issuperset(node.tensors):
            continue
        law = _law_of(node, graph)
        if law not in legal:
            found = tuple(_node(node, graph, dims))
            yield from found
            if law is not None and not found:
                legal.add(law)
    yield from _roots(graph, known)


def _law_of(node: Node, graph: Graph) -> Hashable:
    """What decides whether a formula is legal where it stands: its law, and the kinds of the tensors that it reads."""
    if not isinstance(node, Formula) or not graph.tensors.keys() >= set(node.tensors):
        return None
    return node.law, *[graph.tensors[name].kind for name in node.tensors]


def _node(node: Node, graph: Graph, dims: frozenset[sp.Symbol]) -> Iterator[str]:
    """What is illegal about `node` whatever else is there."""
    extents = tuple(i.extent for i in node.indices) if isinstance(node, Formula) else node.shape
    for extent in _no_extents(extents, dims):
        yield f"{node.out} has an axis of extent {extent}, neither an integer nor a dim"
    if isinstance(node, Formula) and graph.tensors.keys() >= set(node.tensors):
        yield from (f"{problem} in {formula_text(node)}" for problem in _formula(node, graph, dims))


def _same(graph: Graph, before: Graph) -> set[str]:
    """The tensors of `graph` that `before` has as well."""
    made, was, tensors = graph.producers, before.producers, before.tensors
    return {
        name
        for name, tensor in graph.tensors.items()
        if (name in made and made[name] is was.get(name)) or tensors.get(name) == tensor
    }


@lru_cache(maxsize=65536)
def _no_extents(extents: tuple[Extent, ...], dims: frozenset[sp.Symbol]) -> tuple[Extent, ...]:
    """Those of `extents` that are neither an integer nor a dim."""
    return tuple(e for e in extents if not (e.is_Integer and e >= 0) and e not in dims)


def _formula(f: Formula, graph: Graph, dims: frozenset[sp.Symbol]) -> Iterator[str]:
    law = _law(f.body, f.where, tuple(read.indices for read in f.reads), tuple(i.symbol for i in f.indices), dims)
    yield from law.body
    for k, read in enumerate(f.reads):
        tensor = graph.tensors[read.tensor]
        if len(read.indices) != len(tensor.shape):
            yield f"{read.tensor} has {len(tensor.shape)} axes and is read with {len(read.indices)}"
        yield from (f"an index of {read.tensor}: {problem}" for problem in law.reads[k])
        other = slot(k, DType.FLOAT.sort if tensor.dtype is not DType.FLOAT else DType.INT.sort)
        if other in law.symbols:
            yield f"slot {k} is not of the dtype of {read.tensor}"
        if read.slots:
            yield from _slots_of_indices(read, f, graph)
    if f.reduce is Reduce.ARGMAX:
        yield from _places(f, graph)


class _Law(NamedTuple):
    """What is illegal about a formula whatever its tensors are, and the symbols that it mentions."""

    body: tuple[str, ...]
    reads: tuple[tuple[str, ...], ...]
    symbols: frozenset[sp.Symbol]


@lru_cache(maxsize=65536)  # equal layers have equal laws
def _law(
    body: sp.Expr,
    where: tuple[sp.Basic, ...],
    reads: tuple[tuple[sp.Expr, ...], ...],
    indices: tuple[sp.Symbol, ...],
    dims: frozenset[sp.Symbol],
) -> _Law:
    known = {*indices, *dims}
    parts = (body, *where)
    return _Law(
        tuple(problem for e in parts for problem in _expression(e, len(reads), known)),
        tuple(tuple(problem for i in read for problem in _expression(i, k, known)) for k, read in enumerate(reads)),
        frozenset(free_symbols((*parts, *(i for read in reads for i in read)))),
    )


def _places(f: Formula, graph: Graph) -> Iterator[str]:
    """An argmax of nothing is the number of places, which its bound has to hold."""
    if not f.over:
        yield "an argmax over no index"
    total = sp.Mul(*(r.extent for r in f.over))
    defined = {dim_symbol(d.name): d.definition for d in graph.dims if d.definition is not None}
    if f.bound is not None and total in (f.bound, defined.get(f.bound)) and may_be_empty(f.over, f.where, graph.dims):
        yield f"{f.bound} is no bound of an argmax that may be of nothing"


def _slots_of_indices(read: Access, f: Formula, graph: Graph) -> Iterator[str]:
    for s in read.slots:
        inner = graph.tensors[f.reads[slot_number(s)].tensor]
        if inner.dtype is not DType.INT:
            yield f"{read.tensor} is indexed by {inner.name}, which is {inner.dtype.value}"


def _expression(e: sp.Basic, slots: int, symbols: set[sp.Symbol]) -> Iterator[str]:
    for kind in dict.fromkeys(type(part) for part in sp.preorder_traversal(e)):
        if not issubclass(kind, LEGAL) or issubclass(kind, sp.Float):
            yield f"{kind.__name__} has no place in a formula"
    for s in e.free_symbols:
        if is_slot(s):
            if slot_number(s) >= slots:
                yield f"slot {slot_number(s)} stands for no read"
        elif s not in symbols and s.name != "_training":
            yield f"{s} is neither an index nor a dim"


def _roots(graph: Graph, known: set[str]) -> Iterator[str]:
    stores = {t.name for t in (*(p.tensor for p in graph.params), *(s.tensor for s in graph.states))}
    for name in graph.roots:
        if name not in known:
            yield f"root {name} is made by nothing"
    for update in graph.updates:
        if update.store not in stores:
            yield f"{update.store} is updated, and is no state or parameter"
        elif update.value in known and graph.tensors[update.store].shape != graph.tensors[update.value].shape:
            yield f"{update.store} is updated by {update.value}, which has another shape"
    for stored, times in Counter(u.store for u in graph.updates).items():
        if times > 1:
            yield f"{stored} is updated {times} times"
