"""The greatest error of each float32 function over all inputs: ``python -m tests.benchmarks.accuracy [every] [law]``.

every: look at each `every`-th bit pattern only (1: all 2**32, some minutes a function). law: one of the compositions
of `tests.codegen.laws`, or `laws` for all of them, of which all floats from 2**-12 to 2**7 are tried, and each 64th
elsewhere; else the functions of `functions.py`.
"""

from __future__ import annotations

import sys

import numpy as np

from chainrule.codegen.behaviour import ULPS, Behaviour, X
from chainrule.codegen.direct import direct
from chainrule.codegen.expressions import Scope, Symbol, real
from chainrule.codegen.objects import Array, Job, Size
from tests.codegen.laws import WON
from tests.codegen.native_kernels import run
from tests.codegen.test_direct import compiled
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


def worst_direct(name: str, every: int) -> tuple[float, float, float, float]:
    """The greatest error of the function of a law: as a part of what is allowed, and where; in ulp of the result, where
    the composition may be off by no more than 8; and absolutely, for arguments up to 16."""
    law = WON[name]
    made, b = direct(law), Behaviour(law)
    assert made is not None
    text = real(law, Scope({X: Symbol("x[i]", "real")}, "float64")).text
    array = Array("float64", ("n",))
    job = Job(
        f"def kernel(x, y, n, lo, hi):\n    for i in range(lo, hi):\n        y[i] = {text}\n",
        "kernel",
        (array, array, Size()),
    )
    part, at, most, absolute = 0.0, 0.0, 0.0, 0.0
    for start in range(0, 2**32, CHUNK):
        first = abs(float(np.uint32(start).view(np.float32)))
        stride = every if 2.0**-12 <= first < 2.0**7 else 64 * every  # elsewhere laws are lines
        x = np.arange(start, start + CHUNK, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)
        x = x[np.isfinite(x)]
        wide = x.astype(np.float64)
        want = run(job, {"x": wide, "y": np.zeros_like(wide)}, {"n": len(x)}, 0, len(x))["y"]
        with np.errstate(all="ignore"):
            off, rounded = np.abs(compiled(made, x) - want), np.abs(want).astype(np.float32)
            ulp = np.spacing(rounded).astype(np.float64)
            allowed = np.fmax(ULPS * ulp, b.allowed_at(x))
        seen = np.isfinite(rounded) & np.isfinite(ulp)
        parts = np.where(seen, off / allowed, 0.0)
        if parts.size and parts.max() > part:
            part, at = float(parts.max()), float(x[parts.argmax()])
        most = max(most, float(np.max(off / ulp, initial=0.0, where=seen & (allowed <= 2 * ULPS * ulp))))
        absolute = max(absolute, float(np.max(off, initial=0.0, where=seen & (np.abs(x) <= 16))))
    return part, at, most, absolute


def main() -> None:
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    for name in WON if wanted == "laws" else [wanted] if wanted else []:
        part, at, most, absolute = worst_direct(name, every)
        told = f"{part:.2f} of what is allowed, at {at!r}"
        print(f"{name:14} {most:.2f} ulp, {absolute:.2g} up to 16, {told}", flush=True)
    for name, (bound, _) in () if wanted else BOUNDS.items():
        error, at = worst(name, every)
        print(f"{name:8} {error:.3f} ulp at {at!r} (bound {bound})", flush=True)


if __name__ == "__main__":
    main()
