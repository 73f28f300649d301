"""Statements to formulas: what each statement of a model, layer, function or optimizer adds to the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sympy as sp

from chainrule.errors import SourceError, Span, nearest
from chainrule.ir.expression import slot
from chainrule.ir.formula import Formula, Origin
from chainrule.ir.graph import Tensor
from chainrule.ir.primitive import Primitive
from chainrule.lang import declarations, recurrence, scan, static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Instance, Scope
from chainrule.lang.draws import draw
from chainrule.lang.equation import copy, equation
from chainrule.lang.expressions import Given, argument_names, norm
from chainrule.lang.fixed_point import fixed_point
from chainrule.lang.ranges import reads_in

CALLS = 40  # a call in a call in a call …; a model of real layers needs some 5


def run(scope: Scope, statements: tuple[s.Statement, ...], out: str | None = None) -> Tensor | None:
    """Elaborate `statements` in order; the value of the last definition, which is called `out` if that is given."""
    scope.later = dict(definitions(statements))
    return _run(scope, statements, out)


def _run(scope: Scope, statements: tuple[s.Statement, ...], out: str | None) -> Tensor | None:
    value: Tensor | None = None
    last = max((k for k, statement in enumerate(statements) if _defines(statement)), default=-1)
    circle, first = -1, 0  # a recurrence's last statement, and where its formulas begin
    for k, statement in enumerate(statements):
        if k > circle and isinstance(statement, s.Define):
            circle, first = recurrence.read_ahead(scope, statements, k), len(scope.draft.nodes)
            for e in recurrence.promised(scope, statements, k, circle):
                target = out if e is statements[last] else None
                name = scope.draft.unique(target or scope.qualified(e.left.name), ".")
                scope.promised[e.left.name] = scope.tensors[e.left.name] = recurrence.promise(scope, e, name)
        match statement:
            case s.Define():
                value = define(scope, statement, out if k == last else None)
            case s.RepeatStatement():
                value = repeat(scope, statement, out if k == last else None) or value
            case s.UpdateStatement():
                reads_on = bool(scope.turns) or any(_mentions(r, statement.left.name) for r in statements[k + 1 :])
                update(scope, statement, reads_on)
            case s.RandomStatement():
                draw(scope, statement, call)
            case s.LetStatement():
                let(scope, statement)
            case s.FixedPoint():
                value = fixed_point(scope, statement, out if k == last else None, _run)
            case _:
                declarations.declare(scope, statement)
        if k == circle and len(scope.draft.nodes) > first:
            recurrence.check(scope.draft.nodes[first:], statement.span)
    return value


def definitions(statements: tuple[s.Statement, ...]) -> list[tuple[str, Span]]:
    """The names that `statements` define."""
    found: list[tuple[str, Span]] = []
    for statement in statements:
        match statement:
            case s.Define(left) | s.RandomStatement(left) | s.FixedPoint(left):
                found.append((left.name, left.span))
            case s.RepeatStatement(_, _, body):
                found.extend(definitions(body))
            case _:
                pass
    return found


def _defines(statement: s.Statement) -> bool:
    if isinstance(statement, s.RepeatStatement):
        return any(_defines(inner) for inner in statement.body)
    return isinstance(statement, s.Define | s.FixedPoint)


def _mentions(statement: s.Statement, name: str) -> bool:
    match statement:
        case s.Define(_, _, value, where) | s.UpdateStatement(_, value, where):
            found = (value,) if where is None else (value, where)
            return any(name in reads_in(e) for e in found)
        case s.RandomStatement(_, law):
            return name in reads_in(law)
        case s.RepeatStatement(_, _, body) | s.FixedPoint(_, _, _, _, body):
            return any(_mentions(inner, name) for inner in body)
        case s.OutputStatement(names):
            return any(n.path == name for n in names)
        case _:
            return False


# ---------------------------------------------------------------- definitions


def define(scope: Scope, e: s.Define, out: str | None) -> Tensor:
    name = e.left.name
    scope.bind(name, e.left.span)
    said = scope.promised.pop(name, None)
    target = said.name if said is not None else scope.draft.unique(out or scope.qualified(name), ".")
    if is_direct_call(scope, e):
        assert isinstance(e.value, s.Call)
        made = call(scope, e.value, name, None, target)
    else:
        made = equation(
            scope, name, e.left, e.value, target, call, e.span, where=e.where, kind=e.type, stop=e.stop
        )  # fmt: skip
    if said is not None:
        recurrence.kept(scope, e, said, made)
    if scope.kind == "optimizer":
        made = _uncopied(scope, made)
    scope.tensors[name] = scope.defined[name] = made
    if e.output:
        declarations.put_out(scope, name, e.left.span)
    return made


def _uncopied(scope: Scope, made: Tensor) -> Tensor:
    """In an optimizer, what a decided condition left as a copy is no formula, but another name."""
    draft, node = scope.draft, scope.draft.nodes[-1]
    if not isinstance(node, Formula) or node.over or node.where or node.body != slot(0, made.dtype.sort):
        return made
    source = draft.tensors[node.reads[0].tensor]
    if node.reads[0].indices != tuple(axis.symbol for axis in node.axes) or source.shape != made.shape:
        return made
    draft.nodes.pop()
    draft.tensors.pop(made.name)
    return source


def is_direct_call(scope: Scope, e: s.Define) -> bool:
    """Whether the statement is ``y = f(…)`` of a layer or function, whose value then takes the statement's name."""
    plain = e.left.axes is None and e.where is None and e.type is None and not e.stop
    if not plain or not isinstance(e.value, s.Call):
        return False
    function = e.value.function
    if function in scope.instances or function in scope.own:
        return True
    return not static.is_builtin(function)


