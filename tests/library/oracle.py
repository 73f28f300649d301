"""What the tables of the library's tests share: an operation's values and gradients against PyTorch, in float64.

A row draws sizes and attributes, and says three things: what is declared, the call, and the same in PyTorch. What is
compared is what is compiled: after every pass, evaluated by the reference.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import sympy as sp

from chainrule.compiler import IMPROVE, PREPARE
from chainrule.derive import backward
from chainrule.ir.cost import operations
from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import DType, Formula
from chainrule.ir.graph import Graph, Tensor
from chainrule.ir.validate import validate
from chainrule.optimize import eliminate, expand_reductions, specialize, stabilize
from chainrule.reference import evaluate, sizes_of
from tests.lang.texts import graph

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    """``y = call`` under `declarations`; `oracle` takes the inputs, then the parameters, in order."""

    declarations: str
    call: str
    oracle: Callable[..., Any]
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the dims
    training: bool = True
    twice: bool = True  # PyTorch has its second derivative

    @property
    def text(self) -> str:
        lines = [line.strip() for line in self.declarations.split(";")]
        return "model m:\n" + "".join(f"    {line}\n" for line in (*lines, f"y = {self.call}"))


class Derived:
    """A case's graph with the gradients of everything that has one, seeded by `y_seed`."""

    def __init__(self, case: Case) -> None:
        g = specialize(graph(case.text), training=case.training)
        g = replace(g, outputs=("y",), updates=())
        self.arguments = (*g.inputs, *(p.tensor for p in g.params))
        self.wrt = tuple(t.name for t in self.arguments if t.dtype is DType.FLOAT)
        self.primal = g
        g = replace(g, inputs=(*g.inputs, Tensor("y_seed", g.tensors["y"].shape)))
        self.prepared = prepared(g)
        self.first = backward(self.prepared, {"y": "y_seed"}, self.wrt)
        self.gradients = self.first.gradients
        outputs = ("y", *dict.fromkeys(self.gradients.values()))
        self.graph = improved(replace(self.first.graph, outputs=outputs))

    @property
    def forward(self) -> Graph:
        return improved(prepared(self.primal))

    def second(self) -> tuple[Graph, Mapping[str, str]]:
        """The gradients of Σ x_seed · x_bar, for each argument x, with respect to each argument and y_seed."""
        g = self.first.graph
        seeds = tuple(Tensor(f"{t}_seed", g.tensors[t].shape) for t in self.wrt)
        g = replace(g, inputs=(*g.inputs, *seeds), outputs=tuple(dict.fromkeys(self.gradients.values())))
        for step in (eliminate, stabilize, expand_reductions):
            g = step(g)
        found = backward(g, {self.gradients[t]: f"{t}_seed" for t in self.wrt}, (*self.wrt, "y_seed"))
        return improved(replace(found.graph, outputs=tuple(dict.fromkeys(found.gradients.values())))), found.gradients


def prepared(g: Graph) -> Graph:
    for step in PREPARE:
        g = step(g)
    return g


def improved(g: Graph) -> Graph:
    for step in IMPROVE:
        validate(g)
        g = step(g)
    validate(g)
    return g


def drawn(case: Case, tensors: tuple[Tensor, ...], seed: int) -> dict[str, Any]:
    """Normal numbers for floats, indices below their bounds, truth values."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for t in tensors:
        shape = tuple(case.sizes[e.name] if e.is_Symbol else int(e) for e in t.shape)
        if t.dtype is DType.FLOAT:
            values[t.name] = rng.normal(size=shape)
        else:
            bound = 2 if t.bound is None else case.sizes[t.bound.name] if t.bound.is_Symbol else int(t.bound)
            values[t.name] = rng.integers(0, bound, size=shape)
    return values


def agree(found: Any, expected: Any, rtol: float = 1e-8) -> None:
    """Equal, relative to the greatest element."""
    expected = expected.detach().numpy() if hasattr(expected, "detach") else np.asarray(expected)
    assert found.shape == expected.shape
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * max(scale, 1e-3))


def tensors_of(values: Mapping[str, Any], wrt: tuple[str, ...]) -> list[Any]:
    return [torch.from_numpy(np.array(v)).requires_grad_(name in wrt) for name, v in values.items()]


def check(case: Case, seed: int) -> Derived:
    """Values and gradients are PyTorch's."""
    d = Derived(case)
    values = drawn(case, d.arguments, seed)
    given = tensors_of(values, d.wrt)
    y = case.oracle(*given)
    y_seed = np.random.default_rng(seed + 1).normal(size=tuple(y.shape))
    result = evaluate(d.graph, {**values, "y_seed": y_seed})
    agree(result["y"], y)
    moving = [t for t in given if t.requires_grad]
    expected = torch.autograd.grad(y, moving, torch.from_numpy(y_seed), allow_unused=True) if moving else []
    for name, t, e in zip(d.wrt, moving, expected, strict=True):
        agree(result[d.gradients[name]], torch.zeros_like(t) if e is None else e)
    return d


def check_twice(case: Case, seed: int) -> None:
    """Second derivatives are PyTorch's: of Σ x_seed · x_bar."""
    d = Derived(case)
    values = drawn(case, d.arguments, seed)
    given = tensors_of(values, d.wrt)
    y = case.oracle(*given)
    rng = np.random.default_rng(seed + 1)
    y_seed = torch.from_numpy(rng.normal(size=tuple(y.shape))).requires_grad_()
    moving = [t for t in given if t.requires_grad]
    once = torch.autograd.grad(y, moving, y_seed, create_graph=True, allow_unused=True)
    seeds = [torch.from_numpy(rng.normal(size=tuple(t.shape))) for t in moving]
    total = sum((e * s).sum() for e, s in zip(once, seeds, strict=True) if e is not None)
    expected = torch.autograd.grad(total, (*moving, y_seed), allow_unused=True)
    g, gradients = d.second()
    more = {f"{name}_seed": s.numpy() for name, s in zip(d.wrt, seeds, strict=True)}
    result = evaluate(g, {**values, **more, "y_seed": y_seed.detach().numpy()})
    for name, t, e in zip((*d.wrt, "y_seed"), (*moving, y_seed), expected, strict=True):
        agree(result[gradients[name]], torch.zeros_like(t) if e is None else e, rtol=1e-7)


class Seeded:
    """Draws as hypothesis does, and never the same corner first: for what is tried once."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def __call__(self, strategy: Any) -> int:
        numbers = strategy.wrapped_strategy
        return self.random.randint(numbers.start, numbers.end)


def work(g: Graph, sizes: Mapping[str, int]) -> int:
    """Operations of all formulas, a copy being one; an axis that a scatter writes at (``token[b] == p``) is no loop."""
    total = sp.S.Zero
    for f in g.nodes:
        if isinstance(f, Formula):
            equal = {side for c in f.where if isinstance(c, sp.Eq) for side in c.args}
            loops = [i.extent for i in f.indices if i in f.over or i.symbol not in equal]
            total += max(operations(f.body) + bool(f.over), 1) * sp.Mul(*loops)
    dims = Tensor("sizes", tuple(dim_symbol(d) for d in sizes))
    full = sizes_of(replace(g, inputs=(dims,)), {"sizes": tuple(sizes.values())})
    return int(total.subs({dim_symbol(d): n for d, n in full.items()}))
