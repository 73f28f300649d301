"""The main job for real: from a model's text to a trained network, both passes drawn, by the command alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "graphs/mlp.graph"

CALL = (
    "import sys; sys.argv = ['chainrule', *sys.argv[1:]]\n"
    "from chainrule.cli import main\n"
    "lazy = '_LazyModule'  # named, and not yet loaded\n"
    "try: main()\n"
    "finally: print(' '.join(n for n, m in sys.modules.items() if type(m).__name__ != lazy), file=sys.stderr)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("main_job")


@pytest.fixture(scope="module")
def command(folder):
    """``command("train", …)``: exit code, last line of standard output, modules that were imported."""

    def call(*words, **environment):
        done = subprocess.run(
            [sys.executable, "-c", CALL, *map(str, words)],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        lines = done.stdout.splitlines() or [""]
        return done.returncode, lines[-1], set(done.stderr.splitlines()[-1].split())

    return call


@pytest.fixture(scope="module")
def first(command):
    """The first run, which compiles what the cache has not."""
    code, line, _ = command("train", MODEL, "--data", "digits", "--json", "--out", "first")
    assert code == 0, line
    return json.loads(line)


def test_digits_are_learned(first):
    assert first["test_accuracy"] >= 0.97
    assert (first["metric"], first["value"], first["reached"]) == ("accuracy", first["test_accuracy"], True)


def test_a_second_process_imports_no_compiler_and_repeats_every_bit(first, command, folder):
    code, line, imported = command("train", MODEL, "--data", "digits", "--json", "--out", "second")
    assert code == 0
    heavy = {"sympy", "numba", "networkx", "lark", "sklearn", "chainrule.compiler", "chainrule.ir"}
    assert not heavy & imported
    assert record(folder, "first")["files"] == record(folder, "second")["files"]
    assert json.loads(line)["train_loss"] == first["train_loss"]


@pytest.fixture(scope="module")
def plain(folder):
    """The model without its recipe, whose schedule depends on how many epochs are asked for."""
    (folder / "plain.graph").write_text(MODEL.read_text())
    return "plain.graph"


def record(folder, run):
    return json.loads((folder / run / "run.json").read_text())


def test_a_run_that_goes_on_reaches_the_same_bits(plain, command, folder):
    assert command("train", plain, "--data", "digits", "--epochs", 5, "--out", "whole")[0] == 0
    assert command("train", plain, "--data", "digits", "--epochs", 2, "--out", "cut")[0] == 0
    assert command("train", "--resume", "cut", "--epochs", 5)[0] == 0
    whole, cut = record(folder, "whole"), record(folder, "cut")
    assert (whole["files"], whole["curve"], whole["steps"]) == (cut["files"], cut["curve"], cut["steps"])


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_leaves_a_run_that_goes_on(plain, command, folder):
    words = ["train", plain, "--data", "digits", "--epochs", "1000000", "--out", "stopped", "--json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-m", "chainrule", *words], cwd=folder, stdout=pipe, stderr=pipe)
    deadline = time.monotonic() + 120
    while not (folder / "stopped/run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = json.loads(out.splitlines()[-1])
    assert (found["stopped"], found["epochs"]) == (True, len(record(folder, "stopped")["curve"]))
    code, line, _ = command("train", "--resume", "stopped", "--epochs", found["epochs"] + 1, "--json")
    assert (code, json.loads(line)["epochs"]) == (0, found["epochs"] + 1)


def test_eval_finds_what_train_found(first, command):
    code, line, _ = command("eval", "first", "--json")
    assert code == 0
    assert json.loads(line)["value"] == first["value"]


def test_both_passes_and_the_program_are_drawn(command, folder):
    code, line, _ = command("render", MODEL, "--out", "pictures", "--json")
    assert code == 0
    assert len(json.loads(line)["saved"]) == 4
    texts = {
        name: " ".join(ElementTree.parse(folder / f"pictures/{name}.svg").getroot().itertext())
        for name in ("forward", "backward", "both", "program")
    }
    assert "logits.linear.W" in texts["forward"]
    assert "h.linear.W_bar" not in texts["forward"]
    assert "h.linear.W_bar" in texts["backward"]
    assert "loss = " in texts["both"]
    assert "h.linear.W_bar" in texts["both"]
    assert "kernel" in texts["program"]


def test_compile_says_what_it_costs_and_saves_what_runs(command, folder):
    code, line, _ = command("compile", MODEL, "--optimizer", "adamw", "--json", "--out", "built", "--set", "hidden=32")
    found = json.loads(line)
    assert code == 0
    assert found["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert "batch" in found["flops"]
    names = {path.name for path in (folder / "built").iterdir()}
    assert {"nodes.json", "edges.json"} < names
    assert any(name.endswith(".py") for name in names)


def test_a_mistake_in_the_model_is_shown_where_it_is(command, folder):
    (folder / "wrong.graph").write_text(MODEL.read_text().replace("linear(h, 10)", "linear(g, 10)"))
    code, line, _ = command("compile", "wrong.graph", "--json")
    assert code == 2
    assert "wrong.graph:7:" in json.loads(line)["error"]
    assert "Way out" in json.loads(line)["error"]
