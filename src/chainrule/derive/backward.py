"""Reverse mode over the graph: cotangents flow from one tensor to those that it is derived with respect to.

Every node's VJPs are taken first, which needs no more than the names of cotangents; then each tensor's contributions
are added up; a cotangent is complete when all the readers of its tensor have sent theirs, so the nodes are visited
from the last to the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import networkx as nx
import sympy as sp

from chainrule.derive.primitives import adjoint
from chainrule.derive.support import EVERYWHERE, Hazards, Support, hazards, supports
from chainrule.derive.vjp import fresh_axes, other_terms, vjp
from chainrule.errors import ChainruleError, nearest
from chainrule.ir.calculus import derivative
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, DType, Formula, Law, Origin, Reduce
from chainrule.ir.graph import Graph, Node, Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.rename import amend, canonical, form_of, fresh_name, instance
from chainrule.ir.trace import Step


@dataclass(frozen=True)
class Derivation:
    """The joint graph, what the gradient of each tensor asked for is called, and how each was found."""

    graph: Graph
    gradients: Mapping[str, str]
    trace: tuple[Step, ...]


@dataclass
class _Work:
    """What has been found so far: formulas in order, and the contributions to each tensor's cotangent."""

    graph: Graph
    active: frozenset[str]
    taken: set[str]
    formulas: list[Node] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # of those, where each name is made
    trace: list[Step] = field(default_factory=list)
    sent: dict[str, list[Formula | str]] = field(default_factory=dict)
    cotangents: dict[str, str] = field(default_factory=dict)
    supports: Mapping[str, Support] = field(default_factory=dict)
    hazards: Hazards | None = None

    def name(self, wanted: str) -> str:
        name = fresh_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def add(self, rule: str, before: tuple[Formula, ...], after: Formula) -> None:
        self.places[after.out] = len(self.formulas)
        self.formulas.append(after)
        self.trace.append(Step(rule, before, (after,)))


def backward(graph: Graph, of: str | Mapping[str, str], wrt: Sequence[str]) -> Derivation:
    """`graph` with the gradients of `of` with respect to the tensors `wrt` appended.

    of: a rank-0 tensor, whose cotangent is 1; or tensors of any shape, each with the name of the tensor that is its
    cotangent. A tensor is called ``x``, its cotangent ``x_bar`` (``x_bar2`` where that is taken: a derivative of a
    derivative). A tensor of `wrt` that `of` does not depend on has a gradient of zeros. Formulas marked `stop`,
    integers, booleans and states pass no cotangent on.
    Raises ChainruleError for names that are not in the graph and for what has no gradient.
    """
    seeds = {of: None} if isinstance(of, str) else dict(of)
    _check(graph, seeds, wrt)
    work = _Work(graph, _active(graph, seeds, wrt), set(graph.tensors))
    work.supports = supports(graph, work.active, frozenset(seeds))
    for name, seed in seeds.items():
        if name in work.active:
            work.sent[name] = [_one(work, graph.tensors[name]) if seed is None else seed]
    for nodes in reversed(graph.components):
        active = [node for node in reversed(nodes) if node.out in work.active]
        # the cotangents of a recurrence read each other: they need their names before they are sent anything
        promised = {f.out: work.name(f"{f.out}_bar") for f in active if graph.is_recurrent(f.out)}
        again = _circles(work, active, promised)
        for f in active:
            if not isinstance(f, Formula):
                continue
            y_bar = promised.get(f.out) or _accumulate(work, f.out)
            if y_bar is not None and not f.stop:
                _send(work, f, y_bar)
        for name, x_bar in promised.items():
            work.cotangents[name] = x_bar
            _total(work, name, again.get(name, x_bar), work.sent.pop(name, []))
    gradients = {name: _gradient(work, name) for name in wrt}
    joint = replace(graph, nodes=(*graph.nodes, *work.formulas))
    return Derivation(joint, gradients, tuple(work.trace))


