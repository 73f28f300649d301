"""The real GPU: CUDA's driver through cuda.bindings, which is imported when a GPU is opened.

One context (the device's primary one, which PyTorch and CuPy use too), one stream of ours, which waits for no other,
and memory by cuMemAlloc. What goes to the device passes through pinned memory, so that a write returns at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.runtime.cuda.blas import Blas, BlasError, find_library
from chainrule.runtime.cuda.device import DeviceError, DeviceMemoryError, Product

CUDA = 13_000  # the version of CUDA whose compilers made our PTX, as cuDriverGetVersion counts
DRIVER = 580  # the first version of the driver that knows it
PINNED = 1 << 24  # bytes of memory that the GPU copies from and to by itself
PIECE = PINNED // 4  # of it one copy takes, at most: meanwhile the next piece is prepared

# cuda.h: CUresult
CUDA_ERROR_OUT_OF_MEMORY = 2
CUDA_ERROR_NO_DEVICE = 100
NOT_OF_THIS_GPU = (200, 209, 218, 222)  # INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION
KERNEL_FAILED = (700, 702, 714, 715, 716, 717, 718, 719)  # ILLEGAL_ADDRESS … LAUNCH_FAILED

CU_STREAM_NON_BLOCKING = 1
CU_EVENT_DISABLE_TIMING = 2


def open_device(ordinal: int = 0) -> Gpu:
    """The machine's GPU. Raises DeviceError where there is none, or its driver is missing or too old."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError(
            f"programs for a GPU are run by cuda-bindings, which cannot be imported: {error}"
            "\n  Way out: pip install 'chainrule[cuda]'"
        ) from None
    return Gpu(driver, ordinal, find_library)


