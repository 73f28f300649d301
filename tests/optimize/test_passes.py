"""What each pass does, before and after, in one line each."""

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule.derive import backward
from chainrule.ir.expression import TRAINING, Select, dim_symbol, quotient, remainder, slot
from chainrule.ir.formula import DType, Origin, Reduce
from chainrule.ir.graph import Graph, State, Update
from chainrule.ir.primitive import Primitive
from chainrule.ir.text import equation_text
from chainrule.ir.validate import validate
from chainrule.optimize import (
    contract,
    cse,
    drop_dead,
    drop_unread_inputs,
    eliminate,
    expand_reductions,
    inline,
    output_form,
    simplify,
    specialize,
    stabilize,
)
from chainrule.optimize.inverse import is_accurate
from chainrule.reference import evaluate
from tests.formulas import W_, B, T, X, Z, formula, graph, i, int0, int1, j, k, n, o, positive, x0, x1, x2

exp, log, N = sp.exp, sp.log, dim_symbol("N")


def lines(g: Graph) -> list[str]:
    validate(g)
    return [equation_text(f) for f in g.nodes]


def derived(*formulas, inputs, of="loss", wrt=("x",)):
    """The formulas that a derivation adds, eliminated."""
    g = graph(*formulas, inputs=inputs)
    found = backward(expand_reductions(stabilize(g)), of, wrt)
    return eliminate(found.graph), {f.out for f in formulas}


def test_specialize_chooses_the_mode_and_drops_updates_in_the_other():
    g = graph(formula("y n<N", "", Select(sp.Ne(TRAINING, 0), 2 * x0, x0), X[n]), inputs="x N")
    states = tuple(State(x) for x in g.inputs)
    g = Graph(g.name, g.dims, states=states, nodes=g.nodes, outputs=g.outputs, updates=(Update("x", "y"),))
    assert lines(specialize(g, training=True)) == ["y[n] = 2 * x[n]"]
    assert lines(specialize(g, training=False)) == ["y[n] = x[n]"]
    assert len(specialize(g, training=True).updates) == 1
    assert specialize(g, training=False).updates == ()


def test_drop_dead_keeps_what_roots_need():
    g = graph(formula("a i<N", "", x0 + 1, X[i]), formula("b i<N", "", x0 * 2, X[i]), inputs="x N", outputs="b")
    assert lines(drop_dead(g)) == ["b[i] = 2 * x[i]"]


def test_cse_computes_equal_formulas_once():
    g = graph(
        formula("a i<N", "", exp(x0), X[i]),
        formula("b j<N", "", exp(x0), X[j]),
        formula("y i<N", "", x0 + x1, T("a")[i], T("b")[i]),
        inputs="x N",
    )
    assert lines(cse(g)) == ["a[i] = exp(x[i])", "y[i] = 2 * a[i]"]


def test_cse_keeps_apart_what_differs_in_dtype_or_stop_or_draw():
    g = graph(
        formula("a i<N", "", x0, X[i]),
        formula("b i<N", "", x0, X[i], stop=True),
        formula("c i<N", "", x0, X[i], dtype=DType.INT),
        inputs="x N",
        outputs="a b c",
    )
    assert cse(g) is g
    draws = tuple(Primitive("uniform", name, (N,), key=name) for name in "uv")
    g = Graph("g", graph(formula("a", "i<N", x0, X[i]), inputs="x N").dims, nodes=draws, outputs=("u", "v"))
    assert cse(g) is g


def test_stabilize_shifts_a_softmax_and_its_logarithm():
    g = graph(
        formula("s n<N", "k<3", exp(x0), X[n, k]),
        formula("p n<N k<3", "", exp(x0) / x1, X[n, k], T("s")[n]),
        formula("l n<N k<3", "", log(x0), T("p")[n, k]),
        inputs="x N 3",
        outputs="p l",
    )
    assert lines(stabilize(g)) == [
        "s_max[n] = max[k] x[n, k]",
        "s_scaled[n] = sum[k] exp(x[n, k] - s_max[n])",
        "p[n, k] = exp(x[n, k] - s_max[n]) / s_scaled[n]",
        "l[n, k] = x[n, k] - s_max[n] - log(s_scaled[n])",
    ]


def test_stabilize_leaves_a_sum_of_exponentials_that_is_wanted_itself():
    g = graph(formula("s n<N", "k<3", exp(x0), X[n, k]), formula("y n<N", "", x0 + 1, T("s")[n]), inputs="x N 3")
    assert stabilize(g) == g


