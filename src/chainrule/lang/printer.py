"""Graph to text: one statement a value, every range written, so that the text alone gives the graph back.

The law is ``elaborate(parse(print_graph(g))) == g``, for models and for what is derived from them.
"""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.ir.expression import ATOM, COMPARE, expression_text
from chainrule.ir.formula import DType, Extent, Formula
from chainrule.ir.graph import Dim, Graph, Node, Param, Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.text import formula_text
from chainrule.lang.scan import PRINTED


def print_graph(graph: Graph) -> str:
    """`graph` as a text of the language."""
    return "\n".join((PRINTED, f"model {graph.name}:", *(f"    {line}" for line in _lines(graph)))) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    marked = tuple(node.out for node in graph.nodes if node.out in graph.outputs)
    has_loss = any(node.out == "loss" for node in graph.nodes)
    # marks say it, unless an order, the unmarked loss or an output that is no node needs a list
    inline = bool(marked) and marked == graph.outputs and (not has_loss or "loss" in marked)
    yield from (_dim(dim) for dim in graph.dims)
    yield from (f"input {_sized(t)}{_type(t)}" for t in graph.inputs)
    yield from (f"param {_sized(p.tensor)} ~ {_law(p)}" for p in graph.params)
    yield from (f"state {_sized(s.tensor)} = {_number(s.value)}" for s in graph.states)
    yield from (f"scalar {s.name} = {_number(s.default)}" for s in graph.scalars)
    for node in graph.nodes:
        mark = "output " if inline and node.out in graph.outputs and not _stops(node) else ""
        yield mark + _node(node)
    if not inline or any(_stops(node) for node in graph.nodes if node.out in marked):
        yield f"output {', '.join(graph.outputs)}".rstrip()
    yield from (f"{update.store} <- {update.value}" for update in graph.updates)


def _stops(node: Node) -> bool:
    if isinstance(node, Primitive):
        return node.kind in ("uniform", "fixed_point")
    return node.stop


def _dim(dim: Dim) -> str:
    if dim.definition is not None:
        return f"dim {dim.name} = {_size(dim.definition, COMPARE)}"
    low = f" >= {dim.minimum}" if dim.minimum else ""
    if dim.maximum is None:
        return f"dim {dim.name}{low}"
    return f"dim {dim.minimum} <= {dim.name} <= {dim.maximum}" if low else f"dim {dim.name} <= {dim.maximum}"


def _size(extent: Extent, within: int = COMPARE + 1) -> str:
    return expression_text(extent, {}, within)


def _sized(tensor: Tensor) -> str:
    return f"{tensor.name}[{', '.join(map(_size, tensor.shape))}]" if tensor.shape else tensor.name


def _type(tensor: Tensor) -> str:
    if tensor.bound is not None:
        return f" : index {_size(tensor.bound, ATOM)}"
    return "" if tensor.dtype is DType.FLOAT else f" : {tensor.dtype.value}"


def _number(value: float) -> str:
    """The shortest decimal that is this double."""
    return repr(float(value))


NAMES = {
    "uniform": ("low", "high"),
    "normal": ("center", "deviation"),
    "constant": ("value",),
    "orthogonal": ("gain", "columns"),
}


def _law(param: Param) -> str:
    init = param.init
    numbers = [f"{name} = {_number(x)}" for name, x in zip(NAMES[init.law], init.numbers, strict=True)]
    each = [] if init.each is None else [f"each = {param.tensor.shape[init.each]}"]
    return f"{init.law}({', '.join(numbers + each)})"


def _node(node: Node) -> str:
    if isinstance(node, Formula):
        return formula_text(node)
    if node.kind == "gradient":
        return f"{node.out} = gradient({', '.join(node.reads)})"
    axes = ", ".join(f"i{k} < {_size(n)}" for k, n in enumerate(node.shape))
    left = f"{node.out}[{axes}]" if node.shape else node.out
    if node.kind == "fixed_point":
        limits = f"from {_number(node.start)} within {_number(node.within)} steps {node.steps}"
        return f"fixed_point {left} = {node.reads[0]} {limits}"
    key = "" if node.key == node.out else f"(key = {node.key})"
    return f"random {left} ~ {node.kind}{key}"
