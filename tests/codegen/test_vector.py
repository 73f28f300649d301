"""Vectors: whatever a kernel does with them, plain Python does with small arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from

from chainrule.codegen.objects import Array, Job, Size, assembly
from chainrule.codegen.target import host
from tests.codegen.native_kernels import run, run_plain

ELEMENTS = ("float32", "float64")


def both(job: Job, arrays: dict, sizes: dict, hi: int, target=None) -> tuple[dict, dict]:
    return run(job, arrays, sizes, 0, hi, target), run_plain(job, arrays, sizes, 0, hi)


def part_kernel(element: str, lanes: int) -> Job:
    source = f"""def kernel(x, y, n, lo, hi):
    for i in range(lo, hi, {lanes}):
        v = load_part(x, i, {lanes}, n - i)
        store_part(y, (i,), fma(v, 2.0, -v) * v + 1.0, n - i)
"""
    return Job(source, "kernel", (Array(element, ("n",)), Array(element, (64,)), Size()))


@settings(max_examples=20, deadline=None)
@given(n=integers(0, 40), element=sampled_from(ELEMENTS), lanes=sampled_from((4, 16)))
def test_masked_loads_and_stores_touch_the_lanes_that_exist_and_no_other(n, element, lanes):
    x = np.linspace(-1, 1, n).astype(element)
    arrays = {"x": x, "y": np.full(64, 7, element)}
    for found in both(part_kernel(element, lanes), arrays, {"n": n}, n):
        np.testing.assert_allclose(found["y"][:n], x * x + 1, rtol=1e-6)
        assert (found["y"][n:] == 7).all()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("level", ["native", "avx2", "sse2"])
def test_arithmetic_works_lane_by_lane_on_every_target(element, level):
    source = """def kernel(x, y, lo, hi):
    for n in range(lo, hi):
        a = load(x, (n, 0), 8)
        b = load(x, (n, 8), 8)
        v = where(a < b, a / b, broadcast(x[n, 0], 8)) - exp(-b) * 0.5
        v += where(a > 0.0, a, 0.0)
        store(y, (n, 0), v)
        y[n, 8] = total(v)
        y[n, 9] = greatest(a + b)
"""
    job = Job(source, "kernel", (Array(element, (3, 16)), Array(element, (3, 10))))
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(element)
    compiled, plain = both(job, {"x": x, "y": np.zeros((3, 10), element)}, {}, 3, host(level))
    np.testing.assert_allclose(compiled["y"], plain["y"], rtol=2e-6, atol=2e-7)  # differences of exp, an ulp each
    a, b = x[:, :8].astype(float), x[:, 8:].astype(float)
    want = np.where(a < b, a / b, a[:, :1]) - np.exp(-b) / 2 + np.maximum(a, 0)
    np.testing.assert_allclose(compiled["y"][:, :8], want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(compiled["y"][:, 9], (a + b).max(1), rtol=1e-6)


def test_a_horizontal_sum_adds_halves_in_a_fixed_tree():
    source = "def kernel(x, y, lo, hi):\n    for n in range(lo, hi):\n        y[n] = total(load(x, (n, 0), 16))\n"
    job = Job(source, "kernel", (Array("float32", (50, 16)), Array("float32", (50,))))
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    compiled, plain = both(job, {"x": x, "y": np.zeros(50, np.float32)}, {}, 50)
    np.testing.assert_array_equal(compiled["y"], plain["y"])


def test_a_nan_is_the_greatest():
    source = "def kernel(x, y, lo, hi):\n    for n in range(lo, hi):\n        y[n] = greatest(load(x, (n, 0), 4))\n"
    job = Job(source, "kernel", (Array("float64", (2, 4)), Array("float64", (2,))))
    x = np.array([[1, np.nan, 3, 2], [1, -1, 0.5, -np.inf]])
    for found in both(job, {"x": x, "y": np.zeros(2)}, {}, 2):
        np.testing.assert_array_equal(found["y"], [np.nan, 1])


def test_stores_past_the_cache_are_such():
    source = "def kernel(x, y, lo, hi):\n    for i in range(lo, hi, 8):\n        stream(y, i, load(x, i, 8))\n"
    job = Job(source, "kernel", (Array("float32", (64,)), Array("float32", (64,))))
    assert "vmovntps" in assembly(job, host("avx2"))
    x = np.arange(64, dtype=np.float32)
    for found in both(job, {"x": x, "y": np.zeros(64, np.float32)}, {}, 64):
        np.testing.assert_array_equal(found["y"], x)


@pytest.mark.parametrize(("element", "size"), [("float32", 4), ("float32", 16), ("float64", 8)])
def test_a_square_is_transposed_in_registers(element, size):
    source = f"""def kernel(x, y, lo, hi):
    for i in range(lo, hi):
        transpose(x, i * {size} + 1, {3 * size}, y, i * {size * size}, {size}, {size})
"""
    job = Job(source, "kernel", (Array(element, (size + 1, 3 * size)), Array(element, (2, size, size))))
    x = np.random.default_rng(0).normal(size=(size + 1, 3 * size)).astype(element)
    for found in both(job, {"x": x, "y": np.zeros((2, size, size), element)}, {}, 2):
        for i in range(2):
            np.testing.assert_array_equal(found["y"][i], x[:size, i * size + 1 : (i + 1) * size + 1].T)


def test_a_tile_keeps_its_sums_in_registers():
    source = """def kernel(x, w, z, lo, hi):
    for n in range(lo, hi, 6):
        sums = tile(z, 6, 2, 8)
        for k in range(100):
            sums = rank1(sums, x, n * 100 + k, 100, w, k * 16)
        store_tile(sums, z, n * 16, 16, 1.0, 6, 16)
"""
    job = Job(source, "kernel", (Array("float32", (12, 100)), Array("float32", (100, 16)), Array("float32", (12, 16))))
    text = assembly(job, host("avx2"))
    assert text.count("vfmadd") >= 12
    assert "(%rsp)" not in text.split("kernel:")[0]  # nothing is spilled
    assert "fma" not in assembly(job, host("sse2"))  # where there is none: no call of a library's
