"""One launch of a kernel on the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.codegen.cuda.objects import Compiled, Job, compile_kernel
from tests.codegen.cuda.kernels import at_each
from tests.cuda.running import launch


def run(job: Job, grid: int, *arguments: Any, arch: str = "sm_90", races: bool = True) -> list[np.ndarray]:
    """What the arrays among `arguments` hold after a launch; numbers are sizes."""
    return launched(compile_kernel(job, arch), grid, job.threads, *arguments, races=races)


def launched(compiled: Compiled, grid: int, threads: int, *arguments: Any, races: bool = True) -> list[np.ndarray]:
    return launch(compiled.ptx, grid, threads, *arguments, races=races)


def values_of(value: str, *parts: np.ndarray, target: str | None = None) -> np.ndarray:
    """`value` of a, b, c, whose values are the arrays, element by element."""
    element = str(parts[0].dtype)
    n = len(parts[0])
    job = at_each(value, len(parts), element, target or element)
    y = np.zeros(n, target or element)
    return run(job, -(-n // 256), np.concatenate(parts), y, n, 0, races=False)[1]
