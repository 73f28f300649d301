"""The GPU's tests, where there is none: the command says so, and its parts work on a device that interprets PTX."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="the extra [cuda] is not installed")

from chainrule import build
from chainrule.runtime.cuda import present, profile
from chainrule.runtime.cuda.device import DeviceError
from tests.benchmarks.measure import open_worker, opened
from tests.benchmarks.rows import named
from tests.cuda.device import Interpreter
from tests.gpu import __main__ as command
from tests.gpu import bench, peers, timed
from tests.gpu.cases import CASES, SMALL, off, ran
from tests.gpu.correct import compared
from tests.gpu.folder import make, taken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is made beforehand, of one case and one row."""
    folder = tmp_path_factory.mktemp("made")
    make(folder, SMALL[:1], [(named("mlp-64-32-32-10"), "float32")], "sm_90", lambda text: None)
    return folder


def asked(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tests.gpu", *map(str, words)])
    return command.main()


def test_without_a_gpu_the_command_says_so(monkeypatch, folder, capsys):
    def nothing():
        raise DeviceError("there is no GPU here\n  Way out: another machine")

    monkeypatch.setattr(present, "_opened", nothing)
    assert asked(monkeypatch, "--folder", folder) == command.NO_GPU
    assert "python -m tests.gpu needs a GPU: there is no GPU here" in capsys.readouterr().err


def test_what_was_made_runs_without_a_compiler_of_that_version(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.setattr("chainrule.compiler.compile_source", None)
    monkeypatch.setattr(build, "_gpu_compiler", lambda: "another")
    build._gpu_versions.cache_clear()
    out = tmp_path / "report.json"
    words = ("--dry", "--folder", folder, "--cases", SMALL[0].name, "--out", out)
    assert asked(monkeypatch, *words) == command.OK
    said = capsys.readouterr().out
    assert f"right  {SMALL[0].name}" in said and "1 cases, wrong: none" in said and out.is_file()
    with present.use(Interpreter()), taken(folder, tmp_path / "programs"):
        step, calls = peers_step(monkeypatch)
        assert float(step(**calls[0][1])) > 0
    assert build._gpu_compiler() == "another"


def peers_step(monkeypatch):
    """Chainrule's step of a row, as its process takes it."""
    monkeypatch.setenv(peers.VARIABLE, "chainrule/float32")
    row = named("mlp-64-32-32-10")
    rng = np.random.default_rng(0)
    data = {"x/x": rng.normal(size=(20, 32, 64)).astype(np.float32), "x/label": rng.integers(0, 10, (20, 32))}
    return peers.start(row, data, 1)


def test_a_wrong_kernel_is_noticed(monkeypatch, folder):
    """One that leaves a thread out, so to speak: a launch with half of its CTAs' results gone."""
    with present.use(Interpreter()) as device, pytest.MonkeyPatch.context() as patch:
        launch = device.launch
        patch.setattr(device, "launch", lambda *words: launch(*words) if len(device.launched) % 2 else None)
        (row,) = compared(SMALL[:1], folder, lambda text: None)
    assert not row["right"]


def test_the_worst_difference_is_found_nan_first():
    right = {"a": np.array([1.0, 2.0]), "b": np.array([1e-9])}
    assert off({"a": np.array([1.0, 2.2]), "b": np.array([0.0])}, right) == (pytest.approx(0.1), "a")
    assert off({"a": np.array([1.0, np.nan]), "b": np.array([5.0])}, right)[1] == "a"


def test_every_case_and_row_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
    assert [timed.row_named(row.name) for row, _ in timed.TIMED] == [row for row, _ in timed.TIMED]
    assert {case.name for case in CASES} >= set(command.WATCHED)


def test_a_case_is_the_same_each_time_it_runs():
    first, again = ran(SMALL[0], "cpu"), ran(SMALL[0], "cpu")
    assert off(first, again) == (0.0, "")


def test_a_row_is_measured_by_processes_in_turns(monkeypatch):
    """The CPU's peers play the GPU's."""
    pytest.importorskip("torch")

    def open_peer(name, row, precision, folder, begun):
        (folder / name).mkdir()
        return open_worker(name, row, 1, folder / "data.npz", folder / name)

    monkeypatch.setattr(bench, "open_peer", open_peer)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    row, names = named("mlp-64-32-32-10"), ("torch", "chainrule")
    until = time.monotonic() + 300
    report = bench.measured(row, "float32", names, until, {"gb_per_s": 1000.0, "tflops_float32": 1.0})
    assert report["judged"] and report["ratio_to_best"] > 0
    assert report["percent_of_copy"] > 0 and report["percent_of_product"] > 0
    assert "| mlp-64-32-32-10 (float32) |" in bench.table([report], names)


def test_a_peer_that_comes_too_late_is_ended_and_left_out(monkeypatch, tmp_path):
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]

    def open_peer(name, row, precision, folder, begun):
        return opened(asleep, folder / f"{name}.txt", {}, begun)

    monkeypatch.setattr(bench, "open_peer", open_peer)
    began = time.monotonic()
    ready, others = bench.started(named("adam-10M"), "float32", ["jax"], tmp_path, began)
    assert not ready and others == {"jax": {"error": "not ready in time"}} and time.monotonic() - began < 60


def test_the_benchmark_goes_on_until_its_time_is_over(monkeypatch, folder, tmp_path, capsys):
    clock = [0.0]
    rows = []

    def measured(row, precision, names, until, best):
        clock[0] += 20
        rows.append((row.name, precision))
        about = {"row": row.name, "precision": precision, "judged": True}
        return about | bench.told(row, precision, {"chainrule": {"step_us": 50.0}}, best)

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(profile, "SIDE", 64)
    monkeypatch.setattr(profile, "COPIED", 1 << 16)
    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])
    with present.use(Interpreter()):
        words = ("--folder", folder, "--only", "bench", "--minutes", "1", "--out", tmp_path / "gpu.json")
        assert asked(monkeypatch, *words) == command.OK
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        [row["row"] for row in report["rows"]]
        == [name for name, _ in rows]
        == ["mlp-64-32-32-10", "mlp-784-256-128-10"]
    )
    assert len(report["left_out"]) == len(timed.TIMED) - 2 and report["machine"]["device"] == "PTX interpreter"
    best = report["machine"]["ceilings"]
    assert best["gb_per_s"] > 0 and best["tflops_tf32"] > 0
    assert "left out for want of time: gpt (float32)" in capsys.readouterr().out


def test_cases_with_commas_are_named_in_a_list():
    assert command.names("products of 5, 6, 7, 8, 3,float64") == ["products of 5, 6, 7, 8, 3", "float64"]


def test_the_table_says_how_near_the_step_is_to_what_the_device_can_do():
    row = named("adam-10M")
    results = {"torch": {"step_us": 300.0}, "jax": {"error": "not ready in time"}, "chainrule": {"step_us": 100.0}}
    report = {"row": row.name, "precision": "float32"}
    report |= bench.told(row, "float32", results, {"gb_per_s": 4000.0, "tflops_float32": None})
    assert report["ratio_to_best"] == 3 and report["percent_of_copy"] == pytest.approx(70)
    assert report["percent_of_product"] is None
    text = bench.table([report], ("torch", "jax", "chainrule"))
    assert "| adam-10M (float32) | 300.0 | – | 100.0 | 3.00 | 70 | – |" in text
    assert "adam-10M (float32), jax: not ready in time" in text
