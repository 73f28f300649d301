"""Whole training steps, as compiled for a GPU, on interpreted PTX: they are the CPU's, however they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

from chainrule.api.model import Model
from chainrule.errors import ChainruleError
from chainrule.executable import ONE, launches_at
from chainrule.runtime.cuda import present
from chainrule.runtime.cuda import step as runner
from chainrule.runtime.cuda.arrays import DeviceArray
from chainrule.source import Source, read_source
from chainrule.train.checkpoint import Record, load, save
from chainrule.train.loop import checkpoint_of, restore
from chainrule.train.recipe import Recipe
from tests.cuda.device import Interpreter

TEXT = """model tiny():
    dim batch
    input x[batch, 6]
    input label[batch] : index 5
    h = dropout(tanh(linear(x, 8)), 0.25)
    logits = linear(layer_norm(h), 5)
    loss = mean(cross_entropy(logits, label))
    output logits = logits
"""
BATCHES = 34  # more than one graph of many steps holds
DRAWN = np.random.default_rng(0)
X, LABEL = DRAWN.normal(size=(BATCHES, 7, 6)).astype(np.float32), DRAWN.integers(0, 5, (BATCHES, 7))


@pytest.fixture(params=["one block", "library", "kernels"])
def device(request, monkeypatch):
    """Steps of one kernel, or of a grid's; and what multiplies then: cuBLASLt (here NumPy), or kernels of our own."""
    device = Interpreter(1 << 24)
    if request.param != "one block":
        monkeypatch.setattr(
            runner, "launches_at", lambda executable, sizes: tuple(x for x in executable.launches if x.when == ONE)
        )
    if request.param == "kernels":
        device.multiply = lambda product: False
    with present.use(device):
        yield device


def step(target):
    return Model(Source(TEXT, "tiny.graph", "tiny")).compile("adam", rate=0.01, outputs=("logits",), target=target)


def there(device, array):
    found = DeviceArray.empty(device, array.shape, array.dtype)
    found.fill(array)
    return found


def agree(mine, other, tolerance=2e-5):
    assert mine.keys() == other.keys() and mine
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_step_is_the_cpu_s_one_by_one_in_graphs_and_from_the_device(device):
    gpu, cpu = step("cuda"), step("cpu")
    agree(gpu.params, cpu.params, 0)
    for k in range(3):
        for mine, other in zip(gpu(x=X[k], label=LABEL[k]), cpu(x=X[k], label=LABEL[k]), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    whole = cpu.run(BATCHES, x=X, label=LABEL), cpu.run(BATCHES, x=X, label=LABEL)
    for mine, other in zip(gpu.run(BATCHES, x=X, label=LABEL), whole[0], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    here = gpu.run(BATCHES, x=there(device, X), label=there(device, LABEL))
    for mine, other in zip(here, whole[1], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    agree(gpu.params, cpu.params)
    agree(gpu.states, cpu.states)
    assert gpu.steps == cpu.steps == 3 + 2 * BATCHES
    agree(*(one.predict(outputs=("logits",), x=X[0]) for one in (gpu, cpu)), 1e-4)


def test_a_run_goes_on_elsewhere_from_its_checkpoint(device, tmp_path):
    gpu, cpu = step("cuda"), step("cpu")
    gpu.run(5, x=X[:5], label=LABEL[:5])
    save(tmp_path, checkpoint_of(gpu, Record("tiny", "tiny.graph", {}, Recipe(goal=0.9), gpu.steps, 5, ()), ()))
    restore(cpu, load(tmp_path))
    assert cpu.steps == 5
    gpu.run(5, x=X[5:10], label=LABEL[5:10])
    cpu.run(5, x=X[5:10], label=LABEL[5:10])
    agree(gpu.params, cpu.params)
    restore(gpu, load(tmp_path))
    gpu.run(5, x=X[5:10], label=LABEL[5:10])
    agree(gpu.params, cpu.params)


def test_gradients_are_the_cpu_s_and_change_nothing(device):
    model, other = Model(Source(TEXT, "tiny.graph", "tiny")), Model(Source(TEXT, "tiny.graph", "tiny"))
    model.to("cuda")
    found, expected = (m.gradients(x=X[0], label=LABEL[0]) for m in (model, other))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    agree(found[1], expected[1])
    agree(model.params, other.params, 0)


def test_what_is_wrong_is_said_as_on_the_cpu(device):
    gpu, cpu = step("cuda"), step("cpu")
    for bad in ({"x": X[0]}, {"x": X[0], "label": LABEL[0] + 5}, {"x": X[0, :3], "label": LABEL[0]}, {"x": "a"}):
        said = []
        for one in (gpu, cpu):
            with pytest.raises(ChainruleError) as caught:
                one(**bad)
            said.append(str(caught.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("device", ["library", "kernels"], indirect=True)
def test_tables_of_arguments_are_written_when_a_step_is_bound_and_never_again(device, monkeypatch):
    gpu = step("cuda")
    runner = gpu.runner
    together = [launch for launch in runner.executable.launches if launch.sets]
    assert any(launch.name == "adam × 6" for launch in together)
    for _ in range(3):
        gpu(x=X[0], label=LABEL[0])
    gpu.run(BATCHES, x=X, label=LABEL)
    _, recording = runner._last
    places = [pair for pair in recording.tables.places(0) if pair]
    assert len(places) == len(together)
    monkeypatch.setattr(device, "write", None)
    gpu(x=X[1], label=LABEL[1])
    assert [pair for pair in recording.tables.places(0) if pair] == places


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_steps_of_a_transformer_are_the_cpu_s(name):
    """The scores of both are in bands."""
    rng = np.random.default_rng(1)
    small = {"width": 16, "depth": 1, "heads": 2}
    if name == "gpt":
        source = read_source("graphs/gpt.graph", small)
        batches = [{"token": t, "next": t[:, ::-1]} for t in rng.integers(0, 63, (2, 1, 12))]
    else:
        source = read_source("graphs/vit.graph", {**small, "patch": 1})
        batches = [{"x": x, "label": np.arange(1)} for x in rng.normal(size=(1, 1, 64)).astype(np.float32)]
    with present.use(Interpreter(1 << 26)):
        here, there = (Model(source).compile("adam", rate=0.01, seed=0, target=t) for t in ("cpu", "cuda"))
        for given in batches:
            np.testing.assert_allclose(there(**given), here(**given), rtol=2e-5)
        agree({n: there.params[n] for n in here.params}, dict(here.params), 2e-4)


def test_the_sizes_say_whether_a_step_is_one_kernel():
    with present.use(Interpreter(1 << 24)) as _:
        executable = step("cuda").runner.executable
    few, many = (launches_at(executable, {"batch": batch}) for batch in (7, 100_000))
    assert len(few) == 1 and len(many) > 5
    assert {*few, *many} == {*executable.launches} and not {*few} & {*many}
