"""The rules of the reference on types, kinks and ties."""

import numpy as np
import pytest
import sympy as sp

from chainrule.ir.expression import slot
from tests.lang.texts import error, graph, model, values

X = np.array([[1.0, -2.0, 3.0, 0.5], [0.0, 4.0, -1.0, 4.0]])
LABEL = np.array([2, 0])


def of(statements):
    return values(model(statements), {"x": X, "label": LABEL})


def body(statement):
    return graph(model(statement)).nodes[-1].body


def derivative(statement, at):
    """Of the body by its first slot, at a value of all slots."""
    e = body(statement)
    return e.diff(slot(0)).subs(dict.fromkeys(e.free_symbols, at))


def test_tensors_mix_only_through_conversions():
    found = error(model("y[i] = x[i, 0] * label[i]"))
    assert found.problem == "int and float in one operation"
    assert found.way_out == "convert it: float(…)"
    assert list(of("y[i] = x[i, 0] * float(label[i])")["y"]) == [2, 0]


def test_literals_sizes_and_indices_are_weak():
    assert [n.dtype.value for n in graph(model("y[i] = label[i] + i + 2\nz[i, k] = x[i, k] + k + size(n)")).nodes] == [
        "int",
        "float",
    ]


def test_int_rounds_toward_zero():
    assert list(of("y[i, k] = int(x[i, k] / 2)")["y"].ravel()) == [0, -1, 1, 0, 0, 2, 0, 2]


def test_int_divided_by_int_is_float():
    assert list(of("y[i] = label[i] / 4")["y"]) == [0.5, 0]


def test_floor_and_remainder_of_integers():
    found = of("q[i] = (label[i] - 3) // 2\nr[i] = (label[i] - 3) % 2")
    assert list(found["q"]) == [-1, -2]
    assert list(found["r"]) == [1, 1]


def test_a_remainder_is_for_integers():
    assert "% is for integers" in str(error(model("y[i] = x[i, 0] % 2")))


def test_decimal_literals_are_exact():
    assert body("y[i] = x[i, 0] * 0.1") == sp.Rational(1, 10) * slot(0)


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        ("int", "x[i, 0]", "need not be an integer"),
        ("float", "label[i]", "the value is int, not float"),
        ("bool", "x[i, 0]", "no truth value"),
        ("index 3", "label[i]", "could leave 0 … 3 - 1"),
        ("double", "x[i, 0]", "unknown type 'double'"),
        ("index", "label[i]", "index of what?"),
    ],
)
def test_a_declared_type_must_be_the_values(kind, value, problem):
    assert problem in str(error(model(f"y[i] : {kind} = {value}")))


def test_an_index_that_is_clipped_has_a_known_range():
    assert graph(model("y[i] : index 3 = clip(label[i], 0, 2)")).nodes[-1].bound == 3
    assert graph(model("y[i] : index 2 = label[i] // 2")).nodes[-1].bound == 2


def test_a_copy_and_an_argmax_keep_their_range():
    assert [n.bound for n in graph(model("y[i] = label[i]\nz[i] = argmax[k] x[i, k]")).nodes] == [4, 4]


def test_the_range_of_an_argmax_that_may_be_of_nothing_holds_the_number_of_places():
    assert graph(model("z[i] = argmax[k where x[i, k] > 0] x[i, k]")).nodes[-1].bound == 5
    assert graph(model("z[i] = argmax[k] x[i, k] where x[i, 0] > 0")).nodes[-1].bound == 5
    rows = graph(model("z[k] = argmax[i] x[i, k]"))  # there may be no row
    assert next(d for d in rows.dims if d.name == rows.nodes[-1].bound.name).definition == rows.inputs[0].shape[0] + 1
    said = str(error(model("z[i] : index 4 = argmax[k where x[i, k] > 0] x[i, k]")))
    assert "known: 0 <= value < 5" in said


def test_the_derivative_of_relu_at_0_is_0():
    assert derivative("y[i] = max(x[i, 0], 0)", 0) == 0
    assert derivative("y[i] = min(x[i, 0], 0)", 0) == 0


def test_a_tie_of_two_variables_is_half_each():
    assert derivative("y[i] = max(x[i, 0], x[i, 1])", 3) == sp.Rational(1, 2)
    assert derivative("y[i] = min(x[i, 0], x[i, 1])", 3) == sp.Rational(1, 2)


def test_clip_passes_at_its_bounds():
    assert [derivative("y[i] = clip(x[i, 0], -1, 1)", at) for at in (-2, -1, 0, 1, 2)] == [0, 1, 1, 1, 0]


def test_the_derivative_of_abs_at_0_is_0():
    assert [derivative("y[i] = abs(x[i, 0])", at) for at in (-2, 0, 2)] == [-1, 0, 1]


@pytest.mark.parametrize("function", ["floor", "ceil", "round", "sign"])
def test_steps_are_locally_constant(function):
    assert body(f"y[i] = {function}(x[i, 0])").diff(slot(0)) == 0


@pytest.mark.parametrize(
    "value", ["max(x[i, 0], 0)", "min(0, x[i, 0])", "max(x[i, 0], x[i, 1])", "abs(x[i, 0])", "clip(x[i, 0], 0, 1)"]
)
def test_nan_passes(value):
    nan = np.full((1, 4), np.nan)
    assert np.isnan(values(model(f"y[i] = {value}"), {"x": nan, "label": LABEL[:1]})["y"]).all()


@pytest.mark.parametrize(
    ("text", "numpys"),
    [
        ("max(x[i, k], 1)", np.maximum(X, 1)),
        ("min(x[i, k], 1, 0.5)", np.minimum(X, 0.5)),
        ("abs(x[i, k])", np.abs(X)),
        ("clip(x[i, k], -1, 2)", np.clip(X, -1, 2)),
        ("sqrt(x[i, k]^2)", np.abs(X)),
        ("x[i, k]^3 - -x[i, k]^2", X**3 + X**2),
        ("2^x[i, k]", 2**X),
        ("exp(-x[i, k]) / tanh(1)", np.exp(-X) / np.tanh(1)),
        ("if x[i, k] > 0 and not x[i, k] > 3 or k == 1 then 1 else 0", ((X > 0) & (X <= 3)) | (np.arange(4) == 1)),
    ],
)
def test_values_are_numpys(text, numpys):
    assert np.allclose(of(f"y[i, k] = {text}")["y"], numpys)


def test_comparisons_with_nan_are_false_but_for_unequal():
    assert list(of("y[i < n] = if nan > 1 or nan == nan then 1 else 0 * x[i, 0]")["y"]) == [0, 0]
    assert list(of("y[i < n] = if nan != nan then 1 else 0 * x[i, 0]")["y"]) == [1, 1]


def test_integers_as_conditions_are_compared():
    assert list(of("y[i] = if label[i] != 0 then 1 else 0")["y"]) == [1, 0]
    assert list(of("y[i] = float(label[i] != 0) + 1")["y"]) == [2, 1]


@pytest.mark.parametrize("text", ["1/0", "0^-1", "log(-1)", "sqrt(-2)", "(-1)^0.5", "2^9999999", "lgamma(1e9)"])
def test_constants_that_are_no_numbers_are_errors(text):
    error(model(f"y[i] = x[i, 0] + {text}"))