def test_a_row_of_which_all_is_masked_has_softmax_zero():
    g = graph(
        formula("m n<N k<3", "", Select(x0 > 0, -sp.oo, x0), X[n, k]),
        formula("s n<N", "k<3", exp(x0), T("m")[n, k]),
        formula("p n<N k<3", "", exp(x0) / x1, T("m")[n, k], T("s")[n]),
        formula("loss", "n<N k<3", x0**2, T("p")[n, k]),
        inputs="x N 3",
    )
    found = backward(stabilize(g), "loss", ["x"])
    result = evaluate(found.graph, {"x": np.array([[1.0, 2.0, 3.0], [-1.0, -1.0, 1.0]])})
    np.testing.assert_allclose(result["p"], [[0, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(np.isfinite(result["x_bar"]), True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (log(1 + exp(x0)), "(if x[n] > 0 then x[n] else 0) + log1p(exp(if x[n] > 0 then -x[n] else x[n]))"),
        (exp(x0) - 1, "expm1(x[n])"),
        (3 * exp(2 * x0) - 3, "3 * expm1(2 * x[n])"),
        (1 - exp(-x0), "-expm1(-x[n])"),
        (log(1 + x0**2), "log1p(x[n]^2)"),
        (log(exp(x0) / 3), "x[n] - log(3)"),
    ],
)
def test_stable_forms_of_one_expression(before, after):
    g = graph(formula("y n<N", "", before, X[n]), inputs="x N")
    assert lines(stabilize(g)) == [f"y[n] = {after}"]


def test_the_quotient_x_over_expm1_x_is_right_at_zero_to_second_order():
    g = stabilize(graph(formula("y n<N", "", x0 / (exp(x0) - 1), X[n]), inputs="x N, u N, v N"))
    once = backward(g, {"y": "u"}, ["x"])
    twice = backward(once.graph, {"x_bar": "v"}, ["x"])
    ones = np.ones(3)
    result = evaluate(twice.graph, {"x": np.array([0.0, 1e-9, -1e-9]), "u": ones, "v": ones})
    np.testing.assert_allclose(result["y"], 1, rtol=1e-8)
    np.testing.assert_allclose(result["x_bar"], -1 / 2, rtol=1e-8)
    np.testing.assert_allclose(result[twice.gradients["x"]], 1 / 6, rtol=1e-8)


def test_the_root_of_a_sum_of_squares_has_gradient_zero_at_zero():
    g, _ = derived(
        formula("s n<N", "k<3", x0**2, X[n, k]),
        formula("loss", "n<N", sp.sqrt(x0), T("s")[n]),
        inputs="x N 3",
    )
    result = evaluate(g, {"x": np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])})
    np.testing.assert_allclose(result["x_bar"], [[0, 0, 0], [0.6, 0, 0.8]])


def test_expand_reductions_gathers_through_the_first_greatest_place():
    g = graph(
        formula("y n<N", "i<2 j<3", x0, X[n, i, j], reduce=Reduce.MAX),
        formula("z n<N", "i<N", x0, W_[n, i], reduce=Reduce.MIN),
        inputs="x N 2 3, W N N",
        outputs="y z",
    )
    assert lines(expand_reductions(g)) == [
        "y_place[n] = argmax[i, j] x[n, i, j]",
        "y[n] = x[n, y_place[n] // 3, y_place[n] % 3]",
        "z_place[n] = argmax[i] (-W[n, i])",
        "z[n] = if float(z_place[n]) == N then inf else W[n, z_place[n]; 0]",
    ]
    expanded = expand_reductions(g)
    assert expanded.nodes[0].bound == 6
    assert {d.name: d.definition for d in expanded.dims}[expanded.nodes[2].bound.name] == N + 1  # of nothing it is N


def test_eliminate_inverts_mixed_radix():
    flat = formula("y n<N k<6", "", x0, X[n, quotient(k, sp.Integer(3)), remainder(k, sp.Integer(3))])
    g, _ = derived(flat, formula("loss", "n<N k<6", x0 * x1, T("y")[n, k], W_[n, k]), inputs="x N 2 3, W N 6")
    assert lines(g)[-1] == "x_bar[p0, p1, p2] = y_bar[p0, p2 + 3 * p1]"