def _circles(work: _Work, active: Sequence[Node], promised: Mapping[str, str]) -> dict[str, str]:
    """The adjoint of each fixed point, and what the sum of all that reaches it, which closes its circle, is called."""
    again: dict[str, str] = {}
    for node in active:
        if isinstance(node, Primitive) and node.kind == "fixed_point":
            u = promised[node.out]
            again[node.out] = work.name(f"{u}.next")
            work.formulas.append(adjoint(node, u, again[node.out]))
            work.sent.setdefault(node.reads[0], []).append(u)
    return again


def _check(graph: Graph, seeds: Mapping[str, str | None], wrt: Sequence[str]) -> None:
    for name in (*seeds, *wrt, *filter(None, seeds.values())):
        if name not in graph.tensors:
            raise ChainruleError(f"graph {graph.name} has no tensor {name!r}: {nearest(name, graph.tensors)}")
        if graph.tensors[name].dtype is not DType.FLOAT:
            raise ChainruleError(f"{name} is {graph.tensors[name].dtype.value}: only float tensors have gradients")
    for name, seed in seeds.items():
        shape = graph.tensors[name].shape
        if seed is None and shape:
            raise ChainruleError(f"{name} has {len(shape)} axes: give its cotangent, or sum it to one number")
        if seed is not None and graph.tensors[seed].shape != shape:
            raise ChainruleError(f"the cotangent {seed} has another shape than {name}")


def _active(graph: Graph, seeds: Mapping[str, str | None], wrt: Sequence[str]) -> frozenset[str]:
    """The tensors on a differentiable path from one of `wrt` to one of `seeds`, both ends included."""
    paths = nx.DiGraph()
    paths.add_nodes_from((*seeds, *wrt))
    for node in graph.nodes:
        if isinstance(node, Formula) and node.dtype is DType.FLOAT and not node.stop:
            for k, read in enumerate(node.reads):
                if graph.tensors[read.tensor].dtype is DType.FLOAT and derivative(node.body, slot(k)) != 0:
                    paths.add_edge(read.tensor, node.out)
        elif isinstance(node, Primitive) and node.kind == "fixed_point":
            paths.add_edge(node.reads[0], node.out)
    # all at once: a search for each of a thousand parameters would walk a deep network as often
    down = set[str]().union(*nx.bfs_layers(paths, list(wrt)))
    up = set[str]().union(*nx.bfs_layers(paths.reverse(copy=False), list(seeds)))
    return frozenset(down & up)


def _send(work: _Work, f: Formula, y_bar: str) -> None:
    """The VJP of `f` for each read of an active tensor."""
    others = ""
    for k, read in enumerate(f.reads):
        if read.tensor not in work.active or slot(k) not in f.law.symbols:
            continue
        if f.reduce is Reduce.PROD and not others:
            others = work.name(f"{f.out}_others")
            work.add("other terms", (f,), other_terms(f, others))
        contribution = _contribution(work.graph, f, k, y_bar, others, _support(work, f, k))
        if contribution.body != 0:
            work.sent.setdefault(read.tensor, []).append(contribution)


def _support(work: _Work, f: Formula, k: int) -> Support:
    """Where `f` matters, if it must be said: the cotangent's 0 could meet an infinite derivative."""
    support = work.supports.get(f.out, EVERYWHERE)
    if support is EVERYWHERE:
        return support
    if work.hazards is None:
        work.hazards = hazards(work.graph)
    return support if work.hazards.meets(derivative(f.body, slot(k)), f) else EVERYWHERE


def _contribution(graph: Graph, f: Formula, k: int, y_bar: str, others: str, support: Support) -> Formula:
    """`vjp`, derived once for all formulas that differ in tensor names alone; its own name is still to be given."""
    x = f.reads[k].tensor
    if support is not EVERYWHERE:
        axes = fresh_axes(graph.tensors[x].shape, axis_names(graph, x))
        return vjp(f, k, axes, f"{x}_bar", y_bar, others, support)
    found = _vjp(f.law, k, graph.tensors[x].shape)
    names = canonical(f)[1] | {"_x_bar": f"{x}_bar", "_y_bar": y_bar, "_others": others}
    origin = Origin(formula=f.out, rule="vjp", layer=f.origin.layer)
    return instance(found, names, axis_names(graph, x), [i.name for i in f.indices], origin)


