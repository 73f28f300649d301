"""The rules of the reference on state, updates, modes and random tensors."""

import numpy as np

from chainrule.ir.primitive import Primitive
from chainrule.reference import evaluate, updated
from tests.lang.texts import error, formulas, graph, model, values

X = np.array([[1.0, -2.0, 3.0, 0.5], [0.0, 4.0, -1.0, 4.0]])
LABEL = np.array([2, 0])
GIVEN = {"x": X, "label": LABEL}


def test_reads_after_an_update_see_the_new_value_in_training_and_the_stored_one_in_eval():
    text = model("state s[4] = 2\nbefore[k] = s[k]\ns[k] <- 10 * s[k]\nafter[k] = s[k]")
    trained, evaluated = values(text, GIVEN, training=True), values(text, GIVEN, training=False)
    assert (trained["before"][0], trained["after"][0]) == (2, 20)
    assert (evaluated["before"][0], evaluated["after"][0]) == (2, 2)


def test_the_store_changes_once_a_step():
    made = graph(model("state s[4] = 2\ns[k] <- s[k] + sum[i] x[i, k]"))
    assert np.allclose(updated(made, evaluate(made, GIVEN))["s"], 2 + X.sum(0))


def test_an_update_that_nobody_reads_after_makes_no_choice_of_modes():
    assert len(formulas(model("state s[4] = 0\ns[k] <- s[k] + 1"))) == 1


def test_updates_let_no_gradient_through():
    assert all(node.stop for node in graph(model("state s[4] = 0\ns[k] <- s[k] + x[0, k; 0]")).nodes)


def test_only_states_are_updated():
    assert "'y' is no state" in str(error(model("y = x + 1\ny[i, k] <- x[i, k]")))
    assert "another shape" in str(error(model("state s[4] = 0\ns[i < 3] <- 1")))


def test_state_in_a_layer_is_named_by_its_path():
    text = "model m:\n    dim n, h, w\n    input x[n, 3, h, w]\n    y = batch_norm(x)\n"
    assert [s.tensor.name for s in graph(text).states] == ["y.batch_norm.running_mean", "y.batch_norm.running_var"]


def test_a_shared_layer_s_state_goes_on_from_call_to_call():
    counter = "layer counter(x[*]):\n    state s = 1\n    s <- 3 * s\n    y[*] = x[*] + s\n"
    inner = "layer outer(x[*]):\n    y = counter(x)\n"
    made = graph(counter + inner + model("let f = outer(_)\na = f(x)\nb = f(x)"))
    assert [s.tensor.name for s in made.states] == ["f.y.counter.s"]
    trained, evaluated = evaluate(made, {**GIVEN, "f.y.counter.s": 1.0}), evaluate(made, GIVEN, training=False)
    assert np.allclose(trained["a"] - X, 3) and np.allclose(trained["b"] - X, 9)
    assert np.allclose(evaluated["a"] - X, 1) and np.allclose(evaluated["b"] - X, 1)
    assert updated(made, trained)["f.y.counter.s"] == 9


def test_if_training_chooses_by_the_mode():
    text = model("y = if training then x else 0 * x + 7")
    assert (values(text, GIVEN, training=True)["y"] == X).all()
    assert (values(text, GIVEN, training=False)["y"] == 7).all()


def test_a_draw_is_a_primitive_with_the_key_of_its_path_and_a_formula_with_its_law():
    made = graph(model("y = dropout(x, rate = 0.25)"))
    draw = made.nodes[0]
    assert isinstance(draw, Primitive)
    assert (draw.out, draw.key, draw.kind) == ("y.dropout.keep.u", "y.dropout.keep.u", "uniform")
    found = values(model("random k[i < n, j < 400] ~ bernoulli(0.25)\ny = mean(k) + 0 * mean(x)"), GIVEN)
    assert 0.15 < found["y"] < 0.35


def test_uniform_draws_are_the_primitive_itself():
    made = graph(model("random u[i < n] ~ uniform\nrandom v[i < n] ~ uniform(-1, 1)\ny[i] = u[i] + v[i]"))
    assert [n.out for n in made.nodes] == ["u", "v.u", "v", "y"]


def test_normal_draws_have_their_mean_and_deviation():
    found = values(model("random e[i < 4000] ~ normal(2, center = 5)\ny = mean(e) + 0 * mean(x)"), GIVEN)
    assert abs(found["e"].mean() - 5) < 0.2
    assert abs(found["e"].std() - 2) < 0.2


def test_a_laws_arguments_may_be_tensors_but_not_depend_on_parameters():
    graph(model("random k[i, j] ~ bernoulli(1 / (1 + exp(-x[i, j])))\ny = mean(k)"))
    found = error(model("param p[4] ~ zeros\nrandom k[i < n, j] ~ bernoulli(p[j])"))
    assert "may not depend on parameters" in str(found)
