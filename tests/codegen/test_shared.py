"""What several loops over a row compute alike is computed once; what changes in between is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule.codegen import shared as module
from chainrule.codegen.cpu import sources
from chainrule.codegen.shared import shared
from chainrule.compiler import derive
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Range, Statement, leaves
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.codegen.running import drawn, run_compiled, run_plain
from tests.codegen.test_cpu_laws import assert_agrees, wanted

J, K, TIME = (sp.Symbol(name, integer=True, nonnegative=True) for name in ("j", "k", "time"))
SIZE = sp.Integer(40)
BUFFERS = {name: Buffer(name, (SIZE,), DType.FLOAT, "arena") for name in ("x", "y")}
BUFFERS["s"] = Buffer("s", (), DType.FLOAT, "scratch")


def over(index: sp.Symbol, *steps: Statement, stop: sp.Expr = SIZE) -> Loop:
    return Loop(Range(index, sp.S.Zero, stop), steps)


def total(index: sp.Symbol) -> Statement:
    return Statement(Access("s", ()), sp.exp(slot(0)), (Access("x", (index,)),), reduce=Reduce.SUM)


def share(index: sp.Symbol, target: str = "y") -> Statement:
    return Statement(Access(target, (index,)), sp.exp(slot(1)) / slot(0), (Access("s", ()), Access("x", (index,))))


def exps(*body: Leaf) -> int:
    """How many exps are left."""
    found = shared(Kernel("k", body, (BUFFERS["s"],)), BUFFERS, frozenset({TIME}))
    return sum(leaf.value.count(sp.exp) for leaf in leaves(found.body) if isinstance(leaf, Statement))


def test_an_exp_of_two_loops_is_computed_in_the_first():
    assert exps(over(J, total(J)), over(K, share(K))) == 1
    assert exps(over(J, total(J), stop=TIME), over(K, share(K), stop=TIME)) == 1
    assert exps(over(J, total(J)), over(K, share(K, "x"))) == 1  # overwritten where it was read last


def test_what_changes_or_differs_is_computed_again():
    write = Statement(Access("x", (K,)), slot(0) * 2, (Access("x", (K,)),))
    assert exps(over(J, total(J)), over(K, write), over(K, share(K))) == 2
    assert exps(over(J, total(J)), over(K, write, share(K))) == 2
    assert exps(over(J, total(J)), over(K, share(K), stop=SIZE - 1)) == 2
    assert exps(over(J, total(J)), over(K, replace(share(K), where=(sp.Ne(K, 3),)))) == 2
    assert exps(over(J, total(J), stop=J + 1), over(K, share(K), stop=J + 1)) == 2
    elsewhere = replace(share(K), reads=(Access("s", ()), Access("x", (SIZE - 1 - K,))))
    assert exps(over(J, total(J)), over(K, elsewhere)) == 2


def text_of(program):
    return "".join(source.text for source in sources(program, element="float32").values())


MODELS = {
    "softmax": "y = softmax(x)\n    loss = mean[n, k] (y[n, k] - w[n, k])^2",
    "entropy": "p = softmax(x)\n    loss = mean[n] (sum[k] p[n, k] * log(p[n, k] + w[n, k]^2 + 0.1))",
}


def graph_of(model: str, columns: int):
    inputs = f"    dim batch\n    input x[batch, {columns}]\n    input w[batch, {columns}]\n"
    text = f"model m():\n{inputs}    {MODELS[model]}\n"
    return derive(Source(text, "m.graph"), Options("gradient", wrt=("x",))).graph


@pytest.mark.parametrize(("model", "columns"), [("softmax", 40), ("softmax", 7), ("entropy", 40)])
def test_kernels_that_share_agree_with_the_reference(model, columns):
    graph = graph_of(model, columns)
    program = schedule(graph, training=False)
    assert "_exp[" in text_of(program)
    values = drawn(graph, {"batch": 19})
    for run in (run_plain, run_compiled):
        assert_agrees(run(program, {"batch": 19}, values, "float64"), wanted(graph, values, program), "float64")


def test_a_value_that_is_kept_although_it_changes_is_noticed(monkeypatch):
    monkeypatch.setattr(module, "_stays", lambda nodes, uses: True)
    write = Statement(Access("x", (K,)), slot(0) * 2, (Access("x", (K,)),))
    assert exps(over(J, total(J)), over(K, write), over(K, share(K))) == 1


def test_results_stay_but_for_rounding(monkeypatch):
    graph = graph_of("softmax", 40)
    values = drawn(graph, {"batch": 5})
    program = schedule(graph, training=False)
    kept = run_compiled(program, {"batch": 5}, values, "float32")
    monkeypatch.setattr("chainrule.codegen.cpu.shared", lambda kernel, buffers, dims: kernel)
    again = run_compiled(schedule(graph, training=False), {"batch": 5}, values, "float32")
    for _, buffer in program.outputs:
        np.testing.assert_allclose(kept[buffer], again[buffer], rtol=1e-5, atol=1e-9)
