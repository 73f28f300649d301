"""The machine's two ceilings: float32 products (GFLOP/s) and memory (GB/s), measured now.

Run as ``python -m chainrule.runtime.ceilings THREADS``, in a process of its own, since BLAS fixes its threads when
it is loaded. Memory counts bytes read and written by copies of arrays far larger than any cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SIZE = 1536
FLOATS = 16_000_000


def ceilings(threads: int) -> dict[str, float]:
    """``{gflops, gb_per_s}`` of `threads` threads, measured in a new process."""
    variables = {f"{name}_NUM_THREADS": str(threads) for name in ("OPENBLAS", "OMP", "MKL")}
    if "avx512f" in flags():  # OpenBLAS takes some processors with AVX-512 for older ones
        variables["OPENBLAS_CORETYPE"] = "SKYLAKEX"
    command = [sys.executable, "-m", "chainrule.runtime.ceilings", str(threads)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        command, env={**os.environ, **variables, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(ran.stdout))


def flags() -> str:
    """The processor's feature flags, where Linux tells them."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def products() -> float:
    """GFLOP/s of a large float32 product, the best of several."""
    a = np.ones((SIZE, SIZE), np.float32)
    out = np.empty_like(a)
    return 2e-9 * SIZE**3 / min(timed(lambda: np.matmul(a, a, out=out)) for _ in range(12))


def copies(threads: int) -> float:
    """GB/s of copying, each thread its own arrays, the best of several."""
    pairs = [(np.ones(FLOATS, np.float32), np.empty(FLOATS, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def all_copy() -> None:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return 2e-9 * 4 * FLOATS * threads / min(timed(all_copy) for _ in range(12))


def timed(action: object) -> float:
    """Seconds of one call."""
    assert callable(action)
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps({"gflops": products(), "gb_per_s": copies(int(sys.argv[1]))}))
