"""What a graph costs: FLOPs and bytes as polynomials in the dims, read off the ranges of its formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from functools import lru_cache

import sympy as sp

from chainrule.ir.expression import Select
from chainrule.ir.formula import DType, Extent, Formula
from chainrule.ir.graph import Graph, Node
from chainrule.ir.rename import form_of

BYTES = {DType.FLOAT: 4, DType.INT: 8, DType.BOOL: 1}
"""Bytes an element, for a float32 program."""


@lru_cache(maxsize=65536)
def operations(body: sp.Expr) -> int:
    """The arithmetic of one evaluation: a sum or product of k terms is k - 1, a function, power or choice is 1."""
    total = 0
    for part in sp.preorder_traversal(body):
        if isinstance(part, sp.Add | sp.Mul):
            total += len(part.args) - 1
        elif isinstance(part, sp.Pow | sp.Function | Select):
            total += 1
    return total


def elements(shape: tuple[Extent, ...]) -> sp.Expr:
    return sp.Mul(*shape)


def flops(node: Node) -> sp.Expr:
    """Operations of a node: a contraction counts two, a product and a sum, for each term."""
    if not isinstance(node, Formula):
        return sp.S.Zero
    each = operations(node.body) + (1 if node.over else 0)
    return each * elements(tuple(i.extent for i in node.indices))


def traffic(node: Node, graph: Graph) -> sp.Expr:
    """Bytes of a node alone: what it reads, each tensor once, and what it writes."""
    if not isinstance(node, Formula):
        return sp.S.Zero
    touched = (*node.tensors, node.out)
    return sp.Add(*(BYTES[graph.tensors[t].dtype] * elements(graph.tensors[t].shape) for t in touched))


def total_flops(graph: Graph) -> sp.Expr:
    laws = Counter(node.law for node in graph.nodes if isinstance(node, Formula))
    return sp.expand(sp.Add(*(count * flops(form_of(law)) for law, count in laws.items())))


def total_traffic(graph: Graph) -> sp.Expr:
    """Bytes if every formula were a kernel of its own: an upper bound, which fusion lowers."""
    first: dict[Hashable, Node] = {}
    kinds: Counter[Hashable] = Counter()
    for node in graph.nodes:
        if isinstance(node, Formula):
            kind = (node.law, *[graph.tensors[name].kind for name in node.tensors])
            first.setdefault(kind, node)
            kinds[kind] += 1
    return sp.expand(sp.Add(*(count * traffic(first[kind], graph) for kind, count in kinds.items())))


def parameters(graph: Graph) -> int:
    return sum(int(elements(p.tensor.shape)) for p in graph.params)
