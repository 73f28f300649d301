"""Whether the kernels are right on a device: each case's steps there against the CPU's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.cases import Case, off, ran
from tests.gpu.folder import expected

SANITIZED = 100.0  # seconds


def compared(cases: Sequence[Case], folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each case, run on the device that is in use."""
    found = []
    for case in cases:
        row: dict[str, Any] = {"case": case.name, "tolerance": case.tolerance}
        try:
            row["error"], row["where"] = off(ran(case, "cuda"), expected(folder, case))
            row["right"] = row["error"] <= case.tolerance
        except Exception as problem:  # the other cases are worth knowing too
            row |= {"right": False, "problem": f"{type(problem).__name__}: {problem}"}
        said = row.get("problem") or f"off by {row['error']:.1e} at most ({row['where']})"
        tell(f"{'right' if row['right'] else 'WRONG'}  {case.name}: {said}")
        found.append(row)
    return found


def sanitized(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What compute-sanitizer says of some cases, where there is one."""
    tool = shutil.which("compute-sanitizer") or next(
        (path for path in ("/usr/local/cuda/bin/compute-sanitizer",) if os.access(path, os.X_OK)), None
    )
    if tool is None:
        return {"ran": False, "why": "there is no compute-sanitizer"}
    found: dict[str, Any] = {"ran": True}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu"]
        command += ["--only", "correct", "--folder", str(folder), "--cases", ",".join(names)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZED, check=False)
            tail = done.stdout.strip().splitlines()[-3:] if done.returncode else []
            found[kind] = {"clean": done.returncode == 0, "code": done.returncode, "said": tail}
        except subprocess.TimeoutExpired:
            found[kind] = {"clean": None, "said": [f"not done in {SANITIZED:.0f} s"]}
    return found
