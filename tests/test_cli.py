"""The command: what it answers, in words and in JSON, its exit codes, and what it imports to answer.

The compiler and the runtime are played by a small classifier in NumPy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from chainrule import build
from chainrule.api.place import CPU
from chainrule.cli import app, asked, models, output, training
from chainrule.errors import ChainruleError
from chainrule.runtime.cache import Usage
from tests.train.steps import one_by_one

CLASSES = 3


class Step:
    """Softmax regression by SGD, as a compiled step shows itself."""

    interrupt_at: int | None = None

    def __init__(self, seed=0):
        self.params = {"W": np.random.default_rng(seed).normal(size=(2, CLASSES)).astype(np.float32)}
        self.states = {}
        self.scalars = {"rate": 0.5}
        self.steps = 0
        inputs = (SimpleNamespace(name="x"), SimpleNamespace(name="label"))
        executable = SimpleNamespace(name="net", inputs=inputs, unread=(), tuned={"a product": "8×2"})
        self.runner = SimpleNamespace(threads=1, executable=executable)
        self.model = SimpleNamespace(place=CPU)

    def scores(self, x):
        z = x @ self.params["W"]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def __call__(self, *, x, label):
        if Step.interrupt_at is not None and self.steps >= Step.interrupt_at:
            raise KeyboardInterrupt
        p = self.scores(x)
        self.params["W"] = self.params["W"] - self.scalars["rate"] * x.T @ (p - np.eye(CLASSES)[label]) / len(x)
        self.steps += 1
        return -np.log(p[np.arange(len(x)), label]).mean()

    def run(self, steps, scalars, /, **batches):
        return one_by_one(self, steps, scalars, batches)

    def predict(self, *, outputs, x, label):
        p = self.scores(x)
        found = {"loss": -np.log(p[np.arange(len(x)), label]).mean(), "accuracy": (p.argmax(axis=1) == label).mean()}
        return {name: found[name] for name in outputs}


class Model:
    compiled: ClassVar[list[tuple]] = []
    places: ClassVar[list[tuple]] = []

    def __init__(self, source):
        self.source = source

    def to(self, target, *, precision):
        return self

    def compile(self, optimizer, *, dtype, threads, seed=None, **settings):
        self.compiled.append((optimizer, dtype, threads, seed))
        self.places.append((settings["target"], settings["precision"]))
        return Step(seed or 0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a recipe and data, and the spine played by NumPy."""
    monkeypatch.chdir(tmp_path)
    Path("net.graph").write_text("model net:\n")
    Path("net.toml").write_text('data = "points.npz"\nmetric = "accuracy"\nepochs = 3\nrate = 0.5\noptimizer = "sgd"\n')
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)).astype(np.float32)
    np.savez("points.npz", x=x, label=(x[:, 0] > 0).astype(np.int64))
    monkeypatch.setattr(training, "Model", Model)
    monkeypatch.setattr(
        training, "load", lambda path, **given: Model(asked.source(path, [f"{k}={v}" for k, v in given.items()]))
    )
    monkeypatch.setattr(training, "outputs_of", lambda model, dtype: ("accuracy",))
    monkeypatch.setattr(Step, "interrupt_at", None)
    Model.compiled.clear()
    Model.places.clear()
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """``command("train", …)``: exit code, standard output, standard error."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["chainrule", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        shown = capsys.readouterr()
        return stop.value.code or 0, shown.out, shown.err

    return call


def last_json(text):
    return json.loads(text.splitlines()[-1])


def test_train_reports_in_one_json_line(place, command):
    code, out, err = command("train", "net.graph", "--json", "--goal", "0.5")
    found = last_json(out)
    assert (code, err) == (0, "")
    assert found["metric"] == "accuracy"
    assert found["value"] == found["test_accuracy"] > 0.5
    assert (found["goal"], found["reached"], found["epochs"]) == (0.5, True, 3)
    assert {"loss", "train_loss", "test_loss", "seconds", "run", "optimizer", "threads"} <= set(found)


def test_train_leaves_a_run(place, command):
    assert command("train", "net.graph")[0] == 0
    assert command("train", "net.graph")[0] == 0
    names = {path.name for path in Path("runs/net-2").iterdir()}
    assert names == {
        "run.json", "result.json", "curve.svg", "parameters-0003.safetensors", "states-0003.safetensors",
    }  # fmt: skip
    assert json.loads(Path("runs/net-1/result.json").read_text())["epochs"] == 3


def test_words_say_what_came_out_and_where(place, command):
    code, out, err = command("train", "net.graph", "--data", "points.npz", "--goal", "0.5", "--out", "mine")
    assert code == 0
    assert "net on points.npz: test accuracy" in out
    assert "(goal 0.5: reached) after 3 epochs" in out
    assert "saved in mine" in out
    assert err.splitlines()[0].startswith("epoch 1/3: loss ")


def test_data_and_inputs_have_the_same_names(place, command):
    arrays = dict(np.load("points.npz"))
    np.savez("points.npz", x=arrays["x"], labels=arrays["label"])
    code, _, err = command("train", "net.graph")
    assert code == 2
    assert "nothing is called 'label'\n  points.npz holds x, labels\n  net takes x, label" in err
    np.savez("points.npz", **arrays, more=arrays["x"])
    code, _, err = command("train", "net.graph")
    assert code == 2
    assert "no input is called 'more'" in err
    assert not list(place.glob("runs/*"))


def test_what_fails_at_its_first_step_leaves_no_run(place, command, monkeypatch):
    def fail(self, **batch):
        raise ChainruleError("input label holds an index that is out of range")

    monkeypatch.setattr(Step, "__call__", fail)
    assert command("train", "net.graph", "--out", "run")[0] == 2
    assert not Path("run").exists()


def test_a_model_need_not_take_all_of_a_built_in_set(place, command, monkeypatch):
    arrays = dict(np.load("points.npz"))
    more = arrays | {"more": arrays["x"]}
    monkeypatch.setitem(training.data.BUILT_IN, "dots", lambda ask: training.Data("dots", more, more))
    assert command("train", "net.graph", "--data", "dots")[0] == 0


def test_a_missed_goal_is_exit_code_1(place, command):
    code, out, _ = command("train", "net.graph", "--goal", "1.5", "--json")
    assert (code, last_json(out)["reached"]) == (1, False)


def test_the_command_line_goes_before_the_recipe(place, command):
    command(
        *("train", "net.graph", "--epochs", "1", "--lr", "0.125", "--batch", "40", "--optimizer", "adam"),
        *("--seed", "7", "--set", "hidden=256", "--threads", "2", "--dtype", "float64", "--out", "run"),
    )
    record = json.loads(Path("run/run.json").read_text())
    recipe = record["recipe"]
    assert (recipe["epochs"], recipe["rate"], recipe["batch"], recipe["optimizer"]) == (1, 0.125, 40, "adam")
    assert (record["seed"], record["arguments"]) == (7, {"hidden": 256})
    assert Model.compiled == [("adam", "float64", 2, 7)]


def test_another_optimizer_does_not_get_the_recipes_settings(place, command):
    Path("net.toml").write_text('data = "points.npz"\noptimizer = "adamw"\nepochs = 1\n[settings]\ndecay = 0.3\n')
    command("train", "net.graph", "--out", "a")
    command("train", "net.graph", "--optimizer", "sgd", "--out", "b")
    settings = [json.loads(Path(run, "run.json").read_text())["recipe"]["settings"] for run in ("a", "b")]
    assert settings == [{"decay": 0.3}, {}]


def parameters(run):
    record = json.loads(Path(run, "run.json").read_text())
    return record["files"]["parameters"][1], record["steps"], len(record["curve"])


@pytest.mark.parametrize("again", [("--resume", "cut"), ("net.graph", "--out", "cut")], ids=["resume", "same command"])
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(place, command, monkeypatch, again):
    command("train", "net.graph", "--epochs", "6", "--out", "whole")
    monkeypatch.setattr(Step, "interrupt_at", 8)  # of 3 steps an epoch: in the third
    code, out, _ = command("train", "net.graph", "--epochs", "6", "--out", "cut")
    assert code == 130
    assert "stopped; go on with: chainrule train --resume cut" in out
    assert parameters("cut")[1:] == (6, 2)
    monkeypatch.setattr(Step, "interrupt_at", None)
    code, _, err = command("train", *again, "--epochs", "6")
    assert code == 0
    assert "cut goes on after epoch 2" in err
    assert parameters("cut") == parameters("whole")


def test_a_run_stopped_before_its_first_epoch_can_go_on(place, command, monkeypatch):
    monkeypatch.setattr(Step, "interrupt_at", 1)
    code, out, _ = command("train", "net.graph", "--out", "cut", "--json")
    assert (code, last_json(out)["stopped"], parameters("cut")[1:]) == (130, True, (0, 0))
    monkeypatch.setattr(Step, "interrupt_at", None)
    command("train", "--resume", "cut")
    command("train", "net.graph", "--out", "whole")
    assert parameters("cut") == parameters("whole")


def test_a_folder_with_another_run_is_left_alone(place, command):
    command("train", "net.graph", "--out", "mine")
    before = parameters("mine")
    code, _, err = command("train", "net.graph", "--out", "mine", "--seed", "3")
    assert code == 2
    assert "mine holds a run of something else\n  Way out: another folder" in err
    assert parameters("mine") == before


def test_a_run_keeps_the_float_it_was_begun_with(place, command):
    command("train", "net.graph", "--out", "run", "--dtype", "float64")
    command("train", "--resume", "run", "--epochs", 5)
    command("eval", "run")
    assert [dtype for _, dtype, _, _ in Model.compiled] == ["float64"] * 3
    code, _, err = command("train", "net.graph", "--out", "run")
    assert code == 2
    assert "a run of something else" in err


def test_a_run_that_goes_on_keeps_its_batch_size(place, command):
    command("train", "net.graph", "--out", "mine")
    code, _, err = command("train", "--resume", "mine", "--batch", "8")
    assert code == 2
    assert "a run that goes on keeps its batch" in err


def test_eval_judges_what_train_left(place, command):
    value = last_json(command("train", "net.graph", "--json", "--out", "mine")[1])["value"]
    code, out, _ = command("eval", "mine", "--json")
    found = last_json(out)
    assert (code, found["value"], found["metric"], found["samples"]) == (0, value, "accuracy", 24)
    assert "test accuracy" in command("eval", "mine", "--data", "points.npz")[1]


def test_eval_needs_no_model_file(place, command):
    command("train", "net.graph", "--out", "mine")
    Path("net.graph").unlink()
    assert command("eval", "mine")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "missing.graph"), "missing.graph"),
        (("train", "net.graph", "--data", "digit"), "digits"),
        (("train", "net.graph", "--set", "hidden"), "--set NAME=VALUE"),
        (("train", "net.graph", "--set", "hidden=big"), "that is no number"),
        (("train",), "give a MODEL to train"),
        (("train", "net.graph", "--resume", "run"), "give a MODEL to train"),
        (("train", "net.graph", "--epochs", "-1"), "--epochs"),
        (("train", "net.graph", "--epoch", "3"), "--epoch"),
        (("eval", "nothing"), "holds no run"),
        (("render", "net.graph", "--format", "bmp"), "svg"),
        (("unheard-of",), "unheard-of"),
    ],
)
def test_bad_usage_and_bad_input_are_exit_code_2(place, command, words, said):
    if words[1:2] == ("missing.graph",):
        words = (*words, "--data", "points.npz")
    code, out, err = command(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err + out


def test_errors_are_json_too(place, command):
    code, out, err = command("eval", "nothing", "--json")
    assert code == 2
    assert last_json(out)["error"].startswith("nothing holds no run")
    assert err.startswith("error: nothing holds no run")


@pytest.fixture
def spine(place, monkeypatch):
    """The compiler's answers, canned."""
    rows = {"nodes": [{"name": "x", "kind": "input"}], "edges": [{"from": "x", "to": "h", "slot": 0}]}
    calls = []
    monkeypatch.setattr(build, "summary", lambda source, options: {"formulas": "7", "FLOPs": "512*batch"})
    monkeypatch.setattr(build, "tables", lambda source, options: rows)
    monkeypatch.setattr(build, "sources", lambda source, options, cpu: {"../h.py": "def h(): ...\n"})

    def picture(source, options, kind, format, depth):
        calls.append((kind, format, depth, options.optimizer, source.arguments))
        return b"<svg/>"

    monkeypatch.setattr(build, "picture", picture)
    return calls


