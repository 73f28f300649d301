"""Data come in under the names of the inputs, in a split that never moves, or with an error that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from chainrule.errors import ChainruleError, SourceError
from chainrule.train import data, files, molecules, pictures, sequences


def test_digits_are_split_as_scikit_learn_splits_them():
    x, label = load_digits(return_X_y=True)
    wanted = train_test_split(x / 16, label, test_size=360, random_state=0, stratify=label)
    digits = data.load("digits")
    found = (digits.train["x"], digits.test["x"], digits.train["label"], digits.test["label"])
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@given(counts=st.lists(st.integers(2, 30), min_size=2, max_size=6), seed=st.integers(0, 99), part=st.floats(0.2, 0.8))
def test_every_stratified_split_is_that_of_scikit_learn(counts, seed, part):
    label = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    held = min(max(round(part * len(label)), len(counts)), len(label) - len(counts))
    if not len(counts) <= held <= len(label) - len(counts):
        return
    wanted = train_test_split(np.arange(len(label)), test_size=held, random_state=seed, stratify=label)
    for mine, theirs in zip(data.stratified(label, held, seed), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_digits_are_loaded_without_importing_scikit_learn():
    script = "import sys; from chainrule.train import data; data.load('digits'); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def fake_package(folder, monkeypatch, kept, content):
    """A package of the data's name, on the path before all others, whose file has `content`."""
    path = folder / kept.package / kept.inside
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (folder / kept.package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, kept.package, raising=False)


KEPT = {
    "digits": pictures.DIGITS,
    "mnist5k": pictures.MNIST5K,
    "mnist": pictures.MNIST[0],
    "fashion_mnist": pictures.FASHION[0],
    "camera": pictures.CAMERA,
    "kjv": sequences.KJV,
    "sunspots": sequences.SUNSPOTS,
    "japanese_vowels": sequences.VOWELS[0],
    "digits_graph": pictures.DIGITS,
    "solubility": molecules.SOLUBILITY[0],
}


def test_every_set_reads_files_that_are_checked_or_is_made_here():
    assert set(data.BUILT_IN) == {*KEPT, "proof", "karate"}


@pytest.mark.parametrize("name", [name for name, kept in KEPT.items() if not kept.package.startswith("/")])
def test_a_changed_file_is_an_error(name, tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, KEPT[name], b"other numbers")
    with pytest.raises(ChainruleError) as error:
        data.load(name)
    assert str(tmp_path) in str(error.value)
    assert "is not the file that Chainrule's figures were made with (its SHA-256 differs)" in str(error.value)
    assert "Way out: get it anew (" in str(error.value)


@pytest.mark.parametrize("name", KEPT)
def test_a_changed_file_in_the_data_folder_is_an_error_too(name, tmp_path):
    (tmp_path / Path(KEPT[name].inside).name).write_bytes(b"other numbers")
    with pytest.raises(ChainruleError, match="is not the file that Chainrule's figures were made with"):
        data.load(name, ask=data.Ask(folder=tmp_path))


@pytest.mark.parametrize("name", KEPT)
def test_a_missing_package_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(files, "in_package", lambda kept: None)
    with pytest.raises(ChainruleError) as error:
        data.load(name)
    kept = KEPT[name]
    assert f"these data are in the package {kept.distribution}, which is not installed here" in str(error.value)
    assert f"Way out: {kept.way_out}; or --data-dir DIR with {Path(kept.inside).name} in it" in str(error.value)


def test_a_file_in_the_data_folder_is_taken(tmp_path, monkeypatch):
    kept = pictures.DIGITS
    (tmp_path / Path(kept.inside).name).write_bytes(files.find(kept).read_bytes())
    monkeypatch.setattr(files, "in_package", lambda kept: None)
    assert len(data.load("digits", ask=data.Ask(folder=tmp_path)).train["x"]) == 1437


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ChainruleError, match="no data called 'digts'; did you mean 'digits'"):
        data.load("digts")
    with pytest.raises(ChainruleError, match="there is no file nowhere.csv"):
        data.load("nowhere.csv")


def test_an_npz_gives_arrays_under_their_names_and_holds_out_a_fifth(tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, x=np.arange(20.0).reshape(10, 2), label=np.arange(10))
    found = data.load(str(path))
    assert (len(found.train["x"]), len(found.test["x"])) == (8, 2)
    for part in (found.train, found.test):
        np.testing.assert_array_equal(part["x"][:, 0], 2 * part["label"])
    np.testing.assert_array_equal(data.load(str(path)).test["label"], found.test["label"])


