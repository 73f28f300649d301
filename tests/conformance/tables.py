"""All rows by OpInfo's names, the kinks at which PyTorch's convention is another, and what is left out, and why."""

from __future__ import annotations

from tests.conformance import (
    combined,
    composites,
    contractions,
    edges,
    elementwise,
    indexing,
    losses,
    norms,
    orders,
    pools,
    reductions,
    sampling,
    shapes,
)
from tests.conformance.kinks import KINKS
from tests.conformance.unsaid import UNSAID

FAMILIES = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        elementwise,
        shapes,
        combined,
        indexing,
        edges,
        reductions,
        orders,
        contractions,
        losses,
        norms,
        pools,
        sampling,
        composites,
    )
}
ROWS = {name: row for module in FAMILIES.values() for name, row in module.ROWS.items()}

SLOW = {"sort", "linalg.lu_solve", "nn.functional.ctc_loss"}
"""Rows whose first samples take seconds: the short run leaves them out."""

__all__ = ["FAMILIES", "KINKS", "ROWS", "SLOW", "UNSAID"]
