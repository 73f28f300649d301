"""Recurrences in chunks: the same numbers, from one state a chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule import compiler
from chainrule.api.model import Model
from chainrule.errors import ChainruleError
from chainrule.ir.graph import Graph
from chainrule.ir.recurrence import NoRecurrence
from chainrule.ir.validate import validate
from chainrule.ir.validate_program import IllegalProgram, validate_program
from chainrule.optimize import drop_dead
from chainrule.optimize.checkpoint import Chunks, checkpoint, chunk_of
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.schedule.laws import assert_law, values_of

HEAD = """
model m():
    dim batch, time >= 1
    input x[batch, time, 3]
    input k[batch, time] : index 3
    param U[3, 3] ~ orthogonal
    param b[3] ~ zeros
"""

TABLE = {
    "the last state": """
    h[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t - 1, i; 0] * U[i, j] + b[j])
    loss = sum[n, j] h[n, time - 1, j]^2
""",
    "every state": """
    h[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t - 1, i; 0] * U[i, j] + b[j])
    loss = mean(h^2)
""",
    "backwards, a start of 1": """
    h[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t + 1, i; 1] * U[i, j] + b[j])
    loss = sum[n, j] h[n, 0, j]^2
""",
    "two tensors, read at both sides of a step": """
    c[n < batch, t < time, j < 3] = b[j] * c[n, t - 1, j; 0] + sin(x[n, t, j] + h[n, t - 1, j; 0])
    h[n < batch, t < time, j < 3] = c[n, t, j] * U[j, 0] + h[n, t - 1, 2 - j; 0]
    loss = sum[n, j] h[n, time - 1, j] * c[n, time - 1, j]
""",
    "a learned start, a mask": """
    s[n < batch, t < time, j < 3] = if t == 0 then b[j] else h[n, t - 1, j; 0]
    h[n < batch, t < time, j < 3] = if k[n, t] > 0 then sin(s[n, t, j] * x[n, t, j]) + U[j, k[n, t]] else s[n, t, j]
    loss = mean[n, j] h[n, time - 1, j]^3
""",
    "what comes in by a layer": """
    z[n, t, j] = sum[i] exp(x[n, t, i]) * U[i, j]
    h[n < batch, t < time, j < 3] = tanh(z[n, t, j] + h[n, t - 1, j; 0] * b[j])
    loss = mean[n, j] h[n, time - 1, j]^2
""",
    "two layers": """
    h[n < batch, t < time, j < 3] = tanh(x[n, t, j] + sum[i] h[n, t - 1, i; 0] * U[i, j])
    g[n < batch, t < time, j < 3] = tanh(h[n, t, j] + b[j] * g[n, t - 1, j; 0])
    loss = mean[n, j] g[n, time - 1, j]^2
""",
}


def derived(body: str) -> Graph:
    return compiler.derive(Source(HEAD + body, "test.graph"), Options("train", optimizer="sgd")).graph


def chunked(graph: Graph, every: int) -> Graph:
    found = drop_dead(checkpoint(graph, every))
    validate(found)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_chunks_compute_what_the_steps_did(name: str) -> None:
    graph = derived(TABLE[name])
    for every, time in ((1, 4), (2, 5), (3, 6), (4, 3), (3, 1)):
        found = chunked(graph, every)
        assert sum(dim.steps is not None for dim in found.dims) >= 2
        values = values_of(graph, {"batch": 2, "time": time})
        wanted, new = evaluate(graph, values), evaluate(found, values)
        for root in graph.roots:
            np.testing.assert_allclose(
                new[root], wanted[root], rtol=1e-12, atol=1e-13, err_msg=f"{root} {every} {time}"
            )


@pytest.mark.parametrize("name", TABLE)
def test_the_program_of_chunks_keeps_the_law(name: str) -> None:
    found = chunked(derived(TABLE[name]), 3)
    program = schedule(found, training=True, sizes={"batch": 10**4, "time": 64})
    validate_program(program)
    for time in (1, 6, 7):
        assert_law(found, {"batch": 3, "time": time}, program=program)


def test_a_layer_of_a_thousand_steps_takes_a_fraction_of_the_memory() -> None:
    """Beside the inputs, arena and scratch of one thread: 32 states and 32 steps, where 1024 steps were."""
    model = Model(Source(HEAD + TABLE["what comes in by a layer"], "test.graph"))
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(4, 1024, 3)).astype("float32"), np.zeros((4, 1024), int)
    found = {}
    for every in (None, 32):
        step = model.compile("sgd", checkpoints=every, threads=1, seed=0)
        losses = [float(step(x=x, k=k)) for _ in range(2)]
        binding = step.runner._bind({"x": x.shape, "k": k.shape})
        found[every] = losses, binding.plan.arena + binding.tape.scratch - x.nbytes - k.nbytes
    np.testing.assert_allclose(found[32][0], found[None][0], rtol=1e-5)
    assert 8 * found[32][1] < found[None][1]


@pytest.mark.parametrize(("extent", "every", "steps"), [(64, 0, 8), (48, 0, 6), (13, 0, 4), (1, 0, 1), (100, 7, 7)])
def test_a_chunk_is_near_the_root_and_divides_if_it_can(extent: int, every: int, steps: int) -> None:
    assert chunk_of(sp.Integer(extent), every) == steps


@pytest.mark.parametrize("broken", ["edge", "padding", "way"])
def test_a_lost_checkpoint_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = derived(TABLE["two tensors, read at both sides of a step"])
    values = values_of(graph, {"batch": 2, "time": 5})
    if broken == "edge":
        whole = Chunks.edge
        monkeypatch.setattr(Chunks, "edge", lambda self, of, apart, back: whole(self, of, -apart, back))
    elif broken == "padding":
        monkeypatch.setattr(Chunks, "is_padded", False)

    def holds() -> None:
        found = chunked(graph, 3)
        if broken == "way":
            turned = {"up": "down", "down": "up", None: None}
            dims = tuple(replace(dim, steps=turned[dim.steps]) for dim in found.dims)
            assert_law(replace(found, dims=dims), {"batch": 2, "time": 5})
        new, wanted = evaluate(found, values), evaluate(graph, values)
        for root in graph.roots:
            np.testing.assert_allclose(new[root], wanted[root], rtol=1e-9, err_msg=root)

    with pytest.raises((AssertionError, ChainruleError, IndexError, IllegalProgram, NoRecurrence, ValueError)):
        holds()
