"""One statement ``left = value where condition`` to its formulas: ranges first, then expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sympy as sp

from chainrule.errors import SourceError, Span
from chainrule.ir.expression import Select, is_slot, slot_number
from chainrule.ir.formula import Access, DType, Extent, Origin, Reduce
from chainrule.ir.graph import Tensor
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.body import Body, facts_at
from chainrule.lang.bounds import dim_facts
from chainrule.lang.draft import Caller, Scope
from chainrule.lang.expressions import SIMPLE, Expressions
from chainrule.lang.ranges import Frame, Ranges, Var, below
from chainrule.lang.values import Value

KINDS = {"float": DType.FLOAT, "int": DType.INT, "index": DType.INT, "bool": DType.BOOL}


class Equation:
    """One statement: its frames, and the formulas that `finish` adds."""

    def __init__(self, scope: Scope, name: str, left: s.Left, caller: Caller, stop: bool, span: Span) -> None:
        self.scope, self.left, self.span = scope, left, span
        self.ranges = Ranges(scope, name, caller)
        origin = Origin(span=span, layer=scope.path)
        self.expressions = Expressions(scope, self.ranges, name, origin, stop)
        self.root = self.ranges.frame(None, open_=True)

    def look(self, expressions: Iterable[s.Expression]) -> tuple[Var, ...]:
        """Walk over the statement; the indices of its left side, every range resolved."""
        expressions = list(expressions)
        bound = {r.name for r in self.left.axes or ()}
        bound |= {r.name for e in expressions for x in below(e) if isinstance(x, s.Reduction) for r in x.over}
        self.ranges.bound_names = frozenset(bound)
        for place, range_ in enumerate(self.left.axes or ()):
            if range_.name != "*":
                self.ranges.bind(self.root, range_, place)
        for e in expressions:
            self.ranges.walk(e, self.root)
        axes = self._axes()
        self.ranges.resolve()
        return axes

    def _axes(self) -> tuple[Var, ...]:
        root, left = self.root, self.left
        if left.axes is None:
            if root.star is not None:
                way_out = f"write {left.name}[*] = …"
                raise SourceError(self.span, "`*` is read, and the left side has no axes", (), way_out)
            return root.whole or ()
        if root.whole is not None:
            assert root.whole_tensor is not None
            problem = f"'{root.whole_tensor.name}' is read without indices in a statement with indices"
            raise SourceError(self.span, problem, (), f"write {root.whole_tensor.name}[*]")
        stars = [r for r in left.axes if r.name == "*"]
        if len(stars) > 1:
            raise SourceError(stars[1].span, "two stars on the left", (), "one * stands for all leading axes")
        if stars and root.star is None:
            if self.scope.star is None:
                raise SourceError(stars[0].span, "nothing says what * stands for", (), "write the axes out")
            root.star = self.ranges.axes(root, self.scope.star, stars[0].span, 0)
        found: list[Var] = []
        for range_ in left.axes:
            found.extend((root.star or ()) if range_.name == "*" else (root.names[range_.name],))
        return tuple(found)

    def finish(
        self,
        axes: tuple[Var, ...],
        value: s.Expression,
        where: s.Expression | None,
        kind: s.Type | None,
        out: str | Callable[[], str],
    ) -> Tensor:
        """Add the statement's formulas; the last is `out`."""
        if not set(self.root.star or ()) <= set(axes):
            span = self.left.span
            raise SourceError(span, "`*` is read, and the left side does not have it", (), "write it there, or reduce")
        frame, over, inner, condition, word = self._reduced(value)
        body = Body(frame)
        self.expressions.condition(where, self.root, body)
        self.expressions.condition(condition, frame, body)
        made = self.expressions.value(inner, frame, body)
        number, dtype, reduce, bound = made.number, made.kind, Reduce.SUM, None
        if word:
            number, dtype, reduce, bound = self.expressions.reduced(word, made, over, body, value.span)
            made = Value(number, dtype, made.integral or reduce is Reduce.ARGMAX)
        dtype, bound = self._dtype(kind, made, number, reduce, bound, body, frame)
        name = out if isinstance(out, str) else self.scope.draft.unique(out(), ".")
        return self.expressions.formula(name, axes, body, number, dtype, over, reduce, bound)

    def _reduced(self, value: s.Expression) -> tuple[Frame, tuple[Var, ...], s.Expression, s.Expression | None, str]:
        """The frame, indices, body, condition and word of a reduction at the root; a map has no word."""
        if isinstance(value, s.Reduction) and (value.kind in SIMPLE or value.kind == "argmin"):
            frame = self.ranges.frames[id(value)]
            over = (*frame.names.values(), *((frame.star or ()) if frame.open else ()))
            return frame, over, value.body, value.where, value.kind
        word = value.function if isinstance(value, s.Call) and id(value) in self.ranges.frames else ""
        if isinstance(value, s.Call) and (word in SIMPLE or word == "argmin"):
            frame = self.ranges.frames[id(value)]
            over = (*(frame.star or ()), *(frame.whole or ()))
            return frame, over, value.arguments[0].value, None, word
        return self.root, (), value, None, ""

    # ------------------------------------------------------------ the type of the left side

    def _dtype(
        self, kind: s.Type | None, made: Value, number: sp.Expr, reduce: Reduce, bound: Extent | None,
        body: Body, frame: Frame,
    ) -> tuple[DType, Extent | None]:  # fmt: skip
        """The statement's dtype and bound: as it is declared, if the value agrees, else the value's."""
        if kind is None:
            dtype = made.kind or DType.FLOAT
            if dtype is DType.INT and bound is None and reduce is Reduce.SUM:
                bound = self._copied_bound(number, body)
            return dtype, bound
        dtype, declared = declared_type(kind, self.scope, f"{self.left.name}_bound")
        if dtype is DType.FLOAT and made.kind in (DType.INT, DType.BOOL):
            raise SourceError(kind.span, f"the value is {made.kind.value}, not float", (), "convert it: float(…)")
        if dtype is DType.INT and not (made.integral or (made.kind is DType.FLOAT and number.is_integer)):
            raise SourceError(kind.span, "the value need not be an integer", (), "convert it: int(…)")
        if dtype is DType.BOOL and made.kind is not DType.BOOL and not _is_bit(number):
            raise SourceError(kind.span, "the value is no truth value", (), "compare it: x > 0")
        if declared is not None and not self._fits(number, declared, bound, reduce, body, frame):
            facts = (f"known: 0 <= value < {bound}",) if bound is not None else ()
            way_out = f"clip it: clip(value, 0, {declared} - 1)"
            raise SourceError(kind.span, f"the value could leave 0 … {declared} - 1", facts, way_out)
        return dtype, declared

    def _copied_bound(self, number: sp.Expr, body: Body) -> Extent | None:
        if isinstance(number, sp.Symbol) and is_slot(number) and not body.conditions:
            read = body.reads[slot_number(number)]
            return self.scope.draft.tensors[read.tensor].bound if read.outside is None else None
        return None

    def _fits(
        self, number: sp.Expr, declared: Extent, bound: Extent | None, reduce: Reduce, body: Body, frame: Frame
    ) -> bool:
        if bound is not None and reduce is Reduce.ARGMAX:
            return dim_facts(self.scope.draft.dims).proves(declared - bound)
        if reduce is not Reduce.SUM or body.frame is not self.root:
            return False
        facts = facts_at(self.scope, body, frame)
        return facts.proves(number) and facts.proves(declared - 1 - number)


