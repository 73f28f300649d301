"""No text hangs, crashes or runs code: each is a graph, or an error with its place, what is wrong, and a way out."""

import time
import warnings

import pytest

from chainrule.errors import SourceError
from chainrule.lang import elaborate, parse, print_graph
from chainrule.lang.scan import BYTES
from tests.lang.mutations import GOOD, mutated
from tests.lang.texts import error, graph, model

# what is written, what the error says of it
STATEMENTS = [
    ("y = z", "unknown name 'z'"),
    ("y = lable", "unknown name 'lable'"),
    ("y = liner(x, 3)", "unknown layer or function 'liner'"),
    ("y = linear(x)", "linear needs 'out'"),
    ("y = linear(x, 3, 4)", "linear takes 2 arguments, not 3"),
    ("y = linear(x, width = 3)", "linear has no argument 'width'"),
    ("y = linear(x, out = 3, out = 4)", "'out' is given twice"),
    ("y = linear(x, 2.5)", "the size is 5/2, no integer"),
    ("y = linear(x, -1)", "the size -1 is negative"),
    ("y = linear(x, true)", "a truth value where a number belongs"),
    ("y = linear(x, label)", "'out' is a tensor, and a size"),
    ("y = linear(3, 4)", "'x' is a tensor [*, i]"),
    ("y = softmax(x[i, k])", "unknown name 'i'"),
    ("y[i] = softmax(x)[i]", "has 2 axes and is read with 1"),
    ("y[i] = x[i]", "x has 2 axes and is read with 1"),
    ("y[i] = x[i, 0, 0]", "x has 2 axes and is read with 3"),
    ("y[i] = x", "'x' is read without indices in a statement with indices"),
    ("y[i, i] = x[i, i]", "index i is bound twice here"),
    ("y[i] = sum[k, k] x[i, k]", "index k is bound twice here"),
    ("y[i, j] = x[i, k]", "unknown name 'k'"),
    ("y[i] = x[i, 4]", "which could reach 4"),
    ("y[i] = x[i, -1]", "which could be negative"),
    ("y[i] = x[i, 0.5]", "this index need not be an integer"),
    ("y[i] = x[i, x[i, 0]]", "an index that is float"),
    ("y[i] = x[i, label[i] + 1]", "which could reach 4"),
    ("y[i] = x[i, label]", "'label' is read without indices"),
    ("y[*] = x[*, *]", "two stars in one access"),
    ("y[*, *] = x[*, 0]", "two stars on the left"),
    ("y[i < n] = x[*, 0]", "`*` is read, and the left side does not have it"),
    ("y = x[*, 0]", "`*` is read, and the left side has no axes"),
    ("y[*] = 1", "nothing says what * stands for"),
    ("y[i] = x[i, 0; i]", "unknown size 'i'"),
    ("y[i < n] = x[i + 1, 0; n]", "the value outside is a constant"),
    ("y[i] = n[i]", "'n' is a size, not a tensor"),
    ("y[i] = 1", "nothing says how far index i runs"),
    ("y[i < 2.5] = 1", "the size is 5/2, no integer"),
    ("y[i < 0 - 1] = 1", "the size -1 is negative"),
    ("y[i < inf] = 1", "the size is oo"),
    ("y[i < 2^60] = 1", "larger than any memory"),
    ("y[i < sum(x)] = 1", "known only at run time"),
    ("y[i < 3/0] = 1", "division by zero"),
    ("y[i < training] = 1", "`training` is a mode, not a number"),
    ("y[i < x] = 1", "'x' is a tensor, and a size or number must be known"),
    ("x = 1\ninput x[n]", "'x' is declared already"),
    ("input x[n]", "'x' is declared already"),
    ("dim n", "'n' is declared already"),
    ("dim t >= -1", "a dim's bound is an integer"),
    ("dim 5 <= t <= 3", "no dim is at least 5 and at most 3"),
    ("dim t = 1 - n", "could be negative"),
    ("param W ~ normal(sum)", "cannot stand here"),
    ("param W[x] ~ zeros", "'x' is a tensor"),
    ("param W[*] ~ zeros", "nothing says what * stands for"),
    ("param W[3] = zeros", "cannot stand here"),
    ("input z[3] : index", "index of what?"),
    ("input z[3] : float 3", "float takes no size"),
    ("input z[3] : text", "unknown type 'text'"),
    ("state s[4] = x", "'x' is a tensor"),
    ("s <- 1", "'s' is no state"),
    ("random k[i < n] ~ poisson(3)", "unknown law 'poisson'"),
    ("random k[i < n] ~ bernoulli", "bernoulli needs 'p'"),
    ("random k[i < n] ~ bernoulli(0.1, 0.2)", "bernoulli takes p"),
    ("let c = x", "'x' is a tensor"),
    ("let x = 3", "'x' is a tensor here"),
    ("let f = nothing(_, 3)", "unknown layer or function 'nothing'"),
    ("let f = linear(_, 3)\ny = f(x, x)", "f takes no further argument"),
    ("let f = linear(_, 3)\ny = f()", "an argument is missing"),
    ("y = _ + 1", "`_` stands for the missing argument"),
    ("repeat -1:\n    y = x", "repeat -1 times?"),
    ("repeat n:\n    y = x", "repeat n times?"),
    ("repeat 1000000:\n    y = x", "more than 200,000 formulas"),
    ("repeat 1000:\n    repeat 1000:\n        y = x", "more than 200,000 formulas"),
    ("repeat 2:\n    dim t", "a dim cannot be repeated"),
    ("output y", "unknown name 'y'"),
    ("output x, x", "put out twice"),
    ("y = mean(x, x)", "mean takes one argument"),
    ("y = max(x)[0]", "unknown layer or function"),
    ("y = exp(x, x)", "exp takes 1 argument, not 2"),
    ("y = exp()", "exp takes 1 argument, not 0"),
    ("y = exp(value = x)", "exp has no argument 'value'"),
    ("y = clip(x, 0)", "clip takes 3 arguments, not 2"),
    ("y = float(x, x)", "float takes one argument"),
    ("y = size(z)", "'z' is no axis of the signature"),
    ("y = size(3)", "size takes the name of an axis"),
    ("y = norm(gradients)", "norm takes `gradients`, in an optimizer"),
    ("y = gradient(x, x)", "gradient takes a tensor of rank 0"),
    ("y = x > 0 > 1", "cannot stand here"),
    ("y[i] = (x[i, 0] > 0) > 1.5 * x[i, 0]", "a truth value compared with a number"),
    ("y = if x > 0 then 1", "the line ends too early"),
    ("y[i] = if label[i] then 1 else 0", "a number where a condition belongs"),
    ("y[i] = not label[i]", "a number where a condition belongs"),
    ("y[i] = x[i, 0] where label[i]", "a number where a condition belongs"),
    ("y[i] = x[i, 0] + label[i]", "int and float in one operation"),
    ("y[i] = x[i, 0] + (x[i, 1] > 0)", "bool and float in one operation"),
    ("y = x + 1/0", "division by zero"),
    ("y = x % 2", "% is for integers"),
    ("y = x ^ (2^99999)", "too large to be exact"),
    ("y = x + lgamma(1e9)", "lgamma of a constant beyond 50"),
    ("y = x + 1e999", "an exponent beyond 400"),
    ("y = x + 1" + "0" * 50, "a number of more than 40 digits"),
    ("y = x +", "the line ends too early"),
    ("y = (x", "the line ends too early"),
    ("y = x)", "')' cannot stand here"),
    ("y = x x", "'x' cannot stand here"),
    ("y == x", "'==' cannot stand here"),
    ("y = x = x", "'=' cannot stand here"),
    ("y = x & x", "the character '&' has no meaning here"),
    ("y = x @ x", "the character '@' has no meaning here"),
    ("y = {x}", "the character '{' has no meaning here"),
    ("y = 'x'", "has no meaning here"),
    ("y = .5", "the character '.' has no meaning here"),
    ("y = x × 2", "the character '×' has no meaning here"),
    ("y = Ж", "the character 'Ж' has no meaning here"),
    ("_y = x", "a name may not start with an underscore"),
    ("y..z = x", "the character '.' has no meaning here"),
    ("ϑ = x", "'ϑ' cannot stand in a name"),
    ("sum = x", "cannot stand here"),
    ("size = x", "'size' is a reserved word"),
    ("n = x", "the tensor 'n' hides the size"),
    ("y[true] = 1", "reserved word"),
    ("h[i < n] = h[i; 0] + x[i, 0]", "no recurrence: h is read at the place that it is computed at"),
    ("h[i < n] = h[i - 1; 0] + h[i + 1; 0]", "no recurrence: h is read at earlier and at later places"),
    ("h[i < n] = h[2*i; 0] + x[i, 0]", "no recurrence: no index along which h is read at a constant distance"),
    ("h[i] = h[i - 1; 0] + x[i, 0]", "'h' is read before it is complete, and nothing says how far i runs"),
    ("h[i < n] = h[i - 1; 0] > 1", "'h' is not what its left side declares"),
    ("h[i < n] = h[i - 1] + x[i, 0]", "axis 1 of h is read at i - 1, which could be negative"),
    ("h[i < n] = g[i; 0]\ng[i < n] = h[i; 0] + x[i, 0]", "is read at the place that it is computed at"),
    ("y = z + x\nz = x", "'z' is read before it is defined"),
    ("fixed_point z[i < n] from 0 within 1 steps 2:\n    z[i] = x[i, 0]", "'z' does not depend on itself"),
    ("y = x\n  z = x", "this line is indented"),
    ("y = x\n        z = x", "this line is indented"),
    ("y =\tx", "a tab outside a comment"),
    ("y = x\x00", "a NUL in the text"),
    ("y = x\r + 1", "a carriage return in the text"),
    ("y = x\x1b[31m", "the control character U+001B"),
    ("y = x # \u2028 + 1", "the control character U+2028"),
    ("layer f(x):\n    y = x", "cannot stand here"),
    ("y[" + ", ".join(f"i{k} < 1" for k in range(20)) + "] = 1", "more than 16 axes"),
    ("y = " + "(" * 101 + "x" + ")" * 101, "brackets nest deeper than 100"),
    ("y = " + "-" * 5000 + "x", "nests deeper than 100"),
    ("y[i] = " + "not " * 5000 + "x[i, 0] > 0", "nests deeper than 100"),
    ("y = " + "if x > 0 then 1 else " * 300 + "x", "nests deeper than 100"),
    ("y = " + "x^" * 5000 + "x", "nests deeper than 100"),
    ("y[i] = " + "sum[k] " * 1000 + "x[i, 0]", "nests deeper than 100"),
    ("y = " + " + ".join(["x"] * 20_000), "a statement of more than 10,000 words"),
    ("y = " + "+".join(["x*x"] * 4000), "has more than 10000 nodes"),
    ("a" * 300 + " = x", "a name of more than 240 characters"),
]

