"""A loop of steps that came to rest ends there, keeps two places, and leaves to the bit what all steps would leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chainrule.api.model import Model
from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.ir.graph import Graph
from chainrule.ir.program import Access, Loop, Program
from chainrule.ir.validate_program import validate_program
from chainrule.lang import load_graph
from chainrule.reference import evaluate
from chainrule.schedule import ending, schedule, scheduling
from chainrule.source import Source
from tests.schedule import interpret as interpreter
from tests.schedule.interpret import interpret
from tests.schedule.laws import assert_law

MODEL = """
model m:
    dim n
    input v[n, 3]
    param W[3, 3] ~ orthogonal(0.5)
    fixed_point z[i < n, j < 3] from {start} within {within} steps {steps}:
        z[i, j] = {law}
    loss = sum[i, j] z[i, j]^2 * v[i, j]
"""
LAWS = {
    "a product": "tanh(sum[k] z[i, k] * W[k, j] + v[i, j])",
    "elements": "cos(z[i, j]) * W[0, j] / 2 + v[i, j] / 4",
    "other places": "sin(v[i, j]) / 2 + z[i, 2 - j] * W[0, 0] / 2",
}
EARLY = {"start": "1", "within": "1e-4"}


def graph_of(law: str, steps: int, start: str = "0", within: str = "1e-9") -> Graph:
    text = MODEL.format(law=law, steps=steps, start=start, within=within)
    graph = run(replace(load_graph(text), outputs=("loss",)), PREPARE)
    found = backward(graph, "loss", ["W", "v"])
    return run(replace(found.graph, outputs=("loss", *found.gradients.values())), IMPROVE)


def values_of(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"v": rng.normal(size=(n, 3)), "W": np.linalg.qr(rng.normal(size=(3, 3)))[0] / 2}


def ends(program: Program) -> list[Loop]:
    return [node for k in program.kernels for node in k.body if isinstance(node, Loop) and node.until is not None]


def whole(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program with all steps."""
    with monkeypatch.context() as without:
        without.setattr(scheduling, "end_early", lambda program: program)
        return schedule(graph, training=True)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("steps", [2, 3, 40, 41])
def test_what_it_leaves_is_what_all_steps_leave(law: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(LAWS[law], steps, **EARLY)
    program = schedule(graph, training=True)
    validate_program(program)
    assert len(ends(program)) == 2  # the equation and its adjoint
    for n in (0, 1, 3):
        found, expected = (interpret(p, values_of(n), {"n": n}) for p in (program, whole(graph, monkeypatch)))
        assert all(np.array_equal(found[name], expected[name]) for name in graph.outputs)
    assert_law(graph, {"n": 3}, program=program, values=values_of(3))


def test_it_keeps_two_places() -> None:
    program = schedule(graph_of(LAWS["a product"], 40), training=True)
    shapes = {buffer.name: str(buffer.shape) for buffer in program.buffers}
    assert shapes["z_at"] == "(2, n, 3)"
    assert shapes["z_done"] == "(2,)"
    assert not any("40" in shape for shape in shapes.values())


def test_it_takes_no_steps_after_the_one_that_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = interpreter.write

    def write(access: Access, *rest: Any) -> None:
        seen.append(access.tensor)
        plain(access, *rest)

    monkeypatch.setattr(interpreter, "write", write)
    graph = graph_of(LAWS["a product"], 200, **EARLY)
    counts = []
    for program in (schedule(graph, training=True), whole(graph, monkeypatch)):
        seen.clear()
        interpret(program, values_of(3), {"n": 3})
        counts.append(seen.count("z_done") + seen.count("z_bar_done"))
    assert counts[1] == 400
    assert counts[0] < 60


def test_what_never_comes_to_rest_takes_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for law in ("z[i, j] + 1 + 0 * W[0, j]", "log(z[i, j] - 1) + W[0, j]"):
        graph = graph_of(law, 7)
        found, expected = (
            interpret(p, values_of(2), {"n": 2})["loss"]
            for p in (schedule(graph, training=True), whole(graph, monkeypatch))
        )
        assert np.array_equal(found, expected, equal_nan=True)


def test_a_recurrence_that_is_read_at_every_step_keeps_them() -> None:
    text = """
model m:
    input x[9]
    done[t < 9] = if done[t - 1; 0] > 0 then 1 else if h[t] > 1 then 1 else 0
    h[t < 9] = if done[t - 1; 0] > 0 then h[t - 1; 0] else {} + x[t]
    output y = {}
"""
    for step, read in (("h[t - 1; 0]", "sum(h)"), ("h[t - 2; 0]", "h[8] * 1")):
        graph = load_graph(text.format(step, read))
        program = schedule(graph, training=False)
        assert not ends(program)
        assert_law(graph, {}, program=program)
    graph = load_graph(text.format("h[t - 1; 0]", "h[8] * 1"))
    program = schedule(graph, training=False)
    assert len(ends(program)) == 1
    for seed in range(5):
        assert_law(graph, {}, program=program, seed=seed)


def test_an_end_one_step_too_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shortened = ending._shortened

    def hasty(program: Program, e: ending.Ending) -> Program:
        made = shortened(program, e)
        s = e.loop.range.symbol
        early = Access(e.done, (ending.remainder(s + 1, 2),))
        loops = [node for k in made.kernels for node in k.body if isinstance(node, Loop) and node.until is not None]
        at = next(node.until for node in loops if node.until.tensor == e.done)

        def changed(node: object) -> object:
            return replace(node, until=early) if isinstance(node, Loop) and node.until is at else node

        kernels = tuple(replace(k, body=tuple(map(changed, k.body))) for k in made.kernels)
        return replace(made, kernels=kernels)

    monkeypatch.setattr(ending, "_shortened", hasty)
    noticed = 0
    for steps in (40, 41):
        graph = graph_of(LAWS["a product"], steps, **EARLY)
        try:
            assert_law(graph, {"n": 3}, values=values_of(3))
        except AssertionError:
            noticed += 1
    assert noticed


def test_its_kernels_end_too() -> None:
    text = MODEL.format(law=LAWS["a product"], steps=41, start="1", within="1e-9")
    graph, model = graph_of(LAWS["a product"], 41, start="1"), Model(Source(text, "test.graph"))
    values = values_of(3) | {"W": model.params["W"].astype(float)}
    loss, found = model.gradients(("W", "v"), dtype="float64", v=values["v"])
    expected = evaluate(graph, values)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-12)
    for name, gradient in zip(("W", "v"), graph.outputs[1:], strict=True):
        np.testing.assert_allclose(found[name], expected[gradient], rtol=1e-11, atol=1e-13)
