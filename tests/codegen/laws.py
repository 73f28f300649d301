"""Functions of one real: the activations as their formulas come out of the passes, and what a user might write."""

from __future__ import annotations

import sympy as sp
from sympy.codegen.cfunctions import expm1, log1p

from chainrule.codegen.behaviour import X
from chainrule.ir.expression import Select

SIGMOID = 1 / (1 + sp.exp(-X))
POSITIVE = Select(X > 0, X, sp.S.Zero)
SOFTPLUS = POSITIVE + log1p(sp.exp(Select(X > 0, -X, X)))
TANH = sp.tanh(SOFTPLUS)
CLIP = Select(X < -10, sp.Integer(-10), Select(X > 10, sp.Integer(10), X))
CUBIC = sp.tanh(sp.sqrt(2 / sp.pi) * (CLIP + sp.Rational(8943, 200000) * CLIP**3))
SLOPE = sp.sqrt(2 / sp.pi) / 2 * (1 - CUBIC**2) * (1 + sp.Rational(3 * 8943, 200000) * CLIP**2) * X

WON: dict[str, sp.Expr] = {
    "gelu": X * (1 + sp.erf(X / sp.sqrt(2))) / 2,
    "gelu'": sp.erf(X / sp.sqrt(2)) / 2 + X * sp.exp(-(X**2) / 2) / sp.sqrt(2 * sp.pi) + sp.S.Half,
    "gelu_tanh": X * (1 + CUBIC) / 2,
    "gelu_tanh'": (1 + CUBIC) / 2 + Select(X < -10, sp.S.Zero, Select(X > 10, sp.S.Zero, SLOPE)),
    "softplus": SOFTPLUS,
    "softplus'": -expm1(-SOFTPLUS),
    "logsigmoid": Select(X > 0, sp.S.Zero, X) - log1p(sp.exp(Select(X > 0, -X, X))),
    "mish": X * TANH,
    "mish'": TANH - X * (1 - TANH**2) * expm1(-SOFTPLUS),
    "tanh(softplus)": TANH,
}
"""Laws for which a function of their own costs less."""

LEFT: dict[str, sp.Expr] = {
    "silu": X * SIGMOID,  # one exp and one division are what the quotient would need
    "silu'": SIGMOID + SIGMOID * (1 - SIGMOID) * X,
    "tanhshrink": X - sp.tanh(X),
    "exp(-x^2) erf(x)": sp.exp(-(X**2)) * sp.erf(X),  # exact to the last bit where it is 1e-38
    "exp(sin x)": sp.exp(sp.sin(X)) * sp.sin(X),
    "log(1 + x^2) tanh x": sp.log(1 + X**2) * sp.tanh(X),
}
"""Laws that are better composed."""
