"""The curve is well-formed SVG, whatever the run was like, and words stay words."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.train.checkpoint import Epoch
from chainrule.train.plot import curve_svg, steps_between
from chainrule.train.recipe import Recipe

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.one_of(st.floats(1e-6, 1e6), st.floats(-10, 10), st.just(math.nan), st.just(0.0), st.just(math.inf))


def curve(values):
    return [Epoch(k, value, value, value) for k, value in enumerate(values, 1)]


def test_the_lines_are_the_losses_and_the_metric():
    recipe = Recipe(metric="accuracy", goal=0.9, epochs=3)
    picture = ElementTree.fromstring(curve_svg("mlp", curve([1.0, 0.5, 0.25]), recipe))
    lines = picture.findall(f"{SVG}polyline")
    assert len(lines) == 3
    assert all(len(line.attrib["points"].split()) == 3 for line in lines)
    words = [text.text for text in picture.findall(f"{SVG}text")]
    assert {"loss", "accuracy", "epoch", "goal 0.9", "train 0.25"} <= set(words)


@given(values=st.lists(VALUES, max_size=8), metric=st.sampled_from(["loss", "accuracy"]), goal=st.none() | VALUES)
def test_every_run_has_a_picture_inside_its_frame(values, metric, goal):
    picture = ElementTree.fromstring(curve_svg("m", curve(values), Recipe(metric=metric, goal=goal)))
    for line in picture.findall(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= float(picture.attrib["width"])
            assert 0 <= y <= float(picture.attrib["height"])


def test_no_text_becomes_markup():
    picture = ElementTree.fromstring(curve_svg('<script>&"', curve([1.0]), Recipe(metric="<b>")))
    assert not [e for e in picture.iter() if "script" in e.tag or e.tag.endswith("}b")]


@pytest.mark.parametrize(("low", "high", "steps"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3])])
def test_numbers_on_an_axis_are_round(low, high, steps):
    assert steps_between(low, high, 5) == pytest.approx(steps)


def test_a_curve_changes_only_when_the_run_does(file_regression):
    text = curve_svg("mlp on digits", curve([2.0, 1.0, 0.5, 0.25]), Recipe(metric="accuracy", goal=0.97, epochs=6))
    file_regression.check(text, extension=".svg")
