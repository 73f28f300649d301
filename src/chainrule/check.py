"""Derived gradients against central differences of the model as it was written, both by the reference, in float64.

A difference of two losses knows nothing of our derivation: where both agree along random directions and at sampled
elements, forms, eliminations and accumulations are right. Where the loss has a kink, differences of two step sizes
disagree; such a point is drawn again, and reported if that does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph
from chainrule.ir.primitive import Primitive
from chainrule.optimize import drop_dead
from chainrule.reference import evaluate

Array = np.ndarray[Any, Any]

STEP = 1e-4  # times the scale of the tensor: the error is some 1e-12 from rounding, by Richardson's rule less from h
TOLERANCE = 1e-6
SMOOTH = 1e-7  # how far two step sizes may disagree: a smooth loss does by h^2, a kink by up to its jump
DRAWS = 5
AMPLIFIED = 10.0  # the error of a fixed point, in a gradient


@dataclass(frozen=True)
class Comparison:
    """A derivative of the loss in one place: along a direction, or by one element. `smooth`: no kink was met."""

    tensor: str
    along: str  # "direction 3", "[2, 5]"
    derived: float
    measured: float
    smooth: bool

    @property
    def error(self) -> float:
        """Relative to the derivative, but for small ones."""
        return abs(self.derived - self.measured) / max(1.0, abs(self.measured))


@dataclass(frozen=True)
class Report:
    """All comparisons of a model."""

    comparisons: tuple[Comparison, ...]
    tolerance: float = TOLERANCE

    @property
    def worst(self) -> float:
        """The greatest error where the loss is smooth."""
        errors = [c.error for c in self.comparisons if c.smooth]
        return max(errors, default=0.0)

    @property
    def kinks(self) -> int:
        return sum(not c.smooth for c in self.comparisons)

    @property
    def passed(self) -> bool:
        # NaN is no agreement
        return all(c.error <= self.tolerance for c in self.comparisons if c.smooth)


def check_gradients(
    written: Graph,
    derived: Graph,
    gradients: Mapping[str, str],
    loss: str,
    values: Mapping[str, Any],
    *,
    directions: int = 8,
    elements: int = 8,
    seed: int = 0,
) -> Report:
    """Compare the gradients of `derived` with central differences of the loss of `written`.

    gradients: the name in `derived` of the gradient of each tensor. values: inputs and parameters, in float64; draws
    are those of `seed`, the same in both. Directions are normal, elements drawn without repetition.
    """
    limit = max((node.within for node in written.nodes if isinstance(node, Primitive)), default=0.0)
    forward, values = held(exact(drop_dead(replace(written, updates=(), outputs=(loss,)))), values, seed)
    backward = drop_dead(replace(derived, updates=(), outputs=tuple(dict.fromkeys(gradients.values()))))
    found = evaluate(backward, values, seed=seed)
    rng = np.random.default_rng(seed)
    comparisons: list[Comparison] = []
    for name, gradient in gradients.items():
        at = np.asarray(values[name], np.float64)

        def loss_at(x: Array, name: str = name) -> float:
            return float(evaluate(forward, {**values, name: x}, seed=seed)[loss])

        for k in range(directions if at.size else 0):
            comparisons.append(_along(name, f"direction {k}", loss_at, at, found[gradient], _direction(at, rng)))
        places = rng.permutation(at.size)
        for k in range(min(elements, at.size)):
            comparisons.append(_element(name, loss_at, at, found[gradient], places[k::elements]))
    # a gradient of a fixed point is as right as the fixed point is
    return Report(tuple(comparisons), max(TOLERANCE, AMPLIFIED * limit))


def exact(graph: Graph) -> Graph:
    """`graph` with its fixed points found to the last digit: a difference would see how a search ended."""
    found = (
        replace(node, within=1e-15, steps=max(node.steps, 1000))
        if isinstance(node, Primitive) and node.kind == "fixed_point"
        else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(found))


def held(graph: Graph, values: Mapping[str, Any], seed: int) -> tuple[Graph, Mapping[str, Any]]:
    """`graph` and `values` with what is marked `stop` kept at its value: no gradient passes, so no difference may."""
    stopped = [node for node in graph.nodes if isinstance(node, Formula) and node.stop]
    if not stopped:
        return graph, values
    found = evaluate(graph, values, seed=seed)
    names = {node.out for node in stopped}
    nodes = tuple(node for node in graph.nodes if node.out not in names)
    inputs = (*graph.inputs, *(graph.tensors[node.out] for node in stopped))
    return replace(graph, inputs=inputs, nodes=nodes), {**values, **{name: found[name] for name in names}}


def _direction(at: Array, rng: np.random.Generator) -> Callable[[int], Array]:
    """A new direction of length 1 each time that it is asked for."""

    def draw(_: int) -> Array:
        v = rng.normal(size=at.shape)
        return np.asarray(v / np.linalg.norm(v))

    return draw


def _element(name: str, loss_at: Callable[[Array], float], at: Array, gradient: Array, places: Array) -> Comparison:
    """The first of `places` where the loss is smooth."""
    comparison = None
    for place in places[:DRAWS]:
        index = np.unravel_index(place, at.shape)

        def unit(_: int, index: tuple[Any, ...] = index) -> Array:
            v = np.zeros(at.shape)
            v[index] = 1
            return v

        text = "[" + ", ".join(str(i) for i in index) + "]"
        comparison = _along(name, text, loss_at, at, gradient, unit, draws=1)
        if comparison.smooth:
            break
    assert comparison is not None
    return comparison


def _along(
    name: str,
    along: str,
    loss_at: Callable[[Array], float],
    at: Array,
    gradient: Array,
    draw: Callable[[int], Array],
    draws: int = DRAWS,
) -> Comparison:
    """(4 D(h/2) - D(h)) / 3, D being the central difference; another direction where D(h/2) is not near D(h)."""
    h = STEP * max(1.0, float(np.sqrt(np.mean(at**2))))
    comparison = Comparison(name, along, np.nan, np.nan, False)
    for k in range(draws):
        v = draw(k)
        derived = float(np.sum(gradient * v))
        wide = (loss_at(at + h * v) - loss_at(at - h * v)) / (2 * h)
        near = (loss_at(at + h / 2 * v) - loss_at(at - h / 2 * v)) / h
        measured = (4 * near - wide) / 3
        smooth = not abs(wide - near) > SMOOTH * max(1.0, abs(near))
        comparison = Comparison(name, along, derived, measured, smooth)
        if smooth:
            break
    return comparison
