"""The real driver's calls, on a driver of Python that does what its stream holds as late as it may."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from chainrule.runtime.cuda import driver as driver_module
from chainrule.runtime.cuda.arrays import store_on
from chainrule.runtime.cuda.device import DeviceError, DeviceMemoryError
from chainrule.runtime.cuda.driver import PINNED, Gpu, open_device
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from tests.runtime.cuda.machine import KERNELS, dense, gpu_runner
from tests.runtime.cuda.test_blas import Library
from tests.runtime.programs import regression, walker

STREAM, EVENT = 0x1000, 0x2000


class Driver:
    """cuda.bindings.driver, with the host's memory as the device's; work waits in the stream until someone does."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self, version=13_000, count=1, arch=(9, 0), total=1 << 28, cubins=True, ptx=True):
        self.version, self.count, self.arch, self.total = version, count, arch, total
        self.loads = {b"cubin": cubins, b"ptx": ptx}
        self.blocks: dict[int, np.ndarray] = {}
        self.pending: list = []
        self.recorded: list | None = None
        self.graphs: dict[int, list] = {}
        self.numbers = itertools.count(1)
        self.modules: dict[int, str] = {}
        self.said: list[str] = []
        self.fails = 0

    def cuDriverGetVersion(self):
        return 0, self.version

    def cuInit(self, flags):
        return (0 if self.count else 100,)

    def cuDeviceGetCount(self):
        return 0, self.count

    def cuDeviceGet(self, ordinal):
        return 0, 40 + ordinal

    def cuDeviceGetName(self, length, device):
        return 0, b"NVIDIA H200".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute, device):
        return 0, self.arch[attribute == "minor"]

    def cuDevicePrimaryCtxRetain(self, device):
        return 0, "context"

    def cuCtxSetCurrent(self, context):
        assert context == "context"
        return (0,)

    def cuStreamCreate(self, flags):
        assert flags == 1
        return 0, STREAM

    def cuEventCreate(self, flags):
        return 0, EVENT

    def cuEventDestroy(self, event):
        return (0,)

    def cuEventRecord(self, event, stream):
        self.said.append(f"record {stream:#x}")
        return (0,)

    def cuStreamWaitEvent(self, stream, event, flags):
        self.said.append(f"wait {stream:#x}")
        return (0,)

    def cuEventSynchronize(self, event):
        return self.cuStreamSynchronize(STREAM)

    def cuEventElapsedTime(self, first, last):
        return 0, 1.0

    def _block(self, count):
        block = np.full(count + 256, 0xA5, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.blocks[address] = block
        return 0, address

    def cuMemAllocHost(self, count):
        return self._block(count)

    def cuMemAlloc(self, count):
        assert self.recorded is None
        if count > self.cuMemGetInfo()[1]:
            return 2, None
        return self._block(count)

    def cuMemFree(self, address):
        assert self.recorded is None
        del self.blocks[address]
        return (0,)

    cuMemFreeHost = cuMemFree

    def cuMemGetInfo(self):
        return 0, self.total - sum(block.size for block in self.blocks.values()) + PINNED, self.total

    def _enqueue(self, stream, work):
        assert stream == STREAM
        (self.pending if self.recorded is None else self.recorded).append(work)
        return (0,)

    def cuMemcpyHtoDAsync(self, target, source, count, stream):
        return self._enqueue(stream, lambda: ctypes.memmove(target, source, count))

    def cuMemcpyDtoHAsync(self, target, source, count, stream):
        return self._enqueue(stream, lambda: ctypes.memmove(target, source, count))

    def cuMemcpyDtoDAsync(self, target, source, count, stream):
        return self._enqueue(stream, lambda: ctypes.memmove(target, source, count))

    def cuStreamSynchronize(self, stream):
        assert self.recorded is None
        while self.pending:
            self.pending.pop(0)()
        return (self.fails,)

    def cuModuleLoadData(self, image):
        text = ctypes.string_at(image)  # to the first zero
        kind, _, symbol = text.partition(b" of ")
        if not self.loads[kind]:
            return 209, None
        self.said.append(f"load {text.decode()}")
        self.modules[len(self.modules)] = symbol.decode()
        return 0, len(self.modules) - 1

    def cuModuleGetFunction(self, module, symbol):
        assert self.modules[module] == symbol.decode()
        return 0, symbol.decode()

    def cuLaunchKernel(self, function, x, y, z, a, b, c, shared, stream, parameters, extra):
        assert (y, z, b, c, shared, extra) == (1, 1, 1, 1, 0, 0) and x > 0 and a > 0
        kernel = KERNELS[function]
        places = (ctypes.c_int64 * (kernel.__code__.co_argcount)).from_address(parameters)
        words = [ctypes.c_int64.from_address(place).value for place in places]
        return self._enqueue(stream, lambda: kernel(self, *words[:-1]))

    def view(self, address, count, dtype=np.uint8):
        size = count * np.dtype(dtype).itemsize
        if not size:
            return np.empty(0, dtype)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)

    def cuStreamBeginCapture(self, stream, mode):
        assert stream == STREAM and mode == "thread local" and self.recorded is None
        self.recorded = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        graph, self.recorded = self.recorded, None
        number = next(self.numbers)
        self.graphs[number] = graph
        return 0, number

    def cuGraphInstantiate(self, graph, flags):
        number = -graph
        self.graphs[number] = list(self.graphs[graph])
        return 0, number

    def cuGraphDestroy(self, graph):
        del self.graphs[graph]
        return (0,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphUpload(self, graph, stream):
        return (0,)

    def cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph]:
            self._enqueue(stream, work)
        return (0,)

    def cuGetErrorName(self, code):
        return 0, f"CUDA_ERROR_{code}".encode()

    def cuGetErrorString(self, code):
        return 0, b"what it means"


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def gpu(driver):
    return Gpu(driver)


