"""Every model of graphs/ is a page of text with a recipe, and a quick run of it ends in the right JSON.

The quick runs of all models compile for minutes; by default those are run that compile in seconds, and that
tests/test_agreement.py does not train. CHAINRULE_MODELS=all runs all.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from chainrule import compiler
from chainrule.cli import training
from chainrule.errors import ChainruleError
from chainrule.ir.formula import DType
from chainrule.source import read_source
from chainrule.train import data, drawn, measures, recipe

GRAPHS = Path(__file__).parents[1] / "graphs"
RECIPES = sorted(GRAPHS.glob("*.toml"))
SMALL = (
    *("autoencoder", "char_lm_lstm", "deq", "gat", "gru", "karate", "molecule", "rnn", "siamese", "speech", "vae"),
)


def of(path):
    """The path of a recipe's model, and the recipe."""
    return training.found_recipe(str(path))


@functools.cache
def loaded(name, window):
    try:
        return data.load(name, ask=data.Ask(window=window))
    except ChainruleError as error:
        if "not installed here" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


def elaborated(model, how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compiler.elaborate(read_source(model, how.set))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_s_data_metric_and_samples_are_its_model_s(path):
    model, how = of(path)
    graph = elaborated(model, how)
    outputs = {"loss", *graph.outputs}
    assert how.goal is not None
    assert how.metric in outputs | {*measures.OF_A_MEAN, "neighbour"}
    assert how.of in outputs
    given = loaded(how.data, how.window)
    assert {name for draw in how.samples.values() for name in draw.outputs} <= outputs | set(given.train)
    for tensor in graph.inputs:
        if tensor.name in given.train:
            array = given.train[tensor.name]
            assert array.ndim == len(tensor.shape), tensor.name
            fixed = [(int(e), size) for e, size in zip(tensor.shape, array.shape, strict=True) if e.is_Integer]
            assert all(extent == size for extent, size in fixed), tensor.name
            assert np.issubdtype(array.dtype, np.floating) == (tensor.dtype is DType.FLOAT), tensor.name
    short = recipe.shortened(how)
    assert short.epochs <= 2 and short.seeds <= 2
    if short.set != how.set:
        assert len(elaborated(model, short).nodes) <= len(graph.nodes)


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(path):
        code = training.begin(training.Asked(str(path), {}, quick=True, out=tmp_path / "run"), True)
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_quick_run_ends_in_the_json_of_every_recipe(path, quick):
    if path.stem not in SMALL and os.environ.get("CHAINRULE_MODELS") != "all":
        pytest.skip("CHAINRULE_MODELS=all runs it")
    _, how = of(path)
    loaded(how.data, how.window)
    code, found = quick(path)
    assert code == 0
    assert {"metric", "value", "goal", "reached", "train_loss", "test_loss", "run", "seed"} <= set(found)
    assert (found["metric"], found["goal"], found["quick"]) == (how.metric, how.goal, True)
    assert np.isfinite(found["value"]) and isinstance(found["reached"], bool)
    assert len(found.get("values", [0])) == min(how.seeds, 2)
    for name, draw in how.samples.items():
        least = len(draw.start) + recipe.shortened(how).quick.steps if draw.kind == "text" else 40
        assert [file for file in map(Path, found["samples"]) if file.stem == name and file.stat().st_size >= least]


def test_one_model_may_have_several_recipes(tmp_path):
    model, how = of(GRAPHS / "karate.toml")
    assert Path(model) == GRAPHS / "gcn.graph"
    assert how.set["classes"] == 2
    with pytest.raises(ChainruleError, match="there is no file nowhere.toml"):
        of("nowhere.toml")
    assert training.found_recipe("a.graph:net")[0] == "a.graph:net"


class Counting:
    """A model whose next symbol is the one after the last, and whose picture goes to what it was started with."""

    steps = 7

    def predict(self, *, outputs, **given):
        if "token" in given:
            return {outputs[0]: (given["token"] + 1) % 5}
        return {outputs[0]: given["x"] * 0 + given["t"][:, None] / 4 + self.steps - 7 - given["t"][0]}


def test_text_is_drawn_symbol_by_symbol_and_draws_have_steps_of_their_own():
    step = Counting()
    letters = data.Data("letters", {}, {}, tuple("abcde"))
    draw = recipe.Draw("text", ("drawn",), steps=6, start="ab")
    assert drawn.text(step, letters, draw, None) == "abcdeabc\n"
    assert step.steps == 7
    with pytest.raises(ChainruleError, match="letters has no symbol 'z'"):
        drawn.text(step, letters, recipe.Draw("text", ("drawn",), start="z"), None)


def test_a_model_that_draws_is_judged_by_the_mean_of_several_draws():
    clock = Counting()
    assert measures.redrawn(clock, 3, lambda: {"loss": float(clock.steps)}) == {"loss": 8}
    assert clock.steps == 7


def test_a_diffusion_ends_at_its_first_time():
    step = Counting()
    sheet = drawn.diffusion(step, recipe.Draw("diffusion", ("earlier",), count=4, steps=3, width=4), 0)
    assert sheet.shape == (28, 28)
    assert set(np.unique(sheet)) == {0, 1}
    assert step.steps == 7


def test_the_nearest_known_sample_s_label_is_the_answer():
    train = {"x": np.array([[0.0], [1.0], [2.0]]), "label": np.array([0, 1, 2])}
    test = {"x": np.array([[0.2], [1.9]]), "label": np.array([0, 1])}

    def predict(*, outputs, x, label):
        return {outputs[0]: x}

    assert measures.neighbour(predict, data.Data("line", train, test), "z") == 0.5


@pytest.mark.parametrize(("metric", "value"), [("rmse", 0.1), ("bits", 0.01 / np.log(2)), ("psnr", 20.0)])
def test_measures_are_made_from_the_mean_over_all_samples(metric, value):
    arrays = {"x": np.zeros(600)}
    found = measures.judged(
        lambda outputs, x: {"loss": np.float64(0.01)},
        data.Data("zeros", arrays, arrays),
        recipe.Recipe(metric=metric),
    )
    assert found == pytest.approx({"loss": 0.01, metric: value})