def test_an_npz_may_bring_its_own_test_samples(tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, **{"x": np.zeros((3, 2)), "test/x": np.ones((2, 2))})
    found = data.load(str(path))
    assert found.train["x"].shape == (3, 2)
    assert found.test["x"].shape == (2, 2)


def unequal(path):
    np.savez(path, x=np.zeros((3, 2)), label=np.zeros(4))


def planted(path):
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def empty(path):
    np.savez(path)


def scalar(path):
    np.savez(path, x=np.float64(3))


def halves(path):
    np.savez(path, **{"x": np.zeros(3), "test/y": np.zeros(3)})


def noise(path):
    path.write_bytes(b"no archive at all")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unequal, "unequal numbers of samples: x is [3, 2]; label is [4]"),
        (planted, "cannot be read as an .npz of plain arrays: Object arrays cannot be loaded"),
        (empty, "has no samples: it holds no arrays"),
        (scalar, "has no samples: x is []"),
        (halves, "has x to train with but y to test with"),
        (noise, "cannot be read as an .npz of plain arrays"),
    ],
)
def test_an_npz_that_cannot_serve_is_an_error_with_a_way_out(tmp_path, make, says):
    path = tmp_path / "points.npz"
    make(path)
    with pytest.raises(ChainruleError) as error:
        data.load(str(path))
    assert says in str(error.value)
    assert "Way out: " in str(error.value)


def csv_file(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return str(path)


def test_a_csv_gives_its_label_and_the_other_columns_in_order(tmp_path):
    rows = "".join(f"{k},{k % 2},{-k}\n" for k in range(10))
    found = data.load(csv_file(tmp_path, "a,kind,b\n" + rows), label="kind")
    assert found.train["x"].shape == (8, 2)
    np.testing.assert_array_equal(found.train["x"][:, 0], -found.train["x"][:, 1])
    np.testing.assert_array_equal(found.train["label"], found.train["x"][:, 0] % 2)
    assert found.train["label"].dtype == np.int64


def test_a_csv_s_words_become_classes_and_its_fractions_a_target(tmp_path):
    found = data.load(csv_file(tmp_path, "a,label\n" + "1,cat\n2,ant\n" * 5))
    assert found.classes == ("ant", "cat")
    assert sorted(set(found.train["label"])) == [0, 1]
    assert data.load(csv_file(tmp_path, "a,label\n1,0.5\n2,1\n")).train["label"].dtype == np.float64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,lable\n1,2\n", "has no column 'label'; did you mean 'lable'?"),
        ("", "has no column 'label'; there are none"),
        ("a,label\n", "has a header and no samples"),
        ("a,label\n1,2\n1,2,3\n", ":3:1: 3 values where the header names 2 columns"),
        ("a,label\n1,2\n\n?,3\n", ":4:1: column 'a' holds '?', which is no number"),
    ],
)
def test_a_csv_that_cannot_serve_is_an_error_with_its_line(tmp_path, text, says):
    with pytest.raises(ChainruleError) as error:
        data.load(csv_file(tmp_path, text))
    assert says in str(error.value)
    assert isinstance(error.value, SourceError) or "Way out: " in str(error.value)


def test_a_csv_in_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("größe,label\n1,2\n".encode("latin-1"))
    with pytest.raises(ChainruleError, match="cannot be read as CSV.*\n  Way out: save it as UTF-8"):
        data.load(str(path))


@given(count=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 9))
def test_an_epoch_s_batches_hold_every_sample_once(count, size, seed):
    arrays = {"x": np.arange(count), "y": -np.arange(count)}
    order = data.shuffled(arrays, seed, 3)
    found = list(data.batches(arrays, size, order))
    assert all(len(batch["x"]) == size for batch in found[:-1])
    x = np.concatenate([batch["x"] for batch in found])
    np.testing.assert_array_equal(np.sort(x), arrays["x"])
    np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in found]), -x)
    np.testing.assert_array_equal(data.shuffled(arrays, seed, 3), order)


def test_epochs_and_seeds_differ_in_their_order():
    arrays = {"x": np.arange(50)}
    orders = {tuple(data.shuffled(arrays, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
