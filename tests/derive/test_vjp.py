"""Laws of one formula: reverse mode is the adjoint of forward mode, solved or as defined."""

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.derive import fresh_axes, jvp, other_terms, vjp
from chainrule.derive import vjp as vjp_module
from chainrule.ir.calculus import derivative, times
from chainrule.ir.expression import Select, slot
from chainrule.ir.formula import DType, Reduce
from chainrule.ir.graph import Tensor
from chainrule.ir.text import equation_text
from chainrule.optimize.eliminate import eliminated
from chainrule.reference import evaluate, evaluate_formula, sizes_of
from tests.formulas import EXAMPLES, X, axes, dims_of, draw_values, formula, graph, h, i, n, positive, r, x0

READS = [
    (name, k)
    for name, g in EXAMPLES.items()
    for k, read in enumerate(g.nodes[0].reads)
    if g.tensors[read.tensor].dtype is DType.FLOAT
]


def example(read, extents, seed):
    """The formula, its values with tangents and cotangent, and the tensors that the VJP of its k-th read meets."""
    g = EXAMPLES[read[0]]
    f = g.nodes[0]
    values = draw_values(g, dict(zip(dims_of(g), extents, strict=False)), seed)
    sizes = sizes_of(g, {name: v.shape for name, v in values.items()})
    rng = np.random.default_rng(seed + 1)
    env = dict(values)
    env["y_bar"] = rng.normal(size=evaluate(g, values)[f.out].shape)
    tensors = dict(g.tensors) | {"y_bar": Tensor("y_bar", f.shape)}
    if f.reduce is Reduce.PROD:
        rest = other_terms(f, "others")
        env["others"] = evaluate_formula(rest, env, sizes)
        tensors["others"] = Tensor("others", rest.shape)
    return g, f, sizes, env, tensors, rng


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(READS), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 99))
def test_the_vjp_is_the_adjoint_of_the_jvp_defined_and_eliminated(read, extents, seed):
    try:
        g, f, sizes, env, tensors, rng = example(read, extents, seed)
    except IndexError:
        return  # of nothing, x[0] cannot be read
    k = read[1]
    x = f.reads[k].tensor
    shape = g.tensors[x].shape
    defined = vjp(f, k, fresh_axes(shape), "x_bar", "y_bar", "others")
    solved = eliminated(defined, tensors, g.dims)
    env["x_dot"] = rng.normal(size=env[x].shape)
    along = directional(f, k, env, sizes)
    for x_bar in (defined, solved):
        found = evaluate_formula(x_bar, env, sizes)
        assert np.sum(found * env["x_dot"]) == pytest.approx(np.sum(env["y_bar"] * along), rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(
        evaluate_formula(solved, env, sizes), evaluate_formula(defined, env, sizes), rtol=1e-12, atol=1e-12
    )


def directional(f, k, env, sizes):
    """The JVP along x_dot through the k-th read, other reads of the same tensor being held still."""
    read = f.reads[k]
    held = tuple(r if j != k else type(r)(f"{r.tensor} moved", r.indices, r.outside) for j, r in enumerate(f.reads))
    alone = formula_with(f, held)
    env = env | {f"{read.tensor} moved": env[read.tensor]}
    return evaluate_formula(jvp(alone, {f"{read.tensor} moved": "x_dot"}, "y_dot", "others"), env, sizes)


def formula_with(f, reads):
    return type(f)(f.out, f.axes, f.over, f.body, reads, f.where, f.reduce)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(EXAMPLES)), st.lists(st.integers(1, 3), min_size=4, max_size=4), st.integers(0, 99))
def test_the_jvp_is_the_slope(name, extents, seed):
    g, f, sizes, env, _, rng = example((name, 0), extents, seed)
    moving = {t.name: f"{t.name}_dot" for t in g.inputs if t.dtype is DType.FLOAT and t.name in f.tensors}
    env |= {dot: rng.normal(size=env[t].shape) for t, dot in moving.items()}
    slope = evaluate_formula(jvp(f, moving, "y_dot", "others"), env, sizes)

    def at(h):
        values = {t.name: env[t.name] + h * env[moving[t.name]] if t.name in moving else env[t.name] for t in g.inputs}
        return evaluate(g, values)[f.out]

    np.testing.assert_allclose(slope, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-6)


