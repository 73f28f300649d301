"""One peer on one row in its own process; talks to measure.py in lines of JSON.

Says ``{first_step_at, compile_s, losses}`` when the first steps are done, then answers each line ``SECONDS`` with
the time of a step, in microseconds, over chunks of about a millisecond; on end of input its growth of memory.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks import peers, rows


def main(peer: str, name: str, threads: str, path: str) -> None:
    """Serve until standard input ends."""
    serve(f"tests.benchmarks.{peers.named(peer).module}", rows.named(name), int(threads), path)


def serve(module_name: str, row: rows.Row, threads: int, path: str) -> None:
    """The peer of that module, on this row."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    if hasattr(os, "sched_setaffinity"):  # equal threads are equal cores: a helper thread must not get one more
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    with np.load(path) as archive:
        data = dict(archive)
    module = importlib.import_module(module_name)
    imported, memory = time.monotonic(), resident()
    step, calls = module.start(row, data, threads)
    losses = [step(*calls[0][0], **calls[0][1])]
    first = time.monotonic()
    if row.inner > 1:
        losses = [float(loss) for loss in losses[0][: rows.COMPARED]]
    else:
        losses += [step(*args, **kwargs) for args, kwargs in calls[1 : rows.COMPARED]]
    answer = {
        "first_step_at": first,
        "compile_s": first - imported,
        "losses": [float(loss) for loss in losses],
    }
    said.write(json.dumps(answer) + "\n")
    for line in sys.stdin:
        times = measure(step, calls, float(line))
        said.write(json.dumps([1e6 * seconds / row.inner for seconds in times]) + "\n")
    said.write(json.dumps({"peak_mb": (peak() - memory) / 1e6}) + "\n")


def measure(step: peers.Step, calls: peers.Calls, seconds: float) -> list[float]:
    """Seconds a call, of chunks that together last about `seconds`, after one call that wakes threads and caches."""
    began = time.perf_counter()
    step(*calls[0][0], **calls[0][1])
    once = time.perf_counter() - began
    batches = itertools.cycle(calls)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(time_chunk(step, list(itertools.islice(batches, max(1, round(1e-3 / once))))))
    return times


def time_chunk(step: peers.Step, chunk: peers.Calls) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for args, kwargs in chunk:
        step(*args, **kwargs)
    return (time.perf_counter() - began) / len(chunk)


def resident() -> float:
    """The resident set now, in bytes."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            return float(statm.read().split()[1]) * resource.getpagesize()
    return peak()


def peak() -> float:
    """The largest resident set so far, in bytes; what getrusage says on Linux counts the process that forked, too."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
