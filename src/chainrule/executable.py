"""A compiled program as plain data: what the run side needs, and nothing else.

Imports neither sympy nor numba, so that a warm process starts in about the time of importing NumPy. Everything
here goes to JSON and back (`encode`, `decode`); the machine code of the kernels lies beside it, in object files
named by the SHA-256 of their bytes.

Values of the run side are msgspec's Structs: to define one takes 15 µs, a frozen dataclass 600 µs of every start.

The ABI of every kernel is ``void kernel(int64 *table, int8 *scratch, int64 lo, int64 hi)``: the table holds the
addresses of the launch's buffers, then its sizes, as int64 each; [lo, hi) is the part of the launch's range to do.
On a GPU a kernel's parameters are the same words (addresses, then sizes), then the address of the scratch region. Of a
launch that does several sets of them at a time they are the addresses of two tables of int64, then the scratch
region's: for each CTA the word of the second table with which its set begins; and each set's SET words, then its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Literal

import msgspec

from chainrule.choices import Choice

Term = tuple[float, tuple[str, ...]]
"""A coefficient and the dims that it multiplies; a dim named twice is squared."""

Polynomial = tuple[Term, ...]
"""A sum of terms: ``4*batch*width + 3`` is ``((4, ("batch", "width")), (3, ()))``."""

Element = Literal["float32", "float64", "int64", "bool"]
Space = Literal["input", "param", "state", "scalar", "clock", "constant", "arena"]
Precision = Literal["float32", "tf32", "bf16"]
Activation = Literal["", "relu", "gelu"]  # gelu: x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))

FORMAT = 4
ONE: Polynomial = ((1, ()),)
THREADS = 1024  # of a CTA, at most, on every GPU
SET = 2  # words of a set of arguments that stand before them: its first CTA, and how many it has


class Dim(msgspec.Struct, frozen=True):
    """A named size: free (bound by the inputs' shapes), or derived as ``numerator // denominator``.

    Derived dims follow the dims that they are made of, so that one pass in order evaluates them.
    """

    name: str
    minimum: int = 0
    maximum: int | None = None
    numerator: Polynomial | None = None  # None: a free dim
    denominator: Polynomial = ONE


class Buffer(msgspec.Struct, frozen=True):
    """A tensor's storage. An arena buffer lives from launch `first` to launch `last`, both included.

    `clock` is the one int64 buffer ``(seed, step)``; `scalar` buffers are rank-0 run-time numbers of the program's
    float; `constant` buffers hold `data` (little-endian, base64 in JSON) for good.
    """

    name: str
    element: Element
    shape: tuple[Polynomial, ...]
    space: Space
    first: int = 0
    last: int = 0
    data: bytes | None = None


class Input(msgspec.Struct, frozen=True):
    """What a caller must pass: `buffer` is an index into `Executable.buffers`.

    bound: for values used as an index, 0 <= value < bound is checked before a step starts.
    """

    name: str
    buffer: int
    bound: Polynomial | None = None


class Init(msgspec.Struct, frozen=True):
    """How a parameter starts: a law of NumPy's generator with its numbers.

    uniform(low, high), normal(mean, deviation), constant(value), orthogonal(gain, columns: the matrix is
    rows × columns, flattened). `each`: the axis (by position) that stacks independent matrices, or None.
    """

    law: Literal["uniform", "normal", "constant", "orthogonal"]
    numbers: tuple[float, ...]
    each: int | None = None


class Param(msgspec.Struct, frozen=True):
    """A trained tensor, by its path (``h.linear.W``), which is also its name in a checkpoint."""

    name: str
    buffer: int
    init: Init


class State(msgspec.Struct, frozen=True):
    """A tensor that a step updates and no gradient reaches; it starts at `value` everywhere."""

    name: str
    buffer: int
    value: float


class Scalar(msgspec.Struct, frozen=True):
    """A run-time number (a learning rate): changing it recompiles nothing."""

    name: str
    buffer: int
    default: float


class Output(msgspec.Struct, frozen=True):
    """A result, copied out after the step."""

    name: str
    buffer: int


class Kernel(msgspec.Struct, frozen=True):
    """One compiled function: `symbol` in the object file named `object` (its SHA-256, hex).

    externals: the undefined symbols that the object may have, each bound at loading from a fixed list. ptx: of a GPU's
    kernel, whose object is a cubin, the SHA-256 of its PTX: what other architectures compile, and people read.
    """

    symbol: str
    object: str
    externals: tuple[str, ...] = ()
    ptx: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return (self.object, self.ptx) if self.ptx else (self.object,)


class Matrix(msgspec.Struct, frozen=True):
    """Matrices in a launch's buffer (by position): element (i, j) of the b-th is the one at offset + i*down + j*across
    + b*batch; one of down and across is 1.
    """

    buffer: int
    offset: Polynomial
    down: Polynomial
    across: Polynomial
    batch: Polynomial = ()


class Multiply(msgspec.Struct, frozen=True):
    """``target[i, j] = f(scale * sum[k] left[i, k] * right[k, j] + beta * added[i, j] + bias[i, j])`` for i < rows,
    j < columns, k < inner, in each of `batch` matrices: what a launch computes, where that is all, so that a library
    may do it instead.

    precision: what the products may be rounded to; sums are of the program's float. added: it may be the target. bias:
    a vector; it stands still along one axis, and for all matrices. activation: f, where there is one.
    """

    rows: Polynomial
    columns: Polynomial
    inner: Polynomial
    left: Matrix
    right: Matrix
    target: Matrix
    batch: Polynomial = ONE
    scale: float = 1.0
    precision: Precision = "float32"
    added: Matrix | None = None
    beta: float = 0.0
    bias: Matrix | None = None
    activation: Activation = ""

    @property
    def matrices(self) -> dict[str, Matrix]:
        """What it touches, by what it is to it."""
        found = {"left": self.left, "right": self.right, "target": self.target, "added": self.added, "bias": self.bias}
        return {name: matrix for name, matrix in found.items() if matrix is not None}


class Launch(msgspec.Struct, frozen=True):
    """One call of a kernel: its table is the addresses of `buffers`, then the values of `sizes`.

    extent: the launch runs over [0, extent), which threads may divide (extent 1: serial).
    scratch: bytes of private memory that each thread needs. cost: nanoseconds, roughly, of the whole range on one
    core; the run side splits a range only where that pays.
    reads, writes: which of `buffers` (by position here), for liveness and barriers. flops: of the whole range.

    On a GPU `extent` is the number of CTAs, each of `threads` threads, and scratch is of each CTA, all of them in one
    region. multiply: what a library may be called for instead. sets: of a launch that does several at a time, the CTAs
    of each, in order; `buffers` and `sizes` are those of the first, then of the second, ….

    when, unless: it is done where the one is above 0 and the other is not (`launches_at`): a program may hold several
    ways to its results, for small sizes and for large ones.
    """

    kernel: int
    name: str
    buffers: tuple[int, ...]
    sizes: tuple[Polynomial, ...]
    extent: Polynomial
    scratch: Polynomial
    cost: Polynomial
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    flops: Polynomial = ()
    threads: int = 0
    multiply: Multiply | None = None
    sets: tuple[Polynomial, ...] = ()
    when: Polynomial = ONE
    unless: Polynomial = ()


class Executable(msgspec.Struct, frozen=True):
    """A program for one target: dims, buffers, and the launches of one step in order."""

    name: str
    format: int
    target: str  # what the objects were made for: a CPU's name and features, or "cuda sm_90"
    element: Literal["float32", "float64"]  # the program's float
    training: bool
    dims: tuple[Dim, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    states: tuple[State, ...]
    scalars: tuple[Scalar, ...]
    outputs: tuple[Output, ...]
    kernels: tuple[Kernel, ...]
    launches: tuple[Launch, ...]
    clock: int | None = None  # the buffer of (seed, step), if a kernel reads it
    gradients: dict[str, str] = {}  # of a program that returns them: what each tensor's gradient is called
    unread: tuple[str, ...] = ()  # inputs of the model that this program does not need
    memory: int | None = None  # bytes that may be kept between launches; None: as many as there are
    summary: dict[str, int | str] = {}  # figures for people: formulas, parameters, FLOPs and bytes as polynomials
    products: tuple[str, ...] = ()  # names of its products and convolutions: what a table of choices may decide
    tuned: dict[str, Choice] = {}  # those that were measured, and not chosen by the cost model

    @property
    def on_gpu(self) -> bool:
        return self.target.startswith("cuda ")


def evaluate(polynomial: Polynomial, sizes: Mapping[str, int]) -> int:
    """The value of `polynomial` where each dim has its size; rounded up, for costs may be fractions."""
    total = 0.0
    for coefficient, names in polynomial:
        term = coefficient
        for name in names:
            term *= sizes[name]
        total += term
    return int(-(-total // 1))


def derived_sizes(dims: tuple[Dim, ...], free: Mapping[str, int]) -> dict[str, int]:
    """The size of every dim, given those of the free ones."""
    sizes = dict(free)
    for dim in dims:
        if dim.numerator is not None:
            sizes[dim.name] = evaluate(dim.numerator, sizes) // evaluate(dim.denominator, sizes)
    return sizes


def launches_at(executable: Executable, sizes: Mapping[str, int]) -> tuple[Launch, ...]:
    """The launches that are done at these sizes."""
    return tuple(
        launch
        for launch in executable.launches
        if evaluate(launch.when, sizes) > 0 and not evaluate(launch.unless, sizes) > 0
    )


def faults(executable: Executable) -> list[str]:
    """What in `executable` refers to something that is not there; of a good one, nothing."""
    found, known = [], {dim.name for dim in executable.dims}
    if executable.format != FORMAT:
        found.append(f"format {executable.format}, not {FORMAT}")
    numbered = (executable.inputs, executable.params, executable.states, executable.scalars, executable.outputs)
    buffers = range(len(executable.buffers))
    found += [f"{item.name} has no buffer" for group in numbered for item in group if item.buffer not in buffers]
    if executable.clock is not None and executable.clock not in buffers:
        found.append("the clock has no buffer")
    polynomials = [side for dim in executable.dims if dim.numerator for side in (dim.numerator, dim.denominator)]
    polynomials += [extent for buffer in executable.buffers for extent in buffer.shape]
    polynomials += [item.bound for item in executable.inputs if item.bound is not None]
    for launch in executable.launches:
        if launch.kernel not in range(len(executable.kernels)) or any(k not in buffers for k in launch.buffers):
            found.append(f"launch {launch.name} has no kernel or no buffer")
        if not {*launch.reads, *launch.writes} <= set(range(len(launch.buffers))):
            found.append(f"launch {launch.name} reads or writes what it does not hold")
        polynomials += [*launch.sizes, launch.extent, launch.scratch, launch.cost, launch.when, launch.unless]
        if launch.multiply is not None:
            found += [f"launch {launch.name} {wrong}" for wrong in _multiply_faults(launch, launch.multiply)]
            polynomials += _multiply_polynomials(launch.multiply)
        if launch.sets and (len(launch.buffers) % len(launch.sets) or len(launch.sizes) % len(launch.sets)):
            found.append(f"launch {launch.name} has {len(launch.sets)} sets of arguments that are not equally many")
        polynomials += launch.sets
        if executable.on_gpu and launch.threads not in range(1, THREADS + 1):
            found.append(f"launch {launch.name} has {launch.threads} threads a CTA, not 1 to {THREADS}")
    if executable.on_gpu:
        found += [f"kernel {kernel.symbol} has no PTX" for kernel in executable.kernels if not kernel.ptx]
    used = {name for polynomial in polynomials for _, names in polynomial for name in names}
    return found + [f"no dim is named {name!r}" for name in sorted(used - known)]


def _multiply_faults(launch: Launch, multiply: Multiply) -> list[str]:
    found, held = [], range(len(launch.buffers))
    for name, matrix in multiply.matrices.items():
        if matrix.buffer not in held:
            found.append(f"multiplies a {name} that it does not hold")
        if ONE not in (matrix.down, matrix.across):
            found.append(f"multiplies a {name} with gaps along both axes")
    return found


def _multiply_polynomials(multiply: Multiply) -> list[Polynomial]:
    found = [multiply.rows, multiply.columns, multiply.inner, multiply.batch]
    for matrix in multiply.matrices.values():
        found += [matrix.offset, matrix.down, matrix.across, matrix.batch]
    return found


def encode(executable: Executable) -> bytes:
    """`executable` as JSON."""
    return msgspec.json.encode(executable)


def decode(text: bytes) -> Executable:
    """The executable that `text` describes. Raises msgspec.ValidationError where it describes none."""
    return msgspec.json.decode(text, type=Executable)


# The layout of the tape in memory: what the walker (compiled by codegen) and the run side agree on.
# Everything is an int64; each class numbers the words of one record.

TAPE_FORMAT = 5  # raise it when a layout below changes: it is part of the key of the compiled walker
WALKER_SYMBOL = "chainrule_walk"  # int64 walk(int64 control, int64 thread)
STEP_SYMBOL = "chainrule_step"  # PyObject *step(PyObject *self, PyObject *nothing), for PyMethodDef
TAKE_SYMBOL = "chainrule_take"  # PyObject *take(PyObject *self, PyObject *mapping), the same


class Entry(IntEnum):
    """One launch: FUNCTION(TABLE, scratch, lo, hi), where PARTS threads share [0, EXTENT), CHUNK at a time.

    BARRIER: it waits for all before it, and starts a phase. NEXT counts the chunks that were asked for. One of these
    fills a cache line.
    """

    FUNCTION = 0
    TABLE = 1
    EXTENT = 2
    PARTS = 3
    BARRIER = 4
    CHUNK = 5
    NEXT = 6
    WORDS = 8


class Copy(IntEnum):
    """BYTES from SOURCE to TARGET; the side that the caller owns moves on by STRIDE bytes a step."""

    TARGET = 0
    SOURCE = 1
    BYTES = 2
    STRIDE = 3
    WORDS = 4


class Layout(IntEnum):
    """Where NumPy 1 and 2, on CPython, keep what an array object holds, in bytes from the object's start."""

    KIND = 8
    DATA = 16
    AXES = 24  # 32 bits
    SHAPE = 32
    DTYPE = 56
    FLAGS = 64  # 32 bits; the lowest: C-contiguous


class Take(IntEnum):
    """An input that a step takes by itself from the mapping that Python calls it with.

    The mapping's value under the string at NAME must be an object of the type at KIND, with the dtype at DTYPE and
    AXES extents as from SHAPE on, contiguous. Its BYTES go to TARGET; or, where USES is not 0, kernels read it where
    it lies: its address goes to so many words of their tables, whose addresses are listed from USE on, and none of
    its bits in ODD may be set. The first words of a block of these are the control block's address (plus one: let
    other Python threads run meanwhile), the type of the mapping, which is dict, and how many inputs follow.
    """

    CONTROL = 0
    MAPPING = 1
    INPUTS = 2
    FIRST = 3
    NAME = 0
    KIND = 1
    DTYPE = 2
    TARGET = 3
    BYTES = 4
    USE = 5
    USES = 6
    ODD = 7
    AXES = 8
    SHAPE = 9
    WORDS = 32


class Check(IntEnum):
    """0 <= value < BOUND for COUNT int64 values from ADDRESS, before the first step changes anything."""

    ADDRESS = 0
    COUNT = 1
    BOUND = 2
    WORDS = 4


class Control(IntEnum):
    """What one call of the walker does: STEPS steps of the tape, the first of which has number FIRST.

    FEEDS and RESULTS are copies before and after each step. ADVANCE is added to the step of CLOCK when a step
    starts. The walker returns 0, or 1 where a check failed: the BAD_CHECK-th, at BAD_POSITION.
    """

    TAPE = 0
    ENTRIES = 1
    THREADS = 2
    SCRATCH = 3
    SCRATCH_STRIDE = 4
    FEEDS = 5
    FEED_COUNT = 6
    RESULTS = 7
    RESULT_COUNT = 8
    CHECKS = 9
    CHECK_COUNT = 10
    CLOCK = 11
    ADVANCE = 12
    STEPS = 13
    FIRST = 14
    POOL = 15
    BAD_CHECK = 16
    BAD_POSITION = 17
    WORDS = 24


class Pool(IntEnum):
    """What the threads share. Each word that several of them write has a cache line of its own.

    STATE is the phase's number, whether it is open, and how many workers came; LEFT counts those who left again.
    ASLEEP and LEFT_ASLEEP count who sleeps for want of either to change. A phase is the entries FROM … TO of JOB.
    """

    STATE = 0
    ASLEEP = 8
    LEFT = 16
    LEFT_ASLEEP = 24
    STOP = 32
    SPINS = 40
    YIELDS = 41
    JOB = 42
    FROM = 43
    TO = 44
    WORDS = 48