def test_the_vjp_of_a_matmul_is_a_matmul_with_the_other_operand():
    g = EXAMPLES["matmul"]
    tensors = dict(g.tensors) | {"z_bar": Tensor("z_bar", g.nodes[0].shape)}
    w_bar = eliminated(vjp(g.nodes[0], 1, axes("i<L j<M"), "W_bar", "z_bar"), tensors)
    assert equation_text(w_bar) == "W_bar[i, j] = sum[n] x[n, i] * z_bar[n, j]"
    x_bar = eliminated(vjp(g.nodes[0], 0, axes("n<N i<L"), "x_bar", "z_bar"), tensors)
    assert equation_text(x_bar) == "x_bar[n, i] = sum[j] W[i, j] * z_bar[n, j]"


def test_the_vjp_as_defined_sums_over_all_indices_where_the_access_meets_the_axis():
    f = formula("y h<5", "r<3", slot(0), X[h + r])
    x_bar = vjp(f, 0, axes("p<7"), "x_bar", "y_bar")
    assert equation_text(x_bar) == "x_bar[p] = sum[h, r where h + r == p] y_bar[h]"


def test_a_product_derives_right_at_zeros():
    g = EXAMPLES["product"]
    f = g.nodes[0]
    values = {"x": np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0]]), "W": np.zeros(3), "y_bar": np.ones(2)}
    values["others"] = evaluate_formula(other_terms(f, "others"), values, {"N": 2})
    x_bar = evaluate_formula(
        vjp(f, 0, fresh_axes((*f.shape, sp.Integer(3))), "x_bar", "y_bar", "others"), values, {"N": 2}
    )
    np.testing.assert_array_equal(x_bar, [[6, 0, 0], [0, 0, 0]])


def test_a_maximum_has_to_be_expanded_first():
    f = formula("y n<N", "i<3", x0, X[n, i], reduce=Reduce.MAX)
    with pytest.raises(ValueError, match="max has no derivative: expand it first"):
        vjp(f, 0, axes("n<N i<3"), "x_bar", "y_bar")


def test_an_infinite_cotangent_does_not_meet_the_zero_of_a_choice():
    f = formula("y n<N", "", positive(x0), X[n])
    x_bar = vjp(f, 0, axes("n<N"), "x_bar", "y_bar")
    values = {"x": np.array([-1.0, 0.0, 2.0]), "y_bar": np.array([np.inf, np.inf, 3.0])}
    np.testing.assert_array_equal(evaluate_formula(x_bar, values, {"N": 3}), [0, 0, 3])


def test_the_derivative_of_a_logistic_function_does_not_overflow_to_second_order():
    x = slot(0)
    first = derivative(1 / (1 + sp.exp(-x)), x)
    second = derivative(first, x)
    g = graph(formula("a n<N", "", first, X[n]), formula("b n<N", "", second, X[n]), inputs="x N")
    found = evaluate(g, {"x": np.array([-1000.0, -800.0, 0.0, 800.0, 1000.0])})
    np.testing.assert_array_equal(found["a"], [0, 0, 0.25, 0, 0])
    np.testing.assert_array_equal(found["b"], [0, 0, 0, 0, 0])


def test_factors_move_into_the_branches_of_a_choice():
    c, a, b = slot(0) > 0, slot(1), slot(2)
    assert times(Select(c, a, sp.S.Zero), b, Select(slot(3) > 0, sp.S.Zero, a)) == Select(
        c, Select(slot(3) > 0, sp.S.Zero, a**2 * b), sp.S.Zero
    )


@pytest.mark.parametrize("sabotage", ["no conditions", "wrong sign", "wrong slot"])
def test_the_adjoint_law_notices_a_wrong_rule(monkeypatch, sabotage):
    right = vjp_module

    def wrong(f, k, x, x_bar, y_bar, others=""):
        found = right(f, k, x, x_bar, y_bar, others)
        match sabotage:
            case "no conditions":
                return type(found)(found.out, found.axes, found.over, found.body, found.reads)
            case "wrong sign":
                return type(found)(found.out, found.axes, found.over, -found.body, found.reads, found.where)
        swapped = found.body.xreplace({slot(0): slot(1), slot(1): slot(0)})
        return type(found)(found.out, found.axes, found.over, swapped, found.reads, found.where)

    monkeypatch.setattr(f"{__name__}.vjp", wrong)
    law = test_the_vjp_is_the_adjoint_of_the_jvp_defined_and_eliminated.hypothesis.inner_test
    with pytest.raises(AssertionError):
        law(("weighted", 0), [2, 2, 2, 2], 0)
