"""Expressions of one statement as formulas: the second of its two passes.

Every index has its range. An expression becomes a scalar law over slots; reductions inside it, and calls of
functions without axes, become formulas of their own, named after the statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy as sp

from chainrule.errors import SourceError, Span, nearest
from chainrule.ir.expression import TRAINING, Select, floor, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Origin, Reduce
from chainrule.ir.graph import Tensor
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.body import Body, prove
from chainrule.lang.bounds import dim_facts
from chainrule.lang.draft import Scope
from chainrule.lang.ranges import Frame, Ranges, Var
from chainrule.lang.values import Value, builtin, closed, constant, numeric, relation, typed

SIMPLE = {"sum": Reduce.SUM, "prod": Reduce.PROD, "max": Reduce.MAX, "min": Reduce.MIN, "argmax": Reduce.ARGMAX}


# a reduction reaches over products only: any[j] x[j] > 0 compares what any gave
COMPARED = "compare it: x > 0; after a reduction in parentheses: any[j] (x[j] > 0)"


class Expressions:
    """Builds the formulas of one statement in `scope`, named after `statement`."""

    def __init__(self, scope: Scope, ranges: Ranges, statement: str, origin: Origin, stop: bool) -> None:
        self.scope, self.ranges, self.statement = scope, ranges, statement
        self.origin, self.stop = origin, stop

    # ------------------------------------------------------------ formulas

    def formula(
        self, out: str, axes: Iterable[Var], body: Body, value: sp.Expr, dtype: DType,
        over: Iterable[Var] = (), reduce: Reduce = Reduce.SUM, bound: Extent | None = None,
    ) -> Tensor:  # fmt: skip
        made = Formula(
            out=out,
            axes=tuple(var.index for var in axes),
            over=tuple(var.index for var in over),
            body=value,
            reads=tuple(body.reads),
            where=tuple(body.conditions),
            reduce=reduce,
            dtype=dtype,
            bound=bound,
            stop=self.stop,
            origin=self.origin,
        )
        assert self.origin.span is not None
        return self.scope.draft.emit(made, self.origin.span)

    def part_name(self, what: str) -> str:
        return self.scope.draft.unique(self.scope.qualified(f"{self.statement}_{what}"))

    def separate(self, kind: str, over: tuple[Var, ...], where: s.Expression | None, inner: s.Expression | None,
                 e: s.Expression, frame: Frame, inside: Frame, body: Body) -> Value:  # fmt: skip
        """A reduction inside an expression, as a formula of its own that `body` reads. inner None: it counts."""
        axes = self.ranges.free(e, frame)
        part = self.body_under(inside, body, axes)
        self.condition(where, inside, part)
        value = Value(sp.S.One, None, True) if inner is None else self.value(inner, inside, part)
        number, dtype, reduce, bound = self.reduced(kind, value, over, part, e.span)
        out = self.part_name(kind)
        made = self.formula(out, axes, part, number, dtype or DType.FLOAT, over, reduce, bound)
        read = body.read(Access(made.name, tuple(var.symbol for var in axes)), made.dtype)
        return Value(read, dtype, value.integral or dtype is not DType.FLOAT)

    def body_under(self, inside: Frame, outer: Body, axes: tuple[Var, ...]) -> Body:
        """An empty body under those of the outer one's conditions that only concern `axes`."""
        part = Body(inside)
        for condition, frame in outer.sources:
            if set(self.ranges.free(condition, frame)) <= set(axes):
                self.condition(condition, frame, part)
        return part

    def condition(self, where: s.Expression | None, frame: Frame, body: Body) -> None:
        """Put a condition, split at its `and`s, under `body`; each part is read under those before it."""
        if where is None:
            return
        claims = where.parts if isinstance(where, s.Junction) and where.word == "and" else (where,)
        for claim in claims:
            value = self.value(claim, frame, body)
            if value.kind is not DType.BOOL:
                raise SourceError(claim.span, "a number where a condition belongs", (), COMPARED)
            body.conditions.append(value.expr)
            body.sources.append((claim, frame))

    def reduced(
        self, kind: str, value: Value, over: tuple[Var, ...], body: Body, span: Span
    ) -> tuple[sp.Expr, DType | None, Reduce, Extent | None]:
        """The law, dtype, reduction and bound of ``kind[over] value`` under the conditions of `body`."""
        number = value.number
        if kind in ("argmax", "argmin"):
            extents = [var.index.extent for var in over]
            facts = dim_facts(self.scope.draft.dims)
            empty = bool(body.conditions) or not all(facts.proves(extent - 1) for extent in extents)
            name = self.scope.qualified(f"{self.statement}_places")
            # of nothing it is the number of places, which is none of them
            bound = self.scope.draft.extent(sp.Mul(*extents) + int(empty), name, span)
            return (number if kind == "argmax" else -number), DType.INT, Reduce.ARGMAX, bound
        dtype = DType.INT if value.kind is DType.BOOL else value.kind
        return number, dtype, SIMPLE[kind], None

    # ------------------------------------------------------------ values

    def value(self, e: s.Expression, frame: Frame, body: Body) -> Value:
        match e:
            case s.Number():
                return constant(static.static(e, self.scope))
            case s.Name():
                return self.name(e, frame, body)
            case s.Indexed():
                return self.access(e, frame, body)
            case s.Sum(terms):
                values = [(sign, self.value(t, frame, body), t) for sign, t in terms]
                kind = self.mixed([(v, t.span) for _, v, t in values], e.span)
                total = sp.Add(*(sp.Mul(sign, v.number) for sign, v, _ in values))
                return Value(self.finite(total, e.span), kind, all(v.integral for _, v, _ in values))
            case s.Product(factors):
                return self.product(factors, e.span, frame, body)
            case s.Negate(inner):
                value = self.value(inner, frame, body)
                return Value(-value.number, numeric(value.kind), value.integral)
            case s.Power():
                return self.power(e, frame, body)
            case s.Compare():
                return self.compare(e, frame, body)
            case s.Junction(word, claims):
                known = [self.truth(c, frame, body) for c in claims]
                return Value(sp.And(*known) if word == "and" else sp.Or(*known), DType.BOOL, True)
            case s.Not(inner):
                return Value(sp.Not(self.truth(inner, frame, body)), DType.BOOL, True)
            case s.Choice():
                return self.choice(e, frame, body)
            case s.Reduction(kind, _, where, inner):
                inside = self.ranges.frames[id(e)]
                over = (*inside.names.values(), *((inside.star or ()) if inside.open else ()))
                return self.reduction(kind, over, where, inner, e, frame, inside, body)
            case s.Call():
                return self.call(e, frame, body)
        raise AssertionError(e)

    def name(self, e: s.Name, frame: Frame, body: Body) -> Value:
        if (var := frame.find(e.path)) is not None:
            return Value(var.symbol, None, True)
        scope = self.scope
        if (tensor := scope.find(e.path)) is not None:
            return self.read_whole(tensor, frame, body)
        if e.path == "training":
            return Value(sp.Ne(TRAINING, 0, evaluate=False), DType.BOOL, True, TRAINING)
        if e.path in scope.numbers or e.path in scope.axes or e.path in static.WORDS:
            return constant(static.static(e, scope))
        if e.path == "_":
            raise SourceError(e.span, "`_` stands for the missing argument of `let f = layer(_)`", (), "name a tensor")
        raise scope.unknown(e.path, e.span)

    def read_whole(self, tensor: Tensor, frame: Frame, body: Body) -> Value:
        whole = (frame.nearest_open.whole or ()) if tensor.shape else ()
        read = body.read(Access(tensor.name, tuple(var.symbol for var in whole)), tensor.dtype)
        return typed(read, tensor.dtype)

    def access(self, e: s.Indexed, frame: Frame, body: Body) -> Value:
        tensor = self.ranges.base(e, frame)
        indices: list[sp.Expr] = []
        unproved: list[tuple[int, s.Expression]] = []
        for item, axis in self.ranges.positions(e, tensor, frame):
            if isinstance(item, Var):
                indices.append(item.symbol)
                continue
            index = self.index(item, frame, body)
            indices.append(index)
            var = frame.find(item.path) if isinstance(item, s.Name) else None
            if var is None or var.extent != tensor.shape[axis]:
                unproved.append((axis, item))
        outside = None
        if e.outside is not None:
            outside = static.number(e.outside, self.scope)
            if outside.free_symbols:
                raise SourceError(e.outside.span, "the value outside is a constant", (), "write `; 0`")
        else:
            for axis, item in unproved:
                prove(self.scope, indices[axis], tensor, axis, item, body, frame)
        return typed(body.read(Access(tensor.name, tuple(indices), outside), tensor.dtype), tensor.dtype)

    def index(self, item: s.Expression, frame: Frame, body: Body) -> sp.Expr:
        value = self.value(item, frame, body)
        if value.kind is DType.BOOL or (value.kind is DType.FLOAT and not value.integral):
            raise SourceError(item.span, f"an index that is {value.kind.value}", (), "round it: int(floor(x))")
        if value.kind is None and not value.integral:
            raise SourceError(item.span, "this index need not be an integer", (), "divide with //")
        return value.number

    def product(self, factors: tuple[tuple[str, s.Expression], ...], span: Span, frame: Frame, body: Body) -> Value:
        values = [(sign, self.value(f, frame, body), f) for sign, f in factors]
        kind = self.mixed([(v, f.span) for _, v, f in values], span)
        integral = all(v.integral for _, v, _ in values)
        signs = {sign for sign, _, _ in values}
        for sign, v, f in values:
            if sign != "*" and v.number.is_zero:
                raise SourceError(f.span, "division by zero", (), "check the sizes")
        if not signs & {"//", "%"}:
            terms = [v.number if sign == "*" else sp.Pow(v.number, -1) for sign, v, _ in values]
            total = sp.Mul(*terms)
        else:
            total = values[0][1].number
            for sign, v, _ in values[1:]:
                total = self.divided(sign, total, v, integral, span)
        if "/" in signs:
            integral, kind = bool(total.is_Integer), (DType.FLOAT if kind is DType.INT else kind)
        return Value(self.finite(total, span), kind, integral)

    def divided(self, sign: str, left: sp.Expr, v: Value, integral: bool, span: Span) -> sp.Expr:
        if sign == "*":
            return sp.Mul(left, v.number)
        if sign == "/":
            return sp.Mul(left, sp.Pow(v.number, -1))
        if not integral:
            if sign == "%":
                raise SourceError(span, "% is for integers", (), "write x - y * floor(x / y)")
            return floor(sp.Mul(left, sp.Pow(v.number, -1)))
        return quotient(left, v.number) if sign == "//" else remainder(left, v.number)

    def power(self, e: s.Power, frame: Frame, body: Body) -> Value:
        base, exponent = self.value(e.base, frame, body), self.value(e.exponent, frame, body)
        kind = self.mixed([(base, e.base.span), (exponent, e.exponent.span)], e.span)
        x, n = base.number, exponent.number
        integral = base.integral and exponent.integral and bool(n.is_nonnegative)
        if kind is DType.INT and not integral:
            kind = DType.FLOAT
        return Value(self.finite(static.power(x, n, e.span), e.span), kind, integral)

    def finite(self, e: sp.Expr, span: Span) -> sp.Expr:
        """`e` in the closed set of nodes. Raises on a constant that is no number."""
        if e.has(sp.zoo) or (e is sp.nan):
            if e is sp.nan and "nan" in span.text:
                return e
            raise SourceError(span, "this constant is no number", (), "check for a division by zero")
        if e.has(sp.I):
            raise SourceError(span, "this constant is no real number", (), "check roots of negative numbers")
        return closed(e)

    def compare(self, e: s.Compare, frame: Frame, body: Body) -> Value:
        left, right = self.value(e.left, frame, body), self.value(e.right, frame, body)
        if DType.BOOL in (left.kind, right.kind):
            if left.kind is not right.kind and None not in (left.kind, right.kind):
                way_out = "write `c` or `not c`, or int(c)"
                raise SourceError(e.span, "a truth value compared with a number", (), way_out)
        else:
            self.mixed([(left, e.left.span), (right, e.right.span)], e.span)
        if (decided := self.ranges.decided(e, frame)) is not None:
            return Value(sp.true if decided else sp.false, DType.BOOL, True)
        return Value(relation(e.sign, left.number, right.number), DType.BOOL, True)

    def truth(self, e: s.Expression, frame: Frame, body: Body) -> sp.Basic:
        value = self.value(e, frame, body)
        if value.kind is not DType.BOOL:
            raise SourceError(e.span, "a number where a condition belongs", (), COMPARED)
        return value.expr

    def choice(self, e: s.Choice, frame: Frame, body: Body) -> Value:
        taken = self.ranges.branches(e, frame)
        if len(taken) == 1:
            return self.value(taken[0], frame, body)
        condition = self.truth(e.condition, frame, body)
        yes, no = self.value(e.yes, frame, body), self.value(e.no, frame, body)
        if yes.kind is DType.BOOL and no.kind is DType.BOOL:
            return Value(relation("!=", Select(condition, yes.number, no.number), sp.S.Zero), DType.BOOL, True)
        kind = self.mixed([(yes, e.yes.span), (no, e.no.span)], e.span)
        return Value(Select(condition, yes.number, no.number), kind, yes.integral and no.integral)

    def mixed(self, values: list[tuple[Value, Span]], span: Span) -> DType | None:
        """The kind of an operation on `values`: tensors of float and of int do not mix silently."""
        kinds = {v.kind for v, _ in values} - {None}
        if DType.FLOAT in kinds and len(kinds) > 1:
            other, at = next((v, where) for v, where in values if v.kind in (DType.INT, DType.BOOL))
            assert other.kind is not None
            raise SourceError(at, f"{other.kind.value} and float in one operation", (), "convert it: float(…)")
        if DType.FLOAT in kinds:
            return DType.FLOAT
        return DType.INT if kinds else None

    # ------------------------------------------------------------ reductions and calls

    def reduction(self, kind: str, over: tuple[Var, ...], where: s.Expression | None, inner: s.Expression,
                  e: s.Expression, frame: Frame, inside: Frame, body: Body) -> Value:  # fmt: skip
        """A reduction within an expression: a formula of its own, read by `body`; mean, any, all are made of sums."""
        if kind in SIMPLE or kind == "argmin":
            return self.separate(kind, over, where, inner, e, frame, inside, body)
        if kind == "mean":
            total = self.separate("sum", over, where, inner, e, frame, inside, body)
            count = sp.Mul(*(var.index.extent for var in over))
            if where is not None:
                count = self.separate("sum", over, where, None, e, frame, inside, body).expr
            if count.is_zero:
                return Value(sp.nan, DType.FLOAT)
            return Value(sp.Mul(total.expr, sp.Pow(count, -1)), DType.FLOAT)
        # any: some c holds; all: no c fails
        claim = inner if kind == "any" else s.Not(inner, inner.span)
        self.ranges.kept.append(claim)
        found = self.separate("sum", over, where, claim, e, frame, inside, body)
        return Value(relation(">" if kind == "any" else "==", found.expr, sp.S.Zero), DType.BOOL, True)

    def call(self, e: s.Call, frame: Frame, body: Body) -> Value:
        if self.ranges.reduces_all(e):
            inside = self.ranges.frames[id(e)]
            over = (*(inside.star or ()), *(inside.whole or ()))
            return self.reduction(e.function, over, None, e.arguments[0].value, e, frame, inside, body)
        if id(e) in self.ranges.values:
            return self.read_whole(self.ranges.values[id(e)], frame, body)
        if e.function == "size":
            return constant(static.size_of(e, self.scope))
        if e.function == "norm":
            return Value(body.read(Access(norm(self.scope, e), ()), DType.FLOAT), DType.FLOAT)
        if not self.ranges.is_builtin(e.function):
            return self.elementwise(e, frame, body)
        if named := [a for a in e.arguments if a.name is not None]:
            problem = f"{e.function} has no argument '{named[0].name}'"
            raise SourceError(named[0].span, problem, (), "leave the name out")
        values = [self.value(a.value, frame, body) for a in e.arguments]
        kind = None
        if e.function not in ("float", "int"):
            kind = self.mixed([(v, a.span) for v, a in zip(values, e.arguments, strict=True)], e.span)
        return builtin(e, values, kind)

    def elementwise(self, e: s.Call, frame: Frame, body: Body) -> Value:
        """A function without axes in an indexed expression: its arguments and it are formulas of their own."""
        axes = self.ranges.free(e, frame)
        path = self.scope.path_later(self.statement, e.function)
        definition = self.scope.definitions[e.function]
        assert isinstance(definition, s.Definition)
        arguments: list[s.Argument] = []
        for argument, name in zip(e.arguments, argument_names(definition, e), strict=True):
            if static.is_static(argument.value, self.scope) and not self.ranges.free(argument.value, frame):
                arguments.append(argument)
                continue
            part = self.body_under(frame, body, axes)
            value = self.value(argument.value, frame, part)
            tensor = self.same_tensor(value, part, axes)
            if tensor is None:
                out = self.scope.draft.unique(f"{path()}.{name}")
                dtype = value.kind or DType.FLOAT
                tensor = self.formula(out, axes, part, value.number, dtype)
            arguments.append(s.Argument(argument.name, Given(tensor, argument.span), argument.span))  # type: ignore[arg-type]
        made = self.ranges.caller(self.scope, s.Call(e.function, tuple(arguments), e.span), self.statement, path())
        indices = tuple(var.symbol for var in axes) if made.shape else ()
        return typed(body.read(Access(made.name, indices), made.dtype), made.dtype)

    def same_tensor(self, value: Value, part: Body, axes: tuple[Var, ...]) -> Tensor | None:
        """The tensor behind `value`, if it is read at exactly `axes`: then no copy is needed."""
        if len(part.reads) != 1 or part.conditions or value.number not in (slot(0), slot(0, DType.INT.sort)):
            return None
        read = part.reads[0]
        tensor = self.scope.draft.tensors[read.tensor]
        at_axes = read.indices == tuple(var.symbol for var in axes) and read.outside is None
        return tensor if at_axes and tensor.shape == tuple(var.index.extent for var in axes) else None


