"""Random tensors: uniform draws, which have no storage, and the formula that gives them their law."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

from chainrule.errors import SourceError, Span, nearest
from chainrule.ir.formula import Extent, Origin
from chainrule.ir.graph import Tensor
from chainrule.ir.primitive import Primitive
from chainrule.lang import syntax as s
from chainrule.lang.draft import Caller, Scope
from chainrule.lang.equation import Equation, equation
from chainrule.lang.ranges import Var

Tree = TypeVar("Tree")


def draw(scope: Scope, e: s.RandomStatement, caller: Caller) -> None:
    """``random keep[*] ~ bernoulli(p)``: a uniform draw for each that the law needs, then the law's formula."""
    name = e.left.name
    scope.bind(name, e.left.span)
    target = scope.draft.unique(scope.qualified(name), ".")
    arguments = [a for a in e.law.arguments if a.name != "key"]
    statement = Equation(scope, name, e.left, caller, False, e.span)
    axes = statement.look(a.value for a in arguments)
    if e.law.function == "uniform" and not arguments:
        key = next((a.value for a in e.law.arguments), None)
        path = key.path if isinstance(key, s.Name) else target
        scope.tensors[name] = scope.defined[name] = _uniform(scope, target, axes, path, e.span)
        return
    law = scope.definitions.get(f"law:{e.law.function}")
    if not isinstance(law, s.Law):
        known = ["uniform", *(k[4:] for k in scope.definitions if k.startswith("law:"))]
        raise SourceError(e.law.span, f"unknown law '{e.law.function}'", (), nearest(e.law.function, known))
    values = _arguments(law, e.law)
    ranges = tuple(_range(var, scope, f"{target}.{var.name}") for var in axes)
    for draw_name in law.draws:
        source = f"{target}.{draw_name}"
        made = _uniform(scope, source, axes, source, e.span)
        scope.tensors[source] = made
        at = tuple(s.Name(var.name, e.span) for var in axes)
        read = s.Name(source, e.span)
        values[draw_name] = s.Indexed(read, at, None, e.span) if at else read
    left = s.Left(name, ranges, e.left.span) if ranges else s.Left(name, None, e.left.span)
    value = substitute(law.value, values, e.span)
    made = equation(scope, name, left, value, target, caller, e.span)
    node = scope.draft.nodes[-1]
    if any(t in scope.draft.learned for t in node.tensors):
        way_out = "draw with fixed arguments and write m + s * eps"
        raise SourceError(e.law.span, "a law's arguments may not depend on parameters", (), way_out)
    scope.tensors[name] = scope.defined[name] = made


def _uniform(scope: Scope, name: str, axes: tuple[Var, ...], key: str, span: Span) -> Tensor:
    shape = tuple(var.index.extent for var in axes)
    origin = Origin(span=span, layer=scope.path)
    return scope.draft.emit(Primitive("uniform", name, shape, key=key, origin=origin), span)


def _range(var: Var, scope: Scope, name: str) -> s.Range:
    """The index with its range, as if it were written."""
    extent: Extent = var.index.extent
    if extent.is_Integer:
        return s.Range(var.name, s.Number(_fraction(int(extent)), var.span), var.span)
    word = f"size of {extent}"  # no name that a text can hold
    scope.numbers[word] = extent
    return s.Range(var.name, s.Name(word, var.span), var.span)


def _fraction(value: int) -> Any:
    return Fraction(value)


def _arguments(law: s.Law, e: s.Call) -> dict[str, s.Expression]:
    names = [p.name for p in law.parameters]
    found: dict[str, s.Expression] = {}
    for k, argument in enumerate(e.arguments):
        name = argument.name or (names[k] if k < len(names) else "")
        if name not in names or name in found:
            problem = f"{law.name} takes {', '.join(names) or 'no arguments'}"
            raise SourceError(argument.span, problem, (), f"write {law.name}({', '.join(names)})")
        found[name] = argument.value
    for parameter in law.parameters:
        if parameter.name not in found:
            if parameter.default is None:
                problem = f"{law.name} needs '{parameter.name}'"
                raise SourceError(e.span, problem, (), f"write {law.name}({', '.join(names)})")
            found[parameter.name] = parameter.default
    return found


def substitute(e: Tree, values: dict[str, s.Expression], span: Span) -> Tree:
    """`e` with names replaced by expressions."""
    if isinstance(e, s.Name):
        return values.get(e.path, e)  # type: ignore[return-value]
    if isinstance(e, tuple):
        return tuple(substitute(part, values, span) for part in e)  # type: ignore[return-value]
    if is_dataclass(e) and not isinstance(e, Span | type):
        changed = {f.name: substitute(getattr(e, f.name), values, span) for f in fields(e) if f.name != "span"}
        return replace(e, **changed)
    return e
