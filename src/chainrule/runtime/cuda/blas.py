"""Matrix products by cuBLASLt, through ctypes: its wheel is not needed to build or to test, only to be fast.

cuBLAS thinks in columns: element (i, j) of its matrices lies at i + j*ld. A matrix of ours whose rows lie together is
its transpose there, so such a target is computed as ``targetᵀ = rightᵀ leftᵀ``.

Which algorithm is best for a product of some shape is measured once, among the few that the library's heuristics name,
and not while a graph is recorded. Source: NVIDIA, cuBLAS documentation, "Using the cuBLASLt API"; cublasLt.h.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from ctypes import byref, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import msgspec

from chainrule.runtime.cuda.device import Device, DeviceMemoryError, Operand, Product

WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper
TRIES = 6  # algorithms that are measured
MEASURED = 1.0  # milliseconds that each is measured for, about; at most
TURNS = 50  # times
BETTER = 0.97  # of the time of the heuristics' first: else that one, lest noise decides which sums are rounded how

# cublasLt.h and library_types.h
CUDA_R_32F, CUDA_R_64F = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F = 68, 70
CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_32F_FAST_TF32 = 75, 77
CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB = 3, 4
CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_BIAS_POINTER = 7, 8
CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS = 1, 4
CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_GELU = 2, 32  # with a bias: both bits
CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 5, 6
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_BYTES = (5, 6, 7, 8)  # of A, B, C, D

EPILOGUES = {"": CUBLASLT_EPILOGUE_DEFAULT, "relu": CUBLASLT_EPILOGUE_RELU, "gelu": CUBLASLT_EPILOGUE_GELU}

COMPUTE = {
    "float32": CUBLAS_COMPUTE_32F,
    "tf32": CUBLAS_COMPUTE_32F_FAST_TF32,
    "bf16": CUBLAS_COMPUTE_32F_FAST_16BF,  # operands and sums stay float32 in memory; bf16 in the tensor cores
}


class Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Stored(msgspec.Struct, frozen=True):
    """A matrix as cuBLAS has it: rows × columns, columns `lead` apart, read transposed or not; `batch` to the next."""

    rows: int
    columns: int
    lead: int
    transposed: bool
    batch: int


class Shape(msgspec.Struct, frozen=True):
    """A product without its addresses: ``target = f(scale * a b + beta * added + bias)``, target stored untransposed.

    added: the target where there is none, and then beta is 0. bias: whether there is one, a number for each row of the
    target, as cuBLAS has rows. aligned: bytes that the addresses of a, b, added, target and bias are multiples of, at
    most 256.
    """

    a: Stored
    b: Stored
    added: Stored
    target: Stored
    bias: bool
    activation: str
    count: int
    element: str
    precision: str
    aligned: tuple[int, ...]


class Call(msgspec.Struct, frozen=True):
    """What cublasLtMatmul is told of a product beside addresses; `algorithm` is the one chosen."""

    descriptor: c_void_p
    a: c_void_p
    b: c_void_p
    added: c_void_p
    target: c_void_p
    algorithm: Result


def stored(operand: Operand, rows: int, columns: int) -> Stored | None:
    """A rows × columns operand as cuBLAS can read it; None where it cannot, as where rows overlap."""
    if operand.down == 1:
        lead = operand.across if columns > 1 else max(operand.across, rows)
        if lead >= rows:
            return Stored(rows, columns, lead, False, operand.batch)
    if operand.across == 1:
        lead = operand.down if rows > 1 else max(operand.down, columns)
        if lead >= columns:
            return Stored(columns, rows, lead, True, operand.batch)
    return None


def turned(operand: Operand) -> Operand:
    """Its transpose."""
    return Operand(operand.address, operand.across, operand.down, operand.batch)


def shape_of(product: Product) -> tuple[Shape, Operand, Operand] | None:
    """The product as cuBLAS computes it, and its a and b; None where it cannot."""
    rows, columns, left, right, target = product.rows, product.columns, product.left, product.right, product.target
    added, bias = product.added or target, product.bias
    found = stored(target, rows, columns)
    if found is not None and found.transposed:
        rows, columns, left, right, target = columns, rows, turned(right), turned(left), turned(target)
        added, bias = turned(added), None if bias is None else turned(bias)
        found = stored(target, rows, columns)
    a, b, c = stored(left, rows, product.inner), stored(right, product.inner, columns), stored(added, rows, columns)
    if a is None or b is None or c is None or c.transposed or found is None or found.transposed:
        return None
    if product.batch > 1 and target.batch == 0:
        return None
    if bias is not None and not _is_bias(bias, found):
        return None
    addresses = (left.address, right.address, added.address, target.address, 0 if bias is None else bias.address)
    shape = Shape(
        a, b, c, found, bias is not None, product.activation, product.batch, product.element, product.precision,
        tuple(map(_alignment, addresses)),
    )  # fmt: skip
    return shape, left, right


def _is_bias(bias: Operand, target: Stored) -> bool:
    """Whether cuBLASLt adds it right: a number for each row. With gaps between the columns of a float32 target, GPUs
    before sm_80 leave some out (seen by others in CUDA 11)."""
    along = bias.down == 1 or target.rows == 1
    return along and (bias.across == 0 or target.columns == 1) and target.lead == target.rows


def _alignment(address: int) -> int:
    """The power of two that `address` is a multiple of, at most 256."""
    return min(address & -address, 256) or 256


class Blas:
    """cuBLASLt on one device, with a workspace of ours.

    library: what ctypes loaded. timed: the milliseconds that work takes on the device.
    """

    def __init__(self, library: Any, device: Device, timed: Callable[[Callable[[], None]], float]) -> None:
        self._library, self._device, self._timed = library, device, timed
        self._handle = c_void_p()
        self._must("cublasLtCreate", byref(self._handle))
        self._workspace = device.allocate(WORKSPACE)
        self._calls: dict[Shape, Call | None] = {}

    def multiply(self, product: Product, measure: bool) -> bool:
        """Enqueue `product`; False where cuBLAS cannot do it. measure: whether work may be done now to choose how."""
        if product.element not in ("float32", "float64"):
            return False
        found = shape_of(product)
        if found is None:
            return False
        shape, a, b = found
        if shape not in self._calls:
            self._calls[shape] = self._chosen(shape, product, a, b, measure)
        call = self._calls[shape]
        if call is None:
            return False
        status = self._enqueue(call, product, a, b, product.target.address)
        return status == 0

    def _enqueue(self, call: Call, product: Product, a: Operand, b: Operand, target: int) -> int:
        """``target = f(scale * a b + beta * added + bias)``; the library's status."""
        number = c_double if product.element == "float64" else c_float
        scale, beta = number(product.scale), number(0.0 if product.added is None else product.beta)
        added = product.added or product.target
        if product.bias is not None:
            bias = c_void_p(product.bias.address)
            self._set("cublasLtMatmulDescSetAttribute", call.descriptor, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)
        return int(
            self._library.cublasLtMatmul(
                self._handle, call.descriptor, byref(scale), c_void_p(a.address), call.a, c_void_p(b.address), call.b,
                byref(beta), c_void_p(added.address), call.added, c_void_p(target), call.target,
                byref(call.algorithm.algorithm), c_void_p(self._workspace), c_size_t(WORKSPACE),
                c_void_p(self._device.stream),
            )
        )  # fmt: skip

    def _chosen(self, shape: Shape, product: Product, a: Operand, b: Operand, measure: bool) -> Call | None:
        """How a product of this shape is computed; None: not here."""
        calls = self._candidates(shape, product.bias.address if product.bias else 0)
        if len(calls) < 2 or not measure:
            return calls[0] if calls else None
        size = 8 if shape.element == "float64" else 4
        columns = shape.target.lead * (shape.target.columns - 1) + shape.target.rows
        try:  # what is added to would be added to several times
            aside = self._device.allocate(size * (shape.target.batch * (shape.count - 1) + columns))
        except DeviceMemoryError:
            return calls[0]
        try:
            times = [self._time(call, product, a, b, aside) for call in calls]
        finally:
            self._device.free(aside)
        best = min(range(len(calls)), key=lambda k: times[k])
        return calls[best] if times[best] < BETTER * times[0] else calls[0]

    def _time(self, call: Call, product: Product, a: Operand, b: Operand, target: int) -> float:
        """Milliseconds of one turn."""
        if self._enqueue(call, product, a, b, target):  # also loads its kernel
            return float("inf")

        def done(turns: int) -> float:
            def work() -> None:
                for _ in range(turns):
                    self._enqueue(call, product, a, b, target)

            return self._timed(work) / turns

        return done(max(1, min(TURNS, int(MEASURED / max(done(1), 1e-6)))))

    def _candidates(self, shape: Shape, bias: int) -> list[Call]:
        """The algorithms that the heuristics name for a product of this shape, the best first. bias: where one lies,
        for its alignment counts."""
        double = shape.element == "float64"
        compute = CUBLAS_COMPUTE_64F if double else COMPUTE[shape.precision]
        element = CUDA_R_64F if double else CUDA_R_32F
        descriptor = c_void_p()
        self._must("cublasLtMatmulDescCreate", byref(descriptor), c_int(compute), c_int(element))
        for attribute, one in ((CUBLASLT_MATMUL_DESC_TRANSA, shape.a), (CUBLASLT_MATMUL_DESC_TRANSB, shape.b)):
            how = c_int32(CUBLAS_OP_T if one.transposed else CUBLAS_OP_N)
            self._set("cublasLtMatmulDescSetAttribute", descriptor, attribute, how)
        epilogue = EPILOGUES[shape.activation]
        if shape.bias:
            epilogue = epilogue | CUBLASLT_EPILOGUE_BIAS if shape.activation else CUBLASLT_EPILOGUE_BIAS
            self._set("cublasLtMatmulDescSetAttribute", descriptor, CUBLASLT_MATMUL_DESC_BIAS_POINTER, c_void_p(bias))
        self._set("cublasLtMatmulDescSetAttribute", descriptor, CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(epilogue))
        a, b, added, target = (
            self._layout(one, shape.count, element) for one in (shape.a, shape.b, shape.added, shape.target)
        )
        preference = c_void_p()
        self._must("cublasLtMatmulPreferenceCreate", byref(preference))
        set_preference = "cublasLtMatmulPreferenceSetAttribute"
        self._set(set_preference, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, c_uint64(WORKSPACE))
        for attribute, least in zip(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_BYTES, shape.aligned[:4], strict=True):
            self._set(set_preference, preference, attribute, c_uint32(least))
        results, count = (Result * TRIES)(), c_int()
        status = self._library.cublasLtMatmulAlgoGetHeuristic(
            self._handle, descriptor, a, b, added, target, preference, c_int(TRIES), results, byref(count)
        )
        self._library.cublasLtMatmulPreferenceDestroy(preference)
        good = [result for result in results[: count.value] if result.state == 0] if status == 0 else []
        return [Call(descriptor, a, b, added, target, result) for result in good]

    def _layout(self, matrix: Stored, count: int, element: int) -> c_void_p:
        layout = c_void_p()
        rows, columns, lead = c_uint64(matrix.rows), c_uint64(matrix.columns), c_int64(matrix.lead)
        self._must("cublasLtMatrixLayoutCreate", byref(layout), c_int(element), rows, columns, lead)
        if count > 1:
            set_layout = "cublasLtMatrixLayoutSetAttribute"
            self._set(set_layout, layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, c_int32(count))
            self._set(set_layout, layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, c_int64(matrix.batch))
        return layout

    def _set(self, function: str, what: c_void_p, attribute: int, value: Any) -> None:
        self._must(function, what, c_int(attribute), byref(value), c_size_t(ctypes.sizeof(value)))

    def _must(self, function: str, *arguments: Any) -> None:
        """Call what fails only where the library is broken."""
        status = getattr(self._library, function)(*arguments)
        if status:
            raise BlasError(f"{function} answers {status}")


class BlasError(Exception):
    """cuBLASLt is here, and does not work: the kernels of our own multiply instead."""


def find_library() -> Any | None:
    """cuBLASLt: from NVIDIA's wheel (nvidia-cublas), from what PyTorch brings along, or of the system; None: absent."""
    try:
        path = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt").abs_path
        return ctypes.CDLL(path or "libcublasLt.so.13")
    except (ImportError, OSError, RuntimeError):
        return None
