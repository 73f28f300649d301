"""Where a step's time goes on a GPU: every launch by itself, many times in one graph, beside the whole step.

A launch is timed as it was bound by the last step, warm from itself; what it does to parameters and states is undone at
the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from chainrule.executable import Precision, evaluate
from chainrule.runtime.cuda.arrays import Block
from chainrule.runtime.cuda.device import Device, Operand, Product
from chainrule.runtime.cuda.step import Runner
from chainrule.runtime.profile import Profile, Timed, nanoseconds

TURNS = 50  # of a launch in a graph: to replay one takes as long as many a kernel
COPIED = 1 << 28  # bytes that no cache holds
SIDE = 8192  # of the square matrices that tell how fast products are


def profile(runner: Runner, inputs: Mapping[str, Any], repeat: int = 20) -> Profile:
    """Time a step of `runner`, and each of its launches alone. Raises ChainruleError as a step does."""
    store = runner.store
    params, states, clock = dict(store.params), dict(store.states), store.clock.copy()
    for _ in range(2):  # as it is, and as a graph
        runner.run(inputs)
    whole = nanoseconds(lambda: runner.run(inputs), repeat)
    plan, found = runner.plan, []
    for launch, enqueue in runner.launches():
        best = _alone(runner.device, enqueue, repeat)
        found.append(
            Timed(
                name=launch.name, best=best, median=best, blocks=evaluate(launch.extent, plan.sizes),
                threads=launch.threads, cost=evaluate(launch.cost, plan.sizes),
                flops=evaluate(launch.flops, plan.sizes), bytes=sum(plan.bytes[k] for k in launch.buffers), meets=True,
            )
        )  # fmt: skip
    for kept, now in ((params, store.params), (states, store.states)):
        now.update(kept)
    store.clock[:] = clock
    scratch = max(
        (evaluate(x.extent, plan.sizes) * evaluate(x.scratch, plan.sizes) for x, _ in runner.launches()), default=0
    )
    return Profile(tuple(found), *whole, 1, plan.arena, plan.kept, scratch)


def ceilings(device: Device, precision: Precision = "float32") -> dict[str, float]:
    """``{gflops, gb_per_s}`` of products of float32 by cuBLAS (without it: endless) and of copies."""
    source, target = Block(device, COPIED), Block(device, COPIED)
    copies = _alone(device, lambda: device.copy(target.address, source.address, COPIED), 3, turns=10)
    drawn = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    blocks = [Block(device, drawn.nbytes) for _ in range(3)]
    for block in blocks[:2]:  # on zeros the GPU is faster than it is
        device.write(block.address, drawn)
    left, right, result = (Operand(block.address, SIDE, 1, 0) for block in blocks)
    product = Product(SIDE, SIDE, SIDE, 1, left, right, result, 1.0, precision, "float32")
    if not device.multiply(product):
        return {"gflops": math.inf, "gb_per_s": 2 * COPIED / copies}
    products = _alone(device, lambda: device.multiply(product), 3, turns=3)
    return {"gflops": 2 * SIDE**3 / products, "gb_per_s": 2 * COPIED / copies}


def _alone(device: Device, enqueue: Callable[[], object], repeat: int, turns: int = TURNS) -> float:
    """Nanoseconds of one turn of many, the best of `repeat` replays."""

    def work() -> None:
        for _ in range(turns):
            enqueue()

    replay, times = device.capture(work), []
    for _ in range(repeat):
        device.wait()
        start = time.perf_counter_ns()
        replay()
        device.wait()
        times.append((time.perf_counter_ns() - start) / turns)
    return min(times)
