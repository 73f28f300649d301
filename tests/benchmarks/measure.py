"""How time is taken: processes side by side, in interleaved rounds, medians.

Machines drift (clocks, neighbours), so the peers of a row take turns of a fraction of a second each, round after
round, and idle in between; a ratio compares medians over the same minutes.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import peers, peers_chainrule, rows

ROOT = Path(__file__).parents[2]


class Failed(RuntimeError):
    """A peer's process ended, with the end of what it said."""


@dataclass
class Worker:
    """A running peer: its process, and what it told when its first steps were done."""

    process: subprocess.Popen[str]
    errors: Path
    first_step_s: float
    compile_s: float
    losses: list[float]

    def ask(self, seconds: float) -> list[float]:
        """Times of a step in microseconds."""
        times = converse(self.process, self.errors, f"{seconds}\n")
        return [float(t) for t in times]

    def close(self) -> float:
        """End it; its peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        end = converse(self.process, self.errors, "")
        self.process.wait()
        return float(end["peak_mb"])


def converse(process: subprocess.Popen[str], errors: Path, line: str) -> Any:
    """Send `line`, if any, and read the answer."""
    assert process.stdout is not None
    if line and process.stdin is not None:
        process.stdin.write(line)
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        process.wait()
        said = errors.read_text().strip().splitlines()
        raise Failed(said[-1] if said else f"ended with code {process.returncode}")
    return json.loads(answer)


def open_worker(peer: str, row: rows.Row, threads: int, data: Path, cache: Path) -> Worker:
    """Start `peer` on `row` and wait for its first steps."""
    python = peers.interpreter(peers.named(peer)) or sys.executable
    command = [python, "-m", "tests.benchmarks.worker", peer, row.name, str(threads), str(data)]
    return opened(command, cache / f"{peer}.txt", peers.environment(threads, cache))


def opened(
    command: Sequence[str],
    errors: Path,
    environment: Mapping[str, str],
    begun: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> Worker:
    """A worker's process, when its first steps are done; `begun` is told of it at once."""
    began = time.monotonic()
    with errors.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    begun(process)
    answer = converse(process, errors, "")
    return Worker(process, errors, answer["first_step_at"] - began, answer["compile_s"], answer["losses"])


def measure_row(row: rows.Row, threads: int, names: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Every peer on `row`: a cold process, then warm ones that take turns. A peer that fails has an ``error``."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: Path(folder, name) for name in names}
        data = Path(folder, "data.npz")
        rows.write_data(row, data, initial(row))
        reference = reference_losses(row, threads, data, Path(folder))
        results: dict[str, dict[str, Any]] = {}
        running: dict[str, Worker] = {}
        for name, cache in caches.items():
            cache.mkdir()
            try:
                cold = open_worker(name, row, threads, data, cache)
                cold.close()
                running[name] = warm = open_worker(name, row, threads, data, cache)
                results[name] = {
                    "compile_cold_s": cold.compile_s,
                    "compile_warm_s": warm.compile_s,
                    "first_step_s": warm.first_step_s,
                    "loss_20": agreed(warm.losses, reference),
                }
            except Failed as failure:
                results[name] = {"error": str(failure)}
        times = take_turns(running, rounds, seconds)
        for name, worker in running.items():
            results[name] = {
                "step_us": statistics.median(times[name]),
                "peak_mb": worker.close(),
                **results[name],
            }
        return results


def initial(row: rows.Row) -> dict[str, np.ndarray]:
    """What the row's parameters start at."""
    return {} if row.forward else dict(peers_chainrule.model_of(row).params)


def reference_losses(row: rows.Row, threads: int, data: Path, folder: Path) -> list[float]:
    """What the losses of the first steps must be: of a perceptron by hand, of others by PyTorch in float64."""
    if row.loss == "mlp":
        with np.load(data) as archive:
            return rows.reference_losses(dict(archive))
    cache = folder / "reference"
    cache.mkdir()
    worker = open_worker("reference", row, threads, data, cache)
    worker.close()
    return worker.losses


def take_turns(running: dict[str, Worker], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The medians of each round, the order turning from round to round."""
    times: dict[str, list[float]] = {name: [] for name in running}
    order = list(running)
    for _ in range(rounds):
        for name in order:
            times[name].append(statistics.median(running[name].ask(seconds)))
        order = order[1:] + order[:1]
    return times


def agreed(losses: list[float], reference: list[float]) -> float:
    """The twentieth loss, if all of them are the reference's; Failed if not: other work has no place in a table."""
    for k, (mine, right) in enumerate(zip(losses, reference, strict=True)):
        if not math.isclose(mine, right, rel_tol=1e-3, abs_tol=1e-4):
            raise Failed(f"loss of step {k + 1} is {mine:.6f}, the reference's {right:.6f}")
    return losses[-1]


def best_of_others(results: dict[str, dict[str, Any]]) -> float | None:
    """The fastest other peer's time over Chainrule's."""
    own = results.get("chainrule", {}).get("step_us")
    others = [r["step_us"] for name, r in results.items() if name != "chainrule" and "step_us" in r]
    return min(others) / own if own and others else None
