"""Where a step's time goes: every launch of a row's tape, alone on one core, and the whole step beside them.

    python -m tests.benchmarks.kernels mlp-784-256-128-10 --threads 2 --source

A launch is timed over its whole range, warm from the launch before; `blocks` is how many parts it can be cut into.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chainrule import build
from chainrule.executable import Entry, evaluate
from chainrule.options import Options
from chainrule.runtime.buffers import address, aligned
from tests.benchmarks import peers_chainrule, rows


def launcher() -> type:
    """The C type of a kernel."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def nanoseconds(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Best and median of a call, in nanoseconds, over chunks of at least some 20 µs."""
    start = time.perf_counter_ns()
    call()
    number = max(1, 20_000 // max(time.perf_counter_ns() - start, 1))
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        for _ in range(number):
            call()
        times.append((time.perf_counter_ns() - start) / number)
    return min(times), statistics.median(times)


def profile(row: rows.Row, threads: int, repeat: int) -> list[tuple[str, int, int, float, float, float]]:
    """name, blocks, threads, cost by the model, best and median of each launch; last, of the whole step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        rows.write_data(row, path)
        with np.load(path) as archive:
            data = dict(archive)
    step, calls = peers_chainrule.start(row, data, threads)
    args, kwargs = calls[0]
    step(*args, **kwargs)
    runner = step.runner
    binding = runner._last
    entries, launches = binding.tape.entries, runner.executable.launches
    scratch = aligned(max(binding.tape.scratch, 1))
    kernel, at = launcher(), address(scratch)
    found = []
    for entry, launch in zip(entries, launches, strict=True):
        call = kernel(int(entry[Entry.FUNCTION]))
        table, extent = int(entry[Entry.TABLE]), int(entry[Entry.EXTENT])
        best, median = nanoseconds(lambda call=call, table=table, extent=extent: call(table, at, 0, extent), repeat)
        none = nanoseconds(lambda call=call, table=table: call(table, at, 0, 0), 20)[0]
        cost = evaluate(launch.cost, binding.plan.sizes)
        meets = "|" if entry[Entry.BARRIER] else " "
        found.append((meets + launch.name, extent, int(entry[Entry.PARTS]), cost, best - none, median - none))
    best, median = nanoseconds(lambda: step(*args, **kwargs), 2 * repeat)
    found.append((" step", 1, binding.tape.threads, binding.tape.cost, best, median))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--source", action="store_true")
    asked = parser.parse_args()
    row = rows.named(asked.row)
    found = profile(row, asked.threads, asked.repeat)
    print(f"{'launch':60}{'blocks':>7}{'parts':>6}{'cost':>11}{'best':>11}{'median':>11} ns")
    for name, blocks, parts, cost, best, median in found:
        print(f"{name[:59]:60}{blocks:7}{parts:6}{cost:11.0f}{best:11.0f}{median:11.0f}")
    print(
        f"{'sum of the launches':60}{'':24}{sum(f[4] for f in found[:-1]):11.0f}{sum(f[5] for f in found[:-1]):11.0f}"
    )
    if asked.source:
        names = ("inputs", "first", "second", "classes")
        model = peers_chainrule.cr.load(str(peers_chainrule.MODEL), **dict(zip(names, row.widths, strict=True)))
        options = Options("train", optimizer="sgd", arguments=(("rate", rows.RATE),))
        for text in build.sources(model.source, options).values():
            print(text)


if __name__ == "__main__":
    main()
