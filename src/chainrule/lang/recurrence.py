"""Statements that read themselves, or later ones, at another place along an index.

What they read ahead is promised first, with the shape and type that its left side declares; when the last of the
statements is there, the circle must be a recurrence: all its reads go one way along one index.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import SourceError, Span
from chainrule.ir.formula import DType, Extent, Formula
from chainrule.ir.graph import Tensor
from chainrule.ir.recurrence import NoRecurrence, circles_among, recurrence_of
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Scope
from chainrule.lang.equation import declared_type
from chainrule.lang.ranges import reads_in


def read_ahead(scope: Scope, statements: Sequence[s.Statement], k: int) -> int:
    """The last of the statements that statement `k` is in a circle with; `k` if it reads nothing ahead."""
    places = {e.left.name: j for j, e in reversed(list(enumerate(statements))) if j >= k and isinstance(e, s.Define)}
    last = first = k
    while first <= last:
        for name in _reads(statements[first]):
            if scope.find(name) is None and name in places and _declares(statements[places[name]]):
                last = max(last, places[name])
        first += 1
    return last


def promised(scope: Scope, statements: Sequence[s.Statement], k: int, last: int) -> list[s.Define]:
    """The statements among `k` … `last` that are read before they stand there."""
    ahead: list[s.Define] = []
    for j in range(k, last + 1):
        e = statements[j]
        if not isinstance(e, s.Define) or not _declares(e) or scope.find(e.left.name) is not None:
            continue
        if any(e.left.name in _reads(statements[i]) for i in range(k, j + 1)):
            ahead.append(e)
    return ahead


def _reads(e: s.Statement) -> set[str]:
    if not isinstance(e, s.Define):
        return set()
    return {name for x in (e.value, e.where) if x is not None for name in reads_in(x)}


def _declares(e: s.Statement) -> bool:
    return isinstance(e, s.Define) and e.left.axes is not None


def promise(scope: Scope, e: s.Define, target: str) -> Tensor:
    """The tensor that statement `e` will make, called `target`, by what its left side says."""
    shape: list[Extent] = []
    for range_ in e.left.axes or ():
        if range_.name == "*":
            if scope.star is None:
                raise SourceError(range_.span, "nothing says what * stands for", (), "write the axes out")
            shape.extend(scope.star)
        elif range_.extent is not None:
            value = static.size(range_.extent, scope)
            shape.append(scope.draft.extent(value, scope.qualified(f"{e.left.name}_{range_.name}"), range_.span))
        elif range_.name in scope.axes:
            shape.append(scope.axes[range_.name])
        else:
            problem = f"'{e.left.name}' is read before it is complete, and nothing says how far {range_.name} runs"
            raise SourceError(range_.span, problem, (), f"a recurrence declares its ranges: {range_.name} < 10")
    dtype, bound = DType.FLOAT, None
    if e.type is not None:
        dtype, bound = declared_type(e.type, scope, f"{e.left.name}_bound")
    return scope.draft.give(Tensor(target, tuple(shape), dtype, bound))


def kept(scope: Scope, e: s.Define, said: Tensor, made: Tensor) -> None:
    """Raise unless the tensor that was made is the one that was promised."""
    if (made.shape, made.dtype, made.bound) != (said.shape, said.dtype, said.bound):
        facts = (f"declared: {_described(said)}", f"the value: {_described(made)}")
        way_out = "declare every range, and a type where it is not float"
        raise SourceError(e.left.span, f"'{e.left.name}' is not what its left side declares", facts, way_out)


def _described(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}] {tensor.dtype.value}"


def check(nodes: Sequence[object], span: Span) -> None:
    """Raise unless each circle among the formulas just made is a recurrence."""
    for members in circles_among([node for node in nodes if isinstance(node, Formula)]):
        try:
            recurrence_of(members)
        except NoRecurrence as problem:
            at = next(f.origin.span for f in members if f.out == problem.name) or span
            way_out = "read all of them at earlier places of one index: h[n, t - 1, k; 0]"
            raise SourceError(at, f"no recurrence: {problem}", (), way_out) from None
