"""Statements that declare: dims, inputs, parameters, states, scalars, outputs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import sympy as sp

from chainrule.errors import SourceError, Span
from chainrule.ir.expression import TRAINING, Select, dim_symbol, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Origin
from chainrule.ir.graph import Dim, Scalar, Tensor
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Pending, Scope
from chainrule.lang.equation import copy, declared_type

FLOAT_MAX = 1e308


def declare(scope: Scope, e: s.Statement) -> None:
    match e:
        case s.DimStatement():
            dim(scope, e)
        case s.InputStatement(tensor, kind, span):
            model_only(scope, "an input", span)
            dtype, bound = (DType.FLOAT, None) if kind is None else declared_type(kind, scope, f"{tensor.name}_bound")
            made = _tensor(scope, tensor, tensor.name, dtype, bound)
            scope.draft.inputs.append(made)
            scope.tensors[tensor.name] = made
        case s.ParamStatement():
            param(scope, e)
        case s.StateStatement():
            state(scope, e)
        case s.ScalarStatement(name, value, span):
            model_only(scope, "a scalar", span)
            new(scope, name, span)
            scope.draft.scalars[name] = Scalar(name, double(static.number(value, scope), value.span))
            scope.tensors[name] = scope.draft.give(Tensor(name, (), origin=Origin(span=span)))
        case s.OutputStatement(names, span):
            model_only(scope, "an output", span)
            scope.draft.listed = True
            scope.draft.outputs = []
            for named in names:
                put_out(scope, named.path, named.span)
        case _:
            raise AssertionError(e)


def model_only(scope: Scope, what: str, span: Span) -> None:
    if scope.kind != "model":
        raise SourceError(span, f"{what} belongs in a model", (), f"give the {scope.kind} an argument")
    if scope.turns:
        raise SourceError(span, f"{what} cannot be repeated", (), "put it before the repeat")


def put_out(scope: Scope, name: str, span: Span) -> None:
    if scope.kind != "model":
        raise SourceError(span, "an output belongs in a model", (), "the last statement is a layer's value")
    if name not in scope.tensors and name not in scope.draft.tensors:
        raise scope.unknown(name, span)
    if name in scope.draft.outputs:
        raise SourceError(span, f"'{name}' is put out twice", (), "leave one out")
    scope.draft.outputs.append(name)


def new(scope: Scope, name: str, span: Span) -> None:
    """Check that a declaration may take `name`."""
    scope.bind(name, span)
    if name in scope.tensors:
        raise SourceError(span, f"'{name}' is declared already", (), f"call it '{name}2'")


def dim(scope: Scope, e: s.DimStatement) -> None:
    model_only(scope, "a dim", e.span)
    draft = scope.draft
    if e.name in scope.numbers or e.name in scope.tensors:
        raise SourceError(e.span, f"'{e.name}' is declared already", (), "declare it once")
    if e.definition is not None:
        value = sp.expand(static.size(e.definition, scope))
        if not value.free_symbols or isinstance(value, sp.Symbol):
            scope.numbers[e.name] = value
            return
        scope.numbers[e.name] = draft.extent(value, e.name, e.definition.span)
        return
    low = 0 if e.minimum is None else _bound(scope, e.minimum)
    high = None if e.maximum is None else _bound(scope, e.maximum)
    if high is not None and high < low:
        raise SourceError(e.span, f"no dim is at least {low} and at most {high}", (), "exchange the bounds")
    draft.dims[e.name] = Dim(e.name, low, high)
    scope.numbers[e.name] = dim_symbol(e.name)


def _bound(scope: Scope, e: s.Expression) -> int:
    value = static.size(e, scope)
    if not value.is_Integer or value < 0:
        raise SourceError(e.span, f"a dim's bound is an integer, 0 or more, not {value}", (), "write dim t >= 1")
    return int(value)


def sizes(scope: Scope, tensor: s.Declaration) -> tuple[Extent, ...]:
    """The extents of a declaration; `*` is the signature's."""
    found: list[Extent] = []
    for k, e in enumerate(tensor.sizes):
        if isinstance(e, s.Star):
            if scope.star is None:
                raise SourceError(e.span, "nothing says what * stands for", (), "write the sizes out")
            found.extend(scope.star)
        else:
            name = scope.qualified(f"{tensor.name}_{k + 1}")
            found.append(scope.draft.extent(static.size(e, scope), name, e.span))
    return tuple(found)