def test_eliminate_guards_the_read_that_has_the_bounds():
    g, _ = derived(
        formula(
            "y i<5",
            "r<3",
            x0 * x1,
            X[i + sp.Symbol("r", integer=True, nonnegative=True)],
            W_[sp.Symbol("r", integer=True, nonnegative=True)],
        ),
        formula("loss", "i<5", x0**2, T("y")[i]),
        inputs="x 7, W 3",
    )
    assert lines(g)[-1] == "x_bar[p0] = sum[r] W[r] * y_bar[p0 - r; 0]"


def test_a_gathers_vjp_stays_a_scatter():
    g, _ = derived(
        formula("y n<N j<2", "", x1 + 0 * int0, T("token")[n], X[int0, j]),
        formula("loss", "n<N j<2", x0**2, T("y")[n, j]),
        inputs="x 4 2, token N : 4",
    )
    assert lines(g)[-1] == "x_bar[p0, p1] = sum[n where token[n] == p0] y_bar[n, p1]"


def test_simplify_takes_out_sizes_and_factors_and_conditions():
    g = graph(
        formula("y i<N", "j<3", x0 * x1, T("a")[i, j], T("s")[i]),
        formula("z i<N", "", sp.Add(Select(x0 > 0, x0 / N, 0), -(x0**2) / N), X[i]),
        formula("w i<3", "", Select(i < 3, x0, 0), T("s3")[i]),
        formula("v i<N", "j<3", x0, X[i]),
        inputs="a N 3, s N, x N, s3 3",
        outputs="y z w v",
    )
    assert lines(simplify(g)) == [
        "y_sum[i] = sum[j] a[i, j]",
        "y[i] = s[i] * y_sum[i]",
        "z[i] = ((if x[i] > 0 then x[i] else 0) - x[i]^2) / N",
        "w[i] = s3[i]",
        "v[i] = 3 * x[i]",
    ]


def test_simplify_drops_guards_of_reads_that_stay_inside():
    g = graph(
        formula("y i<3", "", x0, T("x", 0)[i + 1]),
        formula("z i<3", "", x0, T("x", 0)[i + 2]),
        inputs="x 4",
        outputs="y z",
    )
    assert lines(simplify(g)) == ["y[i] = x[i + 1]", "z[i] = x[i + 2; 0]"]


def test_simplify_drops_choices_that_no_draw_decides():
    choices = [Select(sp.Lt(x1, c), x0, 0) for c in (sp.S.One, sp.S.Half, sp.S.Zero)]
    made = (formula(f"y{k} i<N", "", choice, X[i], T("u")[i]) for k, choice in enumerate(choices))
    g = graph(*made, inputs="x N, u N", outputs="y0 y1 y2")
    g = replace(g, inputs=g.inputs[:1], nodes=(Primitive("uniform", "u", (N,), key="u"), *g.nodes))
    texts = [equation_text(f) for f in simplify(g).nodes[1:]]
    assert texts == ["y0[i] = x[i]", "y1[i] = if u[i] < 1/2 then x[i] else 0", "y2[i] = 0"]


def test_simplify_makes_a_choice_in_a_sum_its_condition():
    chosen = Select(j > i, 0, x0 * x1)
    g = graph(formula("y i<N", "j<N", chosen, T("a")[i, j], X[j]), inputs="a N N, x N", outputs="y")
    assert lines(simplify(g)) == ["y[i] = sum[j where j <= i] a[i, j] * x[j]"]


def test_simplify_hoists_nothing_out_of_a_sum_that_may_be_of_nothing():
    g = graph(formula("y i<N", "j<N", x0 / x1, T("a")[i, j], T("s")[i]), inputs="a N N, s N")
    assert simplify(g) is g
    # the sum of N terms 1 / N is 1, but 0 for N = 0
    g = graph(formula("y", "j<N", 1 / N), inputs="x N")
    assert simplify(g) is g


