"""A run's folder always holds a whole checkpoint, and damage is never taken for one."""

from __future__ import annotations

import os

import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.train.checkpoint import Checkpoint, Epoch, Record, exists, load, save
from chainrule.train.recipe import Recipe


def checkpoint(epochs=1, value=1.0):
    curve = tuple(Epoch(k, 1.0 / k) for k in range(1, epochs + 1))
    record = Record("model m: …", "m.graph", {"hidden": 8}, Recipe(goal=0.9), 7, 3 * epochs, curve)
    parameters = {"h.W": np.full((2, 3), value, np.float32), "h.b": np.zeros(3, np.float32)}
    return Checkpoint(record, parameters, {"h.W.m": np.zeros((2, 3)), "count": np.array(5)})


def test_what_is_saved_is_what_is_loaded(tmp_path):
    written = checkpoint()
    written.parameters["h.W"][0, 1] = 4
    transposed = Checkpoint(written.record, {"W": written.parameters["h.W"].T}, written.states)
    record = save(tmp_path, transposed)
    found = load(tmp_path)
    assert found.record == record
    np.testing.assert_array_equal(found.parameters["W"], written.parameters["h.W"].T)
    assert found.states.keys() == written.states.keys()
    assert all(found.states[k].dtype == written.states[k].dtype for k in found.states)


def test_only_the_latest_tensors_are_kept(tmp_path):
    assert not exists(tmp_path)
    for epochs in range(1, 4):
        save(tmp_path, checkpoint(epochs))
    assert exists(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["parameters-0003.safetensors", "run.json", "states-0003.safetensors"]


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_save_that_is_killed_leaves_the_checkpoint_before(tmp_path, monkeypatch, killed_at):
    save(tmp_path, checkpoint(1, value=1))
    calls, replace = [], os.replace

    def dying(source, target):
        calls.append(target)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, checkpoint(2, value=2))
    monkeypatch.undo()
    found = load(tmp_path)
    assert found.record.epoch == 1
    assert found.parameters["h.W"][0, 0] == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["parameters-0001.safetensors", "states-0001.safetensors"])
def test_one_flipped_bit_in_the_tensors_is_noticed(tmp_path, name):
    save(tmp_path, checkpoint())
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ChainruleError, match="is damaged: its SHA-256 is not the one in run.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "run.json is damaged"),
        (lambda text: b"\xff" + text, "run.json is damaged"),
        (lambda text: text.replace(b'"batch": 32', b'"batch": 0'), "run.json is damaged: Expected `int` >= 1"),
        (lambda text: text.replace(b'"format": 1', b'"format": 99'), "is of format 99, this Chainrule reads format 1"),
        (lambda text: text.replace(b"parameters-0001", b"../parameters-0001"), "names no file of parameters"),
        (lambda text: text.replace(b"parameters-0001", b"parameters-0009"), "No such file"),
    ],
)
def test_a_record_that_is_not_ours_is_an_error(tmp_path, change, says):
    save(tmp_path, checkpoint())
    path = tmp_path / "run.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ChainruleError) as error:
        load(tmp_path)
    assert says in str(error.value)
    assert "Way out: " in str(error.value)


def test_a_folder_without_a_run_says_what_to_give(tmp_path):
    with pytest.raises(ChainruleError, match="holds no run\n  Way out: give the folder that train wrote"):
        load(tmp_path)
