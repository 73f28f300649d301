"""The graphs whose kernels the laws run: one name, one graph, batch symbolic."""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.graph import Graph
from tests.schedule import graphs

GRAPHS: dict[str, Callable[[], Graph]] = {
    "mlp": lambda: graphs.mlp(5, 7, 3),
    "cross_entropy": graphs.cross_entropy,
    "layer_norm": graphs.layer_norm,
    "attention": graphs.attention,
    "embedding": graphs.embedding,
    "convolution": graphs.convolution,
    "odd_ends": graphs.odd_ends,
}
