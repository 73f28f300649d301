"""How parameters start: an initialiser's text becomes a base law and its numbers, once the fans are known.

fan_in is the product of the axes reduced over where the parameter is first read, fan_out of its others; ``each = g``
says that an axis of extent g stacks independent matrices, and leaves it out of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import sympy as sp

from chainrule.errors import SourceError, nearest
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Init
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.declarations import double
from chainrule.lang.draft import Pending, Scope

BASE = {"uniform": 2, "normal": 2, "constant": 1, "orthogonal": 2}
"""The laws that the run side draws, with how many numbers each takes."""


def initial(pending: Pending, reader: Formula | None) -> Init:
    """The law of a parameter, with its numbers."""
    e, scope = pending.law, pending.scope
    definition = scope.definitions.get(f"init:{e.function}")
    if not isinstance(definition, s.Initialiser):
        known = [name[5:] for name in scope.definitions if name.startswith("init:")]
        raise SourceError(e.span, f"unknown initialiser '{e.function}'", (), nearest(e.function, known))
    each = next((a for a in e.arguments if a.name == "each"), None)
    stacked = None if each is None else static.size(each.value, scope)
    if stacked is not None and stacked not in pending.tensor.shape:
        assert each is not None
        shape = f"{pending.tensor.name} is {list(pending.tensor.shape)}"
        raise SourceError(each.span, f"no axis has the extent {stacked}", (shape,), "each = g stacks g matrices")
    axis = stacking_axis(pending, reader, stacked)
    inner = Scope(scope.draft, scope.definitions, numbers=dict(fans(pending, reader, axis)))
    arguments(inner, definition, e, scope)
    law = definition.law
    if BASE.get(law.function) != len(law.arguments):
        raise SourceError(law.span, f"'{law.function}' is no base law", (), f"base laws are {', '.join(BASE)}")
    numbers = tuple(double(static.number(a.value, inner), a.span) for a in law.arguments)
    return Init(law.function, numbers, axis)


def arguments(inner: Scope, definition: s.Initialiser, e: s.Call, scope: Scope) -> None:
    """Bind an initialiser's arguments, given in order or by name."""
    given: dict[str, s.Argument] = {}
    names = [p.name for p in definition.parameters]
    positional = [a for a in e.arguments if a.name is None]
    if len(positional) > len(names):
        problem = f"{definition.name} takes {', '.join(names) or 'no arguments'}"
        raise SourceError(positional[len(names)].span, problem, (), "leave it out")
    given.update(zip(names, positional, strict=False))
    for argument in e.arguments:
        if argument.name is None or argument.name == "each":
            continue
        if argument.name not in names or argument.name in given:
            way_out = nearest(argument.name, [*names, "each"])
            raise SourceError(argument.span, f"{definition.name} has no argument '{argument.name}'", (), way_out)
        given[argument.name] = argument
    for parameter in definition.parameters:
        if parameter.name in given:
            inner.numbers[parameter.name] = static.number(given[parameter.name].value, scope)
        elif parameter.default is not None:
            inner.numbers[parameter.name] = static.number(parameter.default, inner)
        else:
            way_out = f"write {definition.name}({', '.join(names)})"
            raise SourceError(e.span, f"{definition.name} needs '{parameter.name}'", (), way_out)


def stacking_axis(pending: Pending, reader: Formula | None, stacked: sp.Expr | None) -> int | None:
    """The axis that stacks matrices: the first of that extent which is not reduced over, else the first."""
    if stacked is None:
        return None
    shape, reduced = list(pending.tensor.shape), reduced_axes(pending.tensor.name, reader)
    return next((k for k, n in enumerate(shape) if n == stacked and k not in reduced), shape.index(stacked))


def fans(pending: Pending, reader: Formula | None, skipped: int | None) -> Mapping[str, sp.Expr]:
    """fan_in, fan_out, and the columns of the parameter as a matrix whose one side is fan_in."""
    shape = list(pending.tensor.shape)
    reduced = set(reduced_axes(pending.tensor.name, reader))
    axes = [k for k in range(len(shape)) if k != skipped]
    fan_in = sp.Mul(*(shape[k] for k in axes if k in reduced))
    fan_out = sp.Mul(*(shape[k] for k in axes if k not in reduced))
    first = bool(axes) and axes[0] in reduced
    columns = fan_out if first or not reduced else fan_in
    return {"fan_in": _positive(fan_in), "fan_out": _positive(fan_out), "columns_of": _positive(columns)}


@lru_cache(maxsize=4096)
def _positive(size: sp.Expr) -> sp.Expr:
    return sp.Max(size, sp.S.One)


def reduced_axes(name: str, reader: Formula | None) -> list[int]:
    """The axes of `name` that `reader` reduces over."""
    if reader is None:
        return []
    over = {index.symbol for index in reader.over}
    read = next(r for r in reader.reads if r.tensor == name)
    return [k for k, index in enumerate(read.indices) if index.free_symbols & over]
