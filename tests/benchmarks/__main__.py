"""The benchmark's command: ``python -m tests.benchmarks [--rows a,b] [--threads 1,2] [--json] [--quick]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chainrule.runtime.ceilings import ceilings
from tests.benchmarks import peers
from tests.benchmarks.main_job import measure_main_job
from tests.benchmarks.measure import best_of_others, measure_row
from tests.benchmarks.rows import ROWS, Row, named
from tests.benchmarks.startup import measure_startup

LIBRARIES = ("chainrule", "jax", "jaxlib", "torch", "numpy", "numba")


def main() -> None:
    """Measure, show each row when it is done, and end with the JSON if asked."""
    wanted = arguments()
    console = Console(stderr=wanted.json)
    report: dict[str, Any] = {"machine": machine(), "rows": []}
    console.print_json(json.dumps(report["machine"]))
    for threads in wanted.threads:
        ceiling = ceilings(threads)
        console.print(f"{threads} threads: {ceiling['gflops']:.0f} GFLOP/s, {ceiling['gb_per_s']:.1f} GB/s")
        report["machine"].setdefault("ceilings", {})[str(threads)] = ceiling
        for name in wanted.rows:
            if name in [row.name for row in ROWS] and named(name).threads not in (None, threads):
                continue
            report["rows"].append(measured(name, threads, wanted, ceiling))
            console.print(table_of(report["rows"][-1]))
    if wanted.json:
        print(json.dumps(report))


def measured(name: str, threads: int, wanted: argparse.Namespace, ceiling: dict[str, float]) -> dict[str, Any]:
    """One row of the JSON."""
    if name == "startup":
        return {"row": name, "threads": threads, "commands": measure_startup(threads, 5 if wanted.quick else 21)}
    if name == "main-job":
        return {"row": name, "threads": threads, **measure_main_job(threads)}
    return row_report(named(name), threads, wanted, ceiling)


def table_of(report: dict[str, Any]) -> Table | str:
    """A row of the JSON for people."""
    if "commands" in report:
        return startup_table(report["commands"], report["threads"])
    return row_table(report) if "peers" in report else str(report)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    known = [row.name for row in ROWS] + ["startup", "main-job"]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", type=lambda s: s.split(","), default=known, help=f"of {', '.join(known)}")
    parser.add_argument("--peers", type=lambda s: s.split(","), default=[p.name for p in peers.PEERS])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--threads",
        type=lambda s: [int(n) for n in s.split(",")],
        default=sorted({1, cores}),
        help="numbers of threads, equal for all peers (default: 1 and all cores)",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    wanted = parser.parse_args()
    for name in wanted.rows:
        if name not in known:
            parser.error(f"no row {name!r}; there are {', '.join(known)}")
    return wanted


def row_report(row: Row, threads: int, wanted: argparse.Namespace, ceiling: dict[str, float]) -> dict[str, Any]:
    """A training step's row."""
    names = [name for name in wanted.peers if name in row.peers and peers.interpreter(peers.named(name))]
    rounds, seconds = (5, 0.1) if wanted.quick else (15, 0.25)
    results = measure_row(row, threads, names, rounds, seconds)
    least_us = max(row.flops / ceiling["gflops"], row.bytes / ceiling["gb_per_s"]) * 1e-3
    own = results.get("chainrule", {}).get("step_us")
    return {
        "row": row.name,
        "threads": threads,
        "work": {"flops": row.flops, "bytes": row.bytes, "least_us": least_us},
        "peers": results,
        "ratio_to_best": best_of_others(results),
        "percent_of_ceiling": 100 * least_us / own if own else None,
    }


def row_table(report: dict[str, Any]) -> Table:
    """A row for people."""
    ratio, share = report["ratio_to_best"], report["percent_of_ceiling"]
    summary = f"{ratio:.2f}× the best peer, {share:.0f} % of the ceiling" if ratio else "no comparison"
    table = Table(title=f"{report['row']}, {report['threads']} threads: {summary}", title_justify="left")
    table.add_column("peer")
    for heading in ("step µs", "cold compile s", "warm compile s", "first step s", "peak MB", "loss 20"):
        table.add_column(heading, justify="right")
    for name, result in report["peers"].items():
        if "step_us" in result:
            seconds = [f"{result[key]:.3f}" for key in ("compile_cold_s", "compile_warm_s", "first_step_s")]
            step, peak, loss = (
                f"{result['step_us']:.2f}",
                f"{result['peak_mb']:.1f}",
                f"{result['loss_20']:.6f}",
            )
            table.add_row(name, step, *seconds, peak, loss)
        else:
            table.add_row(name, "failed")
            table.caption = f"{name}: {result['error']}"
    return table


def startup_table(results: dict[str, Any], threads: int) -> Table:
    """Start-up times for people."""
    table = Table(title=f"startup, {threads} threads", title_justify="left")
    for heading in ("process", "seconds", "× import numpy"):
        table.add_column(heading)
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, result["error"][:60])
        else:
            table.add_row(name, f"{result['seconds']:.3f}", f"{result['times_import_numpy']:.2f}")
    return table


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    versions |= {name: found for name in ("pytensor", "tensorgrad") if (found := peers.version_of(peers.named(name)))}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "libraries": versions,
    }


if __name__ == "__main__":
    main()