@lru_cache(maxsize=4096)
def _vjp(law: Law, k: int, shape: tuple[sp.Expr, ...]) -> Formula:
    return vjp(form_of(law), k, fresh_axes(shape), "_x_bar", "_y_bar", "_others")


def axis_names(graph: Graph, name: str) -> tuple[str, ...]:
    """How the axes of a tensor are called: as where it is made, else as where it is first read plainly."""
    made = graph.producers.get(name)
    rank = len(graph.tensors[name].shape)
    if isinstance(made, Formula):
        return tuple(axis.name for axis in made.axes)
    for reader in graph.readers[name]:
        if isinstance(reader, Formula):
            pretty = {index.symbol: index.name for index in reader.indices}
            for read in reader.reads:
                if read.tensor == name and len(set(read.indices) & set(pretty)) == rank:
                    return tuple(pretty[i] for i in read.indices)
    return tuple(f"p{k}" for k in range(rank))


def _accumulate(work: _Work, name: str) -> str | None:
    """The name of the finished cotangent of a tensor, its contributions added up; None: nothing reaches it."""
    if name in work.cotangents or name not in work.sent:
        return work.cotangents.get(name)
    sent = work.sent.pop(name)
    if isinstance(sent[0], str) and len(sent) == 1:
        work.cotangents[name] = sent[0]
    else:
        work.cotangents[name] = _total(work, name, None, sent)
    return work.cotangents[name]


def _total(work: _Work, name: str, promised: str | None, sent: Sequence[Formula | str]) -> str:
    """The name of the sum of all that was sent to the cotangent of a tensor; of nothing, zeros."""
    if len(sent) == 1 and isinstance(sent[0], Formula):
        only = amend(sent[0], out=promised or work.name(f"{name}_bar"))
        work.add("vjp", (_primal(work.graph, only),), only)
        return only.out
    parts: list[str] = []
    for j, part in enumerate(sent, 1):
        if isinstance(part, Formula):
            made = amend(part, out=work.name(f"{name}_bar_{j}"))
            work.add("vjp", (_primal(work.graph, made),), made)
            part = made.out
        parts.append(part)
    x_bar = promised or work.name(f"{name}_bar")
    origin = _accumulated(work, name) if parts else Origin(formula=name, rule="zero")
    names = {"_x_bar": x_bar, **{f"_{j}": part for j, part in enumerate(parts)}}
    form = _sum(len(parts), work.graph.tensors[name].shape)
    total = instance(form, names, axis_names(work.graph, name), (), origin)
    work.add("accumulate" if parts else "zero", _named(work, parts), total)
    return x_bar


@lru_cache(maxsize=4096)
def _sum(count: int, shape: tuple[sp.Expr, ...]) -> Formula:
    """The sum of so many tensors."""
    axes = fresh_axes(shape)
    places = tuple(axis.symbol for axis in axes)
    reads = tuple(Access(f"_{j}", places) for j in range(count))
    return Formula("_x_bar", axes, (), sp.Add(*map(slot, range(count))), reads)


def _named(work: _Work, names: Sequence[str]) -> tuple[Formula, ...]:
    made = (work.formulas[place] for place in sorted({work.places[name] for name in names if name in work.places}))
    return tuple(f for f in made if isinstance(f, Formula))


def _primal(graph: Graph, derived: Formula) -> Formula:
    primal = graph.producers[derived.origin.formula or ""]
    assert isinstance(primal, Formula)
    return primal


def _accumulated(work: _Work, name: str) -> Origin:
    made = work.graph.producers.get(name)
    return Origin(formula=name, rule="accumulate", layer=made.origin.layer if made else "")


def _one(work: _Work, tensor: Tensor) -> str:
    """The cotangent of a loss: 1."""
    name = work.name(f"{tensor.name}_bar")
    work.add("seed", (), Formula(name, (), (), sp.S.One, origin=Origin(formula=tensor.name, rule="seed")))
    return name


def _gradient(work: _Work, name: str) -> str:
    """The cotangent of one of `wrt`; zeros where nothing reaches it."""
    found = _accumulate(work, name)
    if found is None:
        found = work.cotangents[name] = _total(work, name, None, ())
    return found
