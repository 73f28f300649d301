"""A step on a GPU is one graph, many steps are graphs of many; what lies on the device already is not copied here.

That its face is the CPU's is proved in tests/runtime/test_step.py, whose tests run on both.
"""

from __future__ import annotations

import gc

import msgspec
import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.executable import Output
from chainrule.runtime.cuda import step as step_module
from chainrule.runtime.cuda.arrays import DeviceArray, Resident, store_on
from chainrule.runtime.cuda.device import DeviceMemoryError
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from tests.runtime.cuda.machine import Machine, dense, gpu_runner
from tests.runtime.programs import lookup, regression, walker

X, Y = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
MANY = np.random.default_rng(1).normal(size=(77, 4, 3)).astype(np.float32)


@pytest.fixture
def machine():
    return Machine()


def on_device(machine, array):
    found = DeviceArray.empty(machine, array.shape, array.dtype)
    found.fill(array)
    return found


def reshaped(many, k):
    """The k-th slice, where it lies."""
    part = many[k : k + 1]
    return DeviceArray(part.device, part.shape[1:], part.dtype, part.address, part.owner)


def on_cpu(seed=1):
    return Runner(*regression(), Store(seed), walker(), threads=1)


def test_parameters_start_as_on_the_cpu_and_lie_on_the_device(machine):
    there, here = gpu_runner(regression()[0], store_on(machine, 5), machine), on_cpu(5)
    assert np.array_equal(there.store.params["w"], here.store.params["w"])
    assert np.array_equal(there.store.states["speed"], here.store.states["speed"])
    held = there.store.array("param", "w").array
    assert np.array_equal(machine.view(held.address, 3, np.float32), here.store.params["w"])


def test_a_step_is_a_graph_from_the_second_on(machine):
    one = gpu_runner(regression()[0], machine=machine)
    machine.said.clear()
    one.run({"x": X, "y": Y})
    assert machine.heard("launch") == ["advance", "minus", "row_sum", "row_sum", "times", "update", "clock"]
    one.run({"x": X, "y": Y})
    assert machine.heard("capture") == [1 + 7 + 1]  # with the copies of inputs and results
    for _ in range(3):
        one.run({"x": X, "y": Y})
        assert machine.said == [("replay", 9)]
        machine.said.clear()