def repeat(scope: Scope, e: s.RepeatStatement, out: str | None) -> Tensor | None:
    count = static.size(e.count, scope)
    if not count.is_Integer or count < 0:
        raise SourceError(e.count.span, f"repeat {count} times?", (), "the number of turns is an integer, 0 or more")
    if count * written(e.body) > scope.draft.limit:
        problem = f"{count} turns make more than {scan.FORMULAS:,} formulas"
        raise SourceError(e.count.span, problem, (), "repeat less often")
    before, hidden = scope.turns, scope.numbers.get(e.index or "")
    value: Tensor | None = None
    for turn in range(int(count)):
        scope.turns = (*before, turn)
        if e.index is not None:
            scope.numbers[e.index] = sp.Integer(turn)
        value = _run(scope, e.body, out if turn == count - 1 else None) or value
    scope.turns = before
    if e.index is not None:
        scope.numbers.pop(e.index, None)
        if hidden is not None:
            scope.numbers[e.index] = hidden
    return value


def written(statements: tuple[s.Statement, ...]) -> int:
    """How many formulas `statements` make at least, known turns of inner repeats counted."""
    total = 0
    for statement in statements:
        if isinstance(statement, s.RepeatStatement):
            known = statement.count.value if isinstance(statement.count, s.Number) else 1
            total += int(known) * written(statement.body)
        else:
            total += 1
    return max(total, 1)


def let(scope: Scope, e: s.LetStatement) -> None:
    if e.name in scope.tensors:
        raise SourceError(e.span, f"'{e.name}' is a tensor here", (), f"call it '{e.name}2'")
    if isinstance(e.value, s.Call) and any(_is_hole(a.value) for a in e.value.arguments):
        definition = scope.definitions.get(e.value.function)
        if not isinstance(definition, s.Definition):
            raise _no_function(scope, e.value)
        stores = {} if scope.stores is None else scope.stores
        scope.instances[e.name] = Instance(definition, e.value, declarations.store_name(scope, e.name), stores)
        return
    value = static.static(e.value, scope)
    if not isinstance(value, bool) and value.free_symbols and not isinstance(value, sp.Symbol):
        scope.draft.hints.setdefault(sp.expand(value), scope.qualified(e.name))
    scope.numbers[e.name] = value


def _is_hole(e: s.Expression) -> bool:
    return isinstance(e, s.Name) and e.path == "_"


# ---------------------------------------------------------------- updates


def update(scope: Scope, e: s.UpdateStatement, reads_on: bool) -> None:
    """``m[*] <- value``: a node with the new value; reads after it see that in training, the stored one in eval."""
    store = scope.stored.get(e.left.name)
    if store is None:
        way_out = nearest(e.left.name, scope.stored)
        raise SourceError(e.left.span, f"'{e.left.name}' is no state", (), way_out)
    draft = scope.draft
    value = e.value
    source = scope.tensors.get(value.path) if isinstance(value, s.Name) else None
    if source is not None and e.where is None and source.name in draft.axis_names and e.left.axes is None:
        made = source
    else:
        out = draft.unique(f"{store}.next", ".")
        made = equation(scope, e.left.name, e.left, value, out, call, e.span, where=e.where, stop=True)
    before = draft.tensors[store]
    if made.shape != before.shape or made.dtype is not before.dtype:
        facts = (f"{store} is {list(before.shape)}, the new value {list(made.shape)}",)
        raise SourceError(e.left.span, "the new value has another shape or type", facts, "update all of the state")
    draft.updates[store] = made.name
    if scope.kind == "optimizer":
        scope.tensors[e.left.name] = made
    elif reads_on:
        old = scope.tensors[e.left.name]
        scope.tensors[e.left.name] = declarations.seen(scope, store, old, made, e.span)


