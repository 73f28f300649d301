"""Printed expressions have the value of the expressions, in plain Python and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.codegen.cpu import sources
from chainrule.codegen.expressions import Scope, Symbol, real
from chainrule.errors import ChainruleError
from chainrule.ir.expression import (
    FUNCTIONS,
    Select,
    Sort,
    ceil,
    dim_symbol,
    floor,
    index_symbol,
    product,
    quotient,
    remainder,
    round,
    sign,
    slot,
)
from chainrule.ir.formula import Access, DType, Formula, Index
from chainrule.ir.graph import Dim, Graph, Tensor
from chainrule.reference import evaluate
from chainrule.schedule import schedule
from tests.codegen.running import run_compiled, run_plain

N, n = dim_symbol("batch"), index_symbol("n")
X, Y, K, B = slot(0), slot(1), slot(2, Sort.INTEGER), slot(3, Sort.INTEGER)
SIZE = 40


def graph_of(*bodies: sp.Expr, dtype: DType = DType.FLOAT) -> Graph:
    """``y0[n] = body(x[n], y[n], k[n], flag[n], n)``, one for each body."""
    axes = (Index(n, N, "n"),)
    inputs = (
        Tensor("x", (N,)),
        Tensor("y", (N,)),
        Tensor("k", (N,), DType.INT, sp.Integer(9)),
        Tensor("flag", (N,), DType.BOOL),
    )
    reads = tuple(Access(t.name, (n,)) for t in inputs)
    nodes = tuple(Formula(f"y{j}", axes, (), body, reads, dtype=dtype) for j, body in enumerate(bodies))
    return Graph("one", (Dim("batch"),), inputs, nodes=nodes, outputs=tuple(node.out for node in nodes))


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, SIZE)).astype(np.float32).astype(np.float64)
    x[:3], y[:4] = (0, 1, -1), (0, 0, -1, 1)
    return {"x": x, "y": y, "k": rng.integers(0, 9, SIZE), "flag": rng.integers(0, 2, SIZE).astype(bool)}


def assert_value(graph: Graph, run, element: str = "float64", bound: float = 1e-12) -> None:
    program, given_values = schedule(graph, training=True), values()
    with np.errstate(all="ignore"):
        want = evaluate(graph, given_values)
    got = run(program, {"batch": SIZE}, given_values, element)
    for name, buffer in program.outputs:
        np.testing.assert_allclose(
            got[buffer], want[name], rtol=bound, atol=bound, err_msg=str(graph.producers[name].body)
        )


whole = st.one_of(st.sampled_from([K, B, n, N]), st.integers(-5, 9).map(sp.Integer))


def more_whole(children: st.SearchStrategy[sp.Expr]) -> st.SearchStrategy[sp.Expr]:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: sp.Add(*p)),
        pairs.map(lambda p: sp.Mul(*p)),
        children.map(lambda a: quotient(a, sp.Integer(3))),
        children.map(lambda a: remainder(a, sp.Integer(4))),
        st.tuples(children, children, children).map(lambda p: Select(p[0] < p[1], p[1], p[2])),
    )


integers = st.recursive(whole, more_whole, max_leaves=6)
leaf = st.one_of(st.sampled_from([X, Y]), st.sampled_from([sp.Rational(1, 3), sp.Rational(-3, 2), sp.pi]), integers)


def conditions(children: st.SearchStrategy[sp.Expr]) -> st.SearchStrategy[sp.Basic]:
    signs = st.sampled_from([sp.Lt, sp.Le, sp.Gt, sp.Ge, sp.Eq, sp.Ne])
    one = st.tuples(signs, children, children).map(lambda p: p[0](p[1], p[2]))
    one = st.one_of(one, st.just(sp.Ne(B, 0)), st.just(sp.Eq(B, 0)))
    return st.one_of(
        one,
        st.tuples(one, one).map(lambda p: sp.And(*p)),
        one.map(sp.Not),
        st.tuples(one, one).map(lambda p: sp.Or(*p)),
    )


def more_real(children: st.SearchStrategy[sp.Expr]) -> st.SearchStrategy[sp.Expr]:
    pairs = st.tuples(children, children)
    smooth = st.sampled_from([sp.tanh, sp.sin, sp.cos, sp.atan, sp.erf, floor, ceil, round, sign])
    return st.one_of(
        pairs.map(lambda p: sp.Add(*p)),
        pairs.map(lambda p: product(p)),
        children.map(lambda a: a**2),
        children.map(lambda a: a**3),
        children.map(lambda a: -a),
        children.map(lambda a: 1 / (1 + a**2)),
        children.map(lambda a: sp.sqrt(1 + a**2)),
        children.map(lambda a: (2 + sp.cos(a)) ** sp.Rational(-3, 2)),
        children.map(lambda a: sp.exp(-(a**2))),
        st.tuples(smooth, children).map(lambda p: p[0](p[1])),
        st.tuples(conditions(children), children, children).map(lambda p: Select(*p)),
    )


reals = st.recursive(leaf, more_real, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(body=reals)
def test_a_printed_expression_has_its_value(body):
    if body.has(sp.zoo, sp.nan, sp.oo, sp.I):
        return
    assert_value(graph_of(body), run_plain)


@settings(max_examples=60, deadline=None)
@given(body=integers)
def test_integers_stay_integers(body):
    graph = graph_of(body, dtype=DType.INT)
    program, given_values = schedule(graph, training=True), values()
    got = run_plain(program, {"batch": SIZE}, given_values, "float32")
    np.testing.assert_array_equal(got[dict(program.outputs)["y0"]], evaluate(graph, given_values)["y0"])


SMOOTH = [f for name, f in FUNCTIONS.items() if name not in ("polygamma", "atan2", "sqrt")]
TABLE = (
    *(f(sp.Rational(1, 2) + X**2 / 9) for f in SMOOTH if f is not sp.acosh),
    sp.acosh(1 + X**2), sp.atan2(X, Y), X**5, X**-2, sp.sqrt(X**2 + 1) ** 3, (1 + X**2) ** (Y + 1),
    sp.Rational(9, 10) ** K,
    Select(X <= 0, 0, X), Select(sp.And(X > 0, Y > 0), X / Y, Y), Select(sp.Ne(B, 0), X, Y), X / N, n * X, X * K / 7,
    Select(n < K, X, -sp.oo), X - X * (1 - X) * (1 - X) + (1 - X) ** 2, remainder(n, 3) * X,
    sp.exp(X) / (1 + sp.exp(X)),
    X * Select(sp.Not(X < Y), 1, 0), sp.Add(*(X**k for k in range(1, 20))), quotient(n, 2) + B, sign(X), round(X * 4),
)  # fmt: skip


@pytest.mark.parametrize(("element", "bound"), [("float64", 1e-12), ("float32", 2e-5)])
def test_every_form_has_its_value_when_compiled(element, bound):
    assert_value(graph_of(*TABLE), run_compiled, element, bound)


def test_the_other_branch_of_a_choice_leaves_no_trace():
    body = Select(X > 0, sp.log(X), Select(X < 0, 1 / Y, sp.S.Zero))
    assert_value(graph_of(body), run_plain)
    assert_value(graph_of(body), run_compiled)


def test_a_read_that_only_a_branch_needs_stays_inside():
    i = index_symbol("i")
    read = (Access("x", (i,)), Access("x", (i - N,)))
    body = Select(i < N, X, Y)
    double = Dim("rows", definition=2 * N)
    f = Formula("y0", (Index(i, dim_symbol("rows"), "i"),), (), body, read)
    graph = Graph("concat", (Dim("batch"), double), (Tensor("x", (N,)),), nodes=(f,), outputs=("y0",))
    program = schedule(graph, training=True)
    (source,) = sources(program, element="float64").values()
    assert "x[i] if i < batch else" in source.text
    x = values()["x"]
    for run in (run_plain, run_compiled):
        got = run(program, {"batch": SIZE}, {"x": x}, "float64")
        np.testing.assert_array_equal(got["y0"], np.concatenate([x, x]))


def test_deep_and_wide_expressions_stay_within_the_limits_of_python():
    deep: sp.Expr = X
    for k in range(90):
        deep = 1 / (2 + deep) if k % 3 else Select(k > Y, X, deep + Y)
    wide = sp.Add(*(sp.sin(X * k) for k in range(1, 200)))
    for body in (deep, wide):
        assert_value(graph_of(body), run_plain)


def test_what_is_of_no_known_kind_is_refused():
    with pytest.raises(ChainruleError, match="besselj"):
        real(sp.besselj(1, X), Scope({X: Symbol("x", "real")}, "float32"))
