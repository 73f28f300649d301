"""A profile times every launch, and leaves the model as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest

import chainrule as cr
from chainrule.cli import bench
from chainrule.errors import ChainruleError
from chainrule.runtime.profile import profile

TEXT = """model m(hidden = 8):
    dim batch
    dim 1 <= time <= 16
    input x[batch, time, 4]
    input label[batch] : index 3
    m[n, i] = mean[t] x[n, t, i]
    h = tanh(linear(m, hidden))
    loss = mean(cross_entropy(linear(h, 3), label))
"""


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "m.graph"
    path.write_text(TEXT)
    return cr.load(str(path)).compile(optimizer="momentum", rate=0.5)


def test_a_profile_has_a_row_for_each_launch_and_changes_nothing(step):
    sizes = bench.sizes_of(step.runner.executable, ["batch=5"])
    assert (sizes["batch"], sizes["time"]) == (5, 16)
    inputs = bench.drawn(step.runner.executable, sizes)
    before = {**step.params, **step.states}
    found = profile(step.runner, inputs, repeat=2)
    assert [launch.name for launch in found.launches] == [launch.name for launch in step.runner.executable.launches]
    assert sum(launch.flops for launch in found.launches) > 2 * 5 * 4 * 8
    assert all(launch.bytes > 0 and launch.median >= 0 for launch in found.launches)
    assert step.steps == 0
    for name, value in {**step.params, **step.states}.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("bach=4", "no dim 'bach'"),
        ("time=17", "time is 1 to 16"),
        ("batch=2.5", "batch is 0 or more"),
        ("batch", "sets"),
    ],
)
def test_a_size_that_cannot_be_says_what_can(step, setting, says):
    with pytest.raises(ChainruleError, match=says) as error:
        bench.sizes_of(step.runner.executable, [setting])
    assert "Way out: " in str(error.value)


def test_the_command_answers_in_json_and_draws_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ceilings", lambda threads: {"gflops": 100.0, "gb_per_s": 10.0})
    path = tmp_path / "m.graph"
    path.write_text(TEXT)
    asked = bench.Asked(str(path), ["hidden=16"], ["batch=3"], None, "float32", 1)
    bench.bench_model(asked, 5, tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["batch"] == 3 and found["threads"] == 1
    assert {"kernel", "us", "gflops", "gb_per_s", "percent_of_ceiling"} <= set(found["kernels"][0])
    assert "GFLOP/s" in (tmp_path / "program.svg").read_text()
    bench.bench_model(asked, 1, None, json=False)
    assert "a step: " in capsys.readouterr().out
