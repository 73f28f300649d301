"""The main job as a user runs it, ``chainrule train graphs/mlp.graph --data digits``: cold cache, then warm."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import peers
from tests.benchmarks.startup import ROOT

WARM_RUNS = 5


def measure_main_job(threads: int) -> dict[str, Any]:
    """``{cold_s, warm_s, test_accuracy, reached}``, the warm time a median; or ``{error}``."""
    times, last = [], {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | peers.environment(threads, Path(folder, "cache"))
        for k in range(1 + WARM_RUNS):
            script = Path(sys.executable).with_name("chainrule")
            command = [str(script), "train", "graphs/mlp.graph", "--data", "digits", "--json"]
            command += ["--threads", str(threads), "--out", str(Path(folder, f"run-{k}"))]
            began = time.perf_counter()
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            times.append(time.perf_counter() - began)
            if ran.returncode > 1 or not ran.stdout.strip():  # 1: a missed goal, which the figures tell
                return {"error": (ran.stderr.strip().splitlines() or ["no message"])[-1]}
            last = json.loads(ran.stdout.strip().splitlines()[-1])
    figures = {"cold_s": times[0], "warm_s": statistics.median(times[1:])}
    return figures | {name: last[name] for name in ("test_accuracy", "reached")}
