"""The command on other targets, and other folders: where a run is trained and judged, and where it is found again."""

from __future__ import annotations

from pathlib import Path

from chainrule.cli import training
from chainrule.runtime.cuda import present
from chainrule.runtime.cuda.device import DeviceError
from chainrule.source import Source
from tests.test_cli import Model, Step, command, last_json, place

__all__ = ["command", "place"]  # fixtures


def test_train_runs_where_it_is_told_to(place, command, monkeypatch):
    monkeypatch.setattr(present, "device", lambda: None)
    assert command("train", "net.graph", "--target", "cuda", "--precision", "bf16", "--out", "run")[0] == 0
    assert Model.places == [("cuda", "bf16")]
    code, out, _ = command("train", "--resume", "run", "--epochs", "4", "--json")
    assert code == 0 and last_json(out)["epochs"] == 4 and Model.places[1:] == [("cuda", "bf16")]
    assert command("eval", "run", "--target", "cpu")[0] == 0
    assert Model.places[2:] == [("cpu", "float32")]
    Path("net.toml").write_text(Path("net.toml").read_text() + 'target = "cuda"\nprecision = "tf32"\n')
    assert command("train", "net.toml")[0] == 0
    assert command("train", "net.toml", "--precision", "float32")[0] == 0
    assert Model.places[3:] == [("cuda", "tf32"), ("cuda", "float32")]


def test_without_a_gpu_training_on_one_ends_before_it_begins(place, command, monkeypatch):
    def nothing():
        raise DeviceError("there is no GPU here\n  Way out: --target cpu")

    monkeypatch.setattr(present, "_opened", nothing)
    code, _, err = command("train", "net.graph", "--target", "cuda", "--out", "run")
    assert code == 2 and "there is no GPU here" in err and not Path("run").exists() and not Model.compiled


def test_compile_says_what_targets_do_not_go_together(place, command):
    for words, said in [
        (["--arch", "sm_90"], "is a GPU's, and the target is the CPU"),
        (["--precision", "tf32"], "is a GPU's, and the target is the CPU"),
        (["--target", "cuda", "--precision", "bf16", "--dtype", "float64"], "rounds what float64 keeps"),
        (["--target", "cuda", "--arch", "sm_90", "--cpu", "neon", "--out", "there"], "--cpu is for the CPU's kernels"),
    ]:
        code, _, err = command("compile", "net.graph", *words)
        assert code == 2 and said in err


def test_a_runs_source_is_found_by_its_name(monkeypatch):
    made = []
    monkeypatch.setattr(training, "Model", lambda source: made.append(source) or Model(source))
    record = training.Record("text", "nets.graph:small", {"hidden": 3}, training.Recipe(), 0)
    last = training.Checkpoint(record, {"W": Step().params["W"]}, {})
    training.restored(last, None)
    assert made == [Source("text", "nets.graph", "small", (("hidden", 3),), Path())]
