"""All rows by OpInfo's names, the kinks at which PyTorch's convention is another, and what is left out, and why."""

from __future__ import annotations

from tests.conformance import contractions, elementwise, losses, reductions, shapes
from tests.conformance.kinks import KINKS
from tests.conformance.unsaid import UNSAID

ROWS = {**elementwise.ROWS, **shapes.ROWS, **reductions.ROWS, **contractions.ROWS, **losses.ROWS}

__all__ = ["KINKS", "ROWS", "UNSAID"]
