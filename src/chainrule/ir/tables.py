"""The node table and the edge list of a graph, as rows.

A row is a flat dictionary of strings and integers, the same keys in every row, so that it is a line of a table as
well as an object in JSON.
"""

from __future__ import annotations

from chainrule.ir.cost import flops
from chainrule.ir.expression import expression_text
from chainrule.ir.formula import DType, Extent, Formula, Origin
from chainrule.ir.graph import Graph, Tensor
from chainrule.ir.text import access_text, equation_text, names_of

Row = dict[str, str | int]


def type_text(dtype: DType, shape: tuple[Extent, ...], bound: Extent | None = None) -> str:
    """``float[batch, 64]``, ``index 10 [batch]``; a number is ``float``."""
    kind = dtype.value if bound is None else f"index {expression_text(bound, {})} "
    extents = ", ".join(expression_text(e, {}) for e in shape)
    return f"{kind}[{extents}]" if shape else kind.strip()


def node_table(graph: Graph) -> list[Row]:
    """A row for each node: name, kind, shape, dtype, equation, FLOPs, and where it comes from."""
    return [_row(graph, name, kind) for name, kind in graph.network.nodes(data="kind")]


def _row(graph: Graph, name: str, kind: str) -> Row:
    tensor = graph.tensors[name]
    node = graph.producers.get(name)
    return {
        "name": name,
        "kind": kind,
        "shape": _shape(tensor),
        "dtype": tensor.dtype.value if tensor.bound is None else f"index {expression_text(tensor.bound, {})}",
        "equation": equation_text(node) if isinstance(node, Formula) else "",
        "flops": "0" if node is None else expression_text(flops(node), {}),
        "layer": tensor.origin.layer,
        "from": origin_text(tensor.origin),
        "output": int(name in graph.outputs),
    }


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(expression_text(e, {}) for e in tensor.shape)}]"


def origin_text(origin: Origin) -> str:
    """``mlp.graph:9``, ``vjp of h``, or nothing if nobody said."""
    derived = " of ".join(part for part in (origin.rule, origin.formula) if part)
    return derived or (str(origin.span) if origin.span else "")


def edge_list(graph: Graph) -> list[Row]:
    """A row for each access: the tensor that is read, its reader, the slot, how it is indexed, shape and dtype."""
    rows: list[Row] = []
    for tail, head, data in graph.network.edges(data=True):
        node = graph.producers[head]
        read = ""
        if isinstance(node, Formula):
            read = access_text(node.reads[data["slot"]], names_of(node))
        shape = _shape(graph.tensors[tail])
        row: Row = {"from": tail, "to": head, "slot": data["slot"], "read": read, "shape": shape}
        rows.append(row | {"dtype": data["dtype"].value})
    return rows
