"""In which order the axes of what lies between lie in memory: channels last, wherever a convolution wants it.

Inputs, parameters, states and outputs keep the order that was written; everything else takes the order that suits
who computes it, and every read follows. So a layout changes at the edges alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import sympy as sp

from chainrule.choices import COST_MODEL, Choice, Choices
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, Formula
from chainrule.ir.graph import Graph, Node, Tensor
from chainrule.schedule.cost import Sizes
from chainrule.schedule.task import fresh
from chainrule.schedule.windows import WIDE, Laid, nameless, windowed
from chainrule.schedule.winograd import by_cost, convolution_of, tiled

Places = tuple[sp.Expr, ...]


def lay_out(
    graph: Graph, sizes: Sizes, *, accurate: bool = False, item: int = 4, choices: Choices = COST_MODEL
) -> tuple[Graph, dict[str, Choice]]:
    """`graph` with convolutions as products over gathered operands, and its inner tensors in orders that suit them;
    and what was chosen for convolutions that fewer multiplications can compute.

    accurate: none is computed so, for that rounds more. item: bytes of a float. choices: as they were measured.
    """
    chosen: dict[str, Choice] = {}
    fixed = {*graph.roots, *(name for node in graph.nodes if not isinstance(node, Formula) for name in node.tensors)}
    tensors = dict(graph.tensors)
    moved: dict[str, Places] = {}
    plain = set[tuple[object, ...]]()  # laws with the kinds of tensors that they read, where nothing is laid out
    gathered: dict[Formula, str] = {}
    nodes: list[Node] = []
    constants: list[Node] = []  # they come first, for all kernels may read them
    for node in (node for nodes in graph.components for node in nodes):
        if not isinstance(node, Formula):
            nodes.append(node)
            continue
        f, follows, law = node, not moved.keys().isdisjoint(node.tensors), None
        if follows:
            f = replace(node, reads=tuple(_followed(read, moved) for read in node.reads))
        else:
            law = (f.law, *(tensors[name].kind for name in f.tensors))
            if law in plain:
                nodes.append(f)
                continue
        laid = None
        if not graph.is_recurrent(f.out):
            c = None if accurate else convolution_of(f, tensors)
            if c is not None:
                key = c.key(sizes, item)
                chosen[key] = way = choices.get(key) or by_cost(c, sizes)
                laid = tiled(c, way.rows).laid(tensors, gathered) if way.method == "winograd" else None
            laid = laid or windowed(f, tensors, sizes, follows, gathered)
            laid = laid or (_like(f, moved) if f.out not in fixed else None)
        if laid is None:
            nodes.append(f)
            if law is not None and not graph.is_recurrent(f.out):
                plain.add(law)
            continue
        if f.out in fixed or not laid.exact:
            laid = _copied(f, laid, tensors)
        else:
            moved[f.out] = laid.places
        nodes += (made for made in laid.made if made.reads)
        constants += (made for made in laid.made if not made.reads)
        gathered |= {nameless(made): made.out for made in laid.made[:-1]}
        tensors |= {made.out: Tensor(made.out, made.shape, made.dtype, made.bound) for made in laid.made}
    changed = moved or len(nodes) > len(graph.nodes)
    return replace(graph, nodes=(*constants, *nodes)) if changed else graph, chosen


def _followed(read: Access, moved: Mapping[str, Places]) -> Access:
    """`read` of what its tensor has become."""
    places = moved.get(read.tensor)
    if places is None:
        return read
    names = read.places
    return replace(read, indices=tuple(place.xreplace(names) for place in places))


def _like(f: Formula, moved: Mapping[str, Places]) -> Laid | None:
    """`f` with its axes in the order of what it reads: the axis that is last there is last here."""
    lasts = [read.indices[-1] for read in f.reads if read.tensor in moved]
    last = next((a for a in f.axes if a.symbol in lasts and a.extent.is_Integer and a.extent >= WIDE), None)
    if last is None or last == f.axes[-1]:
        return None
    axes = (*(a for a in f.axes if a != last), last)
    return Laid((replace(f, axes=axes),), tuple(a.symbol for a in axes))


def _copied(f: Formula, laid: Laid, tensors: Mapping[str, Tensor]) -> Laid:
    """The same, and `f`'s tensor as it was written."""
    *made, last = laid.made
    inner = replace(last, out=fresh(f"{f.out}_laid", tensors), stop=False)
    read = Access(inner.out, laid.places)
    copy = Formula(
        f.out, f.axes, (), slot(0, f.dtype.sort), (read,), dtype=f.dtype, bound=f.bound, stop=f.stop, origin=f.origin
    )
    return Laid((*made, inner, copy), tuple(a.symbol for a in f.axes))
