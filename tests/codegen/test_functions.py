"""The generated functions against mpmath, at every kind of number that there is."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from chainrule import philox
from chainrule.codegen import coefficients, functions
from chainrule.codegen.objects import Array, Job, Size, assembly, compile_object
from chainrule.codegen.target import host
from tests.codegen.native_kernels import run, run_plain

BOUNDS = {  # ulp, as the docstrings have them
    "exp": (1.1, 1.1),
    "expm1": (2, 2),
    "log": (1, 1),
    "log1p": (2, 2),
    "tanh": (3, 3),
    "sigmoid": (2.5, 2.5),
    "erf": (2, 2),
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1e-40, 1.17549435e-38, 88.72284, 88.7229]
SPECIAL += [-87.33655, -103.97, -103.98, -104.5, 3.4028235e38, -3.4028235e38, 0.99999994, 1.0000001, -0.99999994]


def kernel_of(name: str, element: str) -> Job:
    source = f"def kernel(x, y, n, lo, hi):\n    for i in range(lo, hi):\n        y[i] = {name}(x[i])\n"
    return Job(source, "kernel", (Array(element, ("n",)), Array(element, ("n",)), Size()))


def values_of(name: str, x: np.ndarray, **where) -> np.ndarray:
    arrays = {"x": x, "y": np.zeros_like(x)}
    return run(kernel_of(name, str(x.dtype)), arrays, {"n": len(x)}, 0, len(x), **where)["y"]


def every(count: int) -> np.ndarray:
    """Some `count` float32 numbers, evenly among all bit patterns, and those where functions turn."""
    patterns = np.arange(0, 2**32, 2**32 // count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([patterns, np.linspace(-6, 6, 60_001, dtype=np.float32), np.array(SPECIAL, np.float32)])


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """In float64, whose own error is nothing beside a float32's ulp."""
    with np.errstate(all="ignore"):
        match name:
            case "sigmoid":
                z = np.exp(-np.abs(x))
                return np.where(x < 0, z, 1.0) / (1 + z)
            case "erf":
                return np.vectorize(math.erf)(x)
            case _:
                return getattr(np, name)(x)


def ulps(found: np.ndarray, want: np.ndarray) -> np.ndarray:
    rounded = want.astype(np.float32)
    with np.errstate(over="ignore"):  # beyond the largest number
        spacing = np.maximum(np.spacing(np.abs(rounded)).astype(np.float64), 2.0**-149)
    return np.abs(found.astype(np.float64) - want) / spacing


@pytest.mark.parametrize("name", BOUNDS)
def test_a_float32_function_keeps_its_bound_over_all_bit_patterns(name):
    x = every(400_000)
    with np.errstate(all="ignore"):
        found, want = values_of(name, x), exact(name, x.astype(np.float64))
        rounded = want.astype(np.float32)
    finite = np.isfinite(rounded)
    assert ulps(found[finite], want[finite]).max() <= BOUNDS[name][0]
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    assert np.array_equal(np.signbit(found[finite]), np.signbit(rounded[finite]))


@pytest.mark.parametrize("name", BOUNDS)
def test_a_float64_function_keeps_its_bound(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=300) * 10.0 ** rng.integers(-12, 3, 300), np.linspace(-1.2, 1.2, 101)])
    if name in ("log", "log1p"):
        x = np.abs(x) + (1e-300 if name == "log" else 0)
    f = {"sigmoid": lambda v: 1 / (1 + mp.exp(-v))}.get(name) or getattr(mp, name)
    found = values_of(name, x)
    with mp.workdps(60):
        for at, value in zip(x, found, strict=True):
            want = f(mp.mpf(float(at)))
            if abs(want) > np.finfo(float).max:
                assert math.isinf(value)
                continue
            unit = max(float(np.spacing(abs(float(want)))), 5e-324)
            assert abs(mp.mpf(float(value)) - want) / unit <= BOUNDS[name][1], (at, value)


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("name", BOUNDS)
def test_special_values_are_those_of_ieee(name, element):
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 800.0, -800.0], element)
    want = exact(name, x.astype(np.float64))
    found = values_of(name, x)
    np.testing.assert_allclose(found, want.astype(element), rtol=1e-6, atol=0)
    number = ~np.isnan(want)
    assert np.array_equal(np.signbit(found[number]), np.signbit(want[number].astype(element)))


@pytest.mark.parametrize(
    "name", [*BOUNDS, "sqrt", "floor", "ceil", "rint", "sign", "absolute", "digamma", "polygamma1", "sin", "lgamma"]
)
def test_plain_python_computes_what_the_kernel_does(name):
    x = np.linspace(0.1, 9, 53, dtype=np.float32) * np.where(np.arange(53) % 2, 1, -1).astype(np.float32)
    x = np.abs(x) if name in ("log", "log1p", "lgamma", "digamma", "polygamma1", "sqrt") else x
    job, arrays = kernel_of(name, "float32"), {"x": x, "y": np.zeros_like(x)}
    compiled, plain = (how(job, arrays, {"n": 53}, 0, 53)["y"] for how in (run, run_plain))
    np.testing.assert_allclose(compiled, plain, rtol=1e-6, atol=1e-7)


