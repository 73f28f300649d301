"""Gradients that a model asks for itself, ``g = gradient(loss, W)``: each becomes the formulas of a backward pass."""

from __future__ import annotations

from dataclasses import replace

from chainrule.derive.backward import axis_names, backward
from chainrule.derive.vjp import fresh_axes
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, Formula
from chainrule.ir.graph import Graph
from chainrule.ir.primitive import Primitive


def expand_gradient(graph: Graph) -> Graph:
    """Replace the first ``gradient`` by the backward pass of what stands before it.

    loss = …                           loss = …
    g    = gradient(loss, W)    ->     … W_bar = …
                                       g[i, o] = W_bar[i, o]

    The first, so that a gradient of what was made of gradients derives their formulas in turn.
    """
    for k, node in enumerate(graph.nodes):
        if isinstance(node, Primitive) and node.kind == "gradient":
            of, wrt = node.reads
            before = replace(graph, nodes=graph.nodes[:k], updates=(), outputs=())
            derivation = backward(before, of, (wrt,))
            copy = _copy(derivation.graph, derivation.gradients[wrt], node)
            return replace(graph, nodes=(*derivation.graph.nodes, copy, *graph.nodes[k + 1 :]))
    return graph


def _copy(graph: Graph, x_bar: str, node: Primitive) -> Formula:
    axes = fresh_axes(node.shape, axis_names(graph, x_bar))
    read = Access(x_bar, tuple(axis.symbol for axis in axes))
    return Formula(node.out, axes, (), slot(0), (read,), origin=replace(node.origin, rule="gradient", formula=x_bar))
