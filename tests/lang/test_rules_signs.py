"""The rules of the reference on signs: definitions, versions, calls, stop, types, names."""

import pytest

from tests.lang.texts import error, formulas, graph, model


def test_redefining_a_name_makes_a_new_version_and_earlier_reads_keep_theirs():
    assert formulas(model("y = x + 1\nz = y * 2\ny = y + z")) == [
        "y.1[n < n, m < 4] = x[n, m] + 1",
        "z[n < n, m < 4] = 2 * y.1[n, m]",
        "y[n < n, m < 4] = y.1[n, m] + z[n, m]",
    ]


def test_an_input_keeps_its_name_when_it_is_redefined():
    assert [node.out for node in graph(model("x = x + 1\nx = x + 1\noutput x")).nodes] == ["x.2", "x.3"]


def test_outputs_are_the_last_versions():
    assert graph(model("y = x + 1\ny = y + 1\noutput y")).outputs == ("y",)


def test_a_call_is_a_formula_of_its_own_and_never_pasted():
    assert formulas(model("y = exp(relu(x))")) == [
        "y.relu[n < n, m < 4] = if x[n, m] <= 0 then 0 else x[n, m]",
        "y[n < n, m < 4] = exp(y.relu[n, m])",
    ]


def test_the_value_of_a_direct_call_takes_the_statements_name_and_parameters_keep_the_layers():
    made = graph(model("logits = linear(x, 3)"))
    assert made.nodes[-1].out == "logits"
    assert [p.tensor.name for p in made.params] == ["logits.linear.W", "logits.linear.b"]


def test_a_functions_argument_is_evaluated_once_in_the_callers_statement():
    assert formulas(model("y = softmax(x * 2)")) == [
        "y.softmax.z[n < n, m < 4] = 2 * x[n, m]",
        "y.softmax.p_sum[n < n] = sum[c < 4] exp(y.softmax.z[n, c])",
        "y[n < n, k < 4] = exp(y.softmax.z[n, k]) / y.softmax.p_sum[n]",
    ]


def test_a_function_without_axes_may_stand_in_an_indexed_expression():
    assert formulas(model("y[i, k] = 2 * relu(x[i, k] - 1)")) == [
        "y.relu.x[i < n, k < 4] = x[i, k] - 1",
        "y.relu[i < n, k < 4] = if y.relu.x[i, k] <= 0 then 0 else y.relu.x[i, k]",
        "y[i < n, k < 4] = 2 * y.relu[i, k]",
    ]


def test_an_elementwise_call_of_a_plain_read_makes_no_copy():
    assert [f.split("[")[0] for f in formulas(model("y[i, k] = 2 * relu(x[i, k])"))] == ["y.relu", "y"]


def test_a_function_with_axes_takes_whole_tensors_and_is_read_with_indices():
    assert formulas(model("y[i] = softmax(x)[i, label[i]]"))[-1] == "y[i < n] = y.softmax[i, label[i]]"


def test_stop_lets_no_gradient_through():
    assert [node.stop for node in graph(model("stop y = x + 1\nz = y")).nodes] == [True, False]


def test_a_type_follows_a_left_side_that_is_not_float():
    text = model("a[i] : index 4 = argmax[k] x[i, k]\nb[i] : int = label[i] + 1\nc[i] : bool = x[i, 0] > 0")
    assert [(node.dtype.value, node.bound) for node in graph(text).nodes] == [("int", 4), ("int", None), ("bool", None)]


@pytest.mark.parametrize("word", ["sum", "if", "size", "training", "pi"])
def test_reserved_words_are_no_names(word):
    assert "reserved" in str(error(model(f"{word} = x")))


def test_greek_letters_are_their_names():
    assert [node.out for node in graph(model("σ = x + 1\nβ_1 = sigma * 2")).nodes] == ["sigma", "beta_1"]


def test_a_tensor_that_hides_a_dim_or_an_argument_is_an_error():
    assert "hides the size or argument" in str(error(model("n = x + 1")))


def test_the_last_statement_of_a_layer_is_its_value():
    text = "fn f(x):\n    a = x + 1\n    b = a * 2\n" + model("y = f(x)")
    assert formulas(text) == ["y.f.a[n < n, m < 4] = x[n, m] + 1", "y[n < n, m < 4] = 2 * y.f.a[n, m]"]


def test_a_call_that_returns_its_argument_is_a_copy():
    assert formulas("fn same(x) = x\n" + model("y = same(x)")) == ["y[n < n, m < 4] = x[n, m]"]


def test_own_layers_beat_the_librarys():
    assert formulas("fn relu(x) = x * 7\n" + model("y = relu(x)")) == ["y[n < n, m < 4] = 7 * x[n, m]"]
