"""Arrays on a GPU: ours for other libraries, and theirs for us, by ``__cuda_array_interface__`` and DLPack, uncopied.

What order two streams have: a call of ours returns when all that it did is done, so whoever reads its arrays has to
wait for nothing; what others may still be writing is waited for by our stream, as their protocol says.
"""

from __future__ import annotations

import functools
import gc
import importlib
import math
import weakref
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.runtime.buffers import Shape
from chainrule.runtime.cuda.device import ALIGNMENT, Device, DeviceMemoryError
from chainrule.runtime.store import Store
from chainrule.runtime.values import Array

CUDA = 2  # kDLCUDA, what DLPack calls the memory of NVIDIA's GPUs


class Block:
    """Memory of a device, which is given back when nobody refers to it any more."""

    def __init__(self, device: Device, count: int) -> None:
        self.count = max(count, 1)
        try:
            self.address = device.allocate(self.count)
        except DeviceMemoryError:
            gc.collect()  # Python does not know how much a store that nobody can reach still holds there
            self.address = device.allocate(self.count)
        weakref.finalize(self, device.free, self.address).atexit = False  # the driver may have gone before


class DeviceArray:
    """A C-contiguous array on a GPU: any library reads it without a copy; `numpy` and `np.asarray` copy it here.

    owner: what keeps its memory.
    """

    def __init__(
        self, device: Device, shape: Shape, dtype: np.dtype[Any], address: int, owner: object, readonly: bool = False
    ) -> None:
        self.device, self.shape, self.dtype, self.address = device, tuple(shape), np.dtype(dtype), address
        self.owner, self.readonly = owner, readonly

    @classmethod
    def empty(cls, device: Device, shape: Shape, dtype: np.dtype[Any]) -> DeviceArray:
        """An array with memory of its own."""
        block = Block(device, math.prod(shape) * dtype.itemsize)
        return cls(device, shape, dtype, block.address, block)

    @classmethod
    def of(cls, device: Device, array: Array) -> DeviceArray:
        """A copy of an array of the host's."""
        found = cls.empty(device, array.shape, array.dtype)
        if array.nbytes:
            device.write(found.address, np.ascontiguousarray(array))
        return found

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def numpy(self) -> Array:
        """A copy on the host."""
        found = np.empty(self.shape, self.dtype)
        if self.nbytes:
            self.device.read(self.address, found)
        return found

    def fill(self, value: Any) -> None:
        """Let its elements be those of `value`, an array of the host's that broadcasts to it."""
        whole = np.empty(self.shape, self.dtype)
        whole[...] = value
        if self.nbytes:
            self.device.write(self.address, whole)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on a GPU cannot be read here without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; no stream: nothing has to be waited for."""
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.address if self.size else 0, self.readonly),
            "strides": None, "stream": None, "version": 3,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule that keeps this array; whatever stream it is read in, nothing has to be waited for."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a copy, or a move to another device, is its reader's business")
        return _views().from_cuda_array_interface(self, -1).__dlpack__(max_version=max_version)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> DeviceArray:
        """Elements in a row along the first axis, where they lie."""
        start, stop, step = part.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"a part of an array on a GPU has no gaps: {part}")
        count = max(stop - start, 0)
        at = self.address + start * (self.nbytes // max(self.shape[0], 1))
        return DeviceArray(self.device, (count, *self.shape[1:]), self.dtype, at, self.owner, self.readonly)

    def reshape(self, shape: Shape) -> DeviceArray:
        """Its elements in their order under another shape, where they lie."""
        if math.prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} cannot be one of shape {shape}")
        return DeviceArray(self.device, shape, self.dtype, self.address, self.owner, self.readonly)

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on {self.device.name})"


class Resident:
    """A tensor of a store that lies on a device: reading copies it to the host, assigning writes it there."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def copy(self) -> Array:
        return self.array.numpy()

    def __setitem__(self, everything: EllipsisType, value: Any) -> None:
        self.array.fill(value)


def store_on(device: Device, seed: int = 0) -> Store:
    """A store whose parameters and states lie on `device`; they start with the values that they have on the CPU."""
    return Store(seed, lambda kinds: residents(device, kinds))


