"""The GPU's scalar functions against mpmath and NumPy in float64, at every kind of number that there is."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda.functions import LIBRARY
from chainrule.philox import uniforms
from tests.codegen.cuda.running import values_of
from tests.codegen.test_functions import every, exact, ulps
from tests.codegen.test_functions import values_of as values_on_cpu

BOUNDS = {  # ulp in float32, as the module's docstring has them
    "exp": 1.2, "expm1": 1.3, "log": 0.9, "log1p": 0.9, "tanh": 1.8, "sigmoid": 2.5, "erf": 1.1, "erfc": 3.4,
    "sin": 2.2, "cos": 2.2, "tan": 3.6, "asin": 1.4, "acos": 1.4, "atan": 1.2,
    "sinh": 1.7, "cosh": 1.7, "asinh": 1.5, "acosh": 1.7, "atanh": 2.4,
    "sqrt": 0.5, "floor": 0, "ceil": 0, "rint": 0,
}  # fmt: skip
NUMPY = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
}


def precise(name: str, x: np.ndarray) -> np.ndarray:
    if name == "erfc":
        return np.vectorize(math.erfc)(x)
    if name not in ("sin", "cos", "tan"):
        return exact(NUMPY.get(name, name), x)
    with mp.workprec(400):  # float64 is too short for the remainder of a large argument
        return np.array([float(getattr(mp, name)(mp.mpf(float(v)))) if np.isfinite(v) else math.nan for v in x])


@pytest.mark.parametrize("name", BOUNDS)
def test_a_float32_function_keeps_its_bound_over_all_bit_patterns(name: str) -> None:
    x = np.concatenate([every(4_000)[::7], every(4_000)[-19:]])
    found = values_of(f"{name}(a)", x)
    with np.errstate(all="ignore"):
        want = precise(name, x.astype(np.float64))
        rounded = want.astype(np.float32)
    finite = np.isfinite(rounded)
    assert ulps(found[finite], want[finite]).max() <= BOUNDS[name]
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    number = finite & (x != 0)  # mpmath has no -0
    assert np.array_equal(np.signbit(found[number]), np.signbit(rounded[number]))


def test_zero_keeps_its_sign() -> None:
    x = np.array([0.0, -0.0], np.float32)
    for name in (
        "expm1",
        "log1p",
        "tanh",
        "erf",
        "sin",
        "tan",
        "asin",
        "atan",
        "sinh",
        "asinh",
        "atanh",
        "sqrt",
        "rint",
    ):
        assert np.array_equal(np.signbit(values_of(f"{name}(a)", x)), [False, True]), name


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid", "erf", "sin", "lgamma", "digamma", "polygamma3"])
@pytest.mark.parametrize("element", ["float32", "float64"])
def test_a_gpu_computes_what_the_cpu_does(name: str, element: str) -> None:
    x = np.array([0.3, 1.5, 2.75, 7.0, 30.0, math.inf, math.nan, *([-0.7, -5.25] if name != "log" else [])], element)
    rtol = {"float32": 3e-6, "float64": 1e-12}[element]
    np.testing.assert_allclose(values_of(f"{name}(a)", x), values_on_cpu(name, x), rtol=rtol)


@pytest.mark.parametrize(
    ("name", "plain"), [("power", np.power), ("atan2", np.arctan2), ("maximum", np.maximum), ("minimum", np.minimum)]
)
@pytest.mark.parametrize("element", ["float32", "float64"])
def test_a_function_of_two_is_numpys_at_special_values_too(name: str, plain: np.ufunc, element: str) -> None:
    special = np.array([0, 1, -1, 2.5, -2.5, 3, math.inf, -math.inf, math.nan, 1e-40, 3e38], element)
    a, b = (side.ravel() for side in np.meshgrid(special, special))
    with np.errstate(all="ignore"):
        want = plain(a.astype(np.float64), b.astype(np.float64)).astype(element)
    np.testing.assert_allclose(values_of(f"{name}(a, b)", a, b), want, rtol=3e-7)


@pytest.mark.parametrize("element", ["float32", "float64"])
def test_int64_cuts_off_and_keeps_what_does_not_fit_at_the_ends(element: str) -> None:
    x = np.array([1.5, -1.5, 1e30, -1e30, math.nan, math.inf, -math.inf], element)
    most = 2**63 - 1
    assert values_of("int64(a)", x, target="int64").tolist() == [1, -1, most, -most - 1, 0, most, -most - 1]


def test_integers_divide_towards_the_least_and_have_extremes() -> None:
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    for value, want in (("a // b", a // b), ("a % b", a % b), ("max(a, b)", np.maximum(a, b)), ("abs(a)", abs(a))):
        assert np.array_equal(values_of(value, a, b), want), value
    large = np.array([2**32 - 1, 12345])
    assert np.array_equal(values_of("divide(a, 7) * 10 + modulo(a, 7)", large), large // 7 * 10 + large % 7)


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("lane", range(4))
def test_uniform_draws_the_cpus_bits(element: str, lane: int) -> None:
    key, seed, step, where = 0x123456789ABCDEF, -123456789012345, 2**40 + 5, np.arange(64) * 2**31 + 7
    drawn = values_of(f"uniform(b, {key}, c, a, {lane})", where, np.full(64, seed), np.full(64, step), target=element)
    assert np.array_equal(drawn.astype(np.float64), uniforms(seed, key, step, where, lane))


def test_a_function_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARY.sources, ("exp", "float32"), LIBRARY.sources["expm1", "float32"])
    with pytest.raises(AssertionError):
        test_a_float32_function_keeps_its_bound_over_all_bit_patterns("exp")
