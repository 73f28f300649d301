"""Points where a derivative is a convention, and PyTorch's is another than the language's; see docs/language.md.

Values agree at all of them. A row is held to its kink alone: elsewhere its gradients must agree as all others do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Kink:
    """A stated difference. `holds` says of an input, its gradient here and PyTorch's that the sample sits on it."""

    why: str
    holds: Callable[[Any, Any, Any], bool]


def at_zero(x: Any, ours: Any, theirs: Any) -> bool:
    """Everything that differs stands where the whole input is 0, and is 0 here."""
    other = ~np.isclose(ours, theirs, rtol=1e-8, atol=1e-10)
    return bool(np.all(x[other] == 0) and np.all(ours[other] == 0))


def rounded_sixth(x: Any, ours: Any, theirs: Any) -> bool:
    """PyTorch's is ours times a sixth as float32 has it."""
    return bool(np.allclose(theirs, ours * (np.float64(np.float32(1 / 6)) * 6), rtol=1e-12, atol=0))


def theirs_is_nan(x: Any, ours: Any, theirs: Any) -> bool:
    """Whatever differs is NaN in PyTorch and 0 here."""
    other = ~np.isclose(ours, theirs, rtol=1e-8, atol=1e-10)
    return bool(np.all(np.isnan(theirs[other])) and np.all(ours[other] == 0))


def by_logits(x: Any, ours: Any, theirs: Any) -> bool:
    """What differs is the softmax's share: exp(x[t, n, k]) times one number for each example n."""
    more = theirs - ours
    share = more.sum(-1, keepdims=True)[:1]
    return bool(np.allclose(more, np.exp(x) * share, rtol=0, atol=1e-8))


KINKS: dict[str, Kink] = {
    "nn.functional.hardsigmoid": Kink(
        "PyTorch's derivative is 1/6 rounded to float32, in float64 too; the language's is 1/6", rounded_sixth
    ),
    "linalg.norm.subgradients_at_zero": Kink(
        "the norm of zeros: its second derivative is 0 here, NaN in PyTorch", at_zero
    ),
    "nn.functional.ctc_loss": Kink(
        "PyTorch's gradient is that by the logits of a log_softmax, whatever the logarithms come from", by_logits
    ),
    "masked.logaddexp": Kink("second derivatives where a summand is masked: 0 here, NaN in PyTorch", theirs_is_nan),
}
