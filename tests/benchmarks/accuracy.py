"""The greatest error of each float32 function over all inputs: ``python -m tests.benchmarks.accuracy [every]``.

every: look at each `every`-th bit pattern only (1: all 2**32, some minutes a function).
"""

from __future__ import annotations

import sys

import numpy as np

from tests.codegen.test_functions import BOUNDS, exact, ulps, values_of

CHUNK = 2**22


def worst(name: str, every: int) -> tuple[float, float]:
    """The greatest error in ulp, and where; what is not finite must agree exactly."""
    found_worst, at = 0.0, 0.0
    for start in range(0, 2**32, CHUNK * every):
        patterns = np.arange(start, min(start + CHUNK * every, 2**32), every, dtype=np.uint64)
        x = patterns.astype(np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            found, want = values_of(name, x), exact(name, x.astype(np.float64))
            rounded = want.astype(np.float32)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(found[~finite], rounded[~finite])
        errors = ulps(found[finite], want[finite])
        if errors.size and errors.max() > found_worst:
            found_worst, at = float(errors.max()), float(x[finite][errors.argmax()])
    return found_worst, at


def main() -> None:
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for name, (bound, _) in BOUNDS.items():
        error, at = worst(name, every)
        print(f"{name:8} {error:.3f} ulp at {at!r} (bound {bound})", flush=True)


if __name__ == "__main__":
    main()
