"""From a text to numbers: derived, optimized and evaluated by the reference, each distinct text once."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.ir.graph import Graph, Tensor
from chainrule.lang import load_graph
from chainrule.optimize import eliminate, expand_reductions, specialize, stabilize

KEPT = 20_000  # texts


@lru_cache(maxsize=KEPT)
def written(text: str) -> Graph:
    graph = specialize(load_graph(text), training=True)
    return replace(graph, updates=())


@lru_cache(maxsize=KEPT)
def forward(text: str) -> Graph:
    """The values as they are compiled."""
    return run(written(text), (*PREPARE, *IMPROVE))


def seeded(graph: Graph, outputs: tuple[str, ...]) -> Graph:
    """`graph` with a cotangent input for each of `outputs`."""
    seeds = tuple(Tensor(f"{name}_seed", graph.tensors[name].shape) for name in outputs)
    return replace(graph, inputs=(*graph.inputs, *seeds))


@lru_cache(maxsize=KEPT)
def first(text: str, outputs: tuple[str, ...], wrt: tuple[str, ...]) -> tuple[Graph, dict[str, str]]:
    """Values and gradients: cotangents of `outputs` come in as ``name_seed``."""
    graph = run(seeded(written(text), outputs), PREPARE)
    derivation = backward(graph, {name: f"{name}_seed" for name in outputs}, wrt)
    gradients = dict.fromkeys(derivation.gradients[name] for name in wrt)
    derived = replace(derivation.graph, outputs=tuple(dict.fromkeys((*graph.outputs, *gradients))))
    return run(derived, IMPROVE), dict(derivation.gradients)


@lru_cache(maxsize=KEPT)
def second(
    text: str, outputs: tuple[str, ...], wrt: tuple[str, ...], of: tuple[str, ...]
) -> tuple[Graph, dict[str, str]]:
    """The gradient of sum over x in `of` of <x_seed2, x_bar>, x_bar being the first gradients."""
    graph = run(seeded(written(text), outputs), PREPARE)
    once = backward(graph, {name: f"{name}_seed" for name in outputs}, wrt)
    bars = {name: once.gradients[name] for name in of}
    graph = replace(once.graph, outputs=tuple(dict.fromkeys(bars.values())))
    graph = run(graph, (eliminate, stabilize, expand_reductions))
    named = {bar: f"{name}_seed2" for name, bar in bars.items()}
    seeds = tuple(Tensor(seed, graph.tensors[bar].shape) for bar, seed in named.items())
    twice = backward(replace(graph, inputs=(*graph.inputs, *seeds)), named, wrt)
    graph = replace(twice.graph, outputs=tuple(dict.fromkeys(twice.gradients[name] for name in wrt)))
    return run(graph, IMPROVE), dict(twice.gradients)
