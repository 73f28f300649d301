"""Where a step's time goes: every launch of a row's tape, alone on one core, and the whole step beside them.

    python -m tests.benchmarks.kernels mlp-784-256-128-10 --threads 2 --source

`chainrule bench MODEL` does the same for any model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from chainrule import build
from chainrule.options import Options
from chainrule.runtime.profile import Profile, profile
from tests.benchmarks import peers_chainrule, rows
from tests.benchmarks.measure import initial


def measured(row: rows.Row, threads: int, repeat: int) -> Profile:
    """The profile of a row's step on its own data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        rows.write_data(row, path, initial(row))
        with np.load(path) as archive:
            data = dict(archive)
    step, calls = peers_chainrule.start(row, data, threads)
    return profile(step.runner, calls[0][1], repeat)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--source", action="store_true")
    asked = parser.parse_args()
    row = rows.named(asked.row)
    found = measured(row, asked.threads, asked.repeat)
    print(f"{'launch':60}{'blocks':>7}{'parts':>6}{'cost':>11}{'best':>11}{'median':>11} ns")
    for f in found.launches:
        name = "|" * f.meets + f.name
        print(f"{name[:59]:60}{f.blocks:7}{f.threads:6}{f.cost:11}{f.best:11.0f}{f.median:11.0f}")
    best, median = (sum(getattr(f, which) for f in found.launches) for which in ("best", "median"))
    print(f"{'sum of the launches':84}{best:11.0f}{median:11.0f}")
    print(f"{'step':84}{found.best:11.0f}{found.median:11.0f}")
    if asked.source:
        model = peers_chainrule.model_of(row)
        options = Options("train", optimizer=row.optimizer, arguments=(("rate", row.rate),))
        for text in build.sources(model.source, options).values():
            print(text)


if __name__ == "__main__":
    main()