def test_large_inputs_are_copied_beside_the_graph(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    x, y = np.random.default_rng(0).normal(size=(2, 100_000, 3)).astype(np.float32)
    for _ in range(3):
        machine.said.clear()
        found, expected = (r.run({"x": x, "y": y}) for r in (one, other))
        assert np.allclose(found["s"], expected["s"], atol=1e-5)
    assert [word for word, _ in machine.said] == ["write", "write", "replay", "read"]


def test_a_step_like_the_last_one_takes_a_shorter_way(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    for _ in range(2):
        assert one.again({"x": X, "y": Y}) is None
        one.run({"x": X, "y": Y}), other.run({"x": X, "y": Y})
    for x in (X, Y, np.asfortranarray(X)):
        found, expected = one.again({"x": x, "y": Y}), other.run({"x": x, "y": Y})
        for name in expected:
            assert np.allclose(found[name], expected[name], rtol=1e-6) and type(found[name]) is type(expected[name])
    for other_x in (X[:2], X.astype("f8"), X.tolist(), on_device(machine, X)):
        assert one.again({"x": other_x, "y": Y}) is None
    assert one.again({"x": X}) is None and one.again({"x": X, "z": Y}) is None
    assert one.store.step == 5
    near = on_device(machine, MANY)
    for k in range(5):
        assert one.again({"x": near[k : k + 1], "y": Y}) is None
        found = one.again({"x": reshaped(near, k), "y": Y}) or one.run({"x": reshaped(near, k), "y": Y})
        machine.said, said = [], machine.said
        assert np.allclose(found["s"], other.run({"x": MANY[k], "y": Y})["s"], rtol=1e-6)
    assert said == [("replay", 9)]
    one = gpu_runner(lookup()[0], machine=machine)
    for _ in range(2):
        one.run({"index": np.array([1, 2])})
    with pytest.raises(ChainruleError, match=r"index\[0\] is 7"):
        one.again({"index": np.array([7, 2])})


def test_many_steps_are_graphs_of_many_and_equal_single_ones(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    found, expected = (r.run({"x": MANY, "y": Y}, steps=77) for r in (one, other))
    for name in expected:
        assert found[name].shape == expected[name].shape and np.allclose(found[name], expected[name], rtol=1e-6), name
    assert np.array_equal(found["count"], np.arange(1, 78)) and one.store.step == 77
    assert np.allclose(one.store.params["w"], other.store.params["w"], rtol=1e-6)
    assert machine.heard("replay") == [7 * 32, 7 * 32, 7 * 8, 7 * 4]  # after one as it is
    again = one.run({"x": MANY[:64], "y": Y}, steps=64)
    assert machine.heard("replay") == [7 * 32] * 2 and again["count"][-1] == 141


def test_a_sabotaged_slice_is_noticed(machine, monkeypatch):
    """Steps that all read the first slice do not give what single steps give."""
    places = step_module.Runner._places
    monkeypatch.setattr(step_module.Runner, "_places", lambda self, b, r, step: places(self, b, r, 0))
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    found, expected = (r.run({"x": MANY, "y": Y}, steps=77) for r in (one, other))
    assert not np.allclose(found["s"], expected["s"])


def test_nothing_is_allocated_once_a_batch_size_is_known(machine, monkeypatch):
    one = gpu_runner(regression()[0], machine=machine)
    for _ in range(2):
        one.run({"x": X, "y": Y})
        one.run({"x": MANY[:40], "y": Y}, steps=40)
    monkeypatch.setattr(machine, "allocate", None)
    one.run({"x": X, "y": Y})
    one.run({"x": MANY[:40], "y": Y}, steps=40)


@pytest.mark.parametrize("steps", [None, 8])
def test_a_rate_is_told_to_the_device_when_it_changes_and_the_graph_stays(machine, steps):
    """A small step's graph copies it by itself."""
    one = gpu_runner(regression()[0], machine=machine)
    for _ in range(3):
        one.run({"x": X, "y": Y}, steps)
    before = one.store.params["w"]
    one.store.scalars["rate"] = 0.0
    machine.said.clear()
    one.run({"x": X, "y": Y}, steps)
    assert [word for word, _ in machine.said] == (["write"] * 3 + ["replay", "read"] if steps else ["replay"])
    assert np.array_equal(one.store.params["w"], before)
    one.store.scalars["rate"] = 0.5
    one.run({"x": X, "y": Y}, None if steps else 8)
    assert not np.array_equal(one.store.params["w"], before)


def test_a_rate_may_differ_from_step_to_step_of_one_graph(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    rates = np.linspace(0.0, 0.01, 77)
    for runner in (one, other):
        runner.run({"x": MANY, "y": Y}, steps=77, scalars={"rate": rates})
    assert np.allclose(one.store.params["w"], other.store.params["w"], rtol=1e-6)
    assert one.store.scalars["rate"] == other.store.scalars["rate"] == np.float32(0.01)
    for runner in (one, other):
        runner.run({"x": X, "y": Y})  # at the last one's rate
    assert np.allclose(one.store.params["w"], other.store.params["w"], rtol=1e-6)
    assert machine.heard("replay")[:4] == [7 * 32, 7 * 32, 7 * 8, 7 * 4]


def test_the_clock_goes_on_from_one_way_of_stepping_to_the_other(machine):
    one = gpu_runner(regression()[0], machine=machine)
    counts = [one.run({"x": X, "y": Y}, steps)["count"] for steps in (None, 3, None, None, 5, 2, None)]
    assert np.array_equal(np.concatenate([np.atleast_1d(c) for c in counts]), np.arange(1, 15))
    one.store.step = 100
    assert one.run({"x": X, "y": Y}, 2)["count"].tolist() == [101, 102]
    assert one.run({"x": X, "y": Y})["count"] == 103


def test_the_count_of_steps_can_be_set_and_seeds_start_anew(machine):
    one = gpu_runner(regression()[0], machine=machine)
    one.run({"x": X, "y": Y})
    one.store.step = 41
    assert one.run({"x": X, "y": Y})["count"] == 42 and one.store.step == 42
    one.store.restart(3)
    assert np.array_equal(one.store.params["w"], on_cpu(3).store.params["w"])
    assert one.run({"x": X, "y": Y})["count"] == 1


def test_a_program_without_a_clock_counts_its_steps_too(machine):
    program = lookup()[0]
    one = gpu_runner(msgspec.structs.replace(program, training=True), machine=machine)
    one.run({"index": [1, 2]})
    one.run({"index": [[1, 2]] * 3}, steps=3)
    assert one.store.step == 4


def test_inputs_on_the_device_are_not_copied_to_the_host(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    x, y, many = (on_device(machine, array) for array in (X, Y, MANY))
    for _ in range(3):
        machine.said.clear()
        found, expected = one.run({"x": x, "y": y}), other.run({"x": X, "y": Y})
        assert np.allclose(found["s"], expected["s"], rtol=1e-6)
        assert machine.heard("write") == []
    found, expected = one.run({"x": many, "y": y}, steps=77), other.run({"x": MANY, "y": Y}, steps=77)
    assert np.allclose(found["s"], expected["s"], rtol=1e-6)
    assert machine.heard("write") == [512]  # the rate and the clock


def test_samples_are_brought_to_the_device_once_but_for_indices_and_what_has_no_room(machine):
    one = gpu_runner(regression()[0], machine=machine)
    near = one.nearer({"x": MANY[0].astype(np.float64), "y": Y})
    first = one.run({name: array[:4] for name, array in near.items()})
    assert first["loss"] == on_cpu().run({"x": MANY[0], "y": Y})["loss"]
    machine.said.clear()
    one.run({name: array[:4] for name, array in near.items()})
    assert not machine.heard("write")
    assert isinstance(gpu_runner(lookup()[0]).nearer({"index": np.arange(3)})["index"], np.ndarray)
    small = gpu_runner(regression()[0], machine=Machine(total=1 << 14))
    assert isinstance(small.nearer({"x": np.zeros((1 << 14, 3), np.float32)})["x"], np.ndarray)


def test_results_stay_on_the_device_where_that_is_asked(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    for steps, batch in ((None, X), (77, MANY), (None, X)):
        found = one.run({"x": batch, "y": Y}, steps, on_device=True)
        expected = other.run({"x": batch, "y": Y}, steps)
        machine.said.clear()
        for name, array in found.items():
            assert isinstance(array, DeviceArray) and np.allclose(np.asarray(array), expected[name], rtol=1e-6), name
    kept = one.run({"x": X, "y": Y}, on_device=True)["s"]
    before = kept.numpy()
    one.run({"x": Y, "y": X})
    assert np.array_equal(kept.numpy(), before)


def test_results_go_to_arrays_of_the_host_and_of_the_device(machine):
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    expected = other.run({"x": X, "y": Y})
    out = {"s": DeviceArray.empty(machine, (4,), np.dtype("f4")), "loss": np.empty((), "f4")}
    found = one.run({"x": X, "y": Y}, out=out)
    assert found["s"] is out["s"] and found["loss"] is out["loss"]
    assert np.allclose(out["s"].numpy(), expected["s"]) and np.allclose(out["loss"], expected["loss"])
    strided = np.empty((4, 2), "f4")[:, 0]
    assert one.run({"x": X, "y": Y}, out={"s": strided})["s"] is strided and np.allclose(strided, expected["s"])
    with pytest.raises(ChainruleError, match=r"out\['s'\] is float64\[4\], the result is float32\[4\]"):
        one.run({"x": X, "y": Y}, out={"s": DeviceArray.empty(machine, (4,), np.dtype("f8"))})
    fixed = DeviceArray(machine, (4,), np.dtype("f4"), out["s"].address, out["s"], readonly=True)
    with pytest.raises(ChainruleError, match="cannot be written to"):
        one.run({"x": X, "y": Y}, out={"s": fixed})


def test_an_output_that_no_launch_writes_is_copied(machine):
    """Parameters and inputs as results: each step of a graph keeps its own."""
    program = regression()[0]
    program = msgspec.structs.replace(program, outputs=(*program.outputs, Output("w", 2), Output("x", 0)))
    one = gpu_runner(program, machine=machine)
    other = on_cpu()
    one.run({"x": X, "y": Y})
    other.run({"x": X, "y": Y})
    found = one.run({"x": MANY[:40], "y": Y}, steps=40)
    assert np.array_equal(found["x"], MANY[:40])
    for k in range(40):
        other.run({"x": MANY[k], "y": Y})
        assert np.allclose(found["w"][k], other.store.params["w"], rtol=1e-6)


def test_indices_on_the_device_are_checked_too(machine):
    one = gpu_runner(lookup()[0], machine=machine)
    good = one.run({"index": on_device(machine, np.array([1, 2]))})["out"]
    assert np.array_equal(good, one.store.params["table"][[1, 2]])
    with pytest.raises(ChainruleError, match=r"index\[1\] is 9, and 0 <= index < 5 is declared"):
        one.run({"index": on_device(machine, np.array([1, 9]))})
    with pytest.raises(ChainruleError, match=r"index has dtype int32, int64 is declared(.|\n)*torch.int64"):
        one.run({"index": on_device(machine, np.array([1, 2], np.int32))})


def test_too_little_memory_says_what_for_and_leaves_what_was_there(machine):
    one = gpu_runner(regression(width=1000)[0], machine=machine)
    small = np.ones((4, 1000), np.float32)
    before = one.run({"x": small, "y": small})["s"]
    large = np.ones((100_000, 1000), np.float32)
    with pytest.raises(DeviceMemoryError) as caught:
        one.run({"x": large, "y": large})
    text = str(caught.value)
    assert "bytes are asked for" in text and "67,108,864 are free" in text, text
    assert "a step of regression with batch = 100000 needs 1,2" in text and "Way out: a smaller batch" in text
    assert np.array_equal(one.run({"x": small, "y": small})["s"], before)


def test_where_many_steps_have_no_room_they_are_done_one_by_one():
    machine = Machine(total=200_000)
    one, other = gpu_runner(regression()[0], machine=machine), on_cpu()
    x = np.random.default_rng(0).normal(size=(40, 500, 3)).astype(np.float32)
    found, expected = (r.run({"x": x, "y": x[0]}, steps=40) for r in (one, other))
    assert np.allclose(found["s"], expected["s"], atol=1e-5) and machine.heard("replay") == [7] * 39


def test_a_step_that_was_interrupted_is_waited_for(machine, monkeypatch):
    """Else its graph would read the inputs of the next one."""
    one = gpu_runner(regression()[0], machine=machine)
    for _ in range(2):
        one.run({"x": X, "y": Y})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.again({"x": X, "y": Y})
    monkeypatch.undo()
    waited = []
    monkeypatch.setattr(machine, "wait", lambda: waited.append(len(machine.said)))
    machine.said.clear()
    one.again({"x": X, "y": Y})
    assert waited[0] == 0 and machine.said == [("replay", 9)] and one.store.step == 4


def test_memory_is_given_back(machine):
    one = gpu_runner(regression()[0], machine=machine)
    for size in (1, 1000, 10, 5000, 20):
        x = np.ones((size, 3), np.float32)
        for _ in range(2):
            one.run({"x": x, "y": x})
    assert len(machine.blocks) == 1 + 1 + 1 + 2  # parameters, numbers, the arena, two bindings' results
    del one
    gc.collect()
    assert not machine.blocks


def test_memory_that_only_the_collector_finds_is_found_before_there_is_too_little(machine):
    gc.disable()
    try:
        for _ in range(10):
            store = store_on(machine)
            store.params.arrays["w"] = Resident(DeviceArray.empty(machine, (4_000_000,), np.dtype("f4")))
    finally:
        gc.enable()


@pytest.mark.parametrize("can", [True, False])
def test_a_library_multiplies_where_it_can_and_the_kernel_where_it_cannot(can):
    asked = []

    def library(machine, product):
        asked.append(product)
        if can:
            left = machine.view(product.left.address, product.rows * 3, np.float32).reshape(-1, 3)
            right = machine.view(product.right.address, 6, np.float32).reshape(3, 2)
            machine.view(product.target.address, product.rows * 2, np.float32)[:] = 100 * (left @ right).reshape(-1)
        return can

    machine = Machine(multiply=library)
    one = gpu_runner(dense(), machine=machine)
    found = one.run({"x": X})["out"]
    assert np.allclose(found, (100 if can else 1) * X @ one.store.params["w"], rtol=1e-5)
    assert machine.heard("launch") == ([] if can else ["matmul"]) and asked[0].rows == 4
    assert one.run({"x": X[:0]})["out"].shape == (0, 2) and len(asked) == 1  # nothing is nobody's work
