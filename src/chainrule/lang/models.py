"""A model's definition and its arguments to a graph: the statements run, then what had to wait is settled."""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath

import sympy as sp

from chainrule.errors import ChainruleWarning, SourceError, Span, nearest
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph, Node, Param, State, Update
from chainrule.lang import scan, static
from chainrule.lang import syntax as s
from chainrule.lang.count import check_count
from chainrule.lang.draft import Draft, Scope, Static, renamed
from chainrule.lang.elaborate import run
from chainrule.lang.initialisers import initial
from chainrule.lang.library import key, table_of
from chainrule.lang.library import library as packaged
from chainrule.lang.parser import parse

Argument = int | float | bool | str
Read = Callable[[str], str | None]


def nothing(path: str) -> str | None:
    """A reader for texts that use no file."""
    return None


def elaborate(
    file: s.File,
    *,
    model: str | None = None,
    arguments: Mapping[str, Argument] | None = None,
    read: Read = nothing,
    library: Mapping[str, s.AnyDefinition] | None = None,
) -> Graph:
    """The graph of one model of `file`. Raises SourceError, and nothing else, on a text that has no meaning.

    model: its name; None: the only one. read: the text of a file that ``use`` names, or None.
    """
    library = packaged() if library is None else library
    own = own_definitions(file, read)
    for name in sorted(own.keys() & library.keys()):
        warnings.warn(f"{own[name].span}: {name} hides the library's", ChainruleWarning, stacklevel=2)
    chosen = choose(file, model)
    try:
        return elaborate_model(chosen, ChainMap(own, library), frozenset(own), arguments or {})  # type: ignore[arg-type]
    except RecursionError:
        raise SourceError(chosen.span, "the model nests too deeply", (), "name parts of its expressions") from None


def choose(file: s.File, model: str | None) -> s.Definition:
    models = {d.name: d for d in file.definitions if isinstance(d, s.Definition) and d.kind == "model"}
    if model is not None and model not in models:
        raise SourceError(Span(file.name, 1), f"no model '{model}' in this file", (), nearest(model, models))
    if not models:
        raise SourceError(Span(file.name, 1), "no model in this file", (), "write `model name:` and its statements")
    if model is None and len(models) > 1:
        names = ", ".join(f"{file.name}:{name}" for name in models)
        raise SourceError(Span(file.name, 1), "several models in this file", (), f"name one: {names}")
    return models[model] if model is not None else next(iter(models.values()))


def own_definitions(file: s.File, read: Read) -> dict[str, s.AnyDefinition]:
    """The definitions of `file` and, before them, of the files that it uses, each file once."""
    found: dict[str, s.AnyDefinition] = {}
    seen: set[str] = set()
    pending = list(reversed(file.uses))
    while pending:
        use = pending.pop()
        path = PurePosixPath(use.path)
        if path.is_absolute() or ".." in path.parts or "\\" in use.path or ":" in use.path or not path.parts:
            way_out = "use a file in the same folder or below it"
            raise SourceError(use.span, f"'{use.path}' is outside this folder", (), way_out)
        where = str(path)  # from the model's folder, whichever file says so
        if where in seen:
            continue
        seen.add(where)
        text = read(where)
        if text is None:
            raise SourceError(use.span, f"no file '{where}' here", (), "check the name")
        if len(seen) > 100:
            raise SourceError(use.span, "more than 100 files", (), "put some together")
        used = parse(text, where)
        _add(found, used.definitions)
        pending.extend(reversed(used.uses))
    _add(found, file.definitions)
    return found


def _add(found: dict[str, s.AnyDefinition], definitions: tuple[s.AnyDefinition, ...]) -> None:
    mine: set[str] = set()
    for definition in definitions:
        name = key(definition.kind, definition.name)
        if name in mine:
            raise SourceError(definition.span, f"'{definition.name}' is defined twice", (), "rename one")
        mine.add(name)
    found.update(table_of(definitions))


# ---------------------------------------------------------------- the model


def elaborate_model(
    e: s.Definition,
    definitions: Mapping[str, s.AnyDefinition],
    own: frozenset[str],
    arguments: Mapping[str, Argument],
) -> Graph:
    draft = Draft(e.name)
    scope = Scope(draft, definitions, own)
    bind_arguments(scope, e, arguments)
    check_count(e.body, scope.numbers, definitions, own)
    run(scope, e.body)
    return finish(draft, scope, e)


