"""What several passes need: a graph with formulas exchanged, reads pointed elsewhere, nodes put in order again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph, Node
from chainrule.ir.primitive import Primitive
from chainrule.ir.rename import rename


def map_formulas(graph: Graph, change: Callable[[Formula], Formula]) -> Graph:
    """`graph` with every formula f replaced by change(f); the same graph where nothing changes."""
    nodes = tuple(change(node) if isinstance(node, Formula) else node for node in graph.nodes)
    unchanged = all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if unchanged else replace(graph, nodes=nodes)


def reading(node: Node, names: Mapping[str, str]) -> Node:
    """`node` with its reads pointed at other tensors; what it makes keeps its name."""
    if isinstance(node, Primitive):
        return replace(node, reads=tuple(names.get(name, name) for name in node.reads))
    return rename(node, {old: new for old, new in names.items() if old != node.out})


def resolved(names: Mapping[str, str]) -> dict[str, str]:
    """Each name with what it finally stands for: aliases of aliases followed to the end."""
    final: dict[str, str] = {}
    for name in names:
        target = names[name]
        while target in names:
            target = names[target]
        final[name] = target
    return final


def in_order(graph: Graph, nodes: Iterable[Node]) -> tuple[Node, ...]:
    """`nodes`, each after those that it reads; otherwise in the order given. A recurrence keeps its order."""
    nodes = tuple(nodes)
    made = {node.out: node for node in nodes}
    ordered: dict[str, Node] = {}
    for start in nodes:
        path: list[tuple[Node, list[str]]] = [(start, list(start.tensors))]
        on_path = {start.out}
        while path:
            node, waiting = path[-1]
            if node.out in ordered:
                path.pop()
                continue
            while waiting:
                name = waiting.pop(0)
                if name in made and name not in ordered and name not in on_path:
                    path.append((made[name], list(made[name].tensors)))
                    on_path.add(name)
                    break
            else:
                ordered[node.out] = node
                path.pop()
    return tuple(ordered.values())
