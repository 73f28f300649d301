"""Where a step's time goes: every launch of a program's tape by itself on one core, beside the whole step.

A launch is timed over its whole range, warm from the launch before, as it was bound by the last call; what it does to
parameters and states is undone at the end.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from chainrule.executable import Entry, Launch, evaluate
from chainrule.runtime.buffers import Plan, address, aligned
from chainrule.runtime.step import Runner
from chainrule.runtime.tape import Words
from chainrule.runtime.values import as_array

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
CHUNK = 20_000  # nanoseconds of calls between two looks at the clock, at least


class Timed(msgspec.Struct, frozen=True):
    """One launch: nanoseconds (best and median of one core), blocks and among how many threads they are divided, the
    model's guess, operations, and the bytes of the arrays that it reads and writes, each once.

    meets: all threads wait for each other before it.
    """

    name: str
    best: float
    median: float
    blocks: int
    threads: int
    cost: int
    flops: int
    bytes: int
    meets: bool


class Profile(msgspec.Struct, frozen=True):
    """The launches of a step in order; nanoseconds of the whole step, best and median, on `threads` threads."""

    launches: tuple[Timed, ...]
    best: float
    median: float
    threads: int
    arena: int  # bytes between the launches, with what is fed and gaps
    kept: int  # bytes that are kept between launches, at most
    scratch: int  # bytes of each thread's own


def profile(runner: Runner, inputs: Mapping[str, Any], repeat: int = 20) -> Profile:
    """Time a step of `runner`, and each of its launches alone. Raises ChainruleError as a step does."""
    store, executable = runner.store, runner.executable
    params, states, clock = dict(store.params), dict(store.states), store.clock.copy()
    inputs = {name: as_array(name, value) for name, value in inputs.items()}  # kernels read some where they lie
    runner.run(inputs)
    whole = nanoseconds(lambda: runner.run(inputs), repeat)
    binding = runner.last
    scratch = aligned(max(binding.tape.scratch, 1))
    at = address(scratch)
    found = tuple(
        _timed(entry, launch, binding.plan, at, repeat)
        for entry, launch in zip(binding.tape.entries, executable.launches, strict=True)
    )
    for kept, now in ((params, store.params), (states, store.states)):
        for name, value in kept.items():
            now[name] = value
    store.clock[:] = clock
    return Profile(found, *whole, binding.tape.threads, binding.plan.arena, binding.plan.kept, binding.tape.scratch)


def _timed(entry: Words, launch: Launch, plan: Plan, scratch: int, repeat: int) -> Timed:
    kernel, table, extent = KERNEL(int(entry[Entry.FUNCTION])), int(entry[Entry.TABLE]), int(entry[Entry.EXTENT])
    empty, _ = nanoseconds(lambda: kernel(table, scratch, 0, 0), 5)
    best, median = nanoseconds(lambda: kernel(table, scratch, 0, extent), repeat)
    return Timed(
        name=launch.name,
        best=max(best - empty, 0.0),
        median=max(median - empty, 0.0),
        blocks=extent,
        threads=int(entry[Entry.PARTS]),
        cost=evaluate(launch.cost, plan.sizes),
        flops=evaluate(launch.flops, plan.sizes),
        bytes=sum(plan.bytes[buffer] for buffer in launch.buffers),
        meets=bool(entry[Entry.BARRIER]),
    )


def stopwatch(runner: Runner, inputs: Mapping[str, Any]) -> Callable[[Sequence[int]], float]:
    """What takes the time of some of a step's launches (none: of all), on one core, bound as they are for `inputs`:
    nanoseconds."""
    inputs = {name: as_array(name, value) for name, value in inputs.items()}
    runner.run(inputs)
    binding = runner.last
    scratch = aligned(max(binding.tape.scratch, 1))
    words = [(int(e[Entry.FUNCTION]), int(e[Entry.TABLE]), int(e[Entry.EXTENT])) for e in binding.tape.entries]
    launches = [(KERNEL(function), table, extent) for function, table, extent in words]

    def once(of: Sequence[int]) -> float:
        at, _ = address(scratch), (runner, binding, inputs)  # what is bound lives as long as this function
        return sum(
            nanoseconds(partial(kernel, table, at, 0, extent), 1)[0]
            for kernel, table, extent in ([launches[k] for k in of] or launches)
        )

    return once


def nanoseconds(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Best and median of a call, over chunks of at least some 20 µs."""
    start = time.perf_counter_ns()
    call()
    number = max(1, CHUNK // max(time.perf_counter_ns() - start, 1))
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        for _ in range(number):
            call()
        times.append((time.perf_counter_ns() - start) / number)
    return min(times), statistics.median(times)