def residents(device: Device, kinds: Sequence[tuple[Shape, np.dtype[Any]]]) -> list[Resident]:
    """A tensor of each shape and dtype, side by side in one block."""
    offsets, total = [], 0
    for shape, dtype in kinds:
        offsets.append(total)
        total += padded(math.prod(shape) * dtype.itemsize)
    try:
        block = Block(device, total)
    except DeviceMemoryError as error:
        raise error.during(f"parameters and states need {total:,} bytes") from None
    places = zip(kinds, offsets, strict=True)
    return [Resident(DeviceArray(device, shape, dtype, block.address + at, block)) for (shape, dtype), at in places]


def padded(count: int) -> int:
    """So many bytes that what comes next is aligned."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def is_on_gpu(value: object) -> bool:
    """Whether an array, of whatever library, lies on a GPU."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, DeviceArray):
        return True
    where = getattr(value, "__dlpack_device__", None)
    if where is not None:
        return bool(where()[0] == CUDA)
    return hasattr(value, "__cuda_array_interface__")


def adopt(name: str, value: Any, device: Device) -> DeviceArray:
    """An array of another library, on this GPU, as ours; what still writes it is done before our stream goes on.

    Raises ChainruleError where it lies elsewhere, is not C-contiguous, or is not to be had.
    """
    if isinstance(value, DeviceArray):
        return value
    try:
        found, strides, ordinal = _viewed(value, device)
    except Exception as problem:  # whatever another library says, its user should see our words
        raise ChainruleError(
            f"input {name} cannot be read as an array on a GPU"
            f"\n  given: {type(value).__module__}.{type(value).__qualname__}\n  {type(problem).__name__}: {problem}"
            f"\n  Way out: of torch, {name}.detach(); else copy it to the host"
        ) from None
    if ordinal != device.ordinal:
        raise ChainruleError(
            f"input {name} lies on GPU {ordinal}, the program runs on GPU {device.ordinal} ({device.name})"
            f"\n  Way out: move {name} to GPU {device.ordinal}"
        )
    if strides is not None and not _lies_together(found.shape, strides):
        raise ChainruleError(
            f"input {name} lies on the GPU with gaps or transposed: shape {found.shape}, strides {strides} (elements)"
            f"\n  Way out: pass a contiguous copy (of torch: {name}.contiguous(); of cupy: ascontiguousarray({name}))"
        )
    return found


def check_element(name: str, array: DeviceArray, element: str) -> None:
    """Raises ChainruleError where an array on the GPU is not of the dtype declared: nothing is cast there."""
    if array.dtype.name != element and array.size:
        raise ChainruleError(
            f"input {name} has dtype {array.dtype}, {element} is declared"
            f"\n  given: {name} of shape {array.shape} and dtype {array.dtype}, on the GPU"
            f"\n  Way out: cast it there (of torch: {name}.to(torch.{element}); of cupy: {name}.astype('{element}'))"
        )


def _viewed(value: Any, device: Device) -> tuple[DeviceArray, Shape | None, int]:
    """The array as it lies, its strides in elements (None: contiguous), and the GPU that it lies on."""
    if hasattr(value, "__dlpack__"):
        view = _views().from_dlpack(value, device.stream)  # the producer lets our stream wait
        array = DeviceArray(device, view.shape, np.dtype(view.dtype), view.ptr, view, view.readonly)
        return array, view.strides, int(value.__dlpack_device__()[1])
    told = value.__cuda_array_interface__
    if told.get("mask") is not None:
        raise ValueError("it is masked")
    address, readonly = told["data"]
    array = DeviceArray(device, told["shape"], np.dtype(told["typestr"]), address, value, readonly)
    if told.get("stream") is not None and told.get("version", 0) >= 3:
        device.after(int(told["stream"]))
    strides = told.get("strides")
    counted = None if strides is None else tuple(step // array.dtype.itemsize for step in strides)
    return array, counted, device.ordinal  # the protocol does not say which: other libraries use the current one


def _lies_together(shape: Shape, strides: Shape) -> bool:
    """Whether these are the strides, in elements, of a C-contiguous array; of an axis of extent 1 they say nothing."""
    if 0 in shape:
        return True
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


@functools.cache
def _views() -> Any:
    """cuda.core's views of what libraries export; imported (0.3 s) when the first such array comes."""
    return importlib.import_module("cuda.core.utils").StridedMemoryView
