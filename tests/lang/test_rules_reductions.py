"""The rules of the reference on reductions, conditions and choices."""

import numpy as np
import pytest

from tests.lang.texts import error, formulas, model, values

X = np.array([[1.0, -2.0, 3.0, 0.5], [0.0, 4.0, -1.0, 4.0]])
LABEL = np.array([2, 0])


def of(statements, **settings):
    return values(model(statements), {"x": X, "label": LABEL}, **settings)


def test_a_reduction_reaches_over_the_product_to_its_right_not_over_plus():
    assert np.allclose(of("y[i] = sum[k] x[i, k] * x[i, k] + 1")["y"], (X * X).sum(1) + 1)


def test_parentheses_take_a_reduction_further():
    assert np.allclose(of("y[i] = sum[k] (x[i, k] + 1)")["y"], (X + 1).sum(1))


def test_nested_reductions_are_formulas_named_after_the_statement():
    names = [f.split("[")[0].split(" ")[0] for f in formulas(model("y[i] = max[k] x[i, k] - log(sum[k] exp(x[i, k]))"))]
    assert names == ["y_max", "y_sum", "y"]


def test_without_indices_all_axes_are_reduced():
    assert np.isclose(of("y = mean(x) + sum(x)")["y"], X.mean() + X.sum())
    assert np.isclose(of("y = mean(x[*, 2])")["y"], X[:, 2].mean())


@pytest.mark.parametrize(
    ("word", "nothing"),
    [("sum", 0), ("prod", 1), ("max", -np.inf), ("min", np.inf), ("mean", np.nan), ("any", 0), ("all", 1)],
)
def test_of_nothing(word, nothing):
    claim = "x[i, k] > 0" if word in ("any", "all") else "x[i, k]"
    found = values(model(f"y[k] = {word}[i] {claim}".replace("> 0", "> 0") if word not in ("any", "all") else
                         f"y[k] = {word}[i] ({claim})"), {"x": X[:0], "label": LABEL[:0]})["y"]  # fmt: skip
    assert np.array_equal(found, np.full(4, nothing), equal_nan=True)


def test_argmax_of_nothing_is_the_extent():
    found = values(model("a[k] = argmax[i] x[i, k]"), {"x": X[:0], "label": LABEL[:0]})
    assert list(found["a"]) == [0, 0, 0, 0]


@pytest.mark.parametrize("word", ["sum", "prod", "max", "min", "mean"])
def test_reductions_are_numpys(word):
    assert np.allclose(of(f"y[i] = {word}[k] x[i, k]")["y"], getattr(np, word)(X, axis=1))


def test_argmax_and_argmin_take_the_first():
    found = of("a[i] = argmax[k] x[i, k]\nb[i] = argmin[k] x[i, k]\nc = argmax[i, k] x[i, k]")
    assert list(found["a"]) == [2, 1]
    assert list(found["b"]) == [1, 2]
    assert found["c"] == 5


def test_any_and_all():
    found = of("a[i] = any[k] (x[i, k] > 3)\nb[i] = all[k] (x[i, k] > -3)")
    assert list(found["a"]) == [0, 1]
    assert list(found["b"]) == [1, 1]


def test_where_in_a_reduction_counts_the_indices_for_which_it_holds():
    found = of("y[i] = sum[k where x[i, k] > 0] x[i, k]\nm[i] = mean[k where x[i, k] > 0] x[i, k]")
    assert np.allclose(found["y"], np.where(X > 0, X, 0).sum(1))
    assert np.allclose(found["m"], [1.5, 4])


def test_elsewhere_a_map_is_0_and_a_reduction_its_identity():
    found = of("y[i, k] = x[i, k] where k != 1\nz[i] = max[k] x[i, k] where i > 0")
    assert np.allclose(found["y"], X * [1, 0, 1, 1])
    assert list(found["z"]) == [-np.inf, 4]


def test_a_read_is_not_performed_where_the_condition_fails():
    assert np.allclose(of("y[i < n] = x[i - 1, 0] where i > 0")["y"], [0, 1])


def test_if_selects_and_the_other_branchs_nan_stays_away():
    assert list(of("y[i] = if x[i, 0] > 0 then log(x[i, 0]) else 7")["y"]) == [0, 7]


def test_a_choice_on_sizes_and_arguments_is_made_when_the_graph_is():
    text = "fn f(x, double = true) = if double then 2 * x else relu(x)\n" + model("y = f(x)\nz = f(x, double = false)")
    assert [f.split("[")[0] for f in formulas(text)] == ["y", "z.f.y.relu", "z"]


def test_bools_count_as_0_and_1_in_sums_and_means():
    found = of("hits[i] = label[i] == 2\ny = mean(hits)\nz = sum[i] hits[i]")
    assert (found["y"], found["z"]) == (0.5, 1)


def test_an_index_that_shadows_is_another_index():
    assert np.allclose(of("y[i, k] = x[i, k] - sum[k] x[i, k]")["y"], X - X.sum(1, keepdims=True))


def test_a_choice_needs_a_condition():
    assert "a number where a condition belongs" in str(error(model("y[i] = if x[i, 0] then 1 else 0")))