@pytest.mark.parametrize(
    ("law", "after"),
    [
        (1 / (1 + exp(-x0)), "y_bar[n] * y[n] * (1 - y[n])"),
        (sp.tanh(x0), "y_bar[n] * (1 - y[n]^2)"),
        (log(1 + exp(x0)), "-y_bar[n] * expm1(-y[n])"),
        (exp(x0), "y_bar[n] * y[n]"),
        (positive(x0), "if y[n] <= 0 then 0 else y_bar[n]"),
        (Select(x0 > 0, x0, 2 * (exp(x0) - 1)), "if y[n] > 0 then y_bar[n] else y_bar[n] * (y[n] + 2)"),
        (sp.sqrt(x0), "y_bar[n] / 2 / y[n]"),
        (1 / x0, "-y_bar[n] * y[n]^2"),
        (sp.sin(x0), "y_bar[n] * cos(x[n])"),
        (x0**3, "3 * y_bar[n] * x[n]^2"),
        (x0 / (1 + exp(-x0)), None),
    ],
)
def test_derivatives_are_written_in_the_value_where_that_is_exact_enough(law, after):
    g, _ = derived(formula("y n<N", "", law, X[n]), formula("loss", "n<N", x0**2, T("y")[n]), inputs="x N")
    found = lines(output_form(g))[-1].removeprefix("x_bar[n] = ")
    if after is None:
        assert "x[n]" in found
    else:
        assert found == after


def test_a_form_that_loses_accuracy_is_rejected():
    # from y = 1 + x^2 / 10^6 nothing of x's smaller bits can be had back
    y = slot(1)
    law = 1 + exp(x0) / 10**6
    assert not is_accurate(law, 1 / (1 + exp(-x0)), 1 / (1 + 1 / (10**6 * (y - 1))), y)


def test_inline_substitutes_constants_copies_and_draws():
    g = graph(
        formula("one", "", 1),
        formula("c i<N", "", x0, X[i]),
        formula("keep i<N", "", Select(x0 < sp.Rational(1, 2), 1, 0), T("u")[i]),
        formula("y i<N", "", x0 * x1 + x2, T("one")[()], T("c")[i], T("keep")[i]),
        inputs="x N, u N",
    )
    g = Graph(g.name, g.dims, g.inputs[:1], nodes=(Primitive("uniform", "u", (N,), key="u"), *g.nodes), outputs=("y",))
    assert equation_text(drop_dead(inline(g)).nodes[-1]) == "y[i] = x[i] + (if u[i] < 1/2 then 1 else 0)"


def test_the_backward_of_cross_entropy_is_softmax_minus_one_hot_over_n():
    g, _ = derived(
        formula("s n<N", "k<3", exp(x0), X[n, k]),
        formula("e n<N", "", log(x0) - x2, T("s")[n], T("label")[n], X[n, int1]),
        formula("loss", "n<N", x0 / N, T("e")[n]),
        inputs="x N 3, label N : 3",
    )
    g = replace(g, outputs=("loss", "x_bar"))
    for step in (simplify, output_form, cse, inline, drop_dead):
        g = step(g)
    last = lines(g)[-1]
    assert last.startswith("x_bar[n, k] = (exp(x[n, k] - s_max[n]) / s_scaled[n] + (if")
    assert last.endswith("== k then -1 else 0)) / N")
    assert not any("argmax" in line or "inf" in line for line in lines(g))


def test_contract_sums_pairwise_in_the_cheaper_order():
    body = sp.Mul(x0, x1, x2)
    g = graph(formula("y n<N o<4", "i<4 j<4", body, X[n, i], T("a")[i, j], T("b")[j, o]), inputs="x N 4, a 4 4, b 4 4")
    assert len(contract(g).nodes) == 2
    small = graph(formula("y n<N", "i<2 j<1", body, X[n, i], W_[i, j], Z[n, j]), inputs="x N 2, W 2 1, z N 1")
    assert contract(small) is small


def test_origins_survive_and_name_the_rule():
    g, own = derived(
        formula("y n<N", "", sp.tanh(x0 + x1), X[n], B[n], origin=Origin(layer="h")),
        formula("loss", "n<N", x0, T("y")[n]),
        inputs="x N, b N",
    )
    g = replace(g, outputs=("x_bar",))
    for step in (simplify, output_form, cse, inline):
        g = step(g)
    origin = g.producers["x_bar"].origin
    assert (origin.rule, origin.formula, origin.layer) == ("vjp", "y", "h")
    assert own == {"y", "loss"}


def test_a_dim_goes_with_the_last_input_that_shows_it():
    g = drop_unread_inputs(graph(formula("a", "i<3", x0, Z[i]), inputs="x N, z 3"))
    assert [t.name for t in g.inputs] == ["z"]
    assert g.dims == ()
    sized = drop_unread_inputs(graph(formula("a", "i<N", x0, Z[0]), inputs="x N, z 3"))
    assert [t.name for t in sized.inputs] == ["x", "z"]
    assert [d.name for d in sized.dims] == ["N"]