def test_compile_summarises(spine, command):
    code, out, _ = command("compile", "net.graph", "--set", "hidden=256")
    assert code == 0
    assert "formulas" in out
    assert "512*batch" in out
    assert last_json(command("compile", "net.graph", "--json")[1]) == {
        "model": "net.graph",
        "formulas": "7",
        "FLOPs": "512*batch",
    }


def test_compile_shows_tables(spine, command):
    out = command("compile", "net.graph", "--table", "edges")[1]
    assert out == "from  to  slot\n----  --  ----\nx     h   0\n"
    assert json.loads(command("compile", "net.graph", "--table", "nodes", "--json")[1]) == [
        {"name": "x", "kind": "input"}
    ]


def test_compile_saves_tables_and_sources_inside_the_folder(spine, command):
    code, out, _ = command("compile", "net.graph", "--out", "saved")
    assert code == 0
    assert "saved 3 files in saved" in out
    assert {path.name for path in Path("saved").iterdir()} == {"nodes.json", "edges.json", "h.py"}
    assert not Path("h.py").exists()
    assert json.loads(Path("saved/nodes.json").read_text()) == [{"name": "x", "kind": "input"}]
    assert "add --out DIR" in command("compile", "net.graph", "--cpu", "neon")[2]


def test_render_writes_all_pictures_or_one(spine, command):
    code, out, _ = command("render", "net.graph", "--out", "pictures", "--set", "hidden=2")
    assert code == 0
    assert {path.name for path in Path("pictures").iterdir()} == {
        "forward.svg", "backward.svg", "both.svg", "program.svg",
    }  # fmt: skip
    assert spine[0] == ("forward", "svg", None, "sgd", (("hidden", 2),))
    out = command("render", "net.graph", "--picture", "both", "--format", "pdf", "--depth", "1", "--json")[1]
    assert last_json(out)["saved"] == ["both.pdf"]
    assert spine[-1][:3] == ("both", "pdf", 1)


