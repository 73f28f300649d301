"""The rules of the reference on parameters: their paths, initial laws, sharing, repetition."""

import math

import pytest

from chainrule.ir.graph import Init
from tests.lang.texts import error, graph, model


def params(statements, **arguments):
    return [p.tensor.name for p in graph(model(statements), **arguments).params]


def init(law, reads="y[i, o] = sum[k] x[i, k] * W[k, o]", sizes="4, 6"):
    return graph(model(f"param W[{sizes}] ~ {law}\n{reads}")).params[0].init


def test_paths_are_statement_layer_parameter():
    assert params("h = relu(linear(x, 3))") == ["h.linear.W", "h.linear.b"]


def test_a_repeated_layer_is_numbered_within_its_prefix_across_statements_of_the_same_name():
    assert params("h = linear(linear(x, 3), 2)\nh = linear(h, 2)")[::2] == [
        "h.linear.W",
        "h.linear_2.W",
        "h.linear_3.W",
    ]


def test_the_outer_call_is_numbered_first():
    made = graph(model("h = linear(linear(x, 3), 2)"))
    assert {p.tensor.name: p.tensor.shape for p in made.params}["h.linear.W"] in ((3, 2), (4, 3))


def test_repeat_counts_from_0():
    assert params("repeat 2:\n    x = linear(linear(x, 4), 4)")[::2] == [
        "x.0.linear.W",
        "x.0.linear_2.W",
        "x.1.linear.W",
        "x.1.linear_2.W",
    ]


def test_repeats_number_can_be_named_and_used():
    text = "y = x\nrepeat 3 as t:\n    y = y + t"
    assert [str(n.body) for n in graph(model(text)).nodes] == ["_0000", "_0000", "_0000 + 1", "_0000 + 2"]


def test_repeats_nest():
    assert params("repeat 2:\n    repeat 2:\n        x = linear(x, 4)")[::2] == [
        "x.0.0.linear.W",
        "x.0.1.linear.W",
        "x.1.0.linear.W",
        "x.1.1.linear.W",
    ]


def test_let_makes_one_set_of_parameters_used_twice():
    made = graph(model("let f = linear(_, 4)\np = f(x)\nq = f(p)"))
    assert [p.tensor.name for p in made.params] == ["f.W", "f.b"]
    assert [n.out for n in made.nodes if n.out in ("p", "q")] == ["p", "q"]


DEEP = """layer deep(x[*, i], out):
    repeat 2:
        x = relu(linear(x, out))
    let g = linear(_, out)
    y = g(g(x))
"""


def test_layers_inside_a_shared_layer_are_shared_too():
    made = graph(DEEP + model("let f = deep(_, 4)\np = f(x)\nq = f(p)"))
    assert [p.tensor.name for p in made.params][::2] == ["f.x.0.linear.W", "f.x.1.linear.W", "f.g.W"]
    apart = graph(DEEP + model("p = deep(x, 4)\nq = deep(p, 4)"))
    assert [p.tensor.name for p in apart.params][4:9:4] == ["p.deep.g.W", "q.deep.x.1.linear.W"]


def test_a_shared_layer_has_one_shape():
    assert "another shape" in str(error(model("let f = linear(_, 3)\np = f(x)\nq = f(p)")))


def test_layers_in_layers_have_longer_paths():
    text = "layer two(x[*, i], out):\n    h = linear(x, 5)\n    y = linear(h, out)\n" + model("z = two(x, 3)")
    assert [p.tensor.name for p in graph(text).params][::2] == ["z.two.h.linear.W", "z.two.y.linear.W"]


def test_fans_are_the_axes_reduced_and_the_others_where_the_parameter_is_first_read():
    bound = math.sqrt(6 / 4)
    assert init("kaiming_uniform") == Init("uniform", (-bound, bound))
    bound = math.sqrt(6 / 10)
    assert init("glorot_uniform") == Init("uniform", (-bound, bound))
    assert init("kaiming_normal") == Init("normal", (0.0, math.sqrt(2 / 4)))
    assert init("glorot_normal") == Init("normal", (0.0, math.sqrt(2 / 10)))


def test_each_leaves_a_stacked_axis_out_of_the_fans():
    reads = "y[i, g, o] = sum[k] x[i, k] * W[k, g, o]"
    bound = math.sqrt(6 / (4 + 6))
    assert init("glorot_uniform(each = 3)", reads, "4, 3, 6") == Init("uniform", (-bound, bound), 1)


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("zeros", Init("constant", (0.0,))),
        ("ones", Init("constant", (1.0,))),
        ("constant(0.1)", Init("constant", (0.1,))),
        ("uniform(-1, 2/4)", Init("uniform", (-1.0, 0.5))),
        ("normal(0.02)", Init("normal", (0.0, 0.02))),
        ("normal(2, center = -1)", Init("normal", (-1.0, 2.0))),
        ("orthogonal(0.5)", Init("orthogonal", (0.5, 6.0))),
        ("glorot_uniform(0)", Init("uniform", (0.0, 0.0))),
    ],
)
def test_initial_laws(text, law):
    assert init(text) == law


@pytest.mark.parametrize(
    ("law", "problem"),
    [
        ("kaiming", "unknown initialiser 'kaiming'"),
        ("normal(1, 2, 3)", "normal takes deviation, center"),
        ("normal(mu = 1)", "normal has no argument 'mu'"),
        ("constant", "constant needs 'value'"),
        ("constant(n)", "not known before run time"),
        ("zeros(each = 5)", "no axis has the extent 5"),
    ],
)
def test_wrong_initial_laws(law, problem):
    assert problem in str(error(model(f"param W[4, 6] ~ {law}\ny[i, o] = sum[k] x[i, k] * W[k, o]")))


def test_model_arguments_have_defaults_and_can_be_set():
    text = "model m(width = 3, deep = false, rate = 0.5):\n    dim n\n    input x[n, 4]\n    y = linear(x, width)\n"
    assert graph(text).params[0].tensor.shape == (4, 3)
    assert graph(text, width=7).params[0].tensor.shape == (4, 7)
    assert graph(text, width="7", deep="true", rate=0.25).params[0].tensor.shape == (4, 7)
    assert "has no argument 'widht'" in str(error(text, widht=7))
    assert "did you mean 'width'?" in str(error(text, widht=7))
    assert "is no value for 'width'" in str(error(text, width="wide"))


def test_gradient_of_a_layers_parameter_is_read_by_its_path():
    made = graph(model("y = linear(x, 3)\nloss = mean(y)\ng = gradient(loss, y.linear.W)"))
    assert made.nodes[-1].reads == ("loss", "y.linear.W")
    assert made.nodes[-1].shape == (4, 3)


def test_a_parameter_of_a_layer_that_a_decided_choice_leaves_unread_does_not_exist():
    text = "model m:\n    dim n\n    input x[n, 2, 5, 5]\n    y = conv2d(x, 3{})\n"
    assert [p.tensor.name for p in graph(text.format("")).params] == ["y.conv2d.K", "y.conv2d.b"]
    assert [p.tensor.name for p in graph(text.format(", bias = false")).params] == ["y.conv2d.K"]
    own = "model m:\n    input x[2]\n    param w[2] ~ zeros\n    y = 2 * x\n"
    assert [p.tensor.name for p in graph(own).params] == ["w"]
