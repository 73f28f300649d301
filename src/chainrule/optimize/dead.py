"""What nothing depends on is not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Formula, free_symbols
from chainrule.ir.graph import Graph, Tensor


def drop_dead(graph: Graph) -> Graph:
    """Leave out the nodes that no root (output or update) depends on.

    a[i] = x[i] + 1
    b[i] = x[i] * 2     ->     b[i] = x[i] * 2
    output b                   output b
    """
    live: set[str] = set()
    waiting = list(graph.roots)
    while waiting:
        name = waiting.pop()
        if name not in live:
            live.add(name)
            if name in graph.producers:
                waiting.extend(graph.producers[name].tensors)
    kept = tuple(node for node in graph.nodes if node.out in live)
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=kept)


def drop_unread_inputs(graph: Graph) -> Graph:
    """Leave out the inputs that no node reads and no root is, but for those that alone show the size of a dim.

    A dim that then stands nowhere is left out too: nothing would say how large it is.

    input x[batch, 64]                        input x[batch, 64]
    input label[batch]                        y[b] = sum[i] x[b, i]     (batch is bound by x)
    y[b] = sum[i] x[b, i]              ->
    """
    wanted = {name for node in graph.nodes for name in node.tensors}.union(graph.roots)
    kept = [t for t in graph.inputs if t.name in wanted]
    free = {dim_symbol(dim.name) for dim in graph.dims if dim.definition is None}
    unbound = (free & _sizes(graph)) - _bound(kept)
    for tensor in graph.inputs:
        if unbound & _bound([tensor]) and tensor not in kept:
            kept.append(tensor)
            unbound -= _bound([tensor])
    if len(kept) == len(graph.inputs):
        return graph
    shown = _sizes(graph) | _bound(kept)
    dims = tuple(d for d in graph.dims if d.definition is not None or dim_symbol(d.name) in shown)
    return replace(graph, inputs=tuple(t for t in graph.inputs if t in kept), dims=dims)


def _sizes(graph: Graph) -> set[sp.Symbol]:
    """The symbols in the nodes' extents, laws and conditions, and in what dims are derived from."""
    found: set[sp.Symbol] = set()
    for node in graph.nodes:
        expressions = [*node.shape]
        if isinstance(node, Formula):
            expressions += [*(i.extent for i in node.over), node.body, *node.where]
        found |= free_symbols(expressions)
    return found | free_symbols(d.definition for d in graph.dims if d.definition is not None)


def _bound(inputs: Sequence[Tensor]) -> set[sp.Symbol]:
    return free_symbols(extent for tensor in inputs for extent in tensor.shape)
