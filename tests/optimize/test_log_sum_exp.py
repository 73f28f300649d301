"""Sums of exponentials under masks: large numbers that do not count neither overflow nor reach the gradient."""

import sys

import numpy as np
import pytest

from chainrule.compiler import derive
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.source import Source

Z = np.array([[1000.0, 1001, 1002, 5000], [1, 2, 3, 4], [-2000, -2001, -2002, -2003], [7, 8, 9, 5]])
M = np.array([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
SUMS = {
    "where": ["s[i < 4] = sum[k < 4 where m[i, k] > 0] exp(z[i, k])"],
    "if": ["s[i < 4] = sum[k < 4] (if m[i, k] > 0 then exp(z[i, k]) else 0)"],
    "if not": ["s[i < 4] = sum[k < 4] (if m[i, k] <= 0 then 0 else exp(z[i, k]))"],
    "a map with where": ["e[i < 4, k < 4] = exp(z[i, k]) where m[i, k] > 0", "s[i < 4] = sum[k < 4] e[i, k]"],
    "a map with if": ["e[i < 4, k < 4] = if m[i, k] > 0 then exp(z[i, k]) else 0", "s[i < 4] = sum[k < 4] e[i, k]"],
    "times": ["e[i < 4, k < 4] = if m[i, k] > 0 then exp(z[i, k]) else 0", "s[i < 4] = (sum[k < 4] 2 * e[i, k]) / 2"],
}


def logsumexp(sums):
    """log s where anything counts, its gradient by z for cotangents of 1."""
    lines = [*sums, "l[i < 4] = log(s[i])", "loss = sum[i] (if s[i] > 0 then l[i] else 0)"]
    text = "model masked:\n    input z[4, 4]\n    input m[4, 4]\n" + "".join(f"    {line}\n" for line in lines)
    compiled = derive(Source(text, "masked.graph"), Options("gradient", wrt=("z",)))
    found = evaluate(compiled.derived, {"z": Z, "m": M})
    return found["loss"], found[compiled.gradients["z"]]


@pytest.mark.parametrize("form", SUMS)
def test_a_masked_log_sum_exp_is_stable_however_its_mask_is_written(form):
    shown = np.where(M > 0, Z, -np.inf)[:3]
    top = shown.max(1)
    p = np.exp(shown - top[:, None])
    loss, z_bar = logsumexp(SUMS[form])
    np.testing.assert_allclose(loss, np.sum(top + np.log(p.sum(1))), rtol=1e-12)
    np.testing.assert_allclose(z_bar[:3], p / p.sum(1)[:, None], atol=1e-12)
    assert not z_bar[3].any()


def test_a_rule_that_does_not_look_into_choices_is_noticed(monkeypatch):
    rule = sys.modules["chainrule.optimize.log_sum_exp"]
    monkeypatch.setattr(rule, "_counted", lambda term: ([], list(term.as_ordered_factors())))
    with pytest.raises(AssertionError):
        test_a_masked_log_sum_exp_is_stable_however_its_mask_is_written("if")
