"""The validator notices each way in which a pass can break a graph."""

from dataclasses import replace

import pytest
import sympy as sp

from chainrule.ir.cost import parameters, total_flops, total_traffic
from chainrule.ir.expression import Sort, dim_symbol, index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index
from chainrule.ir.graph import Dim, Graph, Init, Param, State, Tensor, Update
from chainrule.ir.validate import IllegalGraph, validate

N, I, O = dim_symbol("batch"), sp.Integer(3), sp.Integer(4)
n, i, o = (index_symbol(name) for name in ("n", "i", "o"))
Z = Formula(
    "z",
    (Index(n, N, "n"), Index(o, O, "o")),
    (Index(i, I, "i"),),
    slot(0) * slot(1),
    (Access("x", (n, i)), Access("W", (i, o))),
)
H = Formula("h", (Index(n, N, "n"), Index(o, O, "o")), (), sp.tanh(slot(0)), (Access("z", (n, o)),))
GRAPH = Graph(
    "layer",
    dims=(Dim("batch"),),
    inputs=(Tensor("x", (N, I)),),
    params=(Param(Tensor("W", (I, O)), Init("constant", (0.0,))),),
    states=(State(Tensor("s", (N, O))),),
    nodes=(Z, H),
    updates=(Update("s", "h"),),
    outputs=("h",),
)


def broken(**changes):
    return replace(GRAPH, **changes)


def test_a_legal_graph_passes():
    validate(GRAPH)


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (broken(nodes=(H, Z)), "h reads z before it is made"),
        (broken(nodes=(Z, H, H)), "h is made twice"),
        (broken(nodes=(Z, replace(H, reads=(Access("q", (n, o)),)))), "h reads q, which nothing makes"),
        (broken(nodes=(replace(Z, reads=(Access("x", (n,)), Z.reads[1])), H)), "x has 2 axes and is read with 1"),
        (broken(nodes=(Z, replace(H, body=sp.Symbol("k") * slot(0)))), "k is neither an index nor a dim"),
        (broken(nodes=(Z, replace(H, body=slot(0, Sort.INTEGER)))), "slot 0 is not of the dtype of z"),
        (broken(nodes=(Z, replace(H, axes=(Index(n, N + 1), H.axes[1])))), "extent batch + 1, neither"),
        (broken(outputs=("nothing",)), "root nothing is made by nothing"),
        (broken(updates=(Update("x", "h"),)), "x is updated, and is no state or parameter"),
        (broken(updates=(Update("W", "h"),)), "which has another shape"),
        (broken(updates=(Update("s", "h"), Update("s", "z"))), "s is updated 2 times"),
        (broken(inputs=(*GRAPH.inputs, Tensor("W", (I,)))), "W is given twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_illegal_graph_is_named(graph, problem):
    with pytest.raises(IllegalGraph) as error:
        validate(graph)
    assert problem in str(error.value).replace("_i00", "n")


@pytest.mark.parametrize("body", [sp.Heaviside(slot(0)), sp.Float(0.5) * slot(0), sp.Derivative(sp.tanh(slot(0)))])
def test_a_formula_of_a_foreign_node_cannot_even_be_made(body):
    with pytest.raises(TypeError, match=r"no place in a formula|no exact number"):
        replace(H, body=body)


def test_costs_are_polynomials_in_the_dims():
    assert total_flops(GRAPH) == 24 * N + 4 * N
    assert total_traffic(GRAPH) == 4 * (3 * N + 12 + 4 * N) + 4 * (4 * N + 4 * N)
    assert parameters(GRAPH) == 12


def test_the_network_has_accesses_as_edges_and_the_dag_their_condensation():
    assert set(GRAPH.network.edges()) == {("x", "z"), ("W", "z"), ("z", "h")}
    assert GRAPH.network.nodes["W"]["kind"] == "param"
    edge = GRAPH.network.edges["x", "z", 0]
    assert edge["shape"] == (N, I)
    assert edge["slot"] == 0
    assert all(len(members) == 1 for _, members in GRAPH.dag.nodes(data="members"))
