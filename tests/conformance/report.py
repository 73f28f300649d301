"""docs/conformance.md: each entry of OpInfo, and how it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.conformance.kinks import KINKS
from tests.conformance.runner import Entry

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

HEAD = """# Conformance

PyTorch tests its own operations with samples: `OpInfo`, in `torch.testing`. This page says how they fare here.
Each entry with a gradient in float64 is one row: a small function in `tests/conformance` turns a sample's shapes and
attributes into the text of a model; that text is elaborated, derived, optimized and evaluated in float64, and value
and gradient (of every input that needs one, along a random cotangent) must agree with PyTorch's to 1e-8 of the
tensor's largest; second derivatives likewise, where PyTorch has them ("twice" counts the samples compared so).
NaN and infinity must stand at the same places.

Written by `python -m tests.conformance --write` with PyTorch {version}; `python -m tests.conformance --only NAME`
checks one entry, `--json` prints all as data.

"""


def page(entries: Sequence[Entry], version: str = torch.__version__) -> str:
    counts = Counter(entry.status for entry in entries)
    samples, agreed = sum(e.samples for e in entries), sum(e.agreed for e in entries)
    kinks = sum(e.kinks for e in entries)
    lines = [
        HEAD.format(version=version),
        f"Of {len(entries)} entries, **{counts['agreed'] + counts['agreed in part']} agree** "
        f"({counts['agreed in part']} of them in part: some samples have no counterpart here), "
        f"{counts['not expressible']} are not expressible, {counts['out of scope']} out of scope, and "
        f"**{counts['wrong']} wrong**. Of {samples:,} samples tried, {agreed:,} agree in value and gradient, "
        f"{sum(e.twice for e in entries):,} also in second derivatives, {kinks:,} sit on a kink and agree in value.\n",
        "| entry | | samples | agree | twice | notes |\n|---|---|---|---|---|---|",
    ]
    lines += [row(entry) for entry in entries]
    return "\n".join(lines) + "\n"


def row(entry: Entry) -> str:
    notes = [f"{reason} ({count})" if entry.agreed else reason for reason, count in entry.left.items()]
    if entry.kinks:
        notes.append(f"{entry.kinks} on a kink: {KINKS[entry.name].why}")
    if entry.wrong:
        notes.append(f"{len(entry.wrong)} wrong")
    text = "; ".join(notes).replace("|", "\\|").replace("\n", " ")
    of = f"{entry.samples}" if entry.samples == entry.drawn else f"{entry.samples} of {entry.drawn}"
    shown = f"| {of} | {entry.agreed} | {entry.twice} |" if entry.samples else "| | | |"
    return f"| `{entry.name}` | {entry.status} {shown} {text} |"


def data(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "status": entry.status,
        "drawn": entry.drawn,
        "samples": entry.samples,
        "agreed": entry.agreed,
        "twice": entry.twice,
        "kinks": entry.kinks,
        "left": dict(entry.left),
        "wrong": entry.wrong,
    }
