"""What stores at computed places stays inside: an argmax of nothing is the number of places, which is none of them."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import numpy as np
import pytest
import sympy as sp

from chainrule import compiler
from chainrule.api.model import Model
from chainrule.errors import ChainruleError, SourceError
from chainrule.ir.affine import bounds_of
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule.task import Task, task_of
from chainrule.source import Source
from tests.schedule.laws import assert_law

MASKED = """
model masked:
    dim n
    input x[3, 5]
    input mask[n, 5]
    input w[n, 3]
    m[i, k] = max[j where mask[i, j] > 0] x[k, j]
    loss = sum[i, k] w[i, k] * m[i, k]
"""
POOLED = """
model pooled:
    dim n
    input x[n, 2, 6, 7]
    y = max_pool2d(x, {arguments})
    loss = sum(y * y)
"""


@cache
def gradient(text: str) -> Graph:
    return compiler.derive(Source(text, "test.graph"), Options("gradient", wrt=("x",))).graph


def scatters(text: str) -> list[Task]:
    graph = gradient(text)
    tasks = [task_of(f, graph.tensors) for f in graph.nodes if isinstance(f, Formula)]
    return [task for task in tasks if task.scattered]


def rows(n: int = 7) -> dict[str, np.ndarray]:
    """The first row, one in the middle and the last are masked whole."""
    rng = np.random.default_rng(0)
    mask = (rng.random((n, 5)) < 0.6).astype(float)
    mask[[0, n // 2, n - 1]] = 0
    return {"x": rng.normal(size=(3, 5)), "mask": mask, "w": rng.uniform(1, 2, (n, 3))}


def by_hand(x: np.ndarray, mask: np.ndarray, w: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    for counts, weights in zip(mask > 0, w, strict=True):
        if counts.any():
            found[np.arange(3), np.argmax(np.where(counts, x, -np.inf), axis=1)] += weights
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_cotangent_flows_through_a_max_of_nothing(dtype: str) -> None:
    values = rows()
    expected = by_hand(**values)
    _, found = Model(Source(MASKED, "test.graph")).gradients(("x",), dtype=dtype, **values)
    np.testing.assert_allclose(found["x"], expected, rtol=1e-6)
    graph = gradient(MASKED)
    np.testing.assert_allclose(evaluate(graph, values)[graph.outputs[-1]], expected)
    assert_law(graph, {"n": 7}, values=values)


def test_no_cotangent_flows_through_a_max_of_nothing_in_pytorch_either() -> None:
    torch = pytest.importorskip("torch")
    values = rows()
    x, mask, w = (torch.tensor(values[name]) for name in ("x", "mask", "w"))
    x.requires_grad_()
    found = x[None].masked_fill(mask[:, None] <= 0, -np.inf).max(2).values
    (expected,) = torch.autograd.grad(found, x, w)
    np.testing.assert_allclose(by_hand(**values), expected.numpy())


def test_a_masked_argmax_is_guarded_where_it_stores() -> None:
    (task,) = scatters(MASKED)
    assert any(isinstance(c, sp.Lt) and c.rhs == 5 for c in task.where)


@pytest.mark.parametrize("arguments", ["2", "3, stride = 2", "2, stride = 1", "2, dilation = 2"])
def test_a_pool_s_place_needs_no_guard(arguments: str) -> None:
    text = POOLED.format(arguments=arguments)
    assert [task.where for task in scatters(text)] == [()]
    assert_law(gradient(text), {"n": 2})


def test_a_padded_pool_s_place_is_guarded() -> None:
    text = POOLED.format(arguments="2, pad = 1")
    (task,) = scatters(text)
    assert len(task.where) >= 4
    assert_law(gradient(text), {"n": 2})


def test_a_scatter_that_trusts_too_low_a_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def extents(reads, tensors):  # type: ignore[no-untyped-def]
        return {place: bound - 1 for place, bound in bounds_of(reads, tensors).items()}

    monkeypatch.setattr("chainrule.schedule.task.bounds_of", extents)
    with pytest.raises((AssertionError, IndexError)):
        assert_law(gradient(MASKED), {"n": 7}, values=rows())


def test_an_argmax_of_nothing_beyond_its_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("chainrule.optimize.expand_reductions"), "may_be_empty", lambda *_: False)
    with pytest.raises(ChainruleError, match="5 is no bound of an argmax that may be of nothing"):
        compiler.derive(Source(MASKED, "test.graph"), Options("gradient", wrt=("x",)))


def test_a_gather_through_a_masked_argmax_asks_for_a_guard() -> None:
    lines = "model m:\n    input x[3, 5]\n    a[i] = argmax[j where x[i, j] > 0] x[i, j]\n    y[i] = x[i, a[i]{}]\n"
    with pytest.raises(SourceError, match="could reach 5"):
        compiler.elaborate(Source(lines.format(""), "test.graph"))
    graph = compiler.elaborate(Source(lines.format("; 0"), "test.graph"))
    x = np.array([[-1.0] * 5, [0.0, 1.0, 3.0, 2.0, 0.0], [-1.0] * 5])
    assert evaluate(graph, {"x": x})["y"].tolist() == [0.0, 3.0, 0.0]
