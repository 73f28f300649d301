"""Where programs run: a model moves to a GPU and back with its parameters; without a GPU all but running works."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

import chainrule as cr
from chainrule import build
from chainrule.api.model import Model
from chainrule.api.place import Place, place
from chainrule.runtime.cache import Compiled
from chainrule.runtime.cuda import present
from chainrule.runtime.cuda.arrays import DeviceArray
from chainrule.runtime.cuda.device import DeviceError
from chainrule.source import Source
from tests.runtime.cuda.machine import Machine, dense, gpu_program
from tests.runtime.programs import regression

TEXT = """model dense():
    dim batch
    input x[batch, 3]
    param w[3, 2] ~ normal(0, 1)
    out[n, j] = sum[i] x[n, i] * w[i, j]
    loss = mean[n, j] out[n, j]
    output out = out
"""
X = np.array([[0.5, -1.0, 2.0], [2.0, 0.25, 0.0]], np.float32)


@pytest.fixture
def model(monkeypatch) -> Model:
    """Its programs for a GPU are made by hand: it predicts, and trains another one."""
    compiled = build.executable

    def executable(source, options):
        if options.arch is None:
            return compiled(source, options)
        trained = regression(3)[0]
        trained = structs.replace(trained, params=(structs.replace(trained.params[0], name="v"),))
        made = dense() if options.mode == "predict" else trained
        return Compiled(*gpu_program(made))

    monkeypatch.setattr(build, "executable", executable)
    return Model(Source(TEXT, "dense.graph", "dense"))


@pytest.fixture
def absent(monkeypatch) -> None:
    """A machine without a GPU."""

    def nothing():
        raise DeviceError("there is no GPU here\n  Way out: run it where there is one")

    monkeypatch.setattr(present, "_opened", nothing)


def test_a_model_moves_to_a_gpu_and_back_with_its_parameters(model):
    here = model.predict(x=X)["out"]
    with present.use(Machine()) as machine:
        there = model.to("cuda")
    assert there is model and model.place == Place("cuda:sm_90", device=machine)
    np.testing.assert_allclose(model.predict(x=X)["out"], here, rtol=1e-6)  # where it was put, it stays
    model.params["w"] = 2 * model.params["w"]
    assert machine.heard("launch") == ["matmul"]
    np.testing.assert_allclose(model.to("cpu").predict(x=X)["out"], 2 * here, rtol=1e-6)
    assert not machine.heard("launch")


def test_results_stay_on_the_gpu_where_that_is_asked_for(model):
    here = model.predict(x=X)["out"]
    with present.use(Machine()) as machine:
        model.to("cuda")
    found = model.predict(x=X, on_device=True)["out"]
    assert isinstance(found, DeviceArray) and found.device is machine
    np.testing.assert_allclose(found.numpy(), here, rtol=1e-6)


def test_a_step_trains_where_it_was_compiled_for(model):
    with present.use(Machine()) as machine:
        step = model.compile("sgd", target="cuda")
    before = step.params["v"]
    step(x=X, y=np.zeros((2, 3)))
    assert "update" in machine.heard("launch") and (step.params["v"] != before).any() and step.steps == 1


def test_a_compiled_step_takes_the_place_of_the_model_where_none_is_said(model):
    with present.use(Machine()) as machine:
        model.to("cuda", precision="tf32")
        options = model.compile("sgd").options
        assert (options.target, options.precision, model.place.device) == ("cuda:sm_90", "tf32", machine)
        assert model.compile("sgd", precision="bf16").options.precision == "bf16"
        other = Model(model.source).to("cuda")
        assert other.compile("sgd", target="cpu").options.target == "cpu" and not other.place.on_gpu


@pytest.mark.usefixtures("absent")
def test_without_a_gpu_all_but_running_works(model, tmp_path):
    step = model.compile("sgd", target="cuda", seed=3)
    assert step.options.target == "cuda:sm_90" and step.runner.executable.on_gpu
    step.params["v"] = np.ones(3)
    model.save(tmp_path / "w.safetensors")
    model.restore(tmp_path / "w.safetensors")
    assert "svg" in build.html(model.source, step.options, "both")
    assert "loss" in build.explain(model.source, step.options)
    for run in (lambda: step(x=X, y=X), lambda: step.run(3, x=X, y=X), lambda: step.predict(x=X)):
        with pytest.raises(DeviceError, match="there is no GPU here"):
            run()
    assert step.steps == 0


@pytest.mark.usefixtures("absent")
def test_a_step_that_was_compiled_without_a_gpu_does_not_move_to_one_unasked(model):
    step = model.compile("sgd", target="cuda")
    with present.use(Machine()), pytest.raises(DeviceError, match="compile it again, where it is to run"):
        step(x=X, y=X)


REFUSED = {
    "another target": (lambda m: m.to("tpu"), "target='cpu' or 'cuda'"),
    "an architecture of the CPU": (lambda m: m.compile(arch="sm_90"), "arch='sm_90' is a GPU's"),
    "no architecture": (lambda m: m.to("cuda", arch="hopper"), "as in 'sm_90'"),
    "threads of a GPU": (lambda m: m.compile(target="cuda", threads=2), "threads=2 are the CPU's"),
    "threads of a prediction": (lambda m: m.to("cuda").predict(x=X, threads=2), "threads=2 are the CPU's"),
    "a precision of the CPU": (lambda m: m.compile(precision="tf32"), "precision='tf32' is a GPU's"),
    "another precision": (lambda m: m.to("cuda", precision="fp8"), "'float32', 'tf32' or 'bf16'"),
    "rounded float64": (lambda m: m.compile(target="cuda", dtype="float64", precision="bf16"), "what float64 keeps"),
    "a result of the CPU on a GPU": (lambda m: m.predict(x=X, on_device=True), "model.to('cuda')"),
}


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize("problem", REFUSED)
def test_what_does_not_go_together_is_said(model, problem):
    ask, told = REFUSED[problem]
    with pytest.raises(cr.ChainruleError) as error:
        ask(model)
    assert told in str(error.value) and "Way out" in str(error.value)
    assert model.place.precision == "float32" and model.dtype == "float32"


def test_a_machine_without_the_driver_says_so_and_compiles_for_the_usual_architecture(monkeypatch):
    class Missing:
        def open_device(self):
            raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(present, "driver", Missing())
    present._opened.cache_clear()
    with pytest.raises(DeviceError, match=r"pip install 'chainrule\[cuda\]'"):
        present.device()
    assert place("cuda") == Place("cuda:sm_90")
