"""Derivatives of derivatives, as a model asks for them in Python: closed forms, and JAX where there is none."""

from __future__ import annotations

import os

import numpy as np
import pytest

import chainrule as cr

os.environ.setdefault("JAX_PLATFORMS", "cpu")
X = np.random.default_rng(1).normal(size=(4, 3))


def test_a_gradient_has_a_gradient_and_so_has_that_one():
    x = cr.input("x", [cr.dim("batch"), 3])
    y = cr.sum(x**3 * cr.tanh(x))
    first = cr.gradient(y, x, name="first")
    second = cr.gradient(cr.sum(first), x, name="second")
    third = cr.gradient(cr.sum(second), x, name="third")
    found = cr.Model(first=first, second=second, third=third).predict(dtype="float64", x=X)
    t = np.tanh(X)
    d = 1 - t**2  # tanh'
    assert np.allclose(found["first"], 3 * X**2 * t + X**3 * d, rtol=1e-12)
    assert np.allclose(found["second"], 6 * X * t + 6 * X**2 * d - 2 * X**3 * t * d, rtol=1e-12)
    third_by_hand = 6 * t + 18 * X * d - 18 * X**2 * t * d + X**3 * (4 * t**2 * d - 2 * d**2)
    assert np.allclose(found["third"], third_by_hand, rtol=1e-11)


def test_the_third_derivative_of_a_networks_loss_agrees_with_jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy
    x, v = cr.input("x", [cr.dim("batch"), 3]), cr.input("v", [3, 4])
    W = cr.param("W", [3, 4], "glorot_uniform")
    loss = cr.mean(cr.logsumexp(cr.formula("h[n, j] = tanh(sum[i] x[n, i] * W[i, j])", x=x, W=W)))
    Hv = cr.gradient(cr.sum(cr.gradient(loss, W) * v), W, name="Hv")
    Tvv = cr.gradient(cr.sum(Hv * v), W, name="Tvv")
    model = cr.Model(loss, Hv=Hv, Tvv=Tvv)
    direction = np.random.default_rng(2).normal(size=(3, 4))
    found = model.predict(outputs=["Hv", "Tvv"], dtype="float64", x=X, v=direction)
    at = model.store("float64").params["W"]

    def fit(W):
        return jnp.mean(jax.nn.logsumexp(jnp.tanh(X @ W), axis=1))

    def along(f):
        return jax.grad(lambda W: jnp.sum(f(W) * direction))

    once = along(jax.grad(fit))
    assert np.allclose(found["Hv"], once(at), rtol=1e-10, atol=1e-14)
    assert np.allclose(found["Tvv"], along(once)(at), rtol=1e-10, atol=1e-14)