# ---------------------------------------------------------------- calls


def call(scope: Scope, e: s.Call, statement: str, path: str | None = None, target: str | None = None) -> Tensor:
    """The value of a layer or function, called in `statement`; it is named `target`, or by its path."""
    if e.function == "gradient" and e.function not in scope.own:
        return gradient(scope, e, target or scope.call_path(statement, e.function))
    instance = scope.instances.get(e.function)
    definition = instance.definition if instance else scope.definitions.get(e.function)
    if not isinstance(definition, s.Definition) or definition.kind not in ("layer", "fn"):
        raise _no_function(scope, e)
    path_of = scope.path_later(statement, e.function, path)
    child = scope.child(definition)
    if instance is not None:
        e = _filled(instance.call, e)
    tensors = arguments(scope, child, definition, e, statement, path_of)
    path = path_of()
    child.path = child.stores_path = path
    if instance is not None:
        child.stores_path, child.stores = instance.path, instance.stores
    elif scope.stores is not None:  # a layer in a shared layer is shared with it
        child.stores_path, child.stores = scope.stores_path + path.removeprefix(scope.path), scope.stores
    for parameter, tensor, span in tensors:
        child.tensors[parameter.name] = tensor
        if parameter.axes is not None:
            unify(child, parameter, tensor, span)
    draft = scope.draft
    draft.depth += 1
    if draft.depth > CALLS:
        raise SourceError(e.span, f"calls nest deeper than {CALLS}", (), f"does {e.function} call itself?")
    target = draft.unique(path, ".") if target is None or target == path else target
    try:
        value = run(child, definition.body, target)
    except SourceError as error:
        if e.span.file != error.span.file or e.span.line != error.span.line:
            error.facts = (*error.facts, f"in {e.function}, called at {e.span}: {e.span.text.strip()}")[:12]
        raise
    finally:
        draft.depth -= 1
    if value is None:
        raise SourceError(definition.span, f"{e.function} defines nothing", (), "its last statement is its value")
    return value if value.name == target else copy(scope, value, target, e.span)


def gradient(scope: Scope, e: s.Call, target: str) -> Tensor:
    """``gradient(y, x)``: of y, of rank 0, with respect to x; the backward pass puts its formulas in place."""
    tensors: list[Tensor] = []
    for argument in e.arguments:
        found = scope.find(argument.value.path) if isinstance(argument.value, s.Name) else None
        if found is None and isinstance(argument.value, s.Name):
            raise scope.unknown(argument.value.path, argument.value.span)
        if found is not None:
            tensors.append(found)
    if len(tensors) != 2 or len(e.arguments) != 2 or tensors[0].shape:
        raise SourceError(e.span, "gradient takes a tensor of rank 0 and another tensor", (), "write gradient(loss, W)")
    y, x = tensors
    origin = Origin(span=e.span, layer=scope.path)
    made = Primitive("gradient", scope.draft.unique(target, "."), x.shape, (y.name, x.name), origin=origin)
    return scope.draft.emit(made, e.span)


def _filled(base: s.Call, given: s.Call) -> s.Call:
    """The call of an instance: the holes of its definition filled in, in order."""
    rest = list(given.arguments)
    arguments = []
    for argument in base.arguments:
        if _is_hole(argument.value):
            if not rest:
                raise SourceError(given.span, "an argument is missing", (), f"write {given.function}(x)")
            arguments.append(replace(argument, value=rest.pop(0).value))
        else:
            arguments.append(argument)
    if rest:
        raise SourceError(rest[0].span, f"{given.function} takes no further argument", (), "leave it out")
    return s.Call(base.function, tuple(arguments), given.span)


def _no_function(scope: Scope, e: s.Call) -> SourceError:
    known = [name for name in scope.definitions if ":" not in name]
    if e.function in scope.definitions:
        kind = scope.definitions[e.function].kind
        return SourceError(e.span, f"'{e.function}' is no layer or function here ({kind})", (), "see the reference")
    known += [*scope.instances, *static.STATIC_FUNCTIONS]
    return SourceError(e.span, f"unknown layer or function '{e.function}'", (), nearest(e.function, known))


