"""A recipe is read strictly: what it says happens, and what it cannot mean is an error at its line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.errors import SourceError
from chainrule.train.recipe import Draw, Quick, Recipe, Schedule, beside, factor, parse, settled, shortened

GRAPHS = Path(__file__).parents[2] / "graphs"


def test_the_recipe_beside_a_model_is_its_own():
    recipe = beside(GRAPHS / "mlp.graph")
    assert (recipe.data, recipe.metric, recipe.goal) == ("digits", "accuracy", 0.97)
    assert beside(GRAPHS / "no_such_model.graph") == Recipe()


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_parses_and_has_a_goal(path):
    recipe = beside(path)
    assert recipe.goal is not None
    assert (path.parent / (recipe.model or path.with_suffix(".graph").name)).is_file()


def test_an_unknown_key_is_answered_with_the_nearest_at_its_line():
    with pytest.raises(SourceError) as error:
        parse('data = "digits"\nepoch = 3\n', "mlp.toml")
    assert str(error.value) == (
        "mlp.toml:2:1: a recipe has no key 'epoch'\n    epoch = 3\n    ^^^^^\n  Way out: did you mean 'epochs'?"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch = 'x'", "1:1: batch: expected int, found str"),
        ("seed = 1\nbatch = 0", "2:1: batch: expected int >= 1"),
        ("epochs = 3.5", "1:1: epochs: expected int, found float"),
        ("rate = -1", "1:1: rate: expected float >= 0"),
        ("schedule = 3", "1:1: schedule: expected object, found int"),
        ("[schedule]\nkind = 'cos'", "2:1: kind: invalid enum value 'cos'"),
        ("[schedule]\nwarmpu = 0.1", "2:1: a schedule has no key 'warmpu'"),
        ("[schedule]\nwarmup = 2.0", "2:1: warmup: expected float <= 1.0"),
        ("[settings]\ndecay = 'x'", "1:2: settings: expected float, found str"),
        ("\n[samples.a]\nkind = 'pictures'\noutput = ['x']", "4:1: a draw has no key 'output'"),
        ("[samples.a]\nkind = 'film'\noutputs = ['x']", "2:1: kind: invalid enum value 'film'"),
        ("[samples.a]\nkind = 'text'\noutputs = 'x'", "3:1: outputs: expected array, found str"),
        ("[quick]\nlimits = 3", "2:1: a quick has no key 'limits'"),
        ("seeds = 0", "1:1: seeds: expected int >= 1"),
        ("window = '24'", "1:1: window: expected int | null, found str"),
        ("better = 'bigger'", "1:1: better: invalid enum value 'bigger'"),
        ("data = [", "no TOML: "),
        ("rate = 1\nrate = 2", "2:"),
        ("\x00", "no TOML: "),
        ("a = " + "[" * 100_000, "no TOML: "),
    ],
)
def test_what_a_recipe_cannot_mean_is_an_error_with_its_place(text, says):
    with pytest.raises(SourceError) as error:
        parse(text)
    assert says in str(error.value)
    assert "Way out: " in str(error.value)


@given(text=st.text(max_size=60))
def test_no_text_raises_anything_foreign(text):
    try:
        parse(text)
    except SourceError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("recipe", "value", "reached"),
    [
        (Recipe(metric="accuracy", goal=0.9), 0.9, True),
        (Recipe(metric="accuracy", goal=0.9), 0.89, False),
        (Recipe(metric="loss", goal=0.5), 0.4, True),
        (Recipe(metric="rmse", goal=0.5, better="lower"), 0.6, False),
        (Recipe(metric="accuracy", goal=0.9), math.nan, False),
        (Recipe(metric="accuracy"), 1.0, None),
    ],
)
def test_a_goal_is_reached_on_its_better_side(recipe, value, reached):
    assert recipe.reached(value) is reached


def test_the_metric_left_open_is_the_accuracy_where_there_is_one():
    assert settled(Recipe(), ["logits", "accuracy"]).metric == "accuracy"
    assert settled(Recipe(), ["logits"]).metric == "loss"
    assert settled(Recipe(metric="rmse"), ["accuracy"]).metric == "rmse"


@given(
    kind=st.sampled_from(["constant", "linear", "cosine", "step"]),
    warmup=st.floats(0, 1),
    end=st.floats(0, 1),
    steps=st.integers(1, 300),
)
def test_a_schedule_rises_to_one_and_falls_to_its_end(kind, warmup, end, steps):
    schedule = Schedule(kind, warmup, end)
    factors = [factor(schedule, step, steps) for step in range(steps)]
    assert all(0 <= f <= 1 for f in factors)
    warm = sum(1 for step in range(steps) if step < warmup * steps)
    assert factors[:warm] == sorted(factors[:warm])
    assert factors[warm:] == sorted(factors[warm:], reverse=True)
    assert kind == "step" or all(f >= end - 1e-12 for f in factors[warm:])
    assert warm == steps or kind == "step" or factors[warm] == pytest.approx(1, abs=1 / (steps - warm))


def test_a_schedule_of_steps_falls_at_its_parts():
    schedule = Schedule("step", at=(0.5, 0.75), factor=0.1)
    assert [factor(schedule, step, 8) for step in range(8)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


def test_a_quick_run_is_short_in_everything_that_takes_time():
    how = Recipe(
        epochs=30,
        seeds=10,
        window=256,
        set={"hidden": 128, "depth": 2},
        samples={"a": Draw("text", ("y",), steps=500)},
        quick=Quick(window=16, set={"hidden": 8}),
    )
    short = shortened(how)
    assert (short.epochs, short.seeds, short.limit, short.window) == (1, 2, 64, 16)
    assert short.set == {"hidden": 8, "depth": 2}
    assert short.samples["a"].steps == 3