class Gpu:
    """A `Device` by CUDA's driver (`driver`: cuda.bindings.driver). find: where cuBLASLt comes from."""

    def __init__(self, driver: Any, ordinal: int = 0, find: Callable[[], Any] = lambda: None) -> None:
        self._driver, self.ordinal, self._process = driver, ordinal, os.getpid()
        self._lock = threading.RLock()  # what one thread records, no other may enqueue into
        self._recording = False
        self._unwanted: list[tuple[str, Any]] = []  # what is to be given back: how, and what
        self._find, self._asked = find, False
        self._blas: Blas | None = None
        device = self._opened()
        self.name = self._call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        attributes = driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        self.architecture = f"sm_{major}{minor}"
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        self._set_current = driver.cuCtxSetCurrent  # for every call: whether it did shows there
        self._set_current(self._context)
        self._stream = self._call("cuStreamCreate", CU_STREAM_NON_BLOCKING)
        self.stream = int(self._stream)
        self._event = self._call("cuEventCreate", CU_EVENT_DISABLE_TIMING)
        self._pinned = self.pinned(PINNED)
        self._place = self._pinned.ctypes.data
        self._at = 0  # where the part of it that no copy reads any more begins
        self._modules: dict[bytes, Any] = {}

    @property
    def library(self) -> bool:
        """Whether cuBLASLt multiplies."""
        with self._entered():
            return self._multiplier() is not None

    def allocate(self, count: int) -> int:
        with self._entered():
            self._sweep()
            try:
                return int(self._call("cuMemAlloc", count))
            except Refused as refused:
                if refused.code != CUDA_ERROR_OUT_OF_MEMORY:
                    raise
                free, total = self._call("cuMemGetInfo")
                raise DeviceMemoryError(count, free, total) from None

    def free(self, address: int) -> None:
        self._unwanted.append(("cuMemFree", address))  # the collector calls this at any time, within a recording too

    def write(self, address: int, data: NDArray[Any]) -> None:
        source = data.reshape(-1).view(np.uint8)
        with self._entered():
            for start in range(0, source.size, PIECE):
                piece = source[start : start + PIECE]
                at = self._staging(piece.size)
                self._pinned[at : at + piece.size] = piece
                self._call("cuMemcpyHtoDAsync", address + start, self._place + at, piece.size, self._stream)

    def read(self, address: int, into: NDArray[Any]) -> None:
        with self._entered():
            if into.nbytes > PIECE:  # the driver pins as it goes
                self._call("cuMemcpyDtoHAsync", into.ctypes.data, address, into.nbytes, self._stream)
                self._synchronize()
                return
            at = self._staging(into.nbytes)
            self._call("cuMemcpyDtoHAsync", self._place + at, address, into.nbytes, self._stream)
            self._synchronize()
            into.reshape(-1).view(np.uint8)[:] = self._pinned[at : at + into.nbytes]

    def copy(self, target: int, source: int, count: int) -> None:
        with self._entered():
            self._call("cuMemcpyDtoDAsync", target, source, count, self._stream)

    def pinned(self, count: int) -> NDArray[np.uint8]:
        with self._entered():
            place = int(self._call("cuMemAllocHost", max(count, 1)))
        found = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(place))
        weakref.finalize(found, self._unwanted.append, ("cuMemFreeHost", place)).atexit = False
        return found

    def send(self, address: int, pinned: NDArray[np.uint8]) -> None:
        with self._entered():
            self._call("cuMemcpyHtoDAsync", address, pinned.ctypes.data, pinned.nbytes, self._stream)

    def fetch(self, pinned: NDArray[np.uint8], address: int) -> None:
        with self._entered():
            self._call("cuMemcpyDtoHAsync", pinned.ctypes.data, address, pinned.nbytes, self._stream)

    def load(self, cubin: bytes, ptx: bytes, symbol: str) -> Any:
        """The function. Raises DeviceError where neither the cubin nor the PTX is for this GPU."""
        with self._entered():
            module = self._modules.get(cubin)
            if module is None:
                module = self._modules[cubin] = self._module(cubin, ptx, symbol)
            return self._call("cuModuleGetFunction", module, symbol.encode())

    def launch(self, function: Any, grid: int, threads: int, arguments: Sequence[int]) -> None:
        words = np.array(arguments, np.int64)
        places = words.ctypes.data + 8 * np.arange(len(words), dtype=np.int64)  # copied when the call returns
        with self._entered():
            parameters = places.ctypes.data
            self._call("cuLaunchKernel", function, grid, 1, 1, threads, 1, 1, 0, self._stream, parameters, 0)

    def multiply(self, product: Product) -> bool:
        with self._entered():
            blas = self._multiplier()
            return blas is not None and blas.multiply(product, measure=not self._recording)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with self._entered():
            mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            self._call("cuStreamBeginCapture", self._stream, mode)
            self._recording = True
            try:
                work()
            except BaseException:
                with contextlib.suppress(DeviceError):  # what went wrong first is what to tell
                    self._call("cuGraphDestroy", self._call("cuStreamEndCapture", self._stream))
                raise
            finally:
                self._recording = False
            graph = self._call("cuStreamEndCapture", self._stream)
            ready = self._call("cuGraphInstantiate", graph, 0)
            self._call("cuGraphDestroy", graph)
            self._call("cuGraphUpload", ready, self._stream)
            return Replay(self, ready)

    def replay(self, ready: Any) -> None:
        """Enqueue a graph that `capture` made."""
        with self._entered():
            self._call("cuGraphLaunch", ready, self._stream)

    def wait(self) -> None:
        with self._entered():
            self._synchronize()

    def after(self, stream: int) -> None:
        with self._entered():
            self._call("cuEventRecord", self._event, stream)
            self._call("cuStreamWaitEvent", self._stream, self._event, 0)

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds that `work` takes on the device."""
        with self._entered():
            first, last = self._call("cuEventCreate", 0), self._call("cuEventCreate", 0)
            self._call("cuEventRecord", first, self._stream)
            work()
            self._call("cuEventRecord", last, self._stream)
            self._call("cuEventSynchronize", last)
            found = self._call("cuEventElapsedTime", first, last)
            for event in (first, last):
                self._call("cuEventDestroy", event)
            return float(found)

    def _opened(self) -> Any:
        """The device's handle, its driver known to be there and new enough."""
        try:
            version = self._call("cuDriverGetVersion")
        except DeviceError:
            raise
        except Exception as problem:  # what the loader of libraries raises has changed from version to version
            raise DeviceError(
                f"there is no NVIDIA driver on this machine\n  {type(problem).__name__}: {problem}"
                f"\n  Way out: run this where there is an NVIDIA GPU with a driver of version {DRIVER} or newer; "
                "to compile needs none"
            ) from None
        if version < CUDA:
            raise DeviceError(
                f"the NVIDIA driver is too old: it knows CUDA {_version(version)}, and programs are compiled for CUDA "
                f"{_version(CUDA)}\n  Way out: install a driver of version {DRIVER} or newer"
            )
        try:
            self._call("cuInit", 0)
            count = self._call("cuDeviceGetCount")
        except Refused as refused:
            if refused.code != CUDA_ERROR_NO_DEVICE:
                raise
            count = 0
        if self.ordinal >= count:
            raise DeviceError(
                f"there is no GPU {self.ordinal}: the NVIDIA driver (of CUDA {_version(version)}) finds {count}"
                f"\n  CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
                "\n  Way out: run this where `nvidia-smi -L` lists one, or target='cpu'"
            )
        return self._call("cuDeviceGet", self.ordinal)

    def _module(self, cubin: bytes, ptx: bytes, symbol: str) -> Any:
        try:
            return self._loaded(cubin)
        except Refused as refused:
            if refused.code not in NOT_OF_THIS_GPU:
                raise
        try:
            return self._loaded(ptx + b"\0")  # the driver compiles it for the GPU that is here
        except Refused as refused:
            if refused.code not in NOT_OF_THIS_GPU:
                raise
            raise DeviceError(
                f"kernel {symbol} was compiled for another GPU, and the driver cannot compile it for {self.name} "
                f"({self.architecture}): {refused.what}"
                f"\n  Way out: compile(target='cuda', arch={self.architecture!r})"
            ) from None

    def _loaded(self, image: bytes) -> Any:
        data = np.frombuffer(image, np.uint8)
        return self._call("cuModuleLoadData", data.ctypes.data)

    def _multiplier(self) -> Blas | None:
        """cuBLASLt, looked for when the first product comes."""
        if not self._asked and not self._recording:
            self._asked, library = True, self._find()
            try:
                self._blas = None if library is None else Blas(library, self, self.timed)
            except (BlasError, DeviceMemoryError):
                self._blas = None  # kernels of our own do
        return self._blas

    def _staging(self, count: int) -> int:
        """The offset of `count` bytes of pinned memory that no copy reads any more."""
        if self._at + count > PINNED:
            self._synchronize()
        at = self._at
        self._at = -(-(at + count) // 256) * 256
        return at

    def _synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)
        self._at = 0
        self._sweep()

    def _sweep(self) -> None:
        """Give back what nobody wants any more."""
        while self._unwanted and not self._recording:
            function, what = self._unwanted.pop()
            with contextlib.suppress(DeviceError):  # after a kernel has failed nothing can be given back
                self._call(function, what)

    def _entered(self) -> threading.RLock:
        """The lock, in a thread for which our context is the current one, as it must be for every call."""
        if os.getpid() != self._process:
            raise DeviceError(
                "a GPU cannot be used in a process that was forked from one that uses it"
                "\n  Way out: start the process with multiprocessing's 'spawn', or open the GPU in the child alone"
            )
        self._set_current(self._context)
        return self._lock

    def _call(self, function: str, *arguments: Any) -> Any:
        """What the driver's function gives beside its code: nothing, one value or a tuple."""
        found = getattr(self._driver, function)(*arguments)
        if found[0]:
            raise self._refused(function, int(found[0]), found[0])
        return found[1] if len(found) == 2 else found[1:]

    def _refused(self, function: str, code: int, told: Any) -> Refused:
        names = (self._driver.cuGetErrorName(told)[1], self._driver.cuGetErrorString(told)[1])
        what = ": ".join(name.decode() if isinstance(name, bytes) else str(name) for name in names)
        if code in KERNEL_FAILED:
            way_out = (
                "begin a new process, this one's GPU memory is lost; run the model with target='cpu' and report it"
            )
            return Refused(code, what, f"a kernel failed on the GPU ({what}, said {function})\n  Way out: {way_out}")
        way_out = "look at what `nvidia-smi` says of the GPU; if it works, report this with the model"
        return Refused(code, what, f"the GPU's driver refuses {function}: {what}\n  Way out: {way_out}")


class Refused(DeviceError):
    """The driver's function did not do it: `code` is its CUresult, `what` its name and meaning."""

    def __init__(self, code: int, what: str, text: str) -> None:
        super().__init__(text)
        self.code, self.what = code, what


class Replay:
    """A graph that is ready; calling it enqueues it."""

    def __init__(self, gpu: Gpu, ready: Any) -> None:
        self._gpu, self._ready = gpu, ready
        weakref.finalize(self, gpu._unwanted.append, ("cuGraphExecDestroy", ready)).atexit = False

    def __call__(self) -> None:
        self._gpu.replay(self._ready)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
