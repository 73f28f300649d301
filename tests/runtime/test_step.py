"""A step takes what a NumPy user passes, says what is wrong before anything changes, and gives copies."""

from __future__ import annotations

import threading
import time
import warnings

import msgspec
import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.runtime import step as step_module
from chainrule.runtime.cuda.arrays import store_on
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from tests.runtime.cuda.machine import Machine, gpu_runner
from tests.runtime.programs import lookup, regression, walker

X, Y = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


class OnCpu:
    store = Store

    def __call__(self, store: Store | None = None, program=regression, **options) -> Runner:
        return Runner(*program(**options), store or Store(1), walker(), threads=1)


class OnGpu:
    """The same programs on a machine of Python: whoever calls a program should see no difference."""

    def __init__(self) -> None:
        self.machine = Machine()

    def store(self, seed: int) -> Store:
        return store_on(self.machine, seed)

    def __call__(self, store: Store | None = None, program=regression, **options):
        return gpu_runner(program(**options)[0], store, self.machine)


@pytest.fixture(params=(OnCpu, OnGpu))
def runner(request):
    return request.param()


RATE = np.float32(0.125)


def reference(w, x, y, rate=RATE):
    d = x - y
    return d.sum(1), w - rate * (d[0] * w)


def test_a_step_computes_what_its_program_says(runner):
    store = runner.store(1)
    one = runner(store)
    for count in range(1, 4):
        before = store.params["w"]
        found = one.run({"x": X, "y": Y})
        s, w = reference(before, X, Y)
        assert np.allclose(found["s"], s, rtol=1e-6) and np.allclose(store.params["w"], w, rtol=1e-6)
        assert found["loss"] == pytest.approx(s.sum(), rel=1e-5) and found["loss"].ndim == 0
        assert isinstance(found["loss"], np.float32) and found["count"] == count


def test_a_new_batch_size_needs_no_compiler_and_an_old_one_is_found_again(runner):
    one = runner()
    for size in (4, 1, 0, 7, 4, 100, 7, 4):
        x, y = np.random.default_rng(size).normal(size=(2, max(size, 1), 3)).astype(np.float32)
        if size:
            assert np.allclose(one.run({"x": x, "y": y})["s"], (x - y).sum(1), atol=1e-5)
    assert len(one._bindings) in (3, 4)  # on a GPU the largest batch takes the memory of those before
    for size in range(1, 40):
        one.run({"x": np.ones((size, 3)), "y": np.ones((size, 3))})
    assert len(one._bindings) == step_module.BINDINGS


def test_a_batch_of_nothing_runs(runner):
    found = runner(runner.store(1), lookup).run({"index": np.zeros(0, np.int64)})
    assert found["out"].shape == (0,)


def test_results_are_copies(runner):
    one = runner()
    first = one.run({"x": X, "y": Y})
    kept = {name: np.array(value) for name, value in first.items()}
    one.run({"x": Y, "y": 2 * X})
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


