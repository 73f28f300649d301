"""The named sets are what docs/data.md says of them; those whose package is not here are left out."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.train import data, png, sequences


def loaded(name, **ask):
    try:
        return data.load(name, ask=data.Ask(**ask))
    except ChainruleError as error:
        if "not installed here" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("digits", {"x": (1437, 64), "label": (1437,)}, {"x": (360, 64)}),
        ("mnist5k", {"x": (4000, 784), "label": (4000,)}, {"x": (1000, 784)}),
        ("sunspots", {"x": (192, 24), "y": (192,)}, {"x": (93, 24)}),
        ("japanese_vowels", {"x": (270, 29, 12), "length": (270,), "label": (270,)}, {"x": (370, 29, 12)}),
        ("karate", {"x": (34, 34), "source": (156,), "seen": (2,)}, {"seen": (32,)}),
        ("digits_graph", {"x": (1797, 64), "target": (24678,), "label": (50,)}, {"label": (1747,)}),
        ("proof", {"token": (40_000, 15), "label": (40_000,)}, {"token": (10_000, 15)}),
        ("solubility", {"x": (1025, 48, 25), "bond": (1025, 104, 4), "y": (1025,)}, {"y": (257,)}),
    ],
)
def test_a_set_has_its_arrays_and_its_split(name, train, test):
    found = loaded(name)
    assert {key: found.train[key].shape for key in train} == train
    assert {key: found.test[key].shape for key in test} == test
    assert found.train.keys() == found.test.keys()


def test_the_sunspots_forecast_one_year_ahead_from_the_years_before():
    found = loaded("sunspots")
    assert float(np.sqrt(np.mean((found.test["x"][:, -1] - found.test["y"]) ** 2))) == pytest.approx(0.715, abs=1e-3)
    np.testing.assert_array_equal(found.train["x"][1:, -1], found.train["y"][:-1])
    assert loaded("sunspots", window=11).test["x"].shape == (93, 11)
    with pytest.raises(ChainruleError, match="a window of 300 years is not within"):
        data.load("sunspots", ask=data.Ask(window=300))


def test_the_text_s_samples_lie_side_by_side_and_say_what_follows():
    found = loaded("kjv", window=64)
    token, after = found.train["token"], found.train["next"]
    np.testing.assert_array_equal(token[:, 1:], after[:, :-1])
    np.testing.assert_array_equal(token[1:, 0], after[:-1, -1])
    assert "".join(found.classes[k] for k in token[0]).startswith("In the beginning God created the heaven")


def test_photographs_are_averaged_to_a_window_that_divides_them():
    small = loaded("camera", window=64)
    assert small.train["x"].shape == (4096, 2)
    with pytest.raises(ChainruleError, match="no multiple of the window 100"):
        data.load("camera", ask=data.Ask(window=100))


def test_formulas_are_labelled_by_all_their_valuations():
    found = data.load("proof")
    for row, label in zip(found.test["token"][:300], found.test["label"], strict=False):
        assert label == all(holds(tokens := list(row), valuation) and not any(tokens) for valuation in range(8))
    seen = {bytes(row.tolist()) for row in found.train["token"]}
    assert not any(bytes(row.tolist()) in seen for row in found.test["token"])
    assert found.train["label"].mean() == found.test["label"].mean() == 0.5


def holds(tokens, valuation):
    """The value of a formula in Polish notation, whose symbols are taken from the front of `tokens`."""
    sign = sequences.SYMBOLS[tokens.pop(0)]
    if sign in "pqr":
        return bool(valuation >> "rqp".index(sign) & 1)
    a = holds(tokens, valuation)
    if sign == "¬":
        return not a
    b = holds(tokens, valuation)
    return {"∧": a and b, "∨": a or b, "→": not a or b, "↔": a == b}[sign]


def test_a_picture_that_is_written_is_the_picture_that_is_read():
    picture = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    found = png.decode(png.encode(picture))
    assert found.shape == (7, 5)
    np.testing.assert_allclose(found, picture, atol=0.5 / 255 + 1e-6)
    sheet = png.grid(np.zeros((3, 2, 2), np.float32), 2, gap=1, scale=3)
    assert sheet.shape == (21, 21)
    with pytest.raises(ValueError, match="this is no PNG"):
        png.decode(b"GIF89a")
