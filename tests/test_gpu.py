"""The GPU's target as its users meet it: compiled, saved, trained and asked, on a device that interprets PTX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr
from chainrule import build
from chainrule.api.place import place
from chainrule.cli import models, training
from chainrule.codegen import cuda
from chainrule.codegen.target import host
from chainrule.compiler import derive, program
from chainrule.executable import decode, faults
from chainrule.options import Options
from chainrule.runtime.cache import digest
from chainrule.runtime.cuda import present
from chainrule.source import read_source

pytest.importorskip("numba_cuda", reason="the extra [cuda] is not installed")

from tests.cuda.device import Interpreter

MLP = "graphs/mlp.graph"
X = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
LABEL = np.arange(6)


@pytest.fixture
def device():
    with present.use(Interpreter()) as device:
        yield device


def test_a_model_trains_predicts_and_differentiates_there_as_here(device):
    here, there = (cr.load(MLP, hidden=16) for _ in range(2))
    steps = here.compile("adamw", seed=3, rate=0.01), there.compile("adamw", seed=3, rate=0.01, target="cuda")
    for _ in range(3):
        losses = [step(x=X, label=LABEL) for step in steps]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, array in steps[0].params.items():
        np.testing.assert_allclose(steps[1].params[name], array, rtol=1e-4, atol=1e-6)
    found = [step.predict(x=X, label=LABEL, outputs=["logits", "accuracy"]) for step in steps]
    np.testing.assert_allclose(found[1]["logits"], found[0]["logits"], rtol=1e-4, atol=1e-5)
    gradients = [model.gradients(x=X, label=LABEL)[1] for model in (here, there)]
    for name, array in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], array, rtol=1e-3, atol=1e-6)
    assert device.launched


def test_a_sum_whose_places_move_with_the_rows_is_not_a_part_of_one(device):
    """In attention along edges, a weight's gradient sums over nodes for each head."""
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(5, 6)), "source": rng.integers(0, 5, 7), "target": rng.integers(0, 5, 7)}
    batch |= {"seen": np.arange(4), "label": np.array([0, 1, 2, 0])}
    here, there = (cr.load("graphs/gat.graph", features=6, classes=3).to(target) for target in ("cpu", "cuda"))
    gradients = [model.gradients(dtype="float64", **batch)[1] for model in (here, there)]
    for name, array in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_run_from_a_recipe_learns_there_as_here(device, tmp_path):
    model = Path(MLP).read_text()
    (tmp_path / "mlp.graph").write_text(model)
    recipe = (
        'data = "digits"\noptimizer = "adam"\nrate = 0.01\nepochs = 2\nbatch = 32\nlimit = 96\nset = {hidden = 16}\n'
    )
    found = []
    for target in ("cpu", "cuda"):
        (tmp_path / "mlp.toml").write_text(f'{recipe}target = "{target}"\n')
        asked = training.Asked(str(tmp_path / "mlp.toml"), {}, out=tmp_path / target)
        assert training.begin(asked, True) == 0
        found.append(json.loads((tmp_path / target / "result.json").read_text()))
    here, there = found
    assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-4)
    assert there["device"] == device.name and there["target"] == "cuda:sm_90" and "device" not in here
    assert training.judge(tmp_path / "cuda", None, None, None, True, target="cpu") == 0


def test_what_compile_saves_is_the_program_with_its_kernels_in_three_forms(tmp_path):
    gpu = place("cuda", "sm_90", "tf32")
    models.compile_model(MLP, ["hidden=16"], "adam", "float32", None, tmp_path, None, gpu, True)
    saved = {path.name: path for path in tmp_path.iterdir()}
    executable = decode(saved.pop("executable.json").read_bytes())
    options = Options("train", optimizer="adam", target=gpu.target, precision=gpu.precision)
    assert executable == build.executable(read_source(MLP, {"hidden": 16}), options).executable
    assert not faults(executable) and executable.target == "cuda sm_90"
    kinds = {kind: {path for name, path in saved.items() if name.endswith(kind)} for kind in (".py", ".ptx", ".cubin")}
    assert {k.object for k in executable.kernels} == {digest(path.read_bytes()) for path in kinds[".cubin"]}
    assert {k.ptx for k in executable.kernels} == {digest(path.read_bytes()) for path in kinds[".ptx"]}
    assert {path.stem for path in kinds[".py"]} == {path.stem for path in kinds[".ptx"]}
    for path in kinds[".ptx"]:
        assert ".target sm_90" in path.read_text()


def test_a_gpus_program_does_not_depend_on_the_cpu(monkeypatch):
    options = Options("train", optimizer="adam", target="cuda:sm_90")
    source = read_source(MLP, {"hidden": 300})
    compiled = derive(source, options)

    def written():
        return [kernel.text for kernel in cuda.printed(program(compiled, options), "float32")[1]]

    first = written()
    for module in ("target", "cpu"):
        monkeypatch.setattr(f"chainrule.codegen.{module}.host", lambda: host("neon"))
    assert written() == first


def test_a_program_that_was_compiled_elsewhere_runs_without_a_compiler(device, monkeypatch):
    step = cr.load(MLP, hidden=16).compile("sgd", target="cuda", seed=0)
    first = step(x=X, label=LABEL)
    monkeypatch.setattr("chainrule.compiler.compile_source", None)
    again = cr.load(MLP, hidden=16).compile("sgd", target="cuda", seed=0)
    assert again(x=X, label=LABEL) == first
