"""How fast generated products and functions are on one thread: ``python -m tests.benchmarks.products``.

Prints the CPU's peak (a tile whose operands stay in registers and L1), then for each product the tile as the cost
model chooses it, the same with a run-time number of rows, and OpenBLAS; then nanoseconds an element of the functions.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from chainrule.codegen.objects import Array, Job, Size, compile_object, scratch_bytes
from chainrule.codegen.packing import PAD
from chainrule.codegen.product import Extent, Operand, Shape, Way, choose, product_lines
from chainrule.codegen.target import host
from tests.codegen.native_kernels import aligned, loaded

SHAPES = (
    ("NN", 64, 256, 784),
    ("TN", 784, 256, 64),
    ("NT", 64, 784, 256),
    ("NN", 64, 128, 256),
    ("TN", 256, 128, 64),
    ("NT", 64, 256, 128),
    ("NN", 32, 32, 64),
    ("NN", 32, 10, 32),
    ("TN", 64, 32, 32),
    ("NT", 32, 32, 10),
    ("NN", 256, 1024, 1024),
    ("TN", 1024, 1024, 256),
    ("NT", 256, 1024, 1024),
    ("TN", 32, 128, 2048),
    ("TN", 1024, 64, 1024),
    ("TN", 64, 1024, 256),
)
FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sqrt")


def best(call: Callable[[], None], seconds: float = 0.2) -> float:
    """The shortest of the calls that fit into so many seconds."""
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def caller(job: Job, arrays: list[np.ndarray], sizes: tuple[int, ...] = ()) -> Callable[[int, int], None]:
    function = loaded(compile_object(job, host()))
    kept = [aligned(a) for a in arrays]
    table = np.array([*(a.ctypes.data for a in kept), *sizes], np.int64)
    scratch = aligned(np.zeros(scratch_bytes(job.parameters, {}) + 64, np.uint8))

    def call(lo: int, hi: int, keep: object = (kept, table, scratch)) -> None:
        function(ctypes.c_void_p(table.ctypes.data), ctypes.c_void_p(scratch.ctypes.data), lo, hi)

    return call


def peak() -> float:
    """GFLOP/s of fused multiply-adds alone."""
    target = host()
    lanes, rows = target.lanes("float32"), 12 if target.registers >= 32 else 5
    source = f"""def kernel(x, z, lo, hi):
    sums = tile(z, {rows}, 2, {lanes})
    for k in range(lo, hi):
        sums = rank1(sums, x, k & 7, 0, x, (k & 1) * {2 * lanes})
    store_tile(sums, z, 0, {2 * lanes}, 1.0, {rows}, {2 * lanes})
"""
    job = Job(source, "kernel", (Array("float32", (4 * lanes,)), Array("float32", (rows, 2 * lanes))))
    call = caller(job, [np.ones(4 * lanes, np.float32), np.zeros((rows, 2 * lanes), np.float32)])
    return 100_000 * rows * 2 * lanes * 2 / best(lambda: call(0, 100_000)) / 1e9


def product_job(kind: str, m: int, n: int, k: int, way: Way | None, known: bool) -> tuple[Job, Way]:
    """The product, done as often as the range says where its rows are known, else over the range of rows."""
    left = Operand("x", "k", str(k), "0", ("1",)) if kind[0] == "N" else Operand("x", f"k * {m}", "1", "0", (str(m),))
    right = Operand("w", f"k * {n}", "0", "1", (str(n),)) if kind[1] == "N" else Operand("w", "k", "0", str(k), ("1",))
    into = Operand("z", "0", str(n), "1")
    chosen = way or choose(Shape(m if known else None, n, k), "float32", host(), left, right, into)
    rows = Extent("r", "0", str(m)) if known else Extent("r", "lo", "hi")
    lines = product_lines(
        chosen,
        into,
        left,
        right,
        rows,
        Extent("c", "0", str(n)),
        (Extent("k", "0", str(k)),),
        panel="panel",
        strip="strip",
    )
    head = ["for again in range(lo, hi):"] if known else ["once = 0"]
    body = "\n".join("    " + line for line in (*head, *(("    " if known else "") + line for line in lines)))
    shapes = ((m, k) if kind[0] == "N" else (k, m), (k, n) if kind[1] == "N" else (n, k), (m, n))
    parameters = [Array("float32", shape) for shape in shapes]
    names = "x, w, z"
    if chosen.panel is not None:
        names += ", panel"
        parameters.append(Array("float32", (chosen.panel[0] or k, chosen.panel[1]), scratch=True))
    if chosen.strip:
        names += ", strip"
        parameters.append(Array("float32", (m + chosen.rows, (chosen.depth or k) + PAD), scratch=True))
    return Job(f"def kernel({names}, lo, hi):\n{body}\n", "kernel", tuple(parameters)), chosen


def rate(kind: str, m: int, n: int, k: int, way: Way | None = None, known: bool = True) -> tuple[float, Way]:
    """GFLOP/s."""
    job, chosen = product_job(kind, m, n, k, way, known)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=p.shape).astype(np.float32) for p in job.parameters[:3]]
    call = caller(job, arrays)
    again = max(1, 4_000_000 // (m * n * k)) if known else 1
    seconds = best(lambda: call(0, again if known else m)) / again
    return 2 * m * n * k / seconds / 1e9, chosen


def nanoseconds(name: str, element: str) -> float:
    source = f"""def kernel(x, y, n, lo, hi):
    for again in range(lo, hi):
        for i in range(n):
            y[i] = {name}(x[i])
"""
    job = Job(source, "kernel", (Array(element, ("n",)), Array(element, ("n",)), Size()))
    x = np.random.default_rng(0).uniform(0.1, 3, 4096).astype(element)
    call = caller(job, [x, x], (len(x),))
    return best(lambda: call(0, 100)) / 100 / len(x) * 1e9


def main() -> None:
    print(f"{os.cpu_count()} cores, {host().cpu}, {host().bits} bits; peak {peak():.0f} GFLOP/s on one thread")
    print(f"{'':3} {'shape':16} {'chosen':>14} {'GFLOP/s':>8} {'any rows':>9} {'OpenBLAS':>9}")
    for kind, m, n, k in SHAPES:
        chosen, way = rate(kind, m, n, k)
        free, _ = rate(kind, m, n, k, known=False)
        blas, _ = rate(kind, m, n, k, replace(way, method="blas", panel=None, depth=None))
        shown = (
            f"{way.rows}x{way.vectors}{'s' if way.strip else ''}{'p' if way.panel else ''}{way.depth or ''}"
            if way.method == "tile"
            else way.method
        )
        print(f"{kind:3} {f'{m}x{n}x{k}':16} {shown:>14} {chosen:8.0f} {free:9.0f} {blas:9.0f}", flush=True)
    for name in FUNCTIONS:
        print(f"{name:8} float32 {nanoseconds(name, 'float32'):.2f} ns, float64 {nanoseconds(name, 'float64'):.2f} ns")


if __name__ == "__main__":
    main()
