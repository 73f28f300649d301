"""The oracle is checked by what cannot be misread: nested loops over every index, one number at a time."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.codegen.cfunctions import expm1, log1p

from chainrule.errors import ChainruleError
from chainrule.ir.expression import Select, dim_symbol, is_slot, quotient, remainder, slot_number
from chainrule.ir.formula import DType, Formula, Reduce
from chainrule.ir.graph import Dim, Graph, Init, Param, Scalar, State, Update
from chainrule.ir.primitive import Primitive, hash_of
from chainrule.ir.validate import problems
from chainrule.philox import uniforms
from chainrule.reference import evaluate, evaluate_formula, sizes_of, updated
from tests.formulas import (
    EXAMPLES,
    W_,
    T,
    X,
    dims_of,
    draw_values,
    e,
    formula,
    graph,
    i,
    j,
    k,
    n,
    t,
    tensor,
    x0,
    x1,
)  # fmt: skip

FUNCTIONS = {
    sp.exp: math.exp, sp.log: math.log, sp.sin: math.sin, sp.cos: math.cos, sp.tanh: math.tanh,
    expm1: math.expm1, log1p: math.log1p,
}  # fmt: skip


def number(expr, env, read):
    """The value of an expression at one point, by plain recursion over Python numbers."""
    if isinstance(expr, sp.Symbol):
        return read(slot_number(expr)) if is_slot(expr) else env[expr.name]
    if expr.is_Rational:
        return expr.p / expr.q if expr.q != 1 else int(expr.p)
    if isinstance(expr, Select):
        chosen = expr.args[1] if number(expr.args[0], env, read) else expr.args[2]
        return number(chosen, env, read)
    args = [number(a, env, read) for a in expr.args]
    match expr:
        case sp.Add():
            return sum(args)
        case sp.Mul():
            return math.prod(args)
        case sp.Pow():
            return args[0] ** args[1] if args[0] != 0 or args[1] >= 0 else math.inf
        case quotient():
            return args[0] // args[1]
        case remainder():
            return args[0] % args[1]
        case sp.And():
            return all(args)
        case sp.Or():
            return any(args)
        case sp.Rel():
            a, b = args
            return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[expr.rel_op]
    return FUNCTIONS[type(expr)](*args)


def by_loops(f: Formula, tensors, sizes):
    """The formula at every point, read after read, term after term."""

    def size(extent):
        return sizes[extent.name] if extent.is_Symbol else int(extent)

    def term(env):
        def read(k):
            places = [number(place, env, read) for place in f.reads[k].indices]
            array = tensors[f.reads[k].tensor]
            if all(0 <= p < size for p, size in zip(places, array.shape, strict=True)):
                return array[tuple(places)].item()
            assert f.reads[k].outside is not None
            return number(f.reads[k].outside, env, read)

        if not all(number(c, env, read) for c in f.where):
            return None
        return number(f.body, env, read)

    shape = tuple(size(a.extent) for a in f.axes)
    out = np.zeros(shape)
    for place in np.ndindex(*shape):
        env = {a.symbol.name: p for a, p in zip(f.axes, place, strict=True)} | dict(sizes)
        terms = []
        for inner in itertools.product(*(range(size(r.extent)) for r in f.over)):
            terms.append(term(env | {r.symbol.name: p for r, p in zip(f.over, inner, strict=True)}))
        counted = [t for t in terms if t is not None]
        match f.reduce:
            case Reduce.SUM:
                out[place] = sum(counted)
            case Reduce.PROD:
                out[place] = math.prod(counted)
            case Reduce.MAX:
                out[place] = max(counted, default=-math.inf)
            case Reduce.MIN:
                out[place] = min(counted, default=math.inf)
            case Reduce.ARGMAX:
                out[place] = terms.index(max(counted)) if counted else len(terms)
    return out


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(EXAMPLES)), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 99))
def test_grids_agree_with_nested_loops(name, extents, seed):
    g = EXAMPLES[name]
    values = draw_values(g, dict(zip(dims_of(g), extents, strict=False)), seed)
    sizes = sizes_of(g, {k: v.shape for k, v in values.items()})
    try:
        found = evaluate(g, values)
    except IndexError:
        return  # of nothing, x[0] cannot be read
    np.testing.assert_allclose(found[g.nodes[0].out], by_loops(g.nodes[0], values, sizes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduce", [Reduce.MAX, Reduce.MIN, Reduce.ARGMAX, Reduce.PROD, Reduce.SUM])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_every_reduction_under_conditions_agrees_with_loops(reduce, size):
    dtype = DType.INT if reduce is Reduce.ARGMAX else DType.FLOAT
    f = formula("y n<4", "i<N", x0 * x1, X[n, i], W_[i], where=(sp.Gt(x1, 0),), reduce=reduce, dtype=dtype)
    values = {"x": np.random.default_rng(3).normal(size=(4, size)), "W": np.array([0.5, -1, 2])[:size]}
    np.testing.assert_allclose(evaluate_formula(f, values, {"N": size}), by_loops(f, values, {"N": size}), rtol=1e-12)


def test_large_formulas_are_computed_in_blocks_of_rows(monkeypatch):
    g = EXAMPLES["matmul"]
    values = draw_values(g, {"N": 7, "L": 5, "M": 3}, 0)
    whole = evaluate(g, values)["y"]
    monkeypatch.setattr("chainrule.reference.GRID", 16)
    np.testing.assert_array_equal(evaluate(g, values)["y"], whole)


def test_the_branch_not_taken_does_not_leak():
    g = graph(formula("y n<N", "", Select(x0 > 0, sp.log(x0) + 1 / x0, 7), X[n]), inputs="x N")
    np.testing.assert_array_equal(evaluate(g, {"x": np.array([1.0, 0.0, -1.0, np.nan])})["y"], [1, 7, 7, 7])


def test_nan_goes_through_max_and_argmax_and_ties_take_the_first():
    x = np.array([[1.0, np.nan, 3.0], [2.0, 2.0, 1.0]])
    top = formula("m n<2", "i<3", x0, X[n, i], reduce=Reduce.MAX)
    place = formula("a n<2", "i<3", x0, X[n, i], reduce=Reduce.ARGMAX, dtype=DType.INT)
    np.testing.assert_array_equal(evaluate_formula(top, {"x": x}, {}), [np.nan, 2])
    np.testing.assert_array_equal(evaluate_formula(place, {"x": x}, {}), [1, 0])


def test_the_greatest_counts_only_where_the_condition_holds():
    f = formula("a", "i<3", x0, X[i], where=(sp.Ge(i, 1),), reduce=Reduce.ARGMAX, dtype=DType.INT)
    low = {"x": np.array([5.0, -np.inf, -np.inf])}
    assert evaluate_formula(f, low, {}) == 1


def test_a_read_outside_is_the_value_written_or_an_error():
    values = {"x": np.arange(3.0)}
    guarded = formula("y i<3", "", x0, T("x", 9)[i - 1])
    np.testing.assert_array_equal(evaluate_formula(guarded, values, {}), [9, 0, 1])
    with pytest.raises(IndexError):
        evaluate_formula(formula("y i<3", "", x0, X[i - 1]), values, {})


def test_a_read_is_not_made_where_the_condition_fails():
    f = formula("y i<3", "", x0, X[i - 1], where=(sp.Gt(i, 0),))
    np.testing.assert_array_equal(evaluate_formula(f, {"x": np.arange(3.0)}, {}), [0, 0, 1])


def test_derived_dims_follow_their_definitions_and_must_be_sizes():
    half = Dim("H", definition=dim_symbol("N") / 2)
    g = graph(formula("y e<H", "", x0, X[2 * e]), inputs="x N", dims=(half,))
    np.testing.assert_array_equal(evaluate(g, {"x": np.arange(4.0)})["y"], [0, 2])
    with pytest.raises(ChainruleError, match="H comes out as 1.5"):
        evaluate(g, {"x": np.arange(3.0)})


def test_what_is_missing_or_of_another_shape_is_named():
    g = EXAMPLES["matmul"]
    with pytest.raises(ChainruleError, match="W has no value"):
        evaluate(g, {"x": np.zeros((2, 3))})
    with pytest.raises(ChainruleError, match=r"W has shape \(2, 2\), and must have \(3, 2\)"):
        evaluate(g, {"x": np.zeros((2, 3)), "W": np.zeros((2, 2))})


def test_states_and_scalars_start_at_their_values_and_updates_are_collected():
    f = formula("next", "", x0 * x1 + sp.Symbol("_0002", real=True), T("s")[()], T("rate")[()], T("step")[()])
    g = Graph("g", states=(State(tensor("s"), 2.0),), scalars=(Scalar("rate", 0.5), Scalar("step", 0)), nodes=(f,),
              updates=(Update("s", "next"),))  # fmt: skip
    assert updated(g, evaluate(g, {}, step=3)) == {"s": 4.0}


def test_draws_are_those_of_the_counter_whatever_the_names():
    g = Graph("g", nodes=(Primitive("uniform", "u", (sp.Integer(2), sp.Integer(3)), key="a.keep"),), outputs=("u",))
    expected = uniforms(5, hash_of("a.keep"), 7, np.arange(6)).reshape(2, 3)
    np.testing.assert_array_equal(evaluate(g, {}, seed=5, step=7)["u"], expected)


def test_parameters_may_be_given_in_any_float():
    g = Graph("g", params=(Param(tensor("w 2"), Init("constant", (1.0,))),),
              nodes=(formula("y i<2", "", 2 * x0, T("w")[i]),), outputs=("y",))  # fmt: skip
    assert evaluate(g, {"w": np.ones(2, np.float32)})["y"].dtype == np.float64
    assert evaluate(g, {"w": [1, 2]}, dtype=np.longdouble)["y"].dtype == np.longdouble


def test_an_integer_read_serves_as_an_index():
    g = EXAMPLES["pick"]
    values = {"z": np.arange(8.0).reshape(2, 4) / 8, "label": np.array([3, 0])}
    np.testing.assert_allclose(evaluate(g, values)["y"], np.exp(values["z"][[0, 1], [3, 0]]))


# ---------------------------------------------------------------- recurrences


def cell(ahead=0):
    """h[n, t, j] = tanh(x[n, t, j] + sum[k] h[n, t - 1, k; 0] * U[k, j]), in two formulas that read each other."""
    H, S, U = T("h"), T("s"), T("U")
    s = formula("s n<N t<L j<M", "k<M", x0 * x1, T("h", 0)[n, t - 1 + ahead, k], U[k, j])
    y = formula("h n<N t<L j<M", "", sp.tanh(x0 + x1), X[n, t, j], S[n, t, j])
    z = formula("z n<N j<M", "t<L", x0, H[n, t, j])
    return graph(s, y, z, inputs="x N L M, U M M", outputs="z")


def test_a_recurrence_is_stepped_as_by_a_loop():
    rng = np.random.default_rng(0)
    x, U = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 3))
    h = np.zeros((2, 3))
    total = np.zeros((2, 3))
    for step in range(5):
        h = np.tanh(x[:, step] + h @ U)
        total += h
    found = evaluate(cell(), {"x": x, "U": U})
    np.testing.assert_allclose(found["h"][:, -1], h, rtol=1e-14)
    np.testing.assert_allclose(found["z"], total, rtol=1e-14)
    assert cell().is_recurrent("s") and cell().is_recurrent("h") and not cell().is_recurrent("z")
    assert [[node.out for node in group] for group in cell().components] == [["s", "h"], ["z"]]


def test_a_recurrence_over_nothing_is_empty():
    found = evaluate(cell(), {"x": np.zeros((2, 0, 3)), "U": np.zeros((3, 3))})
    assert found["h"].shape == (2, 0, 3)
    assert not found["z"].any()


def test_a_circle_without_a_start_has_no_value():
    twice = formula("h n<N", "", x0 + x1 + 1, T("h")[n], X[n])
    with pytest.raises(ChainruleError, match="h read each other in a circle that has no start"):
        evaluate(graph(twice, inputs="x N"), {"x": np.ones(2)})


def test_the_members_of_a_recurrence_may_stand_apart():
    s, y, z = cell().nodes
    apart = replace(
        cell(), nodes=(s, formula("q n<N", "", x0 + 1, T("v")[n]), y, z), inputs=(*cell().inputs, tensor("v N"))
    )
    assert list(problems(apart)) == []
    assert sorted(len(group) for group in apart.components) == [1, 1, 2]
    assert not apart.is_recurrent("q")