TEXTS = [
    ("", "no model in this file"),
    ("# nothing", "no model in this file"),
    ("model", "the line ends too early"),
    ("model m", "the line ends too early"),
    ("model m:", "an indented block is missing"),
    ("model m:\n", "an indented block is missing"),
    ("model m:\ny = 3\n", "cannot stand here"),
    ("model m(:\n    y = 3\n", "cannot stand here"),
    ("model m(a, a):\n    y = 3\n", "two arguments are called 'a'"),
    ("model m(a):\n    y = 3\n", "the argument 'a' has no value"),
    ("model m(a[*]):\n    y = 3\n", "a model's arguments are numbers"),
    ("model m(a = b):\n    y = 3\n", "unknown size 'b'"),
    ("model a:\n    y = 3\nmodel b:\n    y = 3\n", "several models in this file"),
    ("model a:\n    y = 3\nmodel a:\n    y = 3\n", "'a' is defined twice"),
    ("y = 3", "'y' cannot stand here"),
    ("model m:\n    y = 3\n    use \"a.graph\"\n", "cannot stand here"),
    ("use \"a.graph\"\nmodel m:\n    y = 3\n", "no file 'a.graph' here"),
    ("use \"../a.graph\"\nmodel m:\n    y = 3\n", "'../a.graph' is outside this folder"),
    ("use \"/etc/passwd\"\nmodel m:\n    y = 3\n", "'/etc/passwd' is outside this folder"),
    ("use \"\"\nmodel m:\n    y = 3\n", "'' is outside this folder"),
    ("use a\nmodel m:\n    y = 3\n", "'a' cannot stand here"),
    ("fn f(x) = f(x)\nmodel m:\n    input x[3]\n    y = f(x)\n", "calls nest deeper than 40"),
    ("fn f(x) = g(x)\nfn g(x) = f(x)\nmodel m:\n    input x[3]\n    y = f(x)\n", "calls nest deeper than 40"),
    ("fn f(x):\n    param p ~ zeros\nmodel m:\n    input x[3]\n    y = f(x)\n", "f defines nothing"),
    ("fn f(x):\n    input z\n    y = x\nmodel m:\n    input x[3]\n    y = f(x)\n", "an input belongs in a model"),
    ("fn f(x):\n    output y = x\nmodel m:\n    input x[3]\n    y = f(x)\n", "an output belongs in a model"),
    ("fn f(x[*, *]) = 1\nmodel m:\n    input x[3]\n    y = f(x)\n", "two stars in one signature"),
    ("fn f(x[k, k]):\n    y[k] = x[k, k]\nmodel m:\n    input x[3, 4]\n    y = f(x)\n", "axis k has two extents"),
    ("fn f(x[k, 5]):\n    y[k] = x[k, 0]\nmodel m:\n    input x[3, 4]\n    y = f(x)\n", "an axis has two extents"),
    ("fn f(x[k]):\n    y[k] = x[k]\nmodel m:\n    input x[3, 4]\n    y = f(x)\n", "gets a tensor of 2 axes"),
    ("init mine ~ cauchy(1)\nmodel m:\n    param p ~ mine\n    y = p\n", "'cauchy' is no base law"),
    ("init mine ~ normal(1)\nmodel m:\n    param p ~ mine\n    y = p\n", "'normal' is no base law"),
    ("model m:\n" + "    y = 3\n" * 10_001, "more than 10,000 statements"),
    ("# " + "x" * BYTES, "the file has more than 1,000,000 characters"),
    ("\ufeff\ufeffmodel m:\n    y = 3\n", "the control character U+FEFF"),
    ("model m:\n    dim t\n    input x[t\n", "the line ends too early"),
    ("import os", "'import' cannot stand here"),
    ("model m:\n    y = __import__(\"os\")\n", "cannot stand here"),
    ("[" * 100_000, "brackets nest deeper than 100"),
    ("model m:\n" + " " * 300_000 + "y = 3", None),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "says"), STATEMENTS)
