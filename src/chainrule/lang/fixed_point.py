"""``fixed_point z[n, j < out] from 0 within 1e-5 steps 50:``: a tensor that is defined by itself.

The body is elaborated once, over z: the graph then has a circle, z = z.next and z.next = f(z), which the primitive
closes. ``z.residual`` is what is left, max|z.next - z| / (1 + max|z.next|), for who wants to look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import sympy as sp

from chainrule.errors import SourceError
from chainrule.ir.expression import Select, slot
from chainrule.ir.formula import Access, Formula, Index, Origin, Reduce
from chainrule.ir.graph import Tensor
from chainrule.ir.primitive import Primitive
from chainrule.lang import recurrence, static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Scope

Run = Callable[[Scope, tuple[s.Statement, ...], str | None], Tensor | None]


def fixed_point(scope: Scope, e: s.FixedPoint, out: str | None, run: Run) -> Tensor:
    """The value of the statement: the primitive's tensor, with the formulas of the body after it."""
    name, draft = e.left.name, scope.draft
    scope.bind(name, e.left.span)
    target = draft.unique(out or scope.qualified(name), ".")
    said = recurrence.promise(scope, s.Define(e.left, None, e.start, None, False, False, e.span), target)
    again = e.value if e.value is not None else draft.unique(f"{target}.next", ".")
    node = Primitive(
        "fixed_point",
        target,
        said.shape,
        (again,),
        start=_number(e.start, scope),
        within=_number(e.within, scope),
        steps=_steps(e.steps, scope),
        origin=Origin(span=e.span, layer=scope.path),
    )
    z = draft.emit(node, e.span)
    scope.tensors[name] = scope.defined[name] = z
    if e.value is not None:
        return z
    first = len(draft.nodes)
    made = _body(scope, e, again, run)
    if made.name != again or made.shape != z.shape or made.dtype is not z.dtype:
        recurrence.kept(scope, s.Define(e.left, None, e.start, None, False, False, e.span), z, made)
    _check(scope, e, z.name, again, first)
    scope.tensors[name] = scope.defined[name] = z
    draft.learned.add(z.name)
    _residual(scope, z, again, e)
    return z


def _body(scope: Scope, e: s.FixedPoint, again: str, run: Run) -> Tensor:
    last = e.body[-1]
    if not isinstance(last, s.Define) or last.left.name != e.left.name:
        way_out = f"end its block with what {e.left.name} is: {e.left.name}[…] = …"
        raise SourceError(last.span, f"this does not say what '{e.left.name}' is", (), way_out)
    made = run(scope, e.body, again)
    assert made is not None
    return made


def _check(scope: Scope, e: s.FixedPoint, z: str, again: str, first: int) -> None:
    """Raise unless the circle is one through z alone."""
    nodes = scope.draft.nodes[first:]
    reads = nx.DiGraph((t, node.out) for node in nodes for t in node.tensors)
    if z not in reads or again not in nx.descendants(reads, z):
        raise SourceError(e.span, f"'{e.left.name}' does not depend on itself", (), "write it without fixed_point")
    inside = nx.descendants(reads, z)
    if any(isinstance(node, Primitive) and node.kind == "fixed_point" and node.out in inside for node in nodes):
        raise SourceError(e.span, "a fixed point inside a fixed point", (), "make one of both")
    if not nx.is_directed_acyclic_graph(reads):
        raise SourceError(e.span, "a recurrence inside a fixed point", (), "write the recurrence outside it")


def _number(e: s.Expression, scope: Scope) -> float:
    value = static.number(e, scope)
    if not value.is_Rational:
        raise SourceError(e.span, f"{value} is no number", (), "write a number, such as 0")
    return float(value)


def _steps(e: s.Expression, scope: Scope) -> int:
    value = static.number(e, scope)
    if not value.is_Integer or not 1 <= value <= 10_000:
        raise SourceError(e.span, f"{value} steps?", (), "write an integer from 1 to 10,000")
    return int(value)


def _residual(scope: Scope, z: Tensor, again: str, e: s.FixedPoint) -> None:
    draft = scope.draft
    formula = next(node for node in reversed(draft.nodes) if node.out == z.name)
    origin = replace(formula.origin)
    axes = tuple(Index(sp.Symbol(f"_i{k:02}", integer=True, nonnegative=True), n) for k, n in enumerate(z.shape))
    places = tuple(axis.symbol for axis in axes)
    change, size = slot(0) - slot(1), slot(0)
    reads = (Access(again, places), Access(z.name, places))
    parts = []
    for suffix, value, of in (("change", change, reads), ("size", size, reads[:1])):
        name = draft.unique(f"{z.name}.{suffix}", ".")
        body = Select(value > 0, value, -value)
        reduce = Reduce.MAX if axes else Reduce.SUM  # of no index: a map
        draft.emit(Formula(name, (), axes, body, of, reduce=reduce, stop=True, origin=origin), e.span)
        parts.append(Access(name, ()))
    name = draft.unique(f"{z.name}.residual", ".")
    draft.emit(Formula(name, (), (), slot(0) / (1 + slot(1)), tuple(parts), stop=True, origin=origin), e.span)
