"""The rules of the reference on indices, bounds and sizes."""

import numpy as np
import pytest

from tests.lang.texts import error, formulas, graph, model, values

X = np.arange(8.0).reshape(2, 4)
LABEL = np.array([2, 0])


def of(statements):
    return values(model(statements), {"x": X, "label": LABEL})


def test_a_written_range_is_proved_not_matched():
    assert np.allclose(of("y[i, k < 3] = x[i, k + 1]")["y"], X[:, 1:])


def test_plain_accesses_that_meet_must_be_equal_and_the_error_names_both():
    found = error(model("param W[3, 2] ~ zeros\ny[i, o] = sum[k] x[i, k] * W[k, o]"))
    assert str(found) == (
        "m.graph:7:34: index k runs over two extents\n"
        "        y[i, o] = sum[k] x[i, k] * W[k, o]\n"
        "                                     ^\n"
        "  x is [n, 4] (line 4): k < 4\n"
        "  W is [3, 2] (line 6): k < 3\n"
        "  Way out: make the two axes equal, or write the range: k < 4"
    )


def test_an_index_without_a_range_takes_the_signatures_axis():
    text = "fn eye(x[*, k]):\n    y[k, j < 4] = if k == j then 1 else 0\n" + model("y = eye(x)")
    assert formulas(text) == ["y[k < 4, j < 4] = if k == j then 1 else 0"]


def test_an_index_that_nothing_ranges_is_an_error():
    assert "nothing says how far index j runs" in str(error(model("y[j] = j")))


def test_in_size_positions_an_axis_is_its_extent_elsewhere_an_index():
    text = "fn f(x[*, k]):\n    y[*, k, j < k] = x[*, k] * k / size(k)\n" + model("y = f(x)")
    assert np.allclose(values(text, {"x": X, "label": LABEL})["y"][:, :, 0], X * np.arange(4) / 4)


def test_a_star_stands_for_the_same_axes_throughout_a_layer():
    text = "fn f(x[*, k], y[*]):\n    z[*] = x[*, 0] + y[*]\n" + model("z = f(x, x)")
    assert "* stands for different axes in two arguments" in str(error(text))


def test_a_star_in_a_model_stands_for_the_axes_of_its_first_read():
    assert formulas(model("y[*] = x[*, 0] + float(label[*])")) == ["y[n < n] = x[n, 0] + float(label[n])"]
    assert "* stands for two lists of axes" in str(error(model("y[*] = x[*, 0] + x[*]")))


def test_a_statement_without_indices_works_on_equal_shapes_and_there_is_no_broadcasting():
    found = error(model("r[k] = sum[i] x[i, k]\ny = x + sum(r)\nz = x + r"))
    assert found.problem == "shapes [n, 4] and [4] are not equal"
    assert "no silent broadcasting" in found.way_out


@pytest.mark.parametrize(
    "read",
    ["x[i + 1, 0]", "x[i, 5]", "x[i - 1, 0]", "x[2*i, 0]", "x[label[i], 0]", "x[i // 2 - 1, 0]", "x[i, -1]"],
)
def test_a_read_that_is_not_proved_is_an_error_with_a_way_out(read):
    found = error(model(f"y[i < n] = {read}"))
    assert "is read at" in found.problem
    assert "; 0" in found.way_out


@pytest.mark.parametrize(
    "statement",
    [
        "y[i] = x[i, label[i]]",
        "y[i] = x[i, 3 - label[i]]",
        "y[i] = x[i, label[i] // 2 + 2]",
        "y[i] = x[i, (label[i] + 7) % 4]",
        "y[i] = x[i, clip(label[i] - 1, 0, 3)]",
        "y[i, e < 2, f < 2] = x[i, 2*e + f]",
        "y[i < n] = x[i // 2, 0]",
        "y[i < n] = x[n - 1 - i, 0]",
        "y[i < n] = x[i + 1, 0] where i + 1 < n",
        "y[i < n] = x[i - 1, 0] where i >= 1",
        "y[i < n] = x[i + 5, 0; 0]",
        "y[i] = x[i, argmax[k] x[i, k]]",
        "y[i] = sum[k < 4 where k > 0] x[i, k - 1]",
        "y[e < 4*n] = x[e // 4, e % 4]",
        "y[i < 2*n] = x[i // 2, i % 2 + 2]",
        "let m = n * 4\ny[e < m] = x[e // 4, 0]",
    ],
)
def test_reads_are_proved_by_ranges_conditions_and_index_types(statement):
    graph(model(statement))


def test_mixed_radix_with_symbolic_sizes_is_proved():
    text = """
model m:
    dim h, w, c >= 1
    input x[h, w]
    y[e < h*w] = x[e // w, e % w]
    z[i < h, j < w] = y[i*w + j]
"""
    graph(text)


def test_a_strided_convolution_without_padding_is_proved():
    text = """
model m:
    dim h >= 5
    input x[h]
    let rows = (h - 5) // 2 + 1
    y[i < rows] = sum[r < 5] x[2*i + r]
"""
    assert [(d.name, str(d.definition)) for d in graph(text).dims][1:] == [("rows", "quotient(h - 5, 2) + 1")]


def test_a_guarded_read_gives_its_constant_outside():
    assert list(of("y[i < n] = max[r < 2] x[i + r - 1, 0; -inf]")["y"]) == [0, 4]


def test_dims_have_bounds_that_proofs_use():
    text = "model m:\n    dim t <= 8\n    input x[t]\n    param P[{}] ~ zeros\n    y[i < t] = x[i] + P[i]\n"
    graph(text.format(8))
    assert "could reach 7" in str(error(text.format(7)))
    graph("model m:\n    dim t >= 1\n    input x[t]\n    y = x[t - 1]\n")
    assert "could be negative" in str(error("model m:\n    dim t\n    input x[t]\n    y = x[t - 1]\n"))
    made = graph("model m:\n    dim 2 <= t <= 5\n    input x[t]\n    y = x[1]\n")
    assert (made.dims[0].minimum, made.dims[0].maximum) == (2, 5)


def test_in_sizes_a_slash_divides_exactly_and_a_double_slash_floors():
    found = error(model("param W[10/4] ~ zeros"))
    assert found.facts == ("10 / 4 leaves a remainder",)
    assert graph(model("param W[10//4] ~ zeros\ny[i] = x[i, 0] + W[0]")).params[0].tensor.shape == (2,)


def test_a_size_that_could_be_negative_is_an_error():
    assert "could be negative" in str(error(model("y[i < n - 1] = x[i, 0]")))


def test_a_parameters_sizes_are_integers():
    assert "is not known" in str(error(model("param W[n] ~ zeros")))


def test_equal_derived_sizes_are_one_dim():
    made = graph(model("y[e < 2*n] = x[e // 2, 0]\nz[e < n*2] = x[e // 2, 1]\nw = y + z"))
    assert [dim.name for dim in made.dims] == ["n", "y_e"]
