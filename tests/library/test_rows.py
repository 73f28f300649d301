"""Every law of every function of the library that PyTorch has too, in float64: one row a function, sizes drawn.

What is compared is what is compiled: after `stabilize`, `expand_reductions`, `backward` and every later pass.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.compiler import IMPROVE
from chainrule.derive import backward
from chainrule.ir.formula import DType
from chainrule.ir.graph import Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.validate import validate
from chainrule.lang import library, load_graph
from chainrule.optimize import drop_dead, eliminate, expand_reductions, specialize, stabilize
from chainrule.reference import evaluate
from tests.derive.test_library_gradients import values_of

torch = pytest.importorskip("torch")
from tests.library import elementwise, losses, order, reductions  # noqa: E402

LIBRARY = {
    "functions": elementwise.BUILT_IN,
    "elementwise": elementwise.LIBRARY,
    "activations": elementwise.ACTIVATIONS,
    "reductions": reductions.LIBRARY,
    "order": order.LIBRARY,
    "losses": losses.LIBRARY,
}
ROWS = {name: row for rows in LIBRARY.values() for name, row in rows.items()}
ROWS |= elementwise.SIGNS | reductions.SETTINGS | {f"{n} with indices": r for n, r in reductions.WRITTEN.items()}
ROWS |= losses.SETTINGS | order.SETTINGS
PREPARE = (drop_dead, stabilize, expand_reductions)
TOLERANCE = 1e-8


def text_of(row):
    left, _, call = row.call.rpartition(": ")
    return "model m():\n" + replace(row, call="").text.replace("    y = \n", f"    {left or 'y'} = {call}\n")


@cache
def first(name):
    """The row's graph with cotangent `y_seed`, its derivation, and what it is differentiated by."""
    row = ROWS[name]
    g = specialize(load_graph(text_of(row)), training=True)
    y = g.outputs[0] if g.outputs else g.nodes[-1].out
    g = replace(g, inputs=(*g.inputs, Tensor("y_seed", g.tensors[y].shape)), outputs=(y,), updates=())
    given = [*g.inputs[:-1], *(p.tensor for p in g.params)]
    wrt = row.wrt or tuple(t.name for t in given if t.dtype is DType.FLOAT)
    for step in PREPARE:
        g = step(g)
    return g, y, wrt, given, backward(g, {y: "y_seed"}, wrt)


def improved(graph, outputs):
    graph = replace(graph, outputs=tuple(dict.fromkeys(outputs)))
    for step in IMPROVE:
        graph = step(graph)
    validate(graph)
    return graph


@cache
def once(name):
    _, y, _, _, derivation = first(name)
    return improved(derivation.graph, (y, *derivation.gradients.values())), derivation.gradients


@cache
def twice(name):
    """The derivative of all gradients along a direction each."""
    _, _, wrt, _, derivation = first(name)
    graph = replace(derivation.graph, outputs=tuple(dict.fromkeys(derivation.gradients.values())))
    seeds = {x: Tensor(f"{x}_along", graph.tensors[x].shape) for x in wrt}
    graph = replace(graph, inputs=(*graph.inputs, *seeds.values()))
    for step in (eliminate, stabilize, expand_reductions):
        graph = step(graph)
    second = backward(graph, {derivation.gradients[x]: seeds[x].name for x in wrt}, wrt)
    return improved(second.graph, second.gradients.values()), second.gradients


def drawn(row, g, sizes, seed):
    sizes = {d.name: max(sizes[d.name], row.least.get(d.name, 0)) for d in g.dims if d.definition is None}
    values = values_of(g, sizes, seed)
    rng = np.random.default_rng(seed)
    return values | {name: draw(rng, values[name].shape) for name, draw in row.draw.items() if name in values}


def oracle(name, values, wrt, given, draws):
    """PyTorch's result and its gradients by `wrt`, still differentiable."""
    tensors = {t.name: torch.tensor(np.asarray(values[t.name])) for t in given}
    for x in wrt:
        tensors[x].requires_grad_(True)
    y = ROWS[name].oracle(*tensors.values(), *map(torch.tensor, draws))
    moving = [tensors[x] for x in wrt]
    return (
        y,
        moving,
        torch.autograd.grad(y, moving, torch.tensor(values["y_seed"]), create_graph=True, allow_unused=True),
    )


def agree(found, expected, like, what):
    expected = np.zeros(np.shape(like)) if expected is None else expected.detach().numpy(force=True)
    assert found.shape == expected.shape, what
    scale = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale, err_msg=what)


SIZES = st.fixed_dictionaries({d: st.sampled_from([0, 1, 3]) for d in "nkm"})


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=3, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 999))
def test_values_and_gradients_are_pytorch_s(name, sizes, seed):
    g, y, wrt, given, _ = first(name)
    graph, gradients = once(name)
    values = drawn(ROWS[name], g, sizes, seed)
    result = evaluate(graph, values, seed=seed)
    draws = [result[node.out] for node in g.nodes if isinstance(node, Primitive)]
    expected, _, slopes = oracle(name, values, wrt, given, draws)
    agree(result[y], expected, result[y], "value")
    for x, slope in zip(wrt, slopes, strict=True):
        agree(result[gradients[x]], slope, values[x], f"{x}_bar")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.smooth])
def test_second_derivatives_are_pytorch_s(name):
    g, _, wrt, given, _ = first(name)
    graph, gradients = twice(name)
    values = drawn(ROWS[name], g, dict.fromkeys("nkm", 3), 5)
    rng = np.random.default_rng(6)
    along = {f"{x}_along": rng.normal(size=np.shape(values[x])) for x in wrt}
    result = evaluate(graph, values | along, seed=5)
    drawing = evaluate(g, values, seed=5)
    draws = [drawing[node.out] for node in g.nodes if isinstance(node, Primitive)]
    _, moving, slopes = oracle(name, values, wrt, given, draws)
    used = [
        (s, torch.tensor(along[f"{x}_along"]))
        for x, s in zip(wrt, slopes, strict=True)
        if s is not None and s.requires_grad
    ]
    second = [None] * len(moving)
    if used:
        second = torch.autograd.grad([s for s, _ in used], moving, [v for _, v in used], allow_unused=True)
    for x, slope in zip(wrt, second, strict=True):
        agree(result[gradients[x]], slope, values[x], f"second derivative by {x}")


@pytest.mark.parametrize("file", LIBRARY)
def test_every_function_of_the_file_has_a_row(file):
    names = {name for name, (place, _, _) in library().places.items() if place == f"library/{file}.graph"}
    assert names == set(LIBRARY[file])
