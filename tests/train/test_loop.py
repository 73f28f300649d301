"""The loop learns, reports, and goes on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.train import checkpoint as checkpoints
from chainrule.train.checkpoint import Epoch, Record
from chainrule.train.data import Data
from chainrule.train.loop import checkpoint_of, restore, train, verdict
from chainrule.train.measures import evaluate
from chainrule.train.recipe import Recipe, Schedule
from tests.train.steps import Regression

RECIPE = Recipe(metric="accuracy", goal=0.9, rate=0.5, batch=16, epochs=6, schedule=Schedule("cosine", 0.1))


def points(count=100):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 2))
    arrays = {"x": x, "label": (x[:, 0] > x[:, 1]).astype(np.int64)}
    return Data("points", {k: a[20:] for k, a in arrays.items()}, {k: a[:20] for k, a in arrays.items()})


def test_a_run_reaches_its_goal_and_says_so():
    step = Regression()
    curve = train(step, step.predict, points(), RECIPE)
    assert [e.epoch for e in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].train_loss < curve[0].train_loss
    told = verdict(RECIPE, curve)
    assert told["reached"] is True
    assert told["value"] == told["test_accuracy"] >= 0.9
    assert msgspec.json.decode(msgspec.json.encode(told)) == told


def test_samples_that_are_brought_in_their_order_give_the_same_run():
    there, here = Regression(), Regression()
    brought = []

    def bring(arrays, order):
        brought.append(order)
        return {name: array[order] for name, array in arrays.items()}, None

    curve = train(there, there.predict, points(), RECIPE, bring=bring)
    assert curve == train(here, here.predict, points(), RECIPE) and len(brought) == RECIPE.epochs


@pytest.mark.parametrize("count", [30, 84, 100])
def test_steps_of_one_call_are_the_same_steps_one_by_one(count, monkeypatch):
    many, single = Regression(), Regression()
    curve = train(many, many.predict, points(count), RECIPE)
    assert sum(many.calls) > 0 or count == 30
    monkeypatch.setattr("chainrule.train.loop.PATIENCE", 0.0)
    assert curve == train(single, single.predict, points(count), RECIPE) and not single.calls
    assert many.rates == single.rates
    np.testing.assert_array_equal(many.params["z.W"], single.params["z.W"])


def test_the_rate_follows_its_schedule():
    step = Regression()
    train(step, step.predict, points(), RECIPE)
    assert len(step.rates) == step.steps == 30
    assert step.rates[0] == pytest.approx(0.5 / 3)
    assert max(step.rates) == step.rates[3] == 0.5
    assert step.rates[-1] < 0.01


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole = Regression()
    unbroken = train(whole, whole.predict, points(), RECIPE)

    class Killed(Exception):
        pass

    first = Regression()
    record = Record("model text", "m.graph", {}, RECIPE, 0)

    def save_and_die(curve):
        checkpoints.save(tmp_path, checkpoint_of(first, record, curve))
        if len(curve) == 3:
            raise Killed

    with pytest.raises(Killed):
        train(first, first.predict, points(), RECIPE, after_epoch=save_and_die)
    second, found = Regression(), checkpoints.load(tmp_path)
    restore(second, found)
    resumed = train(second, second.predict, points(), found.record.recipe, found.record.curve)
    assert resumed == unbroken
    assert second.steps == whole.steps
    np.testing.assert_array_equal(second.params["z.W"], whole.params["z.W"])


def test_a_metric_is_averaged_by_the_samples_of_each_batch():
    arrays = {"x": np.arange(10.0)}
    found = evaluate(lambda outputs, x: {"m": np.mean(x)}, Data("a", arrays, arrays), arrays, ["m"], batch=4)
    assert found == {"m": pytest.approx(4.5)}


def test_a_metric_that_is_no_number_is_an_error():
    step = Regression()
    with pytest.raises(ChainruleError, match="the metric 'p' has the shape"):
        evaluate(step.predict, points(), points().test, ["p"])


def test_a_loss_that_is_not_finite_ends_the_run_with_a_way_out():
    step = Regression()
    step.params["z.W"] = np.full((2, 2), np.nan)
    with pytest.raises(ChainruleError, match="the loss became nan in epoch 1\n  Way out: a lower rate"):
        train(step, step.predict, points(), RECIPE)


def test_a_watcher_hears_of_every_epoch():
    step, heard = Regression(), []
    train(step, step.predict, points(), RECIPE, watch=heard.append)
    assert [p.step for p in heard if len(p.curve) == p.epoch] == [5, 10, 15, 20, 25, 30]
    assert all(p.steps == 30 for p in heard)


def test_a_foreign_checkpoint_is_refused_before_anything_changes():
    step, other = Regression(), Regression()
    other.params = {"z.W": np.ones((2, 2))}
    other.states = {"z.W.v": np.zeros((2, 2))}
    record = Record("text", "m.graph", {}, RECIPE, 0)
    with pytest.raises(ChainruleError) as error:
        restore(step, checkpoint_of(other, record, ()))
    assert str(error.value) == (
        "the checkpoint's states are not this model's\n"
        "  missing: z.W.m\n"
        "  unknown: z.W.v\n"
        "  Way out: give the model, its arguments and the optimizer that the run was made with"
    )
    np.testing.assert_array_equal(step.params["z.W"], np.zeros((2, 2)))


def test_a_run_of_no_epochs_has_no_value():
    told = verdict(RECIPE, ())
    assert (told["epochs"], told["value"], told["reached"]) == (0, None, False)
    assert verdict(Recipe(), [Epoch(1, 0.5, 0.4, 0.4)])["reached"] is None
