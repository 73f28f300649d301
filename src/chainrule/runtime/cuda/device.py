"""What a GPU is to the run side: memory, kernels, copies, products and graphs, all in the order of one stream.

`driver.py` has the real one, tests/cuda one that interprets PTX. Addresses are plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.executable import Activation, Element, Matrix, Multiply, Precision, evaluate

ALIGNMENT = (
    256  # bytes: every buffer starts on a multiple, as what the driver allocates does; the widest access takes 16
)

Function = Any
"""A kernel that a device has loaded: what `Device.load` returns and `Device.launch` takes."""


class Operand(msgspec.Struct, frozen=True):
    """Matrices on the device: element (i, j) of the b-th is the one at `address`, i*down + j*across + b*batch on."""

    address: int
    down: int
    across: int
    batch: int


class Product(msgspec.Struct, frozen=True):
    """``target[i, j] = f(scale * sum[k] left[i, k] * right[k, j] + beta * added[i, j] + bias[i, j])``: an
    `executable.Multiply` with numbers in place of polynomials and addresses in place of buffers. No extent is 0.
    """

    rows: int
    columns: int
    inner: int
    batch: int
    left: Operand
    right: Operand
    target: Operand
    scale: float
    precision: Precision
    element: Element
    added: Operand | None = None
    beta: float = 0.0
    bias: Operand | None = None
    activation: Activation = ""


class Device(Protocol):
    """A GPU, with one stream in whose order everything is done.

    architecture: what it compiles for, as in "sm_90". stream: its handle; 0 is no stream of ours. ordinal: which of the
    machine's GPUs it is.
    """

    name: str
    architecture: str
    stream: int
    ordinal: int

    def allocate(self, count: int) -> int:
        """The address of `count` bytes, on a multiple of ALIGNMENT. Raises DeviceMemoryError where there is no room."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""

    def write(self, address: int, data: NDArray[Any]) -> None:
        """From a C-contiguous array of the host's, which may be changed as soon as this returns."""

    def read(self, address: int, into: NDArray[Any]) -> None:
        """Into a C-contiguous array of the host's, when all before it is done."""

    def copy(self, target: int, source: int, count: int) -> None:
        """`count` bytes from one place on the device to another; they do not overlap."""

    def pinned(self, count: int) -> NDArray[np.uint8]:
        """`count` bytes of the host that the device copies from and to by itself, as a graph does."""

    def send(self, address: int, pinned: NDArray[np.uint8]) -> None:
        """From pinned memory, as it is when its turn comes."""

    def fetch(self, pinned: NDArray[np.uint8], address: int) -> None:
        """Into pinned memory, which holds it once somebody has waited."""

    def load(self, cubin: bytes, ptx: bytes, symbol: str) -> Function:
        """The kernel named `symbol` of a cubin; where that is for another architecture, of the PTX."""

    def launch(self, function: Function, grid: int, threads: int, arguments: Sequence[int]) -> None:
        """`grid` CTAs of so many threads, with one 8-byte word for each parameter; grid > 0."""

    def multiply(self, product: Product) -> bool:
        """Let a library do it; False: there is none here that can."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` enqueues, as one graph: it is not done now, but by each call of the result.

        `work` copies (but not from or to memory that is not pinned), launches and multiplies; it neither allocates nor
        waits.
        """

    def wait(self) -> None:
        """Until all is done."""

    def after(self, stream: int) -> None:
        """Let what comes next in our stream wait for what another stream holds now."""


class DeviceError(ChainruleError):
    """The GPU, its driver or its libraries cannot do what is asked."""


class DeviceMemoryError(DeviceError):
    """The device has no room for `asked` bytes: `free` of `total` are."""

    def __init__(self, asked: int, free: int, total: int, needs: str = "") -> None:
        self.asked, self.free, self.total = asked, free, total
        super().__init__(
            f"the GPU's memory is too small: {asked:,} bytes are asked for, {free:,} of {total:,} are free"
            + (f"\n  {needs}" if needs else "")
            + "\n  Way out: a smaller batch, a budget (memory='2 GB', sizes={...}), or end what else uses the GPU"
        )

    def during(self, needs: str) -> DeviceMemoryError:
        """The same, with what it is needed for."""
        return DeviceMemoryError(self.asked, self.free, self.total, needs)


def product_of(
    multiply: Multiply, element: Element, itemsize: int, places: Sequence[int], sizes: Mapping[str, int]
) -> Product | None:
    """`multiply` for these sizes, with its launch's buffers at `places`; None where some extent is 0."""
    rows, columns, inner = (evaluate(e, sizes) for e in (multiply.rows, multiply.columns, multiply.inner))
    batch = evaluate(multiply.batch, sizes)
    if not (rows and columns and inner and batch):
        return None

    def operand(matrix: Matrix) -> Operand:
        offset, down, across, batch = (
            evaluate(p, sizes) for p in (matrix.offset, matrix.down, matrix.across, matrix.batch)
        )
        return Operand(places[matrix.buffer] + offset * itemsize, down, across, batch)

    added, bias = (None if matrix is None else operand(matrix) for matrix in (multiply.added, multiply.bias))
    return Product(
        rows, columns, inner, batch,
        operand(multiply.left), operand(multiply.right), operand(multiply.target),
        multiply.scale, multiply.precision, element, added, multiply.beta, bias, multiply.activation,
    )  # fmt: skip
