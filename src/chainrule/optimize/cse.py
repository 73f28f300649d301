"""Common subexpressions: two nodes that compute the same are one."""

from __future__ import annotations

from dataclasses import replace

from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph, Node
from chainrule.ir.rename import NOWHERE
from chainrule.optimize.rewrite import reading


def cse(graph: Graph) -> Graph:
    """Compute equal formulas once; formulas are canonical, so that equal means ``==``, but for the name.

    a[i] = exp(x[i])
    b[j] = exp(x[j])     ->     a[i] = exp(x[i])
    y[i] = a[i] + b[i]          y[i] = 2 * a[i]

    A name that the graph gives out keeps a node: of two equal outputs the second is a copy of the first.
    """
    first: dict[object, str] = {}
    alias: dict[str, str] = {}
    nodes: list[Node] = []
    kept = set(graph.roots)
    for old in graph.nodes:
        node = reading(old, alias) if any(t in alias for t in old.tensors) else old
        same = first.setdefault(_nameless(node), node.out)
        if same != node.out:
            alias[node.out] = same
            if node.out not in kept:
                continue
            # reads go to the first; a root stays under its own name
        nodes.append(node)
    if not alias:
        return graph
    # in a recurrence, a formula may read what stands below it
    return replace(graph, nodes=tuple(reading(n, alias) if any(t in alias for t in n.tensors) else n for n in nodes))


def _nameless(node: Node) -> object:
    """What two nodes must share to be one: all but name, origin; a draw also has its key."""
    if isinstance(node, Formula):
        # a formula that reads itself is its own
        return node.out if node.out in node.tensors else (node.law, node.tensors)
    return replace(node, out="", origin=NOWHERE)
