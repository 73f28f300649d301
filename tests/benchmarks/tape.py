"""What the run side costs beside the kernels: ``python -m tests.benchmarks.tape [--json]``.

Launch: a step of 1000 launches of a kernel that does nothing, by launch. Barrier: the same with every launch divided
among all threads and waiting for the one before, by launch, less the launch. Call: one step of one such kernel from
Python with two inputs of 2 and 4 floats and a loss read back.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from chainrule.executable import FORMAT, Buffer, Executable, Input, Launch, Output
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from chainrule.runtime.threads import available_cores
from tests.runtime.programs import fixed, objects_of, walker

LAUNCHES = 1000


def program(launches: int, cost: float) -> tuple[Executable, dict[str, bytes]]:
    """`launches` calls of a kernel that does nothing; a cost makes each of them worth dividing, and wait."""
    kernels, objects = objects_of(["nothing"])
    buffers = (
        Buffer("x", "float32", (fixed(1), fixed(2)), "input"),
        Buffer("label", "float32", (fixed(4),), "input"),
        Buffer("loss", "float32", (), "arena", 0, launches),
    )
    extent = fixed(64 if cost else 1)
    call = Launch(0, "nothing", (0, 1, 2), (), extent, (), fixed(cost), (2,), (2,))
    executable = Executable(
        name="nothing",
        format=FORMAT,
        target="benchmark",
        element="float32",
        training=True,
        dims=(),
        buffers=buffers,
        inputs=(Input("x", 0), Input("label", 1)),
        params=(),
        states=(),
        scalars=(),
        outputs=(Output("loss", 2),),
        kernels=kernels,
        launches=(call,) * launches,
    )
    return executable, objects


def runner(launches: int, cost: float, threads: int) -> Runner:
    """The program, run once."""
    made = Runner(*program(launches, cost), Store(0), walker(), threads=threads)
    made.run(INPUTS)
    return made


INPUTS = {"x": np.ones((1, 2), np.float32), "label": np.ones(4, np.float32)}


def nanoseconds(call: Callable[[], object], number: int, repeat: int = 200) -> dict[str, float]:
    """Best and median time of a call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        for _ in range(number):
            call()
        times.append((time.perf_counter_ns() - start) / number)
    return {"best": min(times), "median": statistics.median(times)}


def per_launch(times: dict[str, float]) -> dict[str, float]:
    return {name: value / LAUNCHES for name, value in times.items()}


def measure() -> dict[str, dict[str, float]]:
    """All figures, in nanoseconds."""
    alone, single = runner(LAUNCHES, 0.0, 1), runner(1, 0.0, 1)
    report = {
        "launch": per_launch(nanoseconds(lambda: alone.run(INPUTS), 1)),
        "call from Python": nanoseconds(lambda: single.run(INPUTS), 100),
        "of which the walker": nanoseconds(single.last.step, 100),
    }
    many = {"x": np.ones((LAUNCHES, 1, 2), np.float32), "label": INPUTS["label"]}
    report["step of many in a call"] = per_launch(nanoseconds(lambda: single.run(many, steps=LAUNCHES), 1))
    for threads in sorted({2, len(available_cores()), 2 * len(available_cores())}):
        together = runner(LAUNCHES, 1e5, threads)
        times = per_launch(nanoseconds(lambda one=together: one.run(INPUTS), 1, 60))
        report[f"barrier of {threads} threads"] = {k: v - report["launch"][k] for k, v in times.items()}
    return report


def main() -> None:
    """Measure and print."""
    report = {"cores": len(available_cores()), "nanoseconds": measure()}
    if "--json" in sys.argv:
        print(json.dumps(report))
        return
    for name, times in report["nanoseconds"].items():
        print(f"{name:28}{times['best']:10.1f} ns best {times['median']:10.1f} ns median")


if __name__ == "__main__":
    main()
