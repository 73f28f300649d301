"""A device that is Python: memory with bounds, kernels by name, a stream that knows what a recording must not do.

Kernels are those of `tests.runtime.programs`, on one CTA that does the whole range, whose extent is their last size.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from chainrule.executable import (
    FORMAT,
    Buffer,
    Dim,
    Executable,
    Init,
    Input,
    Kernel,
    Launch,
    Matrix,
    Multiply,
    Output,
    Param,
)
from chainrule.runtime.cuda.arrays import store_on
from chainrule.runtime.cuda.device import ALIGNMENT, DeviceMemoryError
from chainrule.runtime.cuda.step import Runner
from chainrule.runtime.store import Store
from tests.runtime.programs import BATCH, ONE, fixed

BASE = 1 << 32  # where memory starts, far from every number that is none of its addresses


class Machine:
    """A GPU of `total` bytes, one of which nobody has allocated is never touched."""

    name, architecture, stream, ordinal = "a machine of Python", "sm_90", 77, 0

    def __init__(self, total: int = 1 << 26, multiply: Callable | None = None) -> None:
        self.total, self.memory = total, np.zeros(total, np.uint8)
        self.blocks: dict[int, int] = {}
        self.starts: list[int] = []
        self.recording: list[Callable[[], None]] | None = None
        self.said: list[tuple] = []  # what was done, by name
        self.library = multiply

    def allocate(self, count: int) -> int:
        assert self.recording is None, "nothing is allocated while a graph is recorded"
        at = BASE
        for start in self.starts:
            if start - at >= count:
                break
            at = -(-(start + self.blocks[start]) // ALIGNMENT) * ALIGNMENT
        if at + count > BASE + self.total:
            raise DeviceMemoryError(count, self.total - sum(self.blocks.values()), self.total)
        self.blocks[at] = count
        bisect.insort(self.starts, at)
        self.view(at, count)[:] = 0xA5  # memory of the GPU is not cleared
        return at

    def free(self, address: int) -> None:
        del self.blocks[address]
        self.starts.remove(address)

    def view(self, address: int, count: int, dtype: object = np.uint8) -> np.ndarray:
        """`count` elements from an address on, all of them in one block."""
        size = count * np.dtype(dtype).itemsize
        start = self.starts[bisect.bisect_right(self.starts, address) - 1] if self.starts else -1
        held = self.blocks.get(start, 0)
        assert not size or start <= address <= start + held - size, f"{address - BASE}: {size} bytes"
        return self.memory[address - BASE : address - BASE + size].view(dtype)

    def write(self, address: int, data: np.ndarray) -> None:
        assert self.recording is None and data.flags.c_contiguous
        self.said.append(("write", data.nbytes))
        self.view(address, data.nbytes)[:] = data.reshape(-1).view(np.uint8)

    def read(self, address: int, into: np.ndarray) -> None:
        assert self.recording is None and into.flags.c_contiguous
        self.said.append(("read", into.nbytes))
        into.reshape(-1).view(np.uint8)[:] = self.view(address, into.nbytes)

    def copy(self, target: int, source: int, count: int) -> None:
        assert target + count <= source or source + count <= target
        self._do(lambda: self.view(target, count).__setitem__(slice(None), self.view(source, count)))

    def pinned(self, count: int) -> np.ndarray:
        assert self.recording is None
        return np.full(count, 0xA5, np.uint8)

    def send(self, address: int, pinned: np.ndarray) -> None:
        self.said.append(("send", pinned.nbytes))
        self._do(lambda: self.view(address, pinned.nbytes).__setitem__(slice(None), pinned))

    def fetch(self, pinned: np.ndarray, address: int) -> None:
        self.said.append(("fetch", pinned.nbytes))
        self._do(lambda: pinned.__setitem__(slice(None), self.view(address, pinned.nbytes)))

    def load(self, cubin: bytes, ptx: bytes, symbol: str) -> Callable:
        assert ptx == b"ptx of " + symbol.encode() and cubin == b"cubin of " + symbol.encode()
        self.said.append(("load", symbol))
        return KERNELS[symbol]

    def launch(self, function: Callable, grid: int, threads: int, arguments: Sequence[int]) -> None:
        assert grid > 0 and 0 < threads <= 1024
        self.said.append(("launch", function.__name__))
        *words, _ = arguments
        self._do(lambda: function(self, *words))

    def multiply(self, product: object) -> bool:
        return self.library is not None and self.library(self, product)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self.recording is None
        self.recording = recorded = []
        try:
            work()
        finally:
            self.recording = None
        self.said.append(("capture", len(recorded)))

        def replay() -> None:
            self.said.append(("replay", len(recorded)))
            for do in recorded:
                do()

        return replay

    def wait(self) -> None:
        assert self.recording is None

    def after(self, stream: int) -> None:
        self.said.append(("after", stream))

    def _do(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def heard(self, word: str) -> list:
        """What was said with this word; all is forgotten."""
        found = [what for said, what in self.said if said == word]
        self.said.clear()
        return found


F32 = np.float32


def axpy(m, x, y, a, out, n):
    m.view(out, n, F32)[:] = m.view(a, 1, F32) * m.view(x, n, F32) + m.view(y, n, F32)


def times(m, x, y, out, n):
    m.view(out, n, F32)[:] = m.view(x, n, F32) * m.view(y, n, F32)


def minus(m, x, y, out, n):
    m.view(out, n, F32)[:] = m.view(x, n, F32) - m.view(y, n, F32)


def row_sum(m, x, out, columns, n):
    total = np.zeros(n, F32)
    for j in range(columns):  # in the order of the CPU's
        total += m.view(x, n * columns, F32)[j::columns]
    m.view(out, n, F32)[:] = total


def gather(m, table, index, out, n):
    for i, k in enumerate(m.view(index, n, np.int64)):
        m.view(out, n, F32)[i] = m.view(table + 4 * int(k), 1, F32)[0]


def update(m, w, g, rate, n):
    m.view(w, n, F32)[:] -= m.view(rate, 1, F32) * m.view(g, n, F32)


def clock(m, at, out, n):
    m.view(out, n, F32)[:] = m.view(at, 2, np.int64)[1]


def advance(m, at, n):
    m.view(at, 2, np.int64)[1] += 1


def matmul(m, x, w, out, inner, columns, n):
    left, right = m.view(x, n * inner, F32).reshape(n, inner), m.view(w, inner * columns, F32).reshape(inner, columns)
    m.view(out, n * columns, F32)[:] = (left @ right).reshape(-1)


KERNELS = {f.__name__: f for f in (axpy, times, minus, row_sum, gather, update, clock, advance, matmul)}


def dense(scale: float = 1.0) -> Executable:
    """out[n, j] = sum[i] x[n, i] * w[i, j]: a launch that a library may do."""
    row, product = ((2.0, ("batch",)),), Multiply(
        rows=BATCH, columns=fixed(2), inner=fixed(3), scale=scale,
        left=Matrix(0, (), fixed(3), ONE), right=Matrix(1, (), fixed(2), ONE), target=Matrix(2, (), fixed(2), ONE),
    )  # fmt: skip
    return Executable(
        name="dense", format=FORMAT, target="test", element="float32", training=False, dims=(Dim("batch"),),
        buffers=(
            Buffer("x", "float32", (BATCH, fixed(3)), "input"),
            Buffer("w", "float32", (fixed(3), fixed(2)), "param"),
            Buffer("out", "float32", (BATCH, fixed(2)), "arena"),
        ),
        inputs=(Input("x", 0),), params=(Param("w", 1, Init("normal", (0.0, 1.0))),), states=(), scalars=(),
        outputs=(Output("out", 2),), kernels=(Kernel("matmul", ""),),
        launches=(
            Launch(
                0, "matmul", (0, 1, 2), (fixed(3), fixed(2)), BATCH, (), row, (0, 1), (2,), threads=32, multiply=product
            ),
        ),
    )  # fmt: skip


def gpu_program(executable: Executable) -> tuple[Executable, dict[str, bytes]]:
    """A program of `tests.runtime.programs` for this machine; one that counts steps does so in its first launch."""
    names = [kernel.symbol for kernel in executable.kernels]
    launches = [
        msgspec.structs.replace(x, sizes=(*x.sizes, x.extent), extent=ONE, threads=32) for x in executable.launches
    ]
    buffers = executable.buffers
    if executable.training and executable.clock is not None:
        names.append("advance")
        first = Launch(len(names) - 1, "advance", (executable.clock,), (ONE,), ONE, (), ONE, (0,), (0,), threads=32)
        launches.insert(0, first)
        buffers = tuple(msgspec.structs.replace(b, first=b.first + 1, last=b.last + 1) for b in buffers)
    kernels = tuple(Kernel(name, f"cubin {name}", ptx=f"ptx {name}") for name in names)
    objects = {f"{kind} {name}": f"{kind} of {name}".encode() for name in names for kind in ("cubin", "ptx")}
    changes = {"target": "cuda sm_90", "kernels": kernels, "launches": tuple(launches), "buffers": buffers}
    return msgspec.structs.replace(executable, **changes), objects


def gpu_runner(program: Executable, store: Store | None = None, machine: Machine | None = None) -> Runner:
    """`program` on a machine, which is the runner's `device`."""
    machine = machine or Machine()
    executable, objects = gpu_program(program)
    return Runner(executable, objects, store or store_on(machine, 1), machine)