def arguments(
    scope: Scope, child: Scope, definition: s.Definition, e: s.Call, statement: str, path: Callable[[], str]
) -> list[tuple[s.Parameter, Tensor, Span]]:
    """Give the definition's arguments their values: numbers in `child`, since axes may mention them, and tensors."""
    named = dict(zip(argument_names(definition, e), e.arguments, strict=True))
    tensors: list[tuple[s.Parameter, Tensor, Span]] = []
    for parameter in definition.parameters:
        argument = named.get(parameter.name)
        if argument is None:
            if parameter.default is None:
                names = ", ".join(p.name for p in definition.parameters)
                way_out = f"write {definition.name}({names})"
                raise SourceError(e.span, f"{definition.name} needs '{parameter.name}'", (), way_out)
            child.numbers[parameter.name] = static.static(parameter.default, child)
        elif parameter.axes is None and static.is_static(argument.value, scope):
            child.numbers[parameter.name] = static.static(argument.value, scope)
        elif parameter.default is not None:
            child.numbers[parameter.name] = static.static(argument.value, scope)  # says why it is no number
        else:
            tensors.append((parameter, given(scope, argument, parameter, statement, path), argument.span))
    return tensors


def given(
    scope: Scope, argument: s.Argument, parameter: s.Parameter, statement: str, path: Callable[[], str]
) -> Tensor:
    """The tensor that an argument is; an expression becomes a formula of its own, once, in the caller's statement."""
    value = argument.value
    match value:
        case Given(tensor):
            return tensor
        case s.Name(name):
            if (found := scope.find(name)) is not None:
                return found
            if name not in scope.numbers and name not in scope.axes and name not in static.WORDS:
                raise scope.unknown(name, value.span)
        case s.Call("norm") if scope.kind == "optimizer":
            return scope.draft.tensors[norm(scope, value)]
        case s.Call(function) if function in scope.instances or function in scope.definitions:
            if not (function in static.STATIC_FUNCTIONS and function not in scope.own):
                return call(scope, value, statement)
    if static.is_static(value, scope) and parameter.axes is not None:
        shape = _pattern(parameter)
        raise SourceError(value.span, f"'{parameter.name}' is a tensor {shape}", (), "give a tensor, not a number")
    left = s.Left(parameter.name, None, value.span)
    return equation(scope, statement, left, value, lambda: f"{path()}.{parameter.name}", call, value.span)


def _pattern(parameter: s.Parameter) -> str:
    axes = parameter.axes or ()
    shown = ("*" if isinstance(a, s.Star) else a.span.text[a.span.column - 1 :][: a.span.width] for a in axes)
    return f"[{', '.join(shown)}]"


def unify(child: Scope, parameter: s.Parameter, tensor: Tensor, span: Span) -> None:
    """Match a tensor with the signature's axes: the star, names that are new, sizes that must agree."""
    axes = parameter.axes or ()
    stars = [a for a in axes if isinstance(a, s.Star)]
    spread = len(tensor.shape) - (len(axes) - len(stars))
    from_here = f"{parameter.name} = {tensor.name} [{', '.join(map(str, tensor.shape))}]"
    if len(stars) > 1:
        raise SourceError(stars[1].span, "two stars in one signature", (), "one * stands for all leading axes")
    if spread < 0 or (spread and not stars):
        problem = f"'{parameter.name}' is {_pattern(parameter)} and gets a tensor of {len(tensor.shape)} axes"
        raise SourceError(span, problem, (from_here,), "give a tensor of that form")
    at = 0
    for axis in axes:
        if isinstance(axis, s.Star):
            extents = tensor.shape[at : at + spread]
            at += spread
            if child.star is None:
                child.star, child.star_origin = extents, from_here
            elif child.star != extents:
                facts = (child.star_origin, from_here)
                raise SourceError(span, "* stands for different axes in two arguments", facts, "give equal axes")
            continue
        extent = tensor.shape[at]
        at += 1
        if isinstance(axis, s.Name) and axis.path not in child.numbers:
            known = child.axes.setdefault(axis.path, extent)
            origin = child.axis_origin.setdefault(axis.path, from_here)
        else:
            known = child.draft.extent(static.size(axis, child), child.qualified(parameter.name), axis.span)
            origin = f"the signature says {known}"
        if known != extent:
            name = f"axis {axis.path}" if isinstance(axis, s.Name) else "an axis"
            facts = (f"{origin}: {known}", f"{from_here}: {extent}")
            raise SourceError(span, f"{name} has two extents, {known} and {extent}", facts, "give equal axes")


__all__ = ["call", "define", "run"]