def bind_arguments(scope: Scope, e: s.Definition, arguments: Mapping[str, Argument]) -> None:
    names = [p.name for p in e.parameters]
    for name in arguments:
        if name not in names:
            way_out = nearest(name, names)
            raise SourceError(e.span, f"the {e.kind} {e.name} has no argument '{name}'", (), way_out)
    for parameter in e.parameters:
        if parameter.axes is not None:
            raise SourceError(parameter.span, "a model's arguments are numbers", (), "declare an input")
        if parameter.name in arguments:
            scope.numbers[parameter.name] = argument_value(arguments[parameter.name], parameter)
        elif parameter.default is not None:
            scope.numbers[parameter.name] = static.static(parameter.default, scope)
        else:
            way_out = f"set {parameter.name}, or write a default: {parameter.name} = 1"
            raise SourceError(parameter.span, f"the argument '{parameter.name}' has no value", (), way_out)


def argument_value(value: Argument, parameter: s.Parameter) -> Static:
    """A number or truth value as the language holds it; a float is the decimal that it prints as."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("true", "false"):
            return text == "true"
        try:
            value = int(text) if len(text) <= scan.DIGITS else float(text)
        except ValueError:
            try:
                value = float(text)
            except ValueError:
                problem = f"'{value}' is no value for '{parameter.name}'"
                raise SourceError(parameter.span, problem, (), "give a number, true or false") from None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return sp.Integer(value)
    if value in (float("inf"), float("-inf")) or value != value:
        return sp.nan if value != value else sp.oo if value > 0 else -sp.oo
    ratio = Fraction(Decimal(repr(float(value))))
    return sp.Rational(ratio.numerator, ratio.denominator)


def finish(draft: Draft, scope: Scope, e: s.Definition) -> Graph:
    """Settle initial laws, the names of redefined tensors, and outputs."""
    names = last_names(draft, scope)
    nodes: tuple[Node, ...] = tuple(renamed(n, names) for n in draft.nodes) if names else tuple(draft.nodes)
    readers: dict[str, Formula] = {}
    for node in draft.nodes:
        if isinstance(node, Formula):
            for tensor in node.tensors:
                readers.setdefault(tensor, node)
    put_out = outputs(draft, scope, names, nodes)
    used = {tensor for node in draft.nodes for tensor in node.tensors} | set(put_out)
    # a layer's parameter that a decided choice leaves unread, such as a bias, does not exist
    kept = [(name, p) for name, p in draft.params.items() if name in used or not p.scope.path]
    params = tuple(Param(p.tensor, initial(p, readers.get(name))) for name, p in kept)
    return Graph(
        name=draft.name,
        dims=tuple(draft.dims.values()),
        inputs=tuple(draft.inputs),
        params=params,
        states=tuple(State(tensor, value) for tensor, value in draft.states.values()),
        scalars=tuple(draft.scalars.values()),
        nodes=nodes,
        updates=tuple(Update(store, names.get(value, value)) for store, value in draft.updates.items()),
        outputs=put_out,
    )


def last_names(draft: Draft, scope: Scope) -> dict[str, str]:
    """Of a name that was defined several times, the last tensor has the name, and those before have numbers."""
    given = {t.name for t in draft.inputs} | draft.params.keys() | draft.states.keys() | draft.scalars.keys()
    names: dict[str, str] = {}
    for name, tensor in scope.defined.items():
        if tensor.name == name or name in given:
            continue
        if name in draft.tensors:
            k = 1
            while f"{name}.{k}" in draft.tensors or f"{name}.{k}" in names.values():
                k += 1
            names[name] = f"{name}.{k}"
        names[tensor.name] = name
    return names


def outputs(draft: Draft, scope: Scope, names: Mapping[str, str], nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Those that a list names, in its order; else those marked, and the loss, in the order of the nodes."""
    found = [scope.defined.get(name) or scope.tensors.get(name) or draft.tensors[name] for name in draft.outputs]
    marked = [names.get(t.name, t.name) for t in found]
    if draft.listed:
        return tuple(marked)
    if "loss" in scope.defined:
        loss = scope.defined["loss"].name
        marked.append(names.get(loss, loss))
    if not marked and scope.defined:
        last = next(reversed(scope.defined.values())).name
        marked.append(names.get(last, last))
    order = {node.out: k for k, node in enumerate(nodes)}
    return tuple(dict.fromkeys(sorted(marked, key=lambda name: order.get(name, -1))))
