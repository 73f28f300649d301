"""Integers and truth values in kernels; and what the laws notice when a mechanism is broken."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from chainrule.codegen import hoist
from chainrule.codegen.kernel import Writer
from chainrule.ir.expression import Select, Sort, dim_symbol, index_symbol, quotient, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Reduce
from chainrule.ir.graph import Dim, Graph, Tensor
from chainrule.ir.program import Buffer, Kernel, Loop, Program, Range, Statement
from chainrule.reference import evaluate
from chainrule.schedule import schedule
from tests.codegen.graphs import GRAPHS
from tests.codegen.running import drawn, run_compiled, run_plain

N, n, k = dim_symbol("batch"), index_symbol("n"), index_symbol("k")
FOUR = sp.Integer(4)
WHOLE, TRUTH = slot(0, Sort.INTEGER), slot(0, Sort.INTEGER)


def reduced(name: str, of: str, body: sp.Expr, reduce: Reduce, dtype: DType, **more) -> Formula:
    return Formula(
        name, (Index(n, N, "n"),), (Index(k, FOUR, "k"),), body, (Access(of, (n, k)),), (), reduce, dtype, **more
    )


def mixed() -> Graph:
    """Sums, products and extremes of integers, any and all of truth values, counts, and conversions."""
    axes = (Index(n, N, "n"),)
    nodes = (
        reduced("most", "i", WHOLE, Reduce.MAX, DType.INT),
        reduced("least", "i", WHOLE - 7, Reduce.MIN, DType.INT),
        reduced("sum", "i", WHOLE * k, Reduce.SUM, DType.INT),
        reduced("times", "i", WHOLE + 1, Reduce.PROD, DType.INT),
        reduced("any", "b", TRUTH, Reduce.MAX, DType.BOOL),
        reduced("all", "b", TRUTH, Reduce.MIN, DType.BOOL),
        reduced("count", "b", TRUTH, Reduce.SUM, DType.INT),
        reduced("share", "b", TRUTH / FOUR, Reduce.SUM, DType.FLOAT),
        Formula("even", axes, (), Select(sp.Eq(n - 2 * quotient(n, sp.Integer(2)), 0), 1, 0), (), dtype=DType.BOOL),
        Formula("both", axes, (), Select(sp.And(sp.Ne(TRUTH, 0), sp.Eq(slot(1, Sort.INTEGER), 0)), 1, 0),
                (Access("any", (n,)), Access("even", (n,))), dtype=DType.BOOL),
        Formula("half", axes, (), TRUTH + slot(1, Sort.INTEGER) / 2, (Access("most", (n,)), Access("both", (n,)))),
    )  # fmt: skip
    inputs = (Tensor("i", (N, FOUR), DType.INT, sp.Integer(9)), Tensor("b", (N, FOUR), DType.BOOL))
    return Graph("mixed", (Dim("batch"),), inputs, nodes=nodes, outputs=tuple(node.out for node in nodes))


@pytest.mark.parametrize("run", [run_plain, run_compiled])
@pytest.mark.parametrize("batch", [0, 1, 9])
def test_integers_and_truth_values_keep_their_types(run, batch):
    graph = mixed()
    program, values = schedule(graph, training=True), drawn(graph, {"batch": batch})
    want = evaluate(graph, values)
    got = run(program, {"batch": batch}, values, "float32")
    for name, buffer in program.outputs:
        np.testing.assert_array_equal(got[buffer], want[name], err_msg=name)
        if want[name].dtype.kind != "f":
            assert got[buffer].dtype == want[name].dtype


def overwritten() -> Program:
    """A number that the kernel overwrites before it reads it."""
    s = Buffer("s", (), DType.FLOAT, "state")
    y = Buffer("y", (N,), DType.FLOAT, "arena")
    body = (
        Statement(Access("s", ()), slot(0) + 1, (Access("s", ()),)),
        Loop(Range(n, sp.S.Zero, N, "n"), (Statement(Access("y", (n,)), sp.exp(slot(0)), (Access("s", ()),)),)),
    )
    return Program("one", True, (Dim("batch"),), (s, y), (Kernel("only", body),), (), (), (("s", 0.0),))


def test_a_number_that_the_kernel_overwrites_is_not_hoisted(monkeypatch):
    right = np.full(3, np.exp(1.0))
    np.testing.assert_allclose(run_compiled(overwritten(), {"batch": 3}, {}, "float64")["y"], right)
    monkeypatch.setattr(hoist, "_stands_still", lambda read, w: not read.indices)
    stale = run_plain(overwritten(), {"batch": 3}, {}, "float64")["y"]
    assert not np.allclose(stale, right)


def test_a_dropped_guard_is_noticed(monkeypatch):
    graph = GRAPHS["convolution"]()
    program, values = schedule(graph, training=True), drawn(graph, {"batch": 2})
    want = evaluate(graph, values)["y"]
    assert np.allclose(run_plain(program, {"batch": 2}, values, "float64")["y"], want)
    monkeypatch.setattr(Writer, "is_inside", lambda *_: (True, True))
    try:
        got = run_plain(program, {"batch": 2}, values, "float64")["y"]
    except IndexError:
        return
    assert not np.allclose(got, want)
