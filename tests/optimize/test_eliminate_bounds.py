"""Eliminated indices leave no read outside its tensor, and no claim that a float is equal to itself."""

from dataclasses import replace

import numpy as np

from chainrule.compiler import IMPROVE, PREPARE, run
from chainrule.derive import backward
from chainrule.ir.graph import Tensor
from chainrule.lang import load_graph
from chainrule.optimize import eliminate, expand_reductions, stabilize
from chainrule.reference import evaluate

TRAPEZIA = """model m:
    input x[3]
    input z[3]
    input s[2]
    p[j < 2] = (z[j + 1] - z[j]) * (x[j + 1] + x[j])
    y[j < 2] = y[j - 1; 0] + p[j]
    output y
"""


def test_a_guard_leaves_no_other_read_outside():
    """Of two reads at α == p, one of a shorter axis stays inside by the range of what α was made of."""
    once = backward(run(load_graph(TRAPEZIA), PREPARE), {"y": "s"}, ("x", "z"))
    x_bar = once.gradients["x"]
    graph = replace(once.graph, outputs=(x_bar,))
    for step in (eliminate, stabilize, expand_reductions):
        graph = step(graph)
    graph = replace(graph, inputs=(*graph.inputs, Tensor("v", graph.tensors[x_bar].shape)))
    twice = backward(graph, {x_bar: "v"}, ("z",))
    z_bar = twice.gradients["z"]
    values = {"x": np.ones(3), "z": np.ones(3), "s": np.array([1.0, 2.0]), "v": np.array([1.0, 10.0, 100.0])}
    found = evaluate(run(replace(twice.graph, outputs=(z_bar,)), IMPROVE), values)[z_bar]
    # <v, x_bar> is sum[j] y_bar[j] (z[j + 1] - z[j]) (v[j + 1] + v[j]), with y_bar = (3, 2)
    assert found.tolist() == [-33.0, 33.0 - 220.0, 220.0]


def test_a_float_may_differ_from_itself():
    text = "model m:\n    input x[3]\n    n = sum[i < 3 where x[i] == x[i]] 1\n    output n\n"
    graph = run(load_graph(text), (*PREPARE, *IMPROVE))
    assert evaluate(graph, {"x": np.array([1.0, np.nan, 2.0])})["n"] == 2