class Foreign:
    """Something of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ByDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


CONVERSIONS = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "big endian": lambda a: a.astype(">f4"),
    "list": lambda a: a.tolist(),
    "__array__": Foreign,
    "DLPack": ByDLPack,
    "transposed": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.float32).reshape(a.shape),
}


@pytest.mark.parametrize("form", CONVERSIONS)
def test_every_form_of_the_same_numbers_gives_the_same_result(runner, form):
    x = np.round(X * 4) / 4  # exact in float16
    expected = runner().run({"x": x, "y": Y})["s"]
    one = runner()
    for _ in range(3):  # the second and third call take the short way
        assert np.array_equal(one.run({"x": CONVERSIONS[form](x), "y": Y})["s"], expected)


def test_integers_are_cast_silently_where_nothing_is_lost(runner):
    one = runner(runner.store(1), lookup)
    table = one.store.params["table"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, bool):
            for _ in range(2):
                found = one.run({"index": np.array([1, 0, 1], dtype)})["out"]
                assert np.array_equal(found, table[[1, 0, 1]])


BAD = {
    "float labels": ({"index": [1.0, 2.0]}, ["input index", "float64", "int64", ".astype('int64')"]),
    "large uint64": ({"index": np.array([2**63], np.uint64)}, ["input index", "uint64"]),
    "text": ({"index": ["a", "b"]}, ["input index", "Way out"]),
    "objects": ({"index": [None]}, ["input index", "object"]),
    "ragged": ({"index": [[1], [1, 2]]}, ["input index", "cannot be read", "Way out"]),
    "rank": ({"index": [[1]]}, ["input index has 2 axes, 1 are declared", "[batch]"]),
    "missing": ({}, ["input index is missing", "Way out"]),
    "unknown": ({"indx": [1], "index": [1]}, ["no input 'indx'", "did you mean 'index'?"]),
    "too many": ({"index": np.zeros(1001, int)}, ["batch is 1001", "<= 1000"]),
    "negative": ({"index": [0, 1, -1]}, ["index[2] is -1", "0 <= index < 5", "no step was done"]),
    "too large": ({"index": [5]}, ["index[0] is 5", "0 <= index < 5", "Way out"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_a_way_out_and_the_next_good_one_runs(runner, case):
    inputs, said = BAD[case]
    one = runner(runner.store(1), lookup)
    good = one.run({"index": [1, 2, 3]})["out"]
    for _ in range(2):
        with pytest.raises(ChainruleError) as caught:
            one.run(inputs)
        for words in said:
            assert words in str(caught.value), str(caught.value)
        assert np.array_equal(one.run({"index": np.array([1, 2, 3])})["out"], good)


def trained_lookup():
    """`lookup` as a training program: its clock shows whether a step was done."""
    executable, objects = lookup()
    return msgspec.structs.replace(executable, training=True), objects


def test_a_bad_index_changes_nothing_not_even_the_clock(runner):
    one = runner(runner.store(1), trained_lookup)
    one.run({"index": np.array([1, 2])})
    for _ in range(2):
        with pytest.raises(ChainruleError, match=r"index\[1\] is 9"):
            one.run({"index": np.array([1, 9])})
    with pytest.raises(ChainruleError, match=r"index\[2, 0\] is 7"):
        one.run({"index": np.array([[1, 1], [2, 2], [7, 0]])}, steps=3)
    assert one.store.step == 1


def test_the_error_for_shapes_names_both_inputs(runner):
    with pytest.raises(ChainruleError, match="from input x of shape"):
        runner().run({"x": X, "y": Y[:3]})


def test_a_shape_that_would_broadcast_is_refused_on_the_short_way_too(runner):
    one = runner()
    one.run({"x": X, "y": Y})
    for bad in (Y[:1], np.float32(1.0), Y[0]):
        with pytest.raises(ChainruleError):
            one.run({"x": X, "y": bad})


def test_outputs_can_be_chosen_and_unknown_ones_are_named(runner):
    assert set(runner().run({"x": X, "y": Y}, outputs=["loss"])) == {"loss"}
    with pytest.raises(ChainruleError, match="did you mean 'loss'"):
        runner().run({"x": X, "y": Y}, outputs=["los"])


def test_an_input_without_a_leading_axis_serves_all_steps(runner):
    one, two = runner(), runner()
    many = one.run({"x": np.stack([X, X]), "y": Y}, steps=2)
    assert np.array_equal(many["s"][1], two.run({"x": X, "y": Y})["s"])
    with pytest.raises(ChainruleError, match="2 slices for 3 steps"):
        one.run({"x": np.stack([X, X]), "y": Y}, steps=3)
    with pytest.raises(ChainruleError, match="Way out"):
        one.run({"x": X, "y": Y}, steps=0)


def test_a_run_time_number_changes_without_a_compiler(runner):
    store = runner.store(1)
    one = runner(store)
    store.scalars["rate"] = 0.5
    before = store.params["w"]
    one.run({"x": X, "y": Y})
    assert np.allclose(store.params["w"], reference(before, X, Y, np.float32(0.5))[1])


def test_a_run_time_number_may_differ_from_step_to_step(runner):
    one, other = runner(), runner()
    rates, x = [0.5, 0.0, 0.25], np.stack([X, 2 * X, 3 * X])
    many = one.run({"x": x, "y": Y}, steps=3, scalars={"rate": rates})
    for k, rate in enumerate(rates):
        other.store.scalars["rate"] = rate
        assert np.array_equal(other.run({"x": x[k], "y": Y})["s"], many["s"][k])
    assert np.array_equal(one.store.params["w"], other.store.params["w"]) and one.store.scalars["rate"] == 0.25
    with pytest.raises(ChainruleError, match="did you mean 'rate'"):
        one.run({"x": x, "y": Y}, steps=3, scalars={"rats": rates})
    with pytest.raises(ChainruleError, match=r"rate has values of shape \(2,\) for 3 steps"):
        one.run({"x": x, "y": Y}, steps=3, scalars={"rate": rates[:2]})


def test_two_programs_share_one_store(runner):
    store = runner.store(1)
    train, other = runner(store), runner(store)
    train.run({"x": X, "y": Y})
    assert other.run({"x": X, "y": Y})["count"] == 2 and store.step == 2


def many_times(call):
    for _ in range(100):
        call()


def test_many_steps_are_done_in_chunks_that_ctrl_c_can_end(runner):
    one = runner()
    x = np.broadcast_to(X, (200_000, 4, 3))
    main = threading.main_thread().ident
    threading.Timer(0.15, lambda: __import__("signal").pthread_kill(main, 2)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        many_times(lambda: one.run({"x": x, "y": Y}, steps=200_000))
    assert time.perf_counter() - start < 10
    done = one.store.step
    assert done > 0 and one.run({"x": X, "y": Y})["count"] == np.float32(done + 1)