def norm(scope: Scope, e: s.Call) -> str:
    """``norm(gradients)``: the tensor that holds it; of all gradients together, in an optimizer."""
    name = e.arguments[0].value.path if e.arguments and isinstance(e.arguments[0].value, s.Name) else ""
    found = scope.draft.specials.get(f"norm({name})")
    if found is None:
        raise SourceError(e.span, "norm takes `gradients`, in an optimizer", (), "write sqrt(sum[i] x[i]^2)")
    return found()


@dataclass(frozen=True)
class Given:
    """A tensor in the place of an argument's expression."""

    tensor: Tensor
    span: Span


def argument_names(definition: s.Definition, e: s.Call) -> list[str]:
    """The parameter that each argument of a call is for."""
    names = [p.name for p in definition.parameters]
    found = []
    for k, argument in enumerate(e.arguments):
        if argument.name is None and k >= len(names):
            problem = f"{e.function} takes {len(names)} argument{'s' * (len(names) != 1)}, not {len(e.arguments)}"
            raise SourceError(argument.span, problem, (), f"write {e.function}({', '.join(names)})")
        name = names[k] if argument.name is None else argument.name
        if name not in names:
            raise SourceError(argument.span, f"{e.function} has no argument '{name}'", (), nearest(name, names))
        if name in found:
            raise SourceError(argument.span, f"'{name}' is given twice", (), "leave one out")
        found.append(name)
    return found
