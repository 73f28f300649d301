"""How often loops run is known where it is one number for all threads, and never where it is not."""

from __future__ import annotations

import ast

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda.loops import times, unrolling
from chainrule.codegen.cuda.objects import Job, Pointer, Size, compile_kernel
from chainrule.codegen.cuda.toolkit import figures
from tests.codegen.cuda.running import run

BOUNDS = ["0", "5", "0, 7, 2", "lane(), 256, 32", "lane(), 250, 32", "thread(), 512, 64", "thread(), 500, 64"]
BOUNDS += ["4 * lane(), 256, 128", "3 + lane(), 256, 32", "3 + warp(), 12, 2", "thread() + lane(), 512, 64", "2, 2"]
BOUNDS += ["lane(), 8 * 32, 32", "lane(), 0, 32", "lane() + -40, 256, 32"]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_loop_runs_as_python_says_and_as_often_as_was_known(bounds: str) -> None:
    source = (
        f"def each(x, y, n, scratch):\n    s = 0\n    for k in range({bounds}):\n        s = s + (k + 1) * (k + 1)\n"
    )
    job = Job(source + "    y[thread()] = s\n", "each", (Pointer("int64"), Pointer("int64"), Size(), Size()), 64)
    y = run(job, 1, np.zeros(1, np.int64), np.zeros(64, np.int64), 0, 0)[1]
    counts = set()
    for t in range(64):
        place = {"thread": lambda t=t: t, "lane": lambda t=t: t % 32, "warp": lambda t=t: t // 32}
        turns = range(*(eval(part, place) for part in bounds.split(",")))
        counts.add(len(turns))
        assert y[t] == sum((k + 1) ** 2 for k in turns)
    known = times([ast.parse(part.strip(), mode="eval").body for part in bounds.split(",")], 64)
    assert known in ({None} if len(counts) > 1 else {None, *counts})
    assert known is not None or len(counts) > 1 or "-40" in bounds


def test_a_row_that_lanes_divide_evenly_has_its_loads_side_by_side() -> None:
    body = "    for k in range(lane(), 256, 32):\n        s = s + x[k]\n"
    source = f"def each(x, y, n, scratch):\n    s = float32(0.0)\n{body}    y[lane()] = warp_sum(s)\n"
    job = Job(source, "each", (Pointer("float32"), Pointer("float32"), Size(), Size()), 32)
    assert figures(compile_kernel(job, "sm_90").cubin).loads == {32: 8}


def test_a_loop_over_the_grid_is_not_unrolled() -> None:
    body = "    for k in range(block() * 256 + thread(), n, blocks() * 256):\n        y[k] = x[k]\n"
    job = Job(f"def each(x, y, n, scratch):\n{body}", "each", (Pointer("float32"), Pointer("float32"), Size(), Size()))
    found = figures(compile_kernel(job, "sm_90").cubin)
    assert (found.loads, found.stores) == ({32: 1}, {32: 1})
    assert found.instructions < 40


def test_unrolling_stops_where_it_only_makes_code() -> None:
    def wish(bounds: str, body: str) -> tuple[str, int]:
        loop = ast.parse(f"for k in range({bounds}):\n{body}").body[0]
        assert isinstance(loop, ast.For) and isinstance(loop.iter, ast.Call)
        kind, number = unrolling(loop.iter.args, loop.body, 256, {"row"})
        return kind.removeprefix("llvm.loop.unroll."), number

    short, long = "    s = x[k]\n", "    s = x[k]\n" * 40
    assert wish("8", short) == ("full", 0)
    assert wish("thread(), 4096, 256", short) == ("full", 0)
    assert wish("1024", short) == ("count", 16)
    assert wish("16", long) == ("count", 4)
    assert wish("16", long.replace("x", "row")) == ("full", 0)  # else they are no registers
    assert wish("n", short) == ("", 0)  # as libNVVM likes
    assert wish("4", "    for j in range(n):\n        s = x[j]\n") == ("disable", 0)
    assert wish("4", "    for j in range(4):\n        s = x[j]\n") == ("full", 0)
    assert wish("block(), n, blocks()", short) == ("disable", 0)
