"""What nothing depends on is not computed."""

from __future__ import annotations

from dataclasses import replace

from chainrule.ir.graph import Graph


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
