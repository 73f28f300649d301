"""Launches are timed one by one on the device, and nothing is left of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

from chainrule.cli import bench
from chainrule.errors import ChainruleError
from chainrule.runtime.cuda import present
from chainrule.runtime.cuda import profile as profile_module
from chainrule.runtime.cuda.profile import ceilings, profile
from tests.cuda.device import Interpreter
from tests.runtime.cuda.machine import Machine, gpu_runner
from tests.runtime.programs import regression

X = np.ones((4, 3), np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Arrays and matrices that a machine of Python has room and time for."""
    monkeypatch.setattr(profile_module, "COPIED", 1 << 20)
    monkeypatch.setattr(profile_module, "SIDE", 64)


def test_every_launch_is_timed_alone_and_nothing_changes():
    one = gpu_runner(regression()[0])
    one.run({"x": X, "y": X})
    before = one.store.params["w"], one.store.states["speed"], one.store.step
    found = profile(one, {"x": X, "y": X}, repeat=2)
    assert [launch.name for launch in found.launches] == [launch.name for launch in one.executable.launches]
    assert all(launch.best > 0 and launch.blocks == 1 and launch.threads == 32 for launch in found.launches)
    assert found.launches[1].bytes == 3 * X.nbytes and found.best > 0
    after = one.store.params["w"], one.store.states["speed"], one.store.step
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_ceilings_are_the_library_s_products_and_copies():
    found = ceilings(Machine(multiply=lambda machine, product: True))
    assert found["gb_per_s"] > 0 and np.isfinite(found["gflops"])
    machine = Machine()
    assert ceilings(machine)["gflops"] == np.inf and not machine.blocks


def test_the_command_times_a_model_on_a_gpu(tmp_path, capsys):
    path = tmp_path / "m.graph"
    path.write_text("model m():\n    dim batch\n    input x[batch, 3]\n    loss = mean(linear(x, 2))\n")
    asked = bench.Asked(str(path), [], ["batch=3"], None, "float32", None, target="cuda")
    with present.use(Interpreter(1 << 24)):
        bench.bench_model(asked, 5, None, json=True)
        found = json.loads(capsys.readouterr().out)
        bench.bench_model(asked, 5, None, json=False)
    assert found["device"] == "PTX interpreter" and found["kernels"] and found["ceilings"]["gb_per_s"] > 0
    assert "each kernel alone on PTX interpreter" in " ".join(capsys.readouterr().out.split())


def test_without_a_gpu_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(present, "_used", [])
    path = tmp_path / "m.graph"
    path.write_text("model m():\n    dim batch\n    input x[batch, 3]\n    loss = mean(linear(x, 2))\n")
    if present.architecture() is None:
        with pytest.raises(ChainruleError, match="Way out"):
            bench.bench_model(bench.Asked(str(path), [], [], None, "float32", None, target="cuda"), 5, None, json=True)
