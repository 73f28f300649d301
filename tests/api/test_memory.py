"""A budget of memory is kept, gives the same losses, and what a plan says is what a step takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError

TEXT = """
model deep(depth = 6, width = 64):
    dim batch
    input x[batch, width]
    h = x
    repeat depth:
        z = linear(h, width)
        m[c] = mean[n] z[n, c]
        u[n, c] = z[n, c] - m[c]
        h[n, c] = tanh(u[n, c]) + sin(u[n, c]) + exp(-u[n, c]^2) + sigmoid(2*u[n, c]) + log(1 + u[n, c]^2)
    loss = mean(h^2)
"""
BATCH = 8192
SIZES = {"batch": BATCH}


@pytest.fixture
def model(tmp_path: Path) -> cr.Model:
    path = tmp_path / "deep.graph"
    path.write_text(TEXT)
    return cr.load(path)


def x(batch: int = BATCH) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, 64)).astype(np.float32)


def kept(step: cr.api.model.Step) -> int:
    return next(reversed(step.runner._bindings.values())).plan.kept


def test_a_budget_is_kept_and_changes_no_loss(model: cr.Model) -> None:
    losses, most = [], []
    for memory in ("1GB", "50 MB"):
        step = model.compile("sgd", dtype="float64", memory=memory, sizes=SIZES, rate=1e-3, seed=0)
        losses.append([step(x=x()) for _ in range(3)])
        most.append(kept(step))
    np.testing.assert_allclose(*losses, rtol=1e-10)
    assert most[1] <= 50e6 < most[0]


def test_what_is_beyond_the_budget_is_an_error_that_names_the_sizes(model: cr.Model) -> None:
    with pytest.raises(ChainruleError, match=r"at batch = 8192.*the budget is 1,000,000\n  Way out"):
        model.compile("sgd", memory=10**6, sizes=SIZES)
    step = model.compile("sgd", memory="25 MB", sizes=SIZES, seed=0)
    with pytest.raises(
        ChainruleError, match=r"batch = 16384 keeps .* bytes between its kernels, and may keep 25,000,000"
    ):
        step(x=x(2 * BATCH))
    assert np.isfinite(step(x=x()))


def test_sizes_and_budgets_that_make_no_sense_are_named(model: cr.Model) -> None:
    with pytest.raises(ChainruleError, match="no dim 'btch': did you mean 'batch'"):
        model.compile("sgd", sizes={"btch": 3})
    with pytest.raises(ChainruleError, match="memory is 'two hands', which is no size"):
        model.compile("sgd", memory="two hands")


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_a_first_step_takes_the_memory_that_its_plan_says(model: cr.Model) -> None:
    step, given = model.compile("sgd", threads=1, sizes=SIZES, seed=0), x()
    before = resident()
    step(x=given)
    binding = next(reversed(step.runner._bindings.values()))
    planned = binding.plan.arena + binding.tape.scratch
    assert binding.plan.kept <= binding.plan.arena <= 1.1 * binding.plan.kept + given.nbytes
    assert planned - 2e6 <= resident() - before <= 1.1 * planned + 4e6  # huge pages, the walker's own


def resident() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmRSS"].split()[0])
