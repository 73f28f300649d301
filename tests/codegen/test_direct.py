"""Functions that stand for compositions: their error over all kinds of floats, and when they are made."""

from __future__ import annotations

import ast
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.codegen import fits
from chainrule.codegen.behaviour import ULPS, Behaviour, X, loss, samples
from chainrule.codegen.direct import Direct, direct
from chainrule.codegen.objects import Array, Job, Size, assembly, compile_object
from chainrule.codegen.target import host
from chainrule.codegen.weights import distinct
from chainrule.ir.value import value
from tests.codegen.laws import LEFT, WON
from tests.codegen.native_kernels import run, run_plain
from tests.codegen.test_functions import SPECIAL, every


def found_for(law: sp.Expr) -> Direct:
    found = direct(law)
    assert found is not None
    return found


def job(d: Direct) -> Job:
    text = (
        d.source("f", "law") + "\n\ndef kernel(x, y, n, lo, hi):\n    for i in range(lo, hi):\n        y[i] = f(x[i])\n"
    )
    return Job(text, "kernel", (Array("float32", ("n",)), Array("float32", ("n",)), Size()))


def compiled(d: Direct, x: np.ndarray) -> np.ndarray:
    return run(job(d), {"x": x, "y": np.zeros_like(x)}, {"n": len(x)}, 0, len(x))["y"]


def check(law: sp.Expr, d: Direct, x: np.ndarray, slack: float = 1.1) -> None:
    """The compiled function at x is off by no more than 4 ulp, or what the composition may lose.

    slack: the samples that decided are some thousands, these are others.
    """
    found = compiled(d, x).astype(np.float64)
    with np.errstate(all="ignore"):
        want = value(law, {X: x.astype(np.float64)})
        rounded = want.astype(np.float32)
        finite = np.isfinite(rounded) & np.isfinite(x)
        ulp = np.spacing(np.abs(np.where(finite, rounded, np.float32(1)))).astype(np.float64)
        allowed = np.fmax(ULPS * ulp, Behaviour(law).allowed_at(x))
        off = np.where(finite, np.abs(found - want) / allowed, 0.0)
    assert off.max(initial=0.0) <= slack, x[off.argmax()]
    assert np.isnan(found[np.isnan(x)]).all()


@pytest.mark.parametrize("name", WON)
def test_a_direct_function_keeps_its_bound_over_all_bit_patterns(name):
    check(WON[name], found_for(WON[name]), every(200_000))


@pytest.mark.parametrize("name", WON)
def test_zeros_keep_their_sign_and_infinities_have_limits(name):
    law = WON[name]
    found = compiled(found_for(law), np.array([*SPECIAL[:2], np.inf, -np.inf, np.nan], np.float32))
    zero = value(law, {X: np.array([0.0, -0.0])}).astype(np.float32)
    assert np.array_equal(found[:2], zero)
    assert np.array_equal(np.signbit(found[:2]), np.signbit(zero))
    far = value(law, {X: np.array([1e30, -1e30])}).astype(np.float32)
    for limit, near in zip(found[2:4], far, strict=True):
        assert np.isnan(limit) or limit == near or np.isinf(limit)
    assert np.isnan(found[4])


@pytest.mark.parametrize("name", WON)
def test_plain_python_computes_what_the_kernel_does(name):
    d, x = found_for(WON[name]), np.linspace(-9, 9, 101, dtype=np.float32)
    plain = run_plain(job(d), {"x": x, "y": np.zeros_like(x)}, {"n": len(x)}, 0, len(x))["y"]
    np.testing.assert_allclose(compiled(d, x), plain, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("name", LEFT)
def test_what_would_not_win_is_left_composed(name):
    assert direct(LEFT[name]) is None


def test_a_function_costs_less_than_its_composition():
    for law in WON.values():
        assert found_for(law).cost <= 0.8 * distinct((law,))


def test_mish_is_found_to_be_a_quotient_in_its_exponential():
    *_, last = found_for(WON["mish"]).lines
    assert last == "return u * (t * polynomial(t, 1.0, 0.5) / polynomial(t, 1.0, 1.0, 0.5))"


def test_float64_is_near_enough_to_say_what_is_exact():
    with mp.workdps(40):
        for x in (-9.0, -5.7, -3.25, -1e-3, 1e-6, 0.7, 4.5):
            a = mp.mpf(x)
            want = a * mp.erfc(-a / mp.sqrt(2)) / 2
            b = Behaviour(WON["gelu"])
            lost = float(loss(b.law, np.array([x]))[0])
            assert abs(float(want) - float(b.at(np.array([x]))[0])) <= 2.0**-27 * max(lost, abs(float(want)))


def test_what_a_composition_loses_is_bounded_by_its_analysis():
    x = samples()[np.abs(samples()) < 50]
    for name, law in {**WON, **LEFT}.items():
        with np.errstate(all="ignore"):
            rough = value(law, {X: x}, np.float32).astype(np.float64)
            off = np.abs(rough - value(law, {X: x.astype(np.float64)}))
        finite = np.isfinite(off)
        # sqrt(2 / pi) is rounded three times here, and once in a kernel
        over = off[finite] - 1.5 * loss(law, x.astype(np.float64))[finite]
        assert over.max() <= 1e-44, (name, x[finite][over.argmax()], over.max())


@pytest.mark.parametrize("name", ["gelu", "mish", "softplus"])
def test_a_wrong_coefficient_is_noticed(name, monkeypatch):
    right = fits.quotient

    def wrong(*arguments):
        found = right(*arguments)
        return found._replace(above=found.above * (1 + 2e-5))

    monkeypatch.setattr(fits, "quotient", wrong)
    assert direct.__wrapped__(WON[name]) is None


def test_lines_are_straight_and_call_functions_of_ours():
    for law in WON.values():
        d = found_for(law)
        (tree,) = ast.parse(d.source("f", "law")).body
        assert isinstance(tree, ast.FunctionDef)
        assert not any(isinstance(n, ast.If | ast.IfExp | ast.For) for n in ast.walk(tree))
        assert d.calls <= {"float32", "where", "polynomial", "fma", "exp", "absolute"}


PIECES = {
    "tanh": sp.tanh,
    "erf": sp.erf,
    "sigmoid": lambda u: 1 / (1 + sp.exp(-u)),
    "atan": sp.atan,
    "softplus": lambda u: SOFT.xreplace({X: u}),
    "gauss": lambda u: sp.exp(-(u**2)),
}
SOFT = WON["softplus"]


@cache
def built(outer: str, inner: str, scale: int, times: bool) -> sp.Expr:
    law = PIECES[outer](PIECES[inner](sp.Rational(scale, 2) * X))
    return X * law if times else law


@settings(max_examples=25, deadline=None)
@given(
    outer=st.sampled_from([*PIECES]), inner=st.sampled_from([*PIECES]), scale=st.sampled_from([-2, 1, 2, 3]),
    times=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_functions_composed_at_random_keep_their_bound_or_stay_composed(outer, inner, scale, times, seed):
    law = built(outer, inner, scale, times)
    d = direct(law)
    if d is not None:
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.normal(size=3000) * 4, rng.normal(size=1000) * 10.0 ** rng.integers(-30, 8, 1000)])
        check(law, d, x.astype(np.float32), slack=1.3)


@pytest.mark.parametrize("name", WON)
def test_llvm_makes_vectors_of_them_without_a_call(name):
    made = job(found_for(WON[name]))
    for level in ("avx2", "neon"):
        text = assembly(made, host(level))
        assert ("%ymm" if level == "avx2" else ".4s") in text
    assert compile_object(made, host("avx2")).externals == ()
