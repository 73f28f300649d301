"""The mode of the program, put in: `training` becomes a number, and what only the other mode needs goes away."""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import TRAINING
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph, Node


def specialize(graph: Graph, training: bool) -> Graph:
    """Choose what `training` chooses; without it, updates do not exist.

    y[i] = if training then x[i] * keep[i] / 0.9 else x[i]     ->     y[i] = x[i]
    mean <- m
    """
    mode = {TRAINING: sp.Integer(int(training))}

    def chosen(node: Node) -> Node:
        if not isinstance(node, Formula):
            return node
        body, where = node.body.xreplace(mode), tuple(c.xreplace(mode) for c in node.where)
        return node if (body, where) == (node.body, node.where) else replace(node, body=body, where=where)

    nodes = tuple(chosen(node) for node in graph.nodes)
    return replace(graph, nodes=nodes, updates=graph.updates if training else ())