def test_an_unwritable_folder_is_an_error_of_ours(spine, command):
    Path("file").write_text("")
    code, _, err = command("render", "net.graph", "--out", "file")
    assert code == 2
    assert "cannot be written" in err


def comparison(tensor, along, error, smooth=True):
    return SimpleNamespace(tensor=tensor, along=along, derived=1 + error, measured=1.0, smooth=smooth, error=error)


@pytest.mark.parametrize(("passed", "expected"), [(True, 0), (False, 1)])
def test_check_says_yes_or_no(place, command, monkeypatch, passed, expected):
    comparisons = [
        comparison("W", "direction 0", 1e-9),
        comparison("W", "[1, 2]", 3e-8),
        comparison("b", "[0]", 5, False),
    ]
    asked_for = []

    def check(source, options, **settings):
        asked_for.append((options.dtype, options.mode, settings))
        return SimpleNamespace(passed=passed, worst=3e-8, kinks=1, comparisons=comparisons)

    monkeypatch.setattr(build, "check", check)
    code, out, _ = command("check", "net.graph", "--seed", "5")
    assert code == expected
    assert ("all agree" in out) == passed
    code, out, _ = command("check", "net.graph", "--json")
    found = last_json(out)
    assert (code, found["passed"], found["kinks"]) == (expected, passed, 1)
    assert [(row["parameter"], row["compared"], row["where"]) for row in found["parameters"]] == [
        ("W", 2, "[1, 2]"),
        ("b", 0, ""),
    ]
    assert asked_for[0] == ("float64", "gradient", {"seed": 5})


