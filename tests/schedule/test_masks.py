"""What masks leave of products: the same numbers, and about half of the work."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule import compiler
from chainrule.api.model import Model
from chainrule.ir.graph import Graph
from chainrule.ir.program import Product, Program, leaves
from chainrule.options import Options
from chainrule.schedule import masks, schedule
from chainrule.source import Source
from tests.schedule.laws import assert_law

HEAD = """model m(time = 24, wide = 8):
    dim batch
    input q[batch, time, wide]
    input k[batch, time, wide]
    input v[batch, time, wide]
    score[n, t, s] = sum[d] q[n, t, d] * k[n, s, d]
"""

SEEN = {
    "causal": "if s > t then -inf else score[n, t, s]",
    "strictly causal": "if s >= t and t > 0 then -inf else score[n, t, s]",
    "from the end": "if s < t then -inf else score[n, t, s]",
    "a window": "if s > t then -inf else (if s < t - 3 then -inf else score[n, t, s])",
    "a bias": "if s > t then -inf else score[n, t, s] - 0.1 * (t - s)",
}

REST = """    y[n, t, e] = sum[s] softmax(shown)[n, t, s] * v[n, s, e]
    loss = mean(y^2)
"""

FULL = HEAD + "    shown[n, t, s] = score[n, t, s]\n" + REST


def text(name: str) -> str:
    return f"{HEAD}    shown[n, t, s] = {SEEN[name]}\n{REST}"


def graph_of(source: str, **arguments: int) -> Graph:
    options = Options("gradient", wrt=("q", "k", "v"))
    return compiler.derive(Source(source, "test.graph", None, tuple(sorted(arguments.items()))), options).graph


def products(program: Program) -> list[Product]:
    return [leaf for kernel in program.kernels for leaf in leaves(kernel.body) if isinstance(leaf, Product)]


@pytest.mark.parametrize("name", SEEN)
def test_what_a_mask_leaves_out_is_not_missed(name: str) -> None:
    graph = graph_of(text(name), time=9, wide=8)
    program = schedule(graph, training=True, sizes={"batch": 64})
    assert_law(graph, {"batch": 2}, program=program)


@pytest.mark.parametrize("name", ["causal", "from the end", "a window", "a bias"])
def test_all_six_products_of_attention_are_masked(name: str) -> None:
    found = products(schedule(graph_of(text(name)), training=True))
    assert len(found) == 6
    assert all(leaf.where for leaf in found)


def test_attention_without_a_mask_is_whole() -> None:
    assert not any(leaf.where for leaf in products(schedule(graph_of(FULL), training=True)))


def test_a_score_that_is_an_output_is_whole() -> None:
    options = Options("predict", outputs=("score", "y"))
    graph = compiler.derive(Source(text("causal"), "test.graph"), options).graph
    score = next(leaf for leaf in products(schedule(graph, training=False)) if leaf.target.tensor == "score")
    assert not score.where


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_leave_out_what_the_mask_hides(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = {key: rng.normal(size=(2, 24, 8)) for key in "qkv"}
    loss, found = Model(Source(text(name), "test.graph")).gradients(("q", "k", "v"), dtype=dtype, **given)
    monkeypatch.setattr("chainrule.schedule.scheduling.masked", lambda *given: {})
    whole = Source(text(name).replace("model m", "model whole"), "test.graph")  # another key of the cache
    wanted_loss, wanted = Model(whole).gradients(("q", "k", "v"), dtype=dtype, **given)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for key in "qkv":
        np.testing.assert_allclose(found[key], wanted[key], rtol=2e-5, atol=1e-8)


def test_a_mask_moved_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(text("causal"), time=9, wide=8)
    monkeypatch.setattr(masks.Below, "condition", property(lambda b: b.low <= b.high + b.shift - 1))
    with pytest.raises(AssertionError):
        assert_law(graph, {"batch": 2}, program=schedule(graph, training=True, sizes={"batch": 64}))
