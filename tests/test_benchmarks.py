"""The benchmark counts the work rightly, and refuses a peer that does other work."""

from __future__ import annotations

import inspect
import re
import sys

import numpy as np
import pytest

from chainrule.compiler import elaborate
from tests.benchmarks import networks, peers
from tests.benchmarks.measure import Failed, agreed, best_of_others, initial
from tests.benchmarks.peers_chainrule import model_of
from tests.benchmarks.rows import COMPARED, ROWS, mlp, named, reference_losses, write_data


def reference(row, tmp_path):
    write_data(row, tmp_path / "data.npz", initial(row))
    with np.load(tmp_path / "data.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_a_row_counts_its_products_and_its_bytes():
    row = mlp((2, 3, 4, 5), 7)
    forward = 2 * 7 * (2 * 3 + 3 * 4 + 4 * 5)
    assert row.flops == 3 * forward - 2 * 7 * 2 * 3  # the inputs need no gradient
    assert row.bytes == 4 * (2 * (6 + 3 + 12 + 4 + 20 + 5) + 7 * 2) + 8 * 7


@pytest.mark.parametrize("row", ROWS[:2], ids=lambda row: row.name)
def test_the_reference_descends_along_the_gradient(row, tmp_path):
    """With one batch again and again, each loss is below the one before."""
    data = reference(row, tmp_path)
    data["x/x"][:], data["x/label"][:] = data["x/x"][0], data["x/label"][0]
    losses = reference_losses(data)
    assert len(losses) == COMPARED
    assert losses == sorted(losses, reverse=True)


def test_other_work_is_noticed(tmp_path):
    """A peer that skips its updates has other losses, and no place in the table."""
    data = reference(named("mlp-64-32-32-10"), tmp_path)
    losses = reference_losses(data)
    assert agreed(list(losses), losses) == losses[-1]
    data["x/x"][:], data["x/label"][:] = data["x/x"][0], data["x/label"][0]
    with pytest.raises(Failed, match="loss of step 2 is"):
        agreed(reference_losses(data), losses)


def test_the_ratio_is_to_the_best_other():
    results = {"a": {"step_us": 9.0}, "b": {"step_us": 6.0}, "c": {"error": "no"}, "chainrule": {"step_us": 2.0}}
    assert best_of_others(results) == 3
    assert best_of_others({"a": {"step_us": 9.0}, "chainrule": {"error": "no"}}) is None


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.forward and row.name != "deep-1000"], ids=lambda row: row.name
)
def test_every_row_s_model_has_the_inputs_and_parameters_that_its_peers_ask_for(row):
    model = model_of(row)
    assert {tensor.name for tensor in elaborate(model.source).inputs} == set(row.inputs)
    written = inspect.getsource(getattr(networks, row.loss))
    assert hasattr(networks, row.loss) and all(name in model.params for name in re.findall(r'p\["([\w.]+)"\]', written))


def test_every_peer_of_a_row_is_known_and_every_peer_has_a_row():
    assert {name for row in ROWS for name in row.peers} == {peer.name for peer in peers.PEERS}


def test_a_peer_that_is_not_here_runs_where_it_is(monkeypatch, tmp_path):
    stranger = peers.Peer("stranger", "no_such_package", "peers_stranger")
    monkeypatch.setattr(peers, "interpreter", peers.interpreter.__wrapped__)
    monkeypatch.delenv("CHAINRULE_PEERS_PYTHON", raising=False)
    assert (peers.interpreter(stranger), peers.interpreter(peers.named("chainrule"))) == (None, sys.executable)
    monkeypatch.setenv("CHAINRULE_PEERS_PYTHON", sys.executable)
    assert peers.interpreter(stranger) is None
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o700)
    monkeypatch.setenv("CHAINRULE_PEERS_PYTHON", str(script))
    assert peers.interpreter(stranger) == str(script)