def test_nan_is_the_worst_of_all():
    row = models.judged("W", [comparison("W", "[0]", float("nan")), comparison("W", "[1]", 1.0)])
    assert row["where"] == "[0]"


def test_explain_shows_the_rules_with_the_formulas_before_and_after(tmp_path, command):
    model = tmp_path / "five.graph"
    text = "model five:\n    dim n\n    input x[n]\n    param w ~ ones\n    y[n] = tanh(x[n] * w)\n    loss = mean(y)\n"
    model.write_text(text)
    code, out, _ = command("explain", model)
    assert code == 0
    assert "     loss = loss_sum / n\n   → loss_sum_bar = loss_bar / n\n" in out
    code, out, _ = command("explain", model, "--of", "w_bar", "--json")
    found = last_json(out)["steps"]
    assert found[0]["rule"] == "vjp"
    assert all("w_bar" in step["formulas"] for step in found)
    code, _, err = command("explain", model, "--of", "w_ba")
    assert code == 2
    assert "did you mean 'w_bar'" in err


def test_the_cache_is_shown_and_cleared(command, monkeypatch):
    cleared = []
    usage = Usage(Path("/somewhere/chainrule"), 12, 3_456_789, 10**9)
    cache = SimpleNamespace(usage=lambda: usage, clear=lambda: cleared.append(1) or 5_000)
    monkeypatch.setattr(build, "cache", lambda: cache)
    assert command("cache")[1] == "/somewhere/chainrule: 12 files, 3.5 MB of at most 1.0 GB\n"
    assert last_json(command("cache", "show", "--json")[1]) == {
        "directory": "/somewhere/chainrule",
        "files": 12,
        "bytes": 3456789,
        "limit": 10**9,
    }
    assert not cleared
    assert command("cache", "clear")[1].startswith("removed 5.0 kB\n")
    assert cleared


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-3", -3), ("2.5", 2.5), ("1e-3", 1e-3), (".5", 0.5), ("true", True), ("False", False)],
)
def test_settings_are_numbers_and_truth_values(text, value):
    found = asked.arguments([f"name={text}"])["name"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["name", "=3", "name=", "na me=3", "name=__import__('os')", "name=1_0", "name=nan"])