def test_digamma_is_the_derivative_of_lgamma():
    x = np.array([0.1, 0.5, 1.0, 2.5, 7.0, 100.0, -0.5, -3.7])
    found = values_of("digamma", x)
    assert found == pytest.approx([float(mp.digamma(float(v))) for v in x], rel=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_polygammas_are_the_derivatives_of_digamma(n):
    x = np.array([1e-3, 0.1, 0.5, 1.0, 2.5, 7.0, 100.0, 1e6, -0.5, -0.3, -3.7, -20.2])
    want = np.array([float(mp.polygamma(n, float(v))) for v in x])
    np.testing.assert_allclose(values_of(f"polygamma{n}", x), want, rtol=2e-13 if n < 6 else 2e-12)
    x = x.astype(np.float32)[:-1]
    want = [float(mp.polygamma(n, float(v))) for v in x]
    np.testing.assert_allclose(values_of(f"polygamma{n}", x), want, rtol=1e-5 * 4 ** (n - 1))


@pytest.mark.parametrize("level", ["avx2", "sse2"])
def test_less_able_targets_compute_the_same_functions(level):
    x = np.linspace(-20, 20, 1001, dtype=np.float32)
    for name in ("exp", "tanh", "erf"):
        found = values_of(name, x, target=host(level))
        assert ulps(found, exact(name, x.astype(np.float64))).max() <= BOUNDS[name][0] + 0.5


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf"])
def test_llvm_makes_vectors_of_the_functions(name):
    text = assembly(kernel_of(name, "float32"), host("avx2"))
    assert "vfmadd" in text
    assert "%ymm" in text
    assert compile_object(kernel_of(name, "float32"), host("avx2")).externals == ()


def test_a_wrong_coefficient_is_noticed(monkeypatch):
    wrong = (coefficients.EXP_FLOAT32[0] * (1 + 1e-5), *coefficients.EXP_FLOAT32[1:])
    monkeypatch.setattr(coefficients, "EXP_FLOAT32", wrong)
    x = np.linspace(-5, 5, 10_001, dtype=np.float32)
    assert ulps(functions.exp(x), np.exp(x.astype(np.float64))).max() > BOUNDS["exp"][0]


def test_where_choice_meets_nan_nothing_of_the_other_side_is_left():
    assert functions.where(np.array([True, False]), np.array([1.0, math.nan]), np.array([math.nan, 2.0])).tolist() == [
        1,
        2,
    ]


def test_accumulate_lets_a_sum_be_a_vector_and_plain_addition_does_not():
    source = """def kernel(x, y, n, lo, hi):
    total = float32(0)
    for i in range(lo, hi):
        {}
    y[0] = total
"""
    parameters = (Array("float32", ("n",)), Array("float32", (1,)), Size())
    free = Job(source.format("total = accumulate(total, x[i] * x[i])"), "kernel", parameters)
    strict = Job(source.format("total = total + x[i] * x[i]"), "kernel", parameters)
    assert "ymm" in assembly(free, host("avx2"))
    assert "vaddps\t%ymm" not in assembly(strict, host("avx2"))
    x = np.random.default_rng(0).normal(size=1003).astype(np.float32)
    found = run(free, {"x": x, "y": np.zeros(1, np.float32)}, {"n": 1003}, 0, 1003)["y"][0]
    assert found == pytest.approx(np.sum(x.astype(np.float64) ** 2), rel=1e-6)


def test_casts_keep_what_fits():
    source = """def kernel(x, i, y, lo, hi):
    for k in range(lo, hi):
        i[k] = int64(x[k])
        y[k] = float32(i[k])
"""
    job = Job(source, "kernel", (Array("float64", (5,)), Array("int64", (5,)), Array("float32", (5,))))
    x = np.array([2.9, -2.9, math.nan, 1e300, 7.0])
    arrays = {"x": x, "i": np.zeros(5, np.int64), "y": np.zeros(5, np.float32)}
    for how in (run, run_plain):
        assert how(job, arrays, {}, 0, 5)["i"].tolist() == [2, -2, 0, 2**63 - 1, 7]


# Random numbers


def test_philox_gives_the_known_answers_of_random123():
    def words(*numbers):
        return tuple(np.array([n], np.uint64) for n in numbers)

    def answer(counter, key):
        return [int(w[0]) for w in philox.philox(words(*counter), words(*key))]

    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert answer((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert answer((ones,) * 4, (ones,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert answer(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("lane", range(4))
@pytest.mark.parametrize("seed", [0, 1, -5, 2**62 + 3])
def test_kernels_draw_the_uniforms_of_the_reference(seed, lane):
    source = (
        "def kernel(c, y, n, lo, hi):\n    for i in range(lo, hi):\n"
        f"        y[i] = uniform(c[0], {2**61 + 12345}, c[1], i, {lane})\n"
    )
    for element in ("float32", "float64"):
        job = Job(source, "kernel", (Array("int64", (2,)), Array(element, ("n",)), Size()))
        arrays = {"c": np.array([seed, 7]), "y": np.zeros(100, element)}
        want = philox.uniforms(seed, 2**61 + 12345, 7, np.arange(100), lane)
        assert np.array_equal(run(job, arrays, {"n": 100}, 0, 100)["y"], want)
    assert np.array_equal(run_plain(job, arrays, {"n": 100}, 0, 100)["y"], want)


def test_uniforms_lie_strictly_between_0_and_1_and_spread_evenly():
    u = philox.uniforms(3, 99, 0, np.arange(200_000))
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    counts = np.histogram(u, 64, (0, 1))[0]
    assert np.sum((counts - 3125.0) ** 2 / 3125) < 120  # chi squared, 63 degrees: 1e-5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01


def test_seeds_nodes_steps_and_lanes_draw_apart():
    base = philox.uniforms(1, 2, 3, np.arange(1000))
    for other in ((2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)):
        seed, node, step, lane = other
        u = philox.uniforms(seed, node, step, np.arange(1000), lane)
        assert abs(np.corrcoef(base, u)[0, 1]) < 0.15
