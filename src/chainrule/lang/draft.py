"""The graph while it is being written, and the names that one body of statements sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import sympy as sp

from chainrule.errors import SourceError, Span, nearest
from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Extent, Formula
from chainrule.ir.graph import Dim, Node, Scalar, Tensor
from chainrule.ir.rename import rename
from chainrule.lang import scan
from chainrule.lang import syntax as s
from chainrule.lang.bounds import dim_facts

Static: TypeAlias = Any  # bool | sp.Expr: sympy has no types
"""What is known when the graph is made: a truth value, a number, or a polynomial in the dims."""


@dataclass(frozen=True)
class Pending:
    """A parameter whose initial law waits for its fans, which its first reader shows."""

    tensor: Tensor
    law: s.Call
    scope: Scope
    span: Span


@dataclass
class Draft:
    """What a graph will hold, in the order of writing; names are unique."""

    name: str
    limit: int = scan.FORMULAS
    dims: dict[str, Dim] = field(default_factory=dict)
    derived: dict[sp.Expr, sp.Symbol] = field(default_factory=dict)  # equal definitions are one dim
    inputs: list[Tensor] = field(default_factory=list)
    params: dict[str, Pending] = field(default_factory=dict)
    states: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    scalars: dict[str, Scalar] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)  # by the names that the text has for them
    listed: bool = False  # by a list of their own, which is complete
    learned: set[str] = field(default_factory=set)  # tensors that depend on a parameter
    depth: int = 0  # of calls
    specials: dict[str, Callable[[], str]] = field(default_factory=dict)  # makes ``norm(gradients)``
    gradient_of: Mapping[str, str] = field(default_factory=dict)  # of each parameter, where an optimizer is applied
    numbers_of: dict[str, int] = field(default_factory=dict)
    axis_names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # how a tensor's own formula calls them
    hints: dict[sp.Expr, str] = field(default_factory=dict)  # what `let` calls a size

    def unique(self, name: str, separator: str = "_") -> str:
        """`name`, or `name` with the first number that makes it new."""
        if name not in self.tensors and name not in self.dims:
            return name
        k = self.numbers_of.get(name, 1) + 1
        while f"{name}{separator}{k}" in self.tensors or f"{name}{separator}{k}" in self.dims:
            k += 1
        self.numbers_of[name] = k
        return f"{name}{separator}{k}"

    def give(self, tensor: Tensor) -> Tensor:
        """`tensor`, known by its name from now on."""
        self.tensors[tensor.name] = tensor
        return tensor

    def emit(self, node: Node, span: Span) -> Tensor:
        if len(self.nodes) >= self.limit:
            way_out = "repeat less often"
            raise SourceError(span, f"the model has more than {self.limit:,} formulas", (), way_out)
        self.nodes.append(node)
        if any(name in self.learned or name in self.params for name in node.tensors):
            self.learned.add(node.out)
        if isinstance(node, Formula):
            self.axis_names[node.out] = tuple(axis.name for axis in node.axes)
        return self.give(Tensor(node.out, node.shape, node.dtype, node.bound, node.origin))

    # ------------------------------------------------------------ sizes

    def extent(self, value: Static, name: str, span: Span) -> Extent:
        """`value` as a size: an integer, a dim, or a new dim with `value` for its definition, called `name`."""
        if isinstance(value, bool):
            raise SourceError(span, "a truth value is no size", (), "write a number")
        if isinstance(value, sp.Symbol):
            return value
        if not value.free_symbols:
            return whole(value, span)
        value = sp.expand(value)
        if isinstance(value, sp.Integer | sp.Symbol):
            return value
        if value in self.derived:
            return self.derived[value]
        facts = dim_facts(self.dims)
        if not _integral(value):
            raise SourceError(span, f"{value} need not be an integer", (), "round down with //")
        if not facts.proves(value):
            least = ", ".join(f"dim {d} >= {self.dims[d].minimum}" for d in sorted(map(str, value.free_symbols)))
            way_out = "give a dim a larger least value, as in `dim t >= 3`"
            raise SourceError(span, f"the size {value} could be negative", (f"known: {least}",), way_out)
        return self.define(self.hints.get(value, name), value)

    def define(self, name: str, value: sp.Expr) -> sp.Symbol:
        name = self.unique(name)
        symbol = dim_symbol(name)
        self.dims[name] = Dim(name, definition=value)
        self.derived[value] = symbol
        return symbol


def whole(value: sp.Expr, span: Span) -> sp.Integer:
    """`value`, which holds no dims, as an extent."""
    if not isinstance(value, sp.Integer):
        raise SourceError(span, f"the size {value} is not an integer", (), "round down with //")
    if value < 0:
        raise SourceError(span, f"the size {value} is negative", (), "sizes are 0 or more")
    if value >= 2**40:
        raise SourceError(span, f"the size {value} is larger than any memory", (), "sizes end at 2^40")
    return value


def _integral(value: sp.Expr) -> bool:
    return all(c.is_Integer for c in value.as_coefficients_dict().values())


@dataclass
class Instance:
    """``let encode = linear(_, width)``: one set of parameters and states, made at its first call."""

    definition: s.Definition
    call: s.Call
    path: str
    stores: dict[str, Tensor] = field(default_factory=dict)  # by their names on the graph


@dataclass
class Scope:
    """What the statements of one body see: their tensors, sizes, layers; and where its own names begin."""

    draft: Draft
    definitions: Mapping[str, s.AnyDefinition]  # own, then the library's
    own: frozenset[str] = frozenset()
    path: str = ""  # of the call that this is the body of: "h.linear"; "" is a model's
    stores_path: str = ""  # where its parameters are: `path`, but for an instance that is used again
    kind: str = "model"
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Static] = field(default_factory=dict)
    axes: dict[str, Extent] = field(default_factory=dict)
    axis_origin: dict[str, str] = field(default_factory=dict)  # where each of `axes` comes from, for errors
    star: tuple[Extent, ...] | None = None
    star_names: tuple[str, ...] = ()
    star_origin: str = ""
    instances: dict[str, Instance] = field(default_factory=dict)
    stores: dict[str, Tensor] | None = None  # of an instance: parameters and states made before
    turns: tuple[int, ...] = ()
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    later: dict[str, Span] = field(default_factory=dict)  # what statements below define
    stored: dict[str, str] = field(default_factory=dict)  # a store's name here -> on the graph
    updated: dict[str, Tensor] = field(default_factory=dict)  # after `<-`: the new values
    scalars: dict[str, str] = field(default_factory=dict)  # an optimizer's arguments: run-time numbers by name
    structure: dict[str, Static] = field(default_factory=dict)  # their values, for conditions that choose formulas
    defined: dict[str, Tensor] = field(default_factory=dict)  # by statements, the last of each name
    promised: dict[str, Tensor] = field(default_factory=dict)  # read ahead in a recurrence, and not made yet

    def qualified(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def call_path(self, statement: str, function: str) -> str:
        """The path of a call in `statement`: ``x.3.linear``, ``x.3.linear_2`` …"""
        prefix = ".".join((statement, *map(str, self.turns)))
        self.counts[prefix, function] += 1
        number = self.counts[prefix, function]
        return self.qualified(f"{prefix}.{function}" + (f"_{number}" if number > 1 else ""))

    def path_later(self, statement: str, function: str, given: str | None = None) -> Callable[[], str]:
        """The path of a call, taken when it is first needed: calls are numbered as they are evaluated."""
        taken = [] if given is None else [given]

        def path() -> str:
            if not taken:
                taken.append(self.call_path(statement, function))
            return taken[0]

        return path

    def child(self, definition: s.Definition) -> Scope:
        """The scope of a call's body; its path is set when the arguments have been evaluated."""
        return Scope(self.draft, self.definitions, self.own, kind=definition.kind)

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name; a model may read a layer's by its path."""
        if name in self.scalars:
            return self.draft.tensors[self.scalars[name]]
        found = self.tensors.get(name)
        return self.draft.tensors.get(name) if found is None and "." in name and not self.path else found

    def bind(self, name: str, span: Span) -> None:
        """Check that a tensor may take `name`."""
        if name in self.numbers or name in self.scalars:
            problem = f"the tensor '{name}' hides the size or argument of that name"
            raise SourceError(span, problem, (), f"call it '{name}2'")

    def unknown(self, name: str, span: Span, kind: str = "") -> SourceError:
        """The error for a name that nothing here has."""
        if name in self.later:
            facts = (f"'{name}' is defined on line {self.later[name].line}",)
            way_out = f"define it above; a recurrence reads it at an earlier place: {name}[n, t - 1; 0]"
            return SourceError(span, f"'{name}' is read before it is defined", facts, way_out)
        known = {*self.tensors, *self.numbers, *self.axes, *self.scalars}
        return SourceError(span, f"unknown name '{name}'{kind}", (), nearest(name, known))


Caller = Callable[[Scope, s.Call, str, str | None], Tensor]
"""Elaborates a call of a layer or function: (scope, call, statement, its path if it has one already) -> the value."""


def described(tensor: Tensor) -> str:
    """``x is [batch, 64] (line 4)``: a fact for errors."""
    shape = ", ".join(map(str, tensor.shape))
    span = tensor.origin.span
    line = f" (line {span.line})" if span is not None else ""
    return f"{tensor.name} is [{shape}]{line}"


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """`node` with tensors renamed: its canonical form does not depend on their names, so it is not made again."""
    if node.out not in names and not any(t in names for t in node.tensors):
        return node
    if not isinstance(node, Formula):
        return replace(node, out=names.get(node.out, node.out), reads=tuple(names.get(t, t) for t in node.reads))
    return rename(node, names)
