"""A device for the runtime, made of the interpreter: the `Device` protocol of `chainrule.runtime.cuda`."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.runtime.cuda.device import DeviceMemoryError, Operand, Product
from tests.cuda.decode import Kernel, decode
from tests.cuda.flow import flow
from tests.cuda.machine import Machine
from tests.cuda.memory import GLOBAL, Space, reserved
from tests.cuda.ptx import PTXError, Variable, parse
from tests.cuda.rounding import from_bf16, to_bf16, to_tf32


@functools.lru_cache(maxsize=512)
def decoded(ptx: str, symbol: str) -> tuple[Kernel, tuple[Variable, ...]]:
    """The kernel, and the variables of its module."""
    collecting = gc.isenabled()
    gc.disable()  # tens of thousands of small objects, none of them garbage
    try:
        module = parse(ptx)
        return decode(flow(module, symbol)), module.variables
    finally:
        if collecting:
            gc.enable()


ROUNDED: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "float32": np.asarray,
    "tf32": to_tf32,
    "bf16": lambda x: from_bf16(to_bf16(x)),
}


ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "": np.asarray,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


@dataclass(frozen=True)
class Loaded:
    """A kernel and where its module's variables are."""

    kernel: Kernel
    symbols: dict[str, int]


class Interpreter:
    """Memory of `capacity` bytes and a stream that runs each call at once; `races`: whether to watch for them."""

    name = "PTX interpreter"
    architecture = "sm_90"
    stream = 0
    ordinal = 0

    def __init__(self, capacity: int = 1 << 32, races: bool = True) -> None:
        self.memory = Space("global", reserved(capacity), GLOBAL)
        self.machine = Machine(self.memory, races)
        self.recording: list[Callable[[], None]] | None = None
        self.launched: list[tuple[str, int, int]] = []  # kernel, CTAs, threads: what tests ask about
        self.multiplied: list[Product] = []

    def allocate(self, count: int) -> int:
        try:
            return self.memory.allocate(max(count, 1))
        except MemoryError:
            size = len(self.memory.data)
            raise DeviceMemoryError(count, size - (self.memory.top - self.memory.base), size) from None

    def free(self, address: int) -> None:
        self.memory.free(address)

    def bytes(self, address: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes of global memory; raises PTXError for bytes that lie in no allocation."""

        def fail(at: int, problem: str) -> None:
            raise PTXError(f"a copy of {count} bytes: {problem}")

        if count == 0:
            return np.empty(0, np.uint8)
        self.memory.index(np.int64(address), 1, 1, fail)
        self.memory.index(np.int64(address + count - 1), 1, 1, fail)
        start = address - self.memory.base
        return self.memory.data[start : start + count]

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def write(self, address: int, data: NDArray[Any]) -> None:
        if not data.flags.c_contiguous:
            raise PTXError("a copy to the device of an array that is not C-contiguous")
        kept = data if self.recording is None else data.copy()
        self.enqueue(lambda: self.put(address, kept))

    def put(self, address: int, data: NDArray[Any]) -> None:
        self.bytes(address, data.nbytes)[:] = data.reshape(-1).view(np.uint8)

    def read(self, address: int, into: NDArray[Any]) -> None:
        self.refuse_in_capture("read")
        if not into.flags.c_contiguous:
            raise PTXError("a copy from the device into an array that is not C-contiguous")
        into.reshape(-1).view(np.uint8)[:] = self.bytes(address, into.nbytes)

    def copy(self, target: int, source: int, count: int) -> None:
        def work() -> None:
            self.bytes(target, count)[:] = self.bytes(source, count).copy()

        self.enqueue(work)

    def pinned(self, count: int) -> NDArray[np.uint8]:
        return np.full(count, 0xA5, np.uint8)

    def send(self, address: int, pinned: NDArray[np.uint8]) -> None:
        self.enqueue(lambda: self.put(address, pinned))

    def fetch(self, pinned: NDArray[np.uint8], address: int) -> None:
        def work() -> None:
            pinned[:] = self.bytes(address, pinned.nbytes)

        self.enqueue(work)

    def load(self, cubin: bytes, ptx: bytes, symbol: str) -> Loaded:
        """The kernel `symbol` of the text; its module's variables get memory of their own."""
        self.refuse_in_capture("load")
        kernel, variables = decoded(ptx.decode(), symbol)
        symbols = {}
        for v in variables:
            if v.space in ("global", "const"):
                symbols[v.name] = self.memory.allocate(max(v.size, 1), max(v.align, 256))
                if v.data:
                    self.put(symbols[v.name], np.frombuffer(v.data, np.uint8))
        return Loaded(kernel, symbols)

    def launch(self, function: Loaded, grid: int, threads: int, arguments: Sequence[int]) -> None:
        words = tuple(arguments)

        def work() -> None:
            self.launched.append((function.kernel.name, grid, threads))
            self.machine.launch(function.kernel, grid, threads, words, function.symbols)

        self.enqueue(work)

    def multiply(self, product: Product) -> bool:
        def work() -> None:
            self.multiplied.append(product)
            self.product(product)

        self.enqueue(work)
        return True

    def product(self, p: Product) -> None:
        """By NumPy, the operands rounded as the precision says, sums in the element's type."""
        left = self.matrices(p.left, p.batch, p.rows, p.inner, p.element)
        right = self.matrices(p.right, p.batch, p.inner, p.columns, p.element)
        target = self.matrices(p.target, p.batch, p.rows, p.columns, p.element)
        rounded = ROUNDED[p.precision] if p.element == "float32" else np.asarray
        number = target.dtype.type
        found = number(p.scale) * np.matmul(rounded(left), rounded(right))
        for term, factor in ((p.added, p.beta), (p.bias, 1.0)):
            if term is not None:
                found += number(factor) * self.matrices(term, p.batch, p.rows, p.columns, p.element)
        if p.bias is not None and 0 not in (p.bias.down, p.bias.across):
            raise PTXError(f"a product's bias that is no vector: {p.bias}")
        target[...] = ACTIVATIONS[p.activation](found)

    def matrices(self, where: Operand, batch: int, rows: int, columns: int, element: str) -> NDArray[Any]:
        """The operand as an array [batch, rows, columns] over global memory."""
        if 1 not in (where.down, where.across) and rows > 1 and columns > 1:
            raise PTXError(f"a product's operand whose elements are nowhere side by side: {where}")
        kind, shape = np.dtype(element), (batch, rows, columns)
        steps = (where.batch, where.down, where.across)
        lowest, highest = (sum(f(0, s * (n - 1)) for s, n in zip(steps, shape, strict=True)) for f in (min, max))
        self.bytes(where.address + lowest * kind.itemsize, (highest - lowest + 1) * kind.itemsize)
        if where.address % kind.itemsize:
            raise PTXError(f"a product's operand at {where.address:#x}, no multiple of {kind.itemsize}")
        first = self.memory.view(kind.type)[(where.address - self.memory.base) // kind.itemsize :]
        return np.lib.stride_tricks.as_strided(first, shape, [s * kind.itemsize for s in steps])

    def after(self, stream: int) -> None:
        """Everything is done at once here."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.refuse_in_capture("capture")
        self.recording = recorded = []
        try:
            work()
        finally:
            self.recording = None

        def replay() -> None:
            for each in recorded:
                self.enqueue(each)

        return replay

    def wait(self) -> None:
        self.refuse_in_capture("wait")

    def refuse_in_capture(self, name: str) -> None:
        if self.recording is not None:
            raise PTXError(f"{name} during capture: a graph cannot hold it")
