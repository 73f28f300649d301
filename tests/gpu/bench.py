"""Training steps on a GPU beside the peers': processes side by side, in interleaved rounds, medians.

All peers of a row start at once, to compile at once, and then take turns; whoever is not ready in time is left out.
Where a loss differs from float64's, there is no time: other work has no place in a table.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from pathlib import Path
from typing import Any

from chainrule.runtime.cuda import profile
from chainrule.runtime.cuda.device import Device
from tests.benchmarks.measure import Worker, best_of_others, opened, take_turns
from tests.benchmarks.peers import environment
from tests.benchmarks.rows import Row, write_data
from tests.gpu import peers

ROUNDS, SECONDS = 7, 0.2
PATIENCE = 120.0  # seconds that a peer may take to compile a row
LOOSE = {"float32": 1e-3, "tf32": 2e-2}  # how far a loss may be from float64's


def ceilings(device: Device) -> dict[str, float | None]:
    """What this device does at its best: GB/s of copies, read and written, and TFLOP/s of a library's products."""
    found: dict[str, float | None] = {}
    for precision in ("float32", "tf32", "bf16"):
        best = profile.ceilings(device, precision)
        found["gb_per_s"] = max(found.get("gb_per_s") or 0.0, best["gb_per_s"])
        found[f"tflops_{precision}"] = best["gflops"] / 1e3 if math.isfinite(best["gflops"]) else None
    return found


def measured(
    row: Row, precision: str, names: Sequence[str], until: float, best: Mapping[str, float | None]
) -> dict[str, Any]:
    """A row of the report. until: when all must be over, by the monotonic clock."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # of the step itself: to predict is another program, which nobody has compiled
        write_data(row, folder / "data.npz", dict(peers.compiled(row, precision).params))
        ready, results = started(row, precision, names, folder, min(time.monotonic() + PATIENCE, until))
        judge = ready.pop("reference", None)
        reference = None if judge is None else judge.losses
        if judge is not None:
            judge.close()
        running = {}
        for name, worker in ready.items():
            problem = None if reference is None else differs(worker.losses, reference, LOOSE[precision])
            results[name] = {"compile_s": worker.compile_s, "loss_20": worker.losses[-1]}
            if problem is None:
                running[name] = worker
            else:
                results[name]["error"] = problem
                worker.close()
        times = take_turns(running, ROUNDS, SECONDS)
        for name, worker in running.items():
            results[name] |= {"step_us": statistics.median(times[name])}
            worker.close()
    return {"row": row.name, "precision": precision, "judged": reference is not None} | told(
        row, precision, results, best
    )


def told(row: Row, precision: str, results: Mapping[str, Any], best: Mapping[str, float | None]) -> dict[str, Any]:
    """The figures of a row: times, the ratio to the best peer, and how near the step is to what the device can do."""
    own = results.get("chainrule", {}).get("step_us")
    rate, bandwidth = best.get(f"tflops_{precision}"), best.get("gb_per_s")
    return {
        "work": {"flops": row.flops, "bytes": row.bytes},
        "peers": dict(results),
        "ratio_to_best": best_of_others(dict(results)),
        "percent_of_copy": 100 * row.bytes / own / bandwidth * 1e-3 if own and bandwidth and row.bytes else None,
        "percent_of_product": 100 * row.flops / own / rate * 1e-6 if own and rate and row.flops else None,
    }


def started(
    row: Row, precision: str, names: Sequence[str], folder: Path, until: float
) -> tuple[dict[str, Worker], dict[str, Any]]:
    """Each peer that is ready in time, the reference too where there is PyTorch; and what became of the others."""
    wanted = [*names, *(["reference"] if "torch" in peers.installed() else [])]
    begun: dict[str, subprocess.Popen[str]] = {}
    ready, others = dict[str, Worker](), dict[str, Any]()
    with ThreadPoolExecutor(len(wanted)) as pool:
        asked = {
            name: pool.submit(open_peer, name, row, precision, folder, partial(begun.__setitem__, name))
            for name in wanted
        }
        wait_for(asked.values(), timeout=max(until - time.monotonic(), 1.0))
        for name, future in asked.items():
            if not future.done():
                others[name] = {"error": "not ready in time"}
                if name in begun:  # its end ends the thread that waits for it
                    begun[name].kill()
            elif (failure := future.exception()) is not None:
                others[name] = {"error": str(failure)}
            else:
                ready[name] = future.result()
    others.pop("reference", None)
    return ready, others


def open_peer(name: str, row: Row, precision: str, folder: Path, begun: Any) -> Worker:
    """A peer's process, when its first steps are done; `begun` is told of it at once."""
    place = folder / "".join(c if c.isalnum() else "_" for c in name)
    place.mkdir()
    cores = os.cpu_count() or 1
    variables = environment(cores, place) | {peers.VARIABLE: f"{name}/{precision}", "JAX_PLATFORMS": "cuda"}
    variables |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": ""}
    variables["CHAINRULE_CACHE"] = os.environ["CHAINRULE_CACHE"]
    command = [sys.executable, "-m", "tests.gpu.worker", row.name, str(cores), str(folder / "data.npz")]
    return opened(command, place / "errors.txt", variables, begun)


def differs(losses: Sequence[float], reference: Sequence[float], tolerance: float) -> str | None:
    """What is wrong with the first loss that is not the reference's."""
    for k, (mine, right) in enumerate(zip(losses, reference, strict=True)):
        if not math.isclose(mine, right, rel_tol=tolerance, abs_tol=1e-4):
            return f"loss of step {k + 1} is {mine:.6f}, the reference's {right:.6f}"
    return None


def table(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """All rows for people, in Markdown: microseconds of a step."""
    head = ["row", *names, "× best", "% copy", "% product"]
    lines = [head, ["---"] * len(head)]
    for report in reports:
        cells = [f"{report['row']} ({report['precision']})"]
        for name in names:
            result = report["peers"].get(name, {})
            cells.append(f"{result['step_us']:.1f}" if "step_us" in result else "–")
        ratio, copy, product = (report[key] for key in ("ratio_to_best", "percent_of_copy", "percent_of_product"))
        cells += [f"{ratio:.2f}" if ratio else "–", *(f"{x:.0f}" if x else "–" for x in (copy, product))]
        lines.append(cells)
    errors = [
        f"{report['row']} ({report['precision']}), {name}: {result['error']}"
        for report in reports
        for name, result in report["peers"].items()
        if "error" in result
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *([""] if errors else []), *errors])


def write(path: Path, report: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1))