def test_other_settings_are_errors(text):
    with pytest.raises(ChainruleError, match="Way out"):
        asked.arguments([text])


def test_json_has_no_number_for_nan(capsys):
    output.json_line({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}


def test_figures_show_brackets_as_they_are(capsys):
    output.figures("t", {"[bold]": "x[n, i] [red]"})
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert "x[n, i] [red]" in shown


@pytest.mark.parametrize("command_name", ["", "compile", "render", "train", "eval", "check", "explain", "cache"])
def test_help_has_examples(command, command_name):
    code, out, _ = command(*([command_name] if command_name else []), "--help")
    assert code == 0
    assert "Examples:\n" in out
    assert "  chainrule " in out


def imported(*words):
    """The modules that a process of the command ends with."""
    script = (
        "import sys; sys.argv = ['chainrule', *sys.argv[1:]]\n"
        "from chainrule.cli import main\n"
        "try: main()\n"
        "finally: print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_neither_numpy_nor_rich_nor_the_compiler():
    for words in (["--help"], ["train", "--help"]):
        heavy = {"numpy", "rich.console", "sympy", "numba", "llvmlite", "networkx", "graphviz", "msgspec"}
        assert not heavy & imported(*words)


def test_the_cache_is_shown_without_the_compiler():
    assert not {"sympy", "numba", "networkx"} & imported("cache", "--json")


def test_sizes_read_well():
    assert [models.size(n) for n in (0, 999, 1000, 25_300_000, 3 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "25.3 MB", "3.0 GB",
    ]  # fmt: skip
