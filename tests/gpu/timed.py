"""The benchmark's rows on a GPU, the ones that tell most first, for time may run out."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks import rows
from tests.benchmarks.rows import KINDS, Row, named, rowwise

LARGE = tuple(rowwise(kind, 32768, 1024) for kind in KINDS)
"""Rows that no cache holds: 134 MB an array."""

DECAYED = (
    replace(named("adam-10M"), name="adamw-10M", optimizer="adamw"),
    replace(named("gpt"), name="gpt-adamw", optimizer="adamw"),
)
"""AdamW of one large parameter, and of the many small ones of a network."""

FLOAT32 = (
    named("mlp-64-32-32-10"),
    named("mlp-784-256-128-10"),
    named("gpt"),
    named("lenet"),
    *DECAYED,
    *LARGE,
    named("mlp-784-1024-1024-10"),
    named("resnet20"),
    named("mlp-2-16-16-2"),
    *(named(f"{kind}-65536x10") for kind in KINDS),
    named("many-steps"),
    named("adam-10M"),
)

TF32 = (named("mlp-784-1024-1024-10"), named("gpt"), named("resnet20"))

TIMED = (*((row, "float32") for row in FLOAT32), *((row, "tf32") for row in TF32))


def row_named(name: str) -> Row:
    """The row of that name, of the benchmark or of these."""
    return next(row for row in (*LARGE, *DECAYED, *rows.ROWS) if row.name == name)
