"""Optimizers: the library's text, instantiated for each parameter of a joint graph.

An optimizer's numeric arguments become run-time scalars. A condition on arguments alone (``if clip < inf``) is
decided here, by their values, so that what is not asked for leaves no formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from chainrule.errors import ChainruleError, SourceError, Span, nearest
from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Origin, Reduce
from chainrule.ir.graph import Graph, Node, Scalar, State, Tensor, Update
from chainrule.ir.rename import amend
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.declarations import double
from chainrule.lang.draft import Draft, Scope, Static, renamed
from chainrule.lang.elaborate import run
from chainrule.lang.library import library
from chainrule.lang.models import Argument, argument_value

STEP, NORM = "step", "norm"


Definitions = Mapping[str, s.AnyDefinition]


def optimizer_names(known: Definitions | None = None) -> list[str]:
    """The optimizers among some definitions, else those of the library."""
    return sorted(name.removeprefix("optimizer:") for name in known or library() if name.startswith("optimizer:"))


def find_optimizer(name: str, known: Definitions) -> s.Definition:
    """The text of an optimizer. Raises ChainruleError if there is none of that name."""
    found = known.get(f"optimizer:{name}")
    if not isinstance(found, s.Definition):
        raise ChainruleError(f"there is no optimizer {name!r}\n  Way out: {nearest(name, optimizer_names(known))}")
    return found


def apply_optimizer(
    graph: Graph,
    gradients: Mapping[str, str],
    optimizer: str | s.Definition,
    arguments: Mapping[str, Argument] | None = None,
    known: Definitions | None = None,
) -> Graph:
    """`graph` with the optimizer's formulas, states and updates for every parameter that has a gradient.

    gradients: the tensor that holds each parameter's gradient. arguments: the optimizer's, by name (rate, decay …).
    known: the definitions that it is found among, and may use; none: the library's.
    States are named ``adam.h.linear.W.m``; arguments that formulas read are scalars of the graph.
    Raises ChainruleError on an unknown optimizer or argument.
    """
    known = library() if known is None else known
    definition = find_optimizer(optimizer, known) if isinstance(optimizer, str) else optimizer
    values = argument_values(definition, arguments or {})
    draft = _draft(graph, gradients)
    scalars = {name: _scalar_name(graph, definition, name) for name in values}
    for name, value in values.items():
        if not isinstance(value, bool):
            default = 1.0 if name == STEP else double(value, definition.span)
            draft.scalars[scalars[name]] = Scalar(scalars[name], default)
            draft.tensors[scalars[name]] = Tensor(scalars[name], ())
    made: dict[object, _Made | None] = {}
    for param in graph.params:
        w = param.tensor
        if w.name not in gradients:
            continue
        g = draft.tensors[gradients[w.name]]
        kind = w.shape, w.dtype, g.shape, g.dtype, draft.axis_names.get(g.name)
        like = made.get(kind)
        if like is None or not _repeated(draft, like, w.name):
            made[kind] = _made(draft, definition, known, w, values, scalars)
    return _joined(graph, draft)


def argument_values(definition: s.Definition, given: Mapping[str, Argument]) -> dict[str, Static]:
    """The values of an optimizer's arguments: those given, else the defaults."""
    parameters = [p for p in definition.parameters if p.axes is None]
    names = [p.name for p in parameters if p.name != STEP]
    for name in given:
        if name not in names:
            way_out = nearest(name, names)
            raise ChainruleError(f"{definition.name} has no argument {name!r}\n  Way out: {way_out}")
    scope = Scope(Draft(definition.name), {})
    values: dict[str, Static] = {}
    for parameter in parameters:
        if parameter.name in given:
            values[parameter.name] = argument_value(given[parameter.name], parameter)
        elif parameter.name == STEP:
            values[STEP] = sp.S.One
        elif parameter.default is None:
            raise SourceError(parameter.span, f"the argument '{parameter.name}' has no value", (), "give it a default")
        else:
            values[parameter.name] = static.static(parameter.default, scope)
    return values


def _scalar_name(graph: Graph, definition: s.Definition, name: str) -> str:
    """``rate``; ``adam.rate`` where the model has a tensor `rate` of its own."""
    known = {scalar.name for scalar in graph.scalars}
    return name if name not in graph.tensors or name in known else f"{definition.name}.{name}"


def _draft(graph: Graph, gradients: Mapping[str, str]) -> Draft:
    draft = Draft(graph.name)
    draft.dims = {dim.name: dim for dim in graph.dims}
    draft.tensors = dict(graph.tensors)
    draft.axis_names = {n.out: tuple(a.name for a in n.axes) for n in graph.nodes if isinstance(n, Formula)}
    draft.scalars = {scalar.name: scalar for scalar in graph.scalars}
    draft.gradient_of = gradients
    draft.specials["norm(gradients)"] = lambda: _norm(draft, gradients)
    return draft


