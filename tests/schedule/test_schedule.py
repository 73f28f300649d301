"""Programs compute what their graphs say."""

from __future__ import annotations

import sys

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.compiler import derive
from chainrule.ir.expression import dim_symbol, slot
from chainrule.ir.formula import DType, Formula
from chainrule.ir.graph import Graph, State, Tensor, Update
from chainrule.ir.machine import CPU
from chainrule.ir.program import Loop, Product, leaves
from chainrule.ir.validate import validate
from chainrule.ir.validate_program import validate_program
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.schedule.cost import Sizes
from chainrule.schedule.work import work_of
from chainrule.source import Source
from tests.schedule.graphs import (
    A,
    B,
    Builder,
    attention,
    convolution,
    cross_entropy,
    embedding,
    layer_norm,
    mlp,
    odd_ends,
)
from tests.schedule.laws import assert_law
from tests.schedule.strategies import graphs

GRAPHS = {
    "mlp": mlp(3, 16, 8, 2),
    "wide mlp": mlp(5, 9),
    "cross entropy": cross_entropy(),
    "layer norm": layer_norm(),
    "attention": attention(),
    "attention over symbolic time": attention(sp.Integer(2), 1, dim_symbol("batch"), 3),
    "embedding": embedding(),
    "convolution": convolution(o=3, h=4),
    "odd ends": odd_ends(),
}
HINTS = (1, 32, 10**6)


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_program_computes_what_the_graph_says(name: str, hint: int) -> None:
    graph = GRAPHS[name]
    validate(graph)
    program = schedule(graph, training=True, sizes={"batch": hint})
    validate_program(program)
    for batch in (0, 1, 3):
        assert_law(graph, {"batch": batch}, program=program)


def cut_everything(patch: pytest.MonkeyPatch) -> None:
    """Into blocks of two, however small the work."""
    patch.setattr("chainrule.schedule.kernels.Planner.block_size", lambda planner, draft: 2)
    for name in ("serial_ns", "tiny_ns"):
        patch.setitem(vars(CPU), name, 0.0)


@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_may_run_in_any_order_and_be_of_any_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_everything(monkeypatch)
    program = schedule(GRAPHS[name], training=True)
    validate_program(program)
    assert_law(GRAPHS[name], {"batch": 5}, program=program, blocks=reversed)