def _is_bit(e: sp.Expr) -> bool:
    """Whether `e` is 0 or 1 by its form."""
    if isinstance(e, Select):
        return _is_bit(e.args[1]) and _is_bit(e.args[2])
    return e in (sp.S.Zero, sp.S.One)


def declared_type(kind: s.Type, scope: Scope, name: str) -> tuple[DType, Extent | None]:
    """The dtype and bound of a written type."""
    if kind.name not in KINDS:
        raise SourceError(kind.span, f"unknown type '{kind.name}'", (), "float, int, bool, or index n")
    if kind.name != "index":
        if kind.bound is not None:
            raise SourceError(kind.span, f"{kind.name} takes no size", (), "write `: index n`")
        return KINDS[kind.name], None
    if kind.bound is None:
        raise SourceError(kind.span, "index of what?", (), "write `: index n`, for the values 0 … n - 1")
    value = static.size(kind.bound, scope)
    return DType.INT, scope.draft.extent(value, scope.qualified(name), kind.span)


def equation(
    scope: Scope,
    name: str,
    left: s.Left,
    value: s.Expression,
    out: str | Callable[[], str],
    caller: Caller,
    span: Span,
    *,
    where: s.Expression | None = None,
    kind: s.Type | None = None,
    stop: bool = False,
) -> Tensor:
    """The formulas of ``left = value where condition``; their parts are named after `name`, the last is `out`."""
    statement = Equation(scope, name, left, caller, stop, span)
    axes = statement.look((value,) if where is None else (value, where))
    return statement.finish(axes, value, where, kind, out)


def copy(scope: Scope, source: Tensor, out: str, span: Span) -> Tensor:
    """``out = source``, of equal shape."""
    frame = Frame(0, None, open=True)
    ranges = Ranges(scope, out, _no_calls)
    axes = ranges.axes(frame, source.shape, span, 1)
    body = Body(frame)
    read = body.read(Access(source.name, tuple(var.symbol for var in axes)), source.dtype)
    expressions = Expressions(scope, ranges, out, Origin(span=span, layer=scope.path), False)
    return expressions.formula(out, axes, body, read, source.dtype, bound=source.bound)


def _no_calls(scope: Scope, e: s.Call, statement: str, path: str | None) -> Tensor:
    raise AssertionError(e)