def test_wrong_statements(statements, says):
    found = error(model(statements))
    assert says in found.problem
    assert found.span.line >= 1
    assert found.span.column >= 1
    assert found.span.width >= 1
    assert found.way_out
    assert "\x1b" not in str(found)


@pytest.mark.parametrize(("text", "says"), TEXTS)
def test_wrong_texts(text, says):
    started = time.perf_counter()
    if says is None:
        graph(text)
    else:
        found = error(text)
        assert says in found.problem
        assert found.way_out
    assert time.perf_counter() - started < 20  # a bound on hanging, not on speed


def test_there_are_enough_of_them():
    assert len(STATEMENTS) + len(TEXTS) + 20 * 15 >= 200


@pytest.mark.parametrize("name", GOOD)
def test_the_models_that_are_mutated_are_good(name):
    graph(GOOD[name])


@pytest.mark.parametrize("block", range(20))
def test_a_mutated_model_is_a_graph_or_a_positioned_error(block):
    for seed in range(15 * block, 15 * block + 15):
        attempt(mutated(seed), seed)


def attempt(text, seed):
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = elaborate(parse(text, "m.graph"))
            assert elaborate(parse(print_graph(made), "printed.graph")) == made, seed
    except SourceError as found:
        assert found.span.line >= 1, seed
        assert str(found), seed
    assert time.perf_counter() - started < 20, seed


def test_every_beginning_of_a_model_is_a_graph_or_a_positioned_error():
    text = GOOD["everything"]
    for end in range(0, len(text), 7):
        attempt(text[:end], end)


def test_an_error_shows_its_place_the_facts_and_a_way_out():
    assert str(error(model("y = layer_nrm(x, 3)"))) == (
        "m.graph:6:9: unknown layer or function 'layer_nrm'\n"
        "        y = layer_nrm(x, 3)\n"
        "            ^^^^^^^^^^^^^^^\n"
        "  Way out: did you mean 'layer_norm'?"
    )


def test_an_error_inside_a_layer_says_who_called_it():
    text = "layer f(x[*, k]):\n    param W[5] ~ zeros\n    y[*] = sum[k] x[*, k] * W[k]\n" + model("y = f(x)")
    assert str(error(text)) == (
        "m.graph:3:31: index k runs over two extents\n"
        "        y[*] = sum[k] x[*, k] * W[k]\n"
        "                                  ^\n"
        "  x is [n, 4] (line 7): k < 4\n"
        "  y.f.W is [5] (line 2): k < 5\n"
        "  in f, called at m.graph:9: y = f(x)\n"
        "  Way out: make the two axes equal, or write the range: k < 4"
    )