def test_a_gpu_says_what_it_is(gpu):
    assert (gpu.name, gpu.architecture, gpu.ordinal, gpu.stream) == ("NVIDIA H200", "sm_90", 0, STREAM)


@pytest.mark.parametrize("count", [0, 1, 1000, PINNED // 4 + 1, 3 * PINNED + 7])
def test_what_is_written_is_read_back_whatever_becomes_of_the_array(gpu, count):
    at = gpu.allocate(count)
    data = np.random.default_rng(count).integers(0, 255, count, np.uint8)
    kept = data.copy()
    gpu.write(at, data)
    data[:] = 0
    found = np.empty(count, np.uint8)
    gpu.read(at, found)
    assert np.array_equal(found, kept)


def test_many_writes_before_anybody_waits_keep_apart(gpu):
    places = [gpu.allocate(1 << 20) for _ in range(40)]
    for k, place in enumerate(places):
        gpu.write(place, np.full(1 << 20, k, np.uint8))
    for k, place in enumerate(places):
        found = np.empty(1 << 20, np.uint8)
        gpu.read(place, found)
        assert (found == k).all()


def test_a_sabotaged_ring_of_pinned_memory_is_noticed(gpu, monkeypatch):
    monkeypatch.setattr(Gpu, "_staging", lambda self, count: 0)
    with pytest.raises(AssertionError):
        test_many_writes_before_anybody_waits_keep_apart(gpu)


def test_a_program_runs_as_on_the_cpu(driver):
    for find in (lambda: None, lambda: Library(SimpleNamespace(view=driver.view, stream=STREAM))):
        gpu = Gpu(driver, find=find)
        there = gpu_runner(regression()[0], store_on(gpu, 1), gpu)
        here = Runner(*regression(), Store(1), walker(), threads=1)
        many, y = np.random.default_rng(1).normal(size=(77, 4, 3)).astype("f4"), np.ones((4, 3), "f4")
        for batch, steps in ((many[0], None), (many[1], None), (many, 77), (many[:3], 3)):
            found, expected = (r.run({"x": batch, "y": y}, steps) for r in (there, here))
            for name in expected:
                assert np.allclose(found[name], expected[name], rtol=1e-6), name
        assert np.allclose(there.store.params["w"], here.store.params["w"], rtol=1e-6)


def test_cublas_multiplies_where_it_is_found(driver):
    library = Library(SimpleNamespace(view=driver.view, stream=STREAM), algorithms=3)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("f4")
    for find, used in ((lambda: library, True), (lambda: None, False)):
        gpu = Gpu(driver, find=find)
        assert gpu.library is used
        one = gpu_runner(dense(scale=0.5 if used else 1.0), store_on(gpu, 1), gpu)
        for _ in range(3):
            found = one.run({"x": x})["out"]
            assert np.allclose(found, (0.5 if used else 1) * x @ one.store.params["w"], rtol=1e-5)
    assert len(library.used) == 3 * (1 + 1 + 1) + 2  # measured once, done once, and recorded once


def test_what_is_recorded_is_done_by_each_replay_alone(gpu, driver):
    a, b = gpu.allocate(8), gpu.allocate(8)
    gpu.write(a, np.array([1.0]))
    gpu.write(b, np.array([0.0]))
    replay = gpu.capture(lambda: gpu.copy(b, a, 8))
    found = np.empty(1)
    gpu.read(b, found)
    assert found == 0.0
    replay()
    gpu.read(b, found)
    assert found == 1.0


def test_a_recording_that_fails_leaves_the_stream_usable(gpu, driver):
    with pytest.raises(ZeroDivisionError):
        gpu.capture(lambda: 1 // 0)
    assert driver.recorded is None and not driver.graphs
    test_what_is_recorded_is_done_by_each_replay_alone(gpu, driver)


def test_nothing_is_given_back_within_a_recording(gpu, driver):
    at = gpu.allocate(8)
    gpu.capture(lambda: gpu.free(at))
    gpu.wait()
    assert at not in driver.blocks


def test_graphs_nobody_can_replay_are_given_back(gpu, driver):
    replay = gpu.capture(lambda: None)
    assert len(driver.graphs) == 1
    del replay
    gc.collect()
    gpu.wait()
    assert not driver.graphs


def test_our_stream_waits_for_another(gpu, driver):
    gpu.after(7)
    assert driver.said == ["record 0x7", f"wait {STREAM:#x}"]


def test_modules_are_loaded_once(gpu, driver):
    for _ in range(2):
        assert gpu.load(b"cubin of times", b"ptx of times", "times") == "times"
    assert driver.said == ["load cubin of times"]


def test_another_architecture_gets_the_ptx():
    driver = Driver(arch=(10, 0), cubins=False)
    assert Gpu(driver).load(b"cubin of times", b"ptx of times", "times") == "times"
    assert driver.said == ["load ptx of times"]


def text_of(call, kind=DeviceError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_an_older_architecture_is_told_what_to_compile_for():
    gpu = Gpu(Driver(arch=(8, 0), cubins=False, ptx=False))
    text = text_of(lambda: gpu.load(b"cubin of times", b"ptx of times", "times"))
    assert "kernel times was compiled for another GPU" in text and "NVIDIA H200 (sm_80)" in text
    assert "Way out: compile(target='cuda', arch='sm_80')" in text


def test_too_little_memory_says_how_much_there_is():
    gpu = Gpu(Driver(total=1_000_000))
    text = text_of(lambda: gpu.allocate(2_000_000), DeviceMemoryError)
    assert "2,000,000 bytes are asked for" in text and "of 1,000,000 are free" in text


def test_an_old_driver_is_named_with_both_versions():
    text = text_of(lambda: Gpu(Driver(version=12_080)))
    assert "it knows CUDA 12.8, and programs are compiled for CUDA 13.0" in text and "version 580 or newer" in text


@pytest.mark.parametrize(("count", "ordinal"), [(0, 0), (2, 2)])
def test_no_gpu_is_said(count, ordinal, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = text_of(lambda: Gpu(Driver(count=count), ordinal))
    assert f"there is no GPU {ordinal}: the NVIDIA driver (of CUDA 13.0) finds {count}" in text
    assert "CUDA_VISIBLE_DEVICES is" in text and "Way out" in text


def test_a_missing_driver_is_said():
    class Missing(Driver):
        def cuDriverGetVersion(self):
            raise RuntimeError("libcuda.so.1 is not here")

    text = text_of(lambda: Gpu(Missing()))
    assert "there is no NVIDIA driver on this machine" in text and "libcuda.so.1 is not here" in text


def test_missing_packages_are_said(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(driver_module.importlib, "import_module", absent)
    text = text_of(open_device)
    assert "No module named 'cuda'" in text and "pip install 'chainrule[cuda]'" in text


def test_on_a_machine_without_a_gpu_the_real_way_ends_in_words():
    bindings = pytest.importorskip("cuda.bindings.driver")
    try:
        bindings.cuInit(0)
    except Exception:
        assert "there is no NVIDIA driver on this machine" in text_of(open_device)
    else:
        pytest.skip("there is a driver here")


def test_a_kernel_that_failed_is_said(gpu, driver):
    driver.fails = 700
    text = text_of(gpu.wait)
    assert "a kernel failed on the GPU (CUDA_ERROR_700: what it means, said cuStreamSynchronize)" in text
    driver.fails = 801
    assert "the GPU's driver refuses cuStreamSynchronize: CUDA_ERROR_801" in text_of(gpu.wait)


def test_a_forked_process_is_told_to_spawn(gpu, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert "'spawn'" in text_of(gpu.wait)


def test_threads_do_not_disturb_each_other_s_recordings(gpu):
    """Each has a program of its own, on the one stream of the device."""
    batches = {n: np.random.default_rng(n).normal(size=(9, n, 3)).astype("f4") for n in (3, 5, 8)}
    found: dict[int, list] = {}

    def train(n: int) -> None:
        one = gpu_runner(regression()[0], store_on(gpu, n), gpu)
        rows = batches[n]
        for _ in range(5):
            losses = [one.again({"x": x, "y": rows[0]}) or one.run({"x": x, "y": rows[0]}) for x in rows]
            one.run({"x": rows, "y": rows[0]}, 9)
        found[n] = [losses[-1]["loss"], one.store.params["w"]]

    threads = [threading.Thread(target=train, args=(n,)) for n in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, rows in batches.items():
        here = Runner(*regression(), Store(n), walker(), threads=1)
        for _ in range(5):
            losses = [here.run({"x": x, "y": rows[0]}) for x in rows]
            here.run({"x": rows, "y": rows[0]}, 9)
        assert np.allclose(found[n][0], losses[-1]["loss"], rtol=1e-4, atol=1e-5)
        assert np.allclose(found[n][1], here.store.params["w"], rtol=1e-4, atol=1e-6)


def test_pinned_memory_is_given_back_with_the_array(gpu, driver):
    count = len(driver.blocks)
    kept = gpu.pinned(100)[10:20]
    gc.collect()
    gpu.wait()
    assert len(driver.blocks) == count + 1 and gpu.pinned(0).size == 0
    del kept
    gc.collect()
    gpu.wait()
    assert len(driver.blocks) == count