def _instantiate(
    draft: Draft,
    definition: s.Definition,
    known: Definitions,
    w: Tensor,
    values: Mapping[str, Static],
    scalars: Mapping[str, str],
) -> None:
    path = f"{definition.name}.{w.name}"
    scope = Scope(draft, known, path=path, stores_path=path, kind="optimizer")
    tensors = [p for p in definition.parameters if p.axes is not None]
    if len(tensors) != 2:
        raise SourceError(definition.span, "an optimizer has two tensors, w[*] and g[*]", (), "see adam")
    gradient = draft.tensors[draft.gradient_of[w.name]]
    scope.tensors = {tensors[0].name: w, tensors[1].name: gradient}
    scope.stored = {tensors[0].name: w.name}
    scope.star = w.shape
    scope.structure = dict(values)
    scope.numbers = {name: value for name, value in values.items() if isinstance(value, bool)}
    scope.scalars = {name: scalars[name] for name, value in values.items() if not isinstance(value, bool)}
    run(scope, definition.body)


@dataclass(frozen=True)
class _Made:
    """What the optimizer's text became for one parameter: for another of its kind, all but the names is the same."""

    w: str
    g: str
    path: str
    nodes: tuple[Node, ...]
    states: tuple[tuple[Tensor, float], ...]
    updates: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*(node.out for node in self.nodes), *(tensor.name for tensor, _ in self.states))


def _made(draft: Draft, definition: s.Definition, known: Definitions, w: Tensor, *values: Any) -> _Made | None:
    """The optimizer's text for `w`, written into `draft`; None where it also made sizes."""
    nodes, states, updates, dims = len(draft.nodes), len(draft.states), len(draft.updates), len(draft.dims)
    _instantiate(draft, definition, known, w, *values)
    made = _Made(
        w.name,
        draft.gradient_of[w.name],
        f"{definition.name}.{w.name}",
        tuple(node for node in draft.nodes[nodes:] if node.origin.layer != NORM),  # that is made once for all
        tuple(draft.states.values())[states:],
        tuple(draft.updates.items())[updates:],
    )
    return made if len(draft.dims) == dims else None


def _repeated(draft: Draft, made: _Made, w: str) -> bool:
    """Write what was `made` into `draft` for the parameter `w`; False, and nothing, where its names are not free."""
    path = made.path.removesuffix(made.w) + w
    names = {made.w: w, made.g: draft.gradient_of[w]}
    for name in made.names:
        for old, new in ((made.path, path), (made.w, w)):
            if name.startswith(f"{old}."):
                names[name] = new + name.removeprefix(old)
                break
    fresh = [names.get(name) for name in made.names]
    if any(name is None or name in draft.tensors or name in draft.dims for name in fresh):
        return False

    def moved(origin: Origin) -> Origin:
        return replace(origin, layer=path + origin.layer.removeprefix(made.path))

    for tensor, start in made.states:
        state = replace(tensor, name=names[tensor.name], origin=moved(tensor.origin))
        draft.states[state.name] = draft.give(state), start
    for node in made.nodes:
        again = renamed(node, names)
        span = node.origin.span or Span("library/optimizers.graph", 1)
        origin = moved(node.origin)
        draft.emit(amend(again, origin=origin) if isinstance(again, Formula) else replace(again, origin=origin), span)
    for store, value in made.updates:
        draft.updates[names.get(store, store)] = names.get(value, value)
    return True


def _norm(draft: Draft, gradients: Mapping[str, str]) -> str:
    """The norm of all gradients together: the root of the sum of their squares' sums, made once."""
    origin = Origin(layer=NORM)
    parts: list[Access] = []
    span = Span("library/optimizers.graph", 1)
    for name in dict.fromkeys(gradients.values()):
        tensor = draft.tensors[name]
        over = tuple(Index(index_symbol(f"i{k}"), n, f"i{k}") for k, n in enumerate(tensor.shape))
        read = Access(name, tuple(index.symbol for index in over))
        out = draft.unique(f"norm.{name}", ".")
        square = Formula(out, (), over, slot(0) ** 2, (read,), reduce=Reduce.SUM, origin=origin)
        parts.append(Access(draft.emit(square, span).name, ()))
    total = sp.sqrt(sp.Add(*(slot(k) for k in range(len(parts)))))
    made = draft.emit(Formula(draft.unique("norm.gradients", "."), (), (), total, tuple(parts), origin=origin), span)
    draft.specials["norm(gradients)"] = lambda: made.name
    return made.name


def _joined(graph: Graph, draft: Draft) -> Graph:
    read = {name for node in (*graph.nodes, *draft.nodes) for name in node.tensors}
    known = {scalar.name for scalar in graph.scalars}
    scalars = (scalar for name, scalar in draft.scalars.items() if name in read and name not in known)
    return replace(
        graph,
        states=(*graph.states, *(State(tensor, value) for tensor, value in draft.states.values())),
        scalars=(*graph.scalars, *scalars),
        nodes=(*graph.nodes, *draft.nodes),
        updates=(*graph.updates, *(Update(store, value) for store, value in draft.updates.items())),
    )
