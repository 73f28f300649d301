"""The interpreter runs what numba-cuda compiles, and gives what NumPy gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.running import compiled, launch, numba_cuda

cuda = numba_cuda()


def test_no_package_here_hides_nvidias():
    # pytest would import tests/cuda/__init__.py as `cuda`, which is the name of NVIDIA's bindings.
    assert not (Path(__file__).parent / "__init__.py").exists()


def saxpy(a, x, y, n):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while i < n:
        y[i] = a[0] * x[i] + y[i]
        i += cuda.gridDim.x * cuda.blockDim.x


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("races", [False, True])
def test_saxpy_leaves_out_no_element_and_does_none_twice(n, races):
    rng = np.random.default_rng(n)
    a, x, y = (rng.normal(size=k).astype(np.float32) for k in (1, max(n, 1), max(n, 1)))
    ptx = compiled(saxpy, "float32*", "float32*", "float32*", "int64")
    want = y.copy()
    want[:n] = (np.float64(a) * x[:n] + y[:n]).astype(np.float32)
    np.testing.assert_array_equal(launch(ptx, 3, 256, a, x, y, n, races=races)[2], want)


def softmax(x, y, columns):
    row = cuda.blockIdx.x
    top = np.float32(-math.inf)
    for j in range(cuda.threadIdx.x, columns, 32):
        top = max(top, x[row * columns + j])
    for k in (16, 8, 4, 2, 1):
        top = max(top, cuda.shfl_xor_sync(0xFFFFFFFF, top, k))
    total = np.float32(0)
    for j in range(cuda.threadIdx.x, columns, 32):
        total += math.exp(x[row * columns + j] - top)
    for k in (16, 8, 4, 2, 1):
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, k)
    for j in range(cuda.threadIdx.x, columns, 32):
        y[row * columns + j] = math.exp(x[row * columns + j] - top) / total


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_a_softmax_with_shuffles_is_a_softmax(columns):
    x = np.random.default_rng(columns).normal(size=(7, columns)).astype(np.float32)
    found = launch(compiled(softmax, "float32*", "float32*", "int64"), 7, 32, x, np.empty_like(x), columns)[1]
    e = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, e / e.sum(axis=1, keepdims=True), rtol=1e-6)


def column_sums(x, y, rows):
    part = cuda.shared.array(256, np.float32)
    t = cuda.threadIdx.x
    total = np.float32(0)
    for i in range(t, rows, 256):
        total += x[cuda.blockIdx.x * rows + i]
    part[t] = total
    step = 128
    while step > 0:
        cuda.syncthreads()
        if t < step:
            part[t] += part[t + step]
        step //= 2
    if t == 0:
        y[cuda.blockIdx.x] = part[0]


@pytest.mark.parametrize("rows", [1, 255, 1000])
def test_a_reduction_through_shared_memory_is_a_sum(rows):
    x = np.random.default_rng(rows).normal(size=(40, rows)).astype(np.float32)
    ptx = compiled(column_sums, "float32*", "float32*", "int64")
    found = launch(ptx, 40, 256, x, np.empty(40, np.float32), rows)[1]
    np.testing.assert_allclose(found, x.sum(axis=1, dtype=np.float64), rtol=1e-5, atol=1e-5)


def collatz(n, steps, count):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < count:
        x = n[i]
        found = 0
        while x != 1:
            if x % 2 == 0:
                x //= 2
            else:
                x = 3 * x + 1
            found += 1
        steps[i] = found


@pytest.mark.parametrize("count", [1, 300, 6000])
def test_each_lane_leaves_its_loop_when_it_is_done(count):
    def want(x):
        found = 0
        while x != 1:
            x, found = (x // 2 if x % 2 == 0 else 3 * x + 1), found + 1
        return found

    n = np.arange(1, count + 1)
    ptx = compiled(collatz, "int64*", "int64*", "int64")
    found = launch(ptx, -(-count // 256), 256, n, np.empty_like(n), count)[1]
    np.testing.assert_array_equal(found, [want(int(x)) for x in n])


def one_argument(name):
    function = getattr(math, name)

    def kernel(x, y, n):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i < n:
            y[i] = function(x[i])

    return kernel


FUNCTIONS = ["exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"]
FUNCTIONS += ["erf", "erfc", "lgamma", "sqrt", "floor", "ceil", "log2"]


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_libdevice_is_what_its_name_says(name, element):
    mp = pytest.importorskip("mpmath")
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-1, 1, 60), rng.uniform(-20, 20, 60), rng.uniform(-1e5, 1e5, 30)])
    domain = {"asin": abs(x) <= 1, "acos": abs(x) <= 1, "log": x > 0, "log2": x > 0, "sqrt": x >= 0}
    domain |= {"log1p": x > -1, "lgamma": x > 0} | dict.fromkeys(("exp", "expm1", "sinh", "cosh"), abs(x) < 80)
    x = x[domain.get(name, x == x)].astype(element)
    kernel = one_argument(name)
    found = launch(compiled(kernel, f"{element}*", f"{element}*", "int64"), 2, 128, x, np.empty_like(x), len(x))[1]
    exact = {"lgamma": mp.loggamma, "log2": lambda v: mp.log(v, 2)}
    with mp.workdps(40):
        want = np.array([float(exact.get(name, getattr(mp, name, None))(mp.mpf(float(v)))) for v in x])
    ulps = np.abs(found - want) / np.spacing(np.abs(want).astype(element))
    assert ulps.max() <= (8 if name == "lgamma" else 4)