@settings(max_examples=80, deadline=None)
@given(
    graph=graphs(),
    n=st.integers(0, 3),
    m=st.integers(0, 3),
    hint=st.sampled_from((1, 100, 10**5)),
    cut=st.booleans(),
    seed=st.integers(0, 9),
)
def test_random_graphs_keep_the_law(graph: Graph, n: int, m: int, hint: int, cut: bool, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            cut_everything(patch)
        program = schedule(graph, training=True, sizes={"n": hint, "m": hint})
    validate_program(program)
    assert_law(graph, {"n": n, "m": m}, program=program, blocks=reversed, seed=seed)


def test_a_weights_gradient_and_its_update_share_a_block_that_never_goes_to_memory() -> None:
    program = schedule(mlp(784, 256, 10), training=True, sizes={"batch": 64})
    kernel = next(k for k in program.kernels if k.formulas == ("W1_bar", "W1_new"))
    assert kernel.block is not None
    assert [b.name for b in kernel.locals] == ["W1_bar"]
    assert "W1_bar" not in {b.name for b in program.buffers}


def test_blocks_divide_the_operand_that_is_far_away_so_that_each_part_is_fetched_once() -> None:
    program = schedule(mlp(784, 1024, 10), training=True, sizes={"batch": 256})
    first = program.kernels[0]
    assert first.block is not None and first.block.extent == 1024
    assert first.formulas[:2] == ("p1", "h1")  # what reads its columns is beside it
    near = schedule(mlp(784, 256, 10), training=True, sizes={"batch": 256})
    assert near.kernels[0].block is not None and near.kernels[0].block.extent == dim_symbol("batch")


def test_small_work_is_one_kernel_on_one_thread() -> None:
    (kernel,) = schedule(mlp(2, 16, 16, 2), training=True, sizes={"batch": 1}).kernels
    assert kernel.block is None


@pytest.mark.parametrize("rows", [cross_entropy(4096, 1024), layer_norm(4096, 1024)])
def test_long_rows_are_one_kernel_whose_blocks_divide_the_rows(rows: Graph) -> None:
    kernels = schedule(rows, training=True).kernels
    assert {kernel.block.extent for kernel in kernels if kernel.block is not None} == {4096}
    assert len(kernels[0].formulas) > 3 and len(kernels) <= 3  # partial results are added in a second


def test_an_update_of_what_partial_results_read_does_not_wait_for_their_sum() -> None:
    text = """model m():
    param x[4096, 10] ~ normal(1)
    input w[4096, 10]
    y = layer_norm(x)
    loss = sum[n, k] (y[n, k] - w[n, k])^2
"""
    graph = derive(Source(text, "m.graph"), Options("train", optimizer="sgd")).graph
    rows, *rest = schedule(graph, training=True).kernels
    assert "x.next" in rows.formulas and not any(kernel.block for kernel in rest)


def test_what_stands_still_in_a_sum_leaves_a_product_behind() -> None:
    g = Builder(n=24, i=16, o=16)
    for name, letters in (("x", "ni"), ("W", "io"), ("g", "n")):
        g.input(name, letters)
    g.formula("y no", ["g n", "x ni", "W io"], A * sp.exp(B) * slot(2), over="i")
    graph = g.graph("hidden", ("y",))
    program = assert_law(graph, {})
    assert [type(leaf) for k in program.kernels for leaf in leaves(k.body)].count(Product) == 1


def test_a_causal_mask_leaves_a_product_behind() -> None:
    g = Builder(q=24, k=24, d=16)
    for name, letters in (("P", "qk"), ("V", "kd")):
        g.input(name, letters)
    g.formula("O qd", ["P qk", "V kd"], A * B, over="k", where=(sp.Le(g.index("k"), g.index("q")),))
    program = assert_law(g.graph("causal", ("O",)), {})
    assert [type(leaf) for k in program.kernels for leaf in leaves(k.body)].count(Product) == 1


def test_an_update_that_reads_elsewhere_is_kept_and_copied() -> None:
    g = Builder(i=3, j=3)
    g.param("W", "ij")
    g.formula("W_new ij", ["W ji"], 2 * A)
    g.updates.append(Update("W", "W_new"))
    assert_law(g.graph("transposed", ("W_new",)), {})


def test_two_stores_may_change_places() -> None:
    g = Builder(i=3)
    g.param("p", "i")
    g.param("q", "i")
    g.updates += [Update("p", "q"), Update("q", "p")]
    assert_law(g.graph("exchange", ()), {})


def test_states_are_updated_as_parameters_are() -> None:
    g = Builder(n=dim_symbol("batch"))
    g.input("x", "n")
    g.formula("total", ["x n"], A, over="n")
    g.formula("mean_new", ["mean", "total"], A / 2 + B)
    graph = g.graph("running", ("total",))
    graph = Graph(
        **{**graph.__dict__, "states": (State(Tensor("mean", ()), 1.0),), "updates": (Update("mean", "mean_new"),)}
    )
    assert_law(graph, {"batch": 3})


def test_equal_layers_become_kernels_that_differ_in_names_alone() -> None:
    program = schedule(mlp(*[128] * 8), training=True, sizes={"batch": 512})
    shapes = [k.formulas for k in program.kernels if k.block is not None and k.formulas[0].endswith("_bar")]
    assert len(shapes) == 7


def test_a_deep_network_is_scheduled_in_linear_time() -> None:
    def calls(layers: int) -> int:
        graph, count = chain(layers), [0]

        def watch(frame: object, event: str, argument: object) -> None:
            count[0] += event == "call"

        sys.setprofile(watch)
        try:
            schedule(graph, training=True)
        finally:
            sys.setprofile(None)
        return count[0]

    calls(10)
    assert calls(160) < 10 * calls(20)


def chain(layers: int) -> Graph:
    """Equal layers of a product, a map and the gradient of a weight."""
    g = Builder(n=dim_symbol("batch"), i=32, o=32)
    g.input("h0", "ni")
    for k in range(1, layers + 1):
        g.param(f"W{k}", "io")
        g.formula(f"p{k} no", [f"h{k - 1} ni", f"W{k} io"], A * B, over="i")
        g.formula(f"h{k} no", [f"p{k} no"], sp.tanh(A))
        g.formula(f"W{k}_bar io", [f"h{k - 1} ni", f"h{k} no"], A * B, over="n")
        g.formula(f"W{k}_new io", [f"W{k} io", f"W{k}_bar io"], A - B / 8)
        g.updates.append(Update(f"W{k}", f"W{k}_new"))
    return g.graph("chain", (f"h{layers}",))


def test_a_gather_reads_the_table_before_the_scatter_changes_it() -> None:
    program = schedule(embedding(), training=True)
    order = [f for k in program.kernels for f in k.formulas]
    assert order.index("e") < order.index("table_new")
    assert_law(embedding(), {"batch": 4}, program=program)


def test_a_scatter_outside_its_axis_is_dropped() -> None:
    g = Builder(n=5, p=3)
    g.input("x", "n")
    g.input("label", "n", DType.INT, sp.Integer(3))
    meets = sp.Eq(slot(1, DType.INT.sort) + 1, g.index("p"), evaluate=False)
    g.formula("y p", ["x n", "label n"], A, over="n", where=(meets,))
    graph = g.graph("outside", ("y",))
    for seed in range(3):
        assert_law(graph, {}, seed=seed)


CAUSAL = """model m():
    dim batch
    input x[batch, 32, 16]
    y = multi_head(x, 2)
    y = multi_head(tanh(y), 2)
    loss = mean(y * y)
"""


def test_an_operand_that_a_mask_made_zero_is_not_masked_again() -> None:
    graph = derive(Source(CAUSAL, "m.graph"), Options("gradient")).graph
    masked = [f for f in graph.nodes if isinstance(f, Formula) and f.out.endswith(("q_bar", "k_bar")) and f.where]
    assert len(masked) == 2  # of the second layer, whose cotangents matter where the mask shows alone
    tasks = work_of(graph, Sizes(graph)).tasks
    assert not any(task.where or task.out.endswith(("_left", "_right")) for task in tasks)


def test_messages_along_edges_are_rows_that_vectors_add() -> None:
    """A scatter loops over edges outside, features are lanes, and blocks share these, for edges are many."""
    text = """model m():
    dim nodes, edges
    input x[nodes, 64]
    input source[edges] : index nodes
    input target[edges] : index nodes
    y[v < nodes, o] = sum[e where target[e] == v] x[source[e], o]
    loss = mean(y * y)
"""
    program = schedule(derive(Source(text, "m.graph"), Options("predict", ("loss",))).graph, training=False)
    (kernel,) = (kernel for kernel in program.kernels if "y" in kernel.formulas)
    assert kernel.block is not None and kernel.block.extent == 64
    loops = [node for node in kernel.body if isinstance(node, Loop)]
    edges = next(loop for loop in loops if str(loop.range.stop) == "edges")
    assert isinstance(edges.body[0], Loop) and edges.body[0].range.stop == kernel.block.last
