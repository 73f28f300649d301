"""The graph: a frozen value, so that passes are pure, and its networkx views.

Names are single-assignment: every input, parameter, state, scalar and node has a name of its own, and nodes stand
in an order in which each reads only what is before it; but for those of a recurrence, which read each other at other
places along an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import networkx as nx
import sympy as sp

from chainrule.ir.formula import DType, Extent, Formula, Origin
from chainrule.ir.primitive import Primitive

Node = Formula | Primitive

Kind = tuple[tuple[Extent, ...], DType, Extent | None]
"""All of a tensor but its name."""


@dataclass(frozen=True)
class Dim:
    """A named size; a derived one has its definition, over dims before it: ``rows = (h - 1) // 2 + 1``.

    steps: its places are computed one after another, upwards or downwards: all formulas with an index over it share
    one loop, and read each other at the same place of it or at what the loop has passed.
    """

    name: str
    minimum: int = 0
    maximum: int | None = None
    definition: sp.Expr | None = None
    steps: Literal["up", "down"] | None = None


@dataclass(frozen=True)
class Tensor:
    """A name with its shape and dtype; `bound`: the values of an int tensor v satisfy 0 <= v < bound."""

    name: str
    shape: tuple[Extent, ...]
    dtype: DType = DType.FLOAT
    bound: Extent | None = None
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def kind(self) -> Kind:
        return self.shape, self.dtype, self.bound


@dataclass(frozen=True)
class Init:
    """How a parameter starts: uniform(low, high), normal(mean, deviation), constant(value),
    orthogonal(gain, columns); `each`: the axis that stacks independent matrices.
    """

    law: str
    numbers: tuple[float, ...]
    each: int | None = None


@dataclass(frozen=True)
class Param:
    """A trained tensor, named by its path (``h.linear.W``)."""

    tensor: Tensor
    init: Init


@dataclass(frozen=True)
class State:
    """A tensor that a step updates and no gradient reaches; it starts at `value` everywhere."""

    tensor: Tensor
    value: float = 0.0


@dataclass(frozen=True)
class Scalar:
    """A rank-0 run-time number, such as a learning rate. The one named ``step`` is the runtime's counter, from 1."""

    name: str
    default: float


@dataclass(frozen=True)
class Update:
    """Once a step, after the last read of the old value, `store` (a state or parameter) becomes `value` (a node)."""

    store: str
    value: str


@dataclass(frozen=True)
class Graph:
    """Dims, inputs, params, states, scalars; nodes in order; updates and outputs. The roots are the last two."""

    name: str
    dims: tuple[Dim, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    params: tuple[Param, ...] = ()
    states: tuple[State, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    nodes: tuple[Node, ...] = ()
    updates: tuple[Update, ...] = ()
    outputs: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor by name: those given and those computed."""
        given = (*self.inputs, *(p.tensor for p in self.params), *(s.tensor for s in self.states))
        scalars = (Tensor(s.name, ()) for s in self.scalars)
        made = (Tensor(n.out, n.shape, n.dtype, n.bound, n.origin) for n in self.nodes)
        return {t.name: t for t in (*given, *scalars, *made)}

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that computes each tensor; inputs, params, states and scalars have none."""
        return {n.out: n for n in self.nodes}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each tensor, in order."""
        found: dict[str, list[Node]] = {name: [] for name in self.tensors}
        for node in self.nodes:
            for name in node.tensors:
                found[name].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @property
    def roots(self) -> tuple[str, ...]:
        """What the graph is for: outputs, and the values of updates."""
        return (*self.outputs, *(u.value for u in self.updates))

    @cached_property
    def network(self) -> nx.MultiDiGraph:
        """Nodes: inputs, params, states, scalars, formulas, primitives. Edges: accesses, carrying tensors."""
        network = nx.MultiDiGraph(name=self.name)
        network.add_nodes_from((t.name, {"kind": "input", "value": t}) for t in self.inputs)
        network.add_nodes_from((p.tensor.name, {"kind": "param", "value": p}) for p in self.params)
        network.add_nodes_from((s.tensor.name, {"kind": "state", "value": s}) for s in self.states)
        network.add_nodes_from((s.name, {"kind": "scalar", "value": s}) for s in self.scalars)
        for node in self.nodes:
            network.add_node(node.out, kind="formula" if isinstance(node, Formula) else node.kind, value=node)
        for node in self.nodes:
            reads = node.reads if isinstance(node, Formula) else ()
            for k, name in enumerate([r.tensor for r in reads] or node.tensors):
                tensor = self.tensors[name]
                network.add_edge(name, node.out, slot=k, shape=tensor.shape, dtype=tensor.dtype)
        return network

    @cached_property
    def dag(self) -> nx.DiGraph:
        """The condensation of `network`: a recurrence is one node of it (attribute ``members``)."""
        return nx.condensation(nx.DiGraph(self.network))

    @cached_property
    def components(self) -> tuple[tuple[Node, ...], ...]:
        """The nodes in an order that can run, those of a recurrence together; each group in the order of `nodes`."""
        place = {node.out: k for k, node in enumerate(self.nodes)}
        if all(place.get(name, -1) < k for k, node in enumerate(self.nodes) for name in node.tensors):
            return tuple((node,) for node in self.nodes)
        groups = {
            c: sorted(place[name] for name in members if name in place) for c, members in self.dag.nodes(data="members")
        }
        order = nx.lexicographical_topological_sort(self.dag, key=lambda c: groups[c][:1])
        return tuple(tuple(self.nodes[k] for k in groups[c]) for c in order if groups[c])

    def is_recurrent(self, name: str) -> bool:
        """Whether a node reads itself, at another place or through others."""
        return name in self._recurrent

    @cached_property
    def _recurrent(self) -> frozenset[str]:
        several = (c for c in self.components if len(c) > 1)
        alone = (n.out for n in self.nodes if n.out in n.tensors)
        return frozenset((*(n.out for c in several for n in c), *alone))


def in_order(graph: Graph) -> Graph:
    """`graph` with its nodes in an order that can run: what left a recurrence may now read what stands below it."""
    nodes = tuple(node for nodes in graph.components for node in nodes)
    return graph if nodes == graph.nodes else replace(graph, nodes=nodes)