def _tensor(scope: Scope, e: s.Declaration, name: str, dtype: DType, bound: Extent | None) -> Tensor:
    new(scope, e.name, e.span)
    if name in scope.draft.tensors:
        raise SourceError(e.span, f"'{name}' is declared already", (), "declare it once")
    origin = Origin(span=e.span, layer=scope.path)
    return scope.draft.give(Tensor(name, sizes(scope, e), dtype, bound, origin))


def store_name(scope: Scope, name: str) -> str:
    """The name of a parameter, state or shared layer on the graph: by its layer's path, and its repeat's turn."""
    parts = (scope.stores_path, name) if scope.stores_path else (name,)
    return ".".join((*parts, *map(str, scope.turns)))


def kept(scope: Scope, e: s.Declaration) -> Tensor | None:
    """The store that an earlier call of the same instance made."""
    found = None if scope.stores is None else scope.stores.get(store_name(scope, e.name))
    if found is not None and found.shape != (shape := sizes(scope, e)):
        facts = (f"{found.name} is {list(found.shape)}, and now {list(shape)}",)
        raise SourceError(e.span, "a shared layer is called with another shape", facts, "use two layers")
    return found


def remember(scope: Scope, name: str, tensor: Tensor) -> None:
    scope.tensors[name] = tensor
    if scope.stores is not None:
        scope.stores[store_name(scope, name)] = tensor


def param(scope: Scope, e: s.ParamStatement) -> None:
    if scope.kind == "optimizer":
        raise SourceError(e.span, "an optimizer has no parameters of its own", (), "declare a state")
    if (found := kept(scope, e.tensor)) is not None:
        scope.tensors[e.tensor.name] = found
        return
    name = store_name(scope, e.tensor.name)
    made = _tensor(scope, e.tensor, name, DType.FLOAT, None)
    for extent, written in zip(made.shape, e.tensor.sizes, strict=False):
        if not extent.is_Integer:
            way_out = "a parameter's sizes are integers: give the model an argument for it"
            raise SourceError(written.span, f"the parameter's size {extent} is not known", (), way_out)
    scope.draft.params[name] = Pending(made, e.law, scope, e.span)
    scope.draft.learned.add(name)
    remember(scope, e.tensor.name, made)
    scope.stored[e.tensor.name] = name


def state(scope: Scope, e: s.StateStatement) -> None:
    name = store_name(scope, e.tensor.name)
    found = kept(scope, e.tensor)
    if found is None:
        found = _tensor(scope, e.tensor, name, DType.FLOAT, None)
        scope.draft.states[name] = (found, double(static.number(e.value, scope), e.value.span))
        remember(scope, e.tensor.name, found)
    scope.stored[e.tensor.name] = found.name
    before = scope.draft.updates.get(found.name)  # by an earlier call of a shared layer: this one goes on from there
    scope.tensors[e.tensor.name] = (
        found if before is None else seen(scope, found.name, found, scope.draft.tensors[before], e.span)
    )


def seen(scope: Scope, store: str, old: Tensor, new: Tensor, span: Span) -> Tensor:
    """What a read after an update sees: ``if training then new else old``."""
    draft = scope.draft
    made = copy(scope, old, draft.unique(f"{store}.seen", "."), span)
    formula = draft.nodes.pop()
    assert isinstance(formula, Formula)
    at = formula.reads[0]
    chosen = Select(sp.Ne(TRAINING, 0, evaluate=False), slot(1, old.dtype.sort), slot(0, old.dtype.sort))
    both = replace(formula, body=chosen, reads=(at, Access(new.name, at.indices)), stop=True)
    draft.tensors.pop(made.name)
    return draft.emit(both, span)


def double(value: sp.Expr, span: Span) -> float:
    """A constant as a float."""
    if value.free_symbols:
        raise SourceError(span, f"{value} is not known before run time", (), "write a number")
    if value.is_Rational and value != 0 and not 1e-320 < abs(value) < FLOAT_MAX:
        raise SourceError(span, "a number that no double holds", (), "doubles end at 1e308")
    return _double(value)


@lru_cache(maxsize=4096)  # equal layers start by equal laws
def _double(value: sp.Expr) -> float:
    return int(value.p) / int(value.q) if value.is_Rational else float(value)
