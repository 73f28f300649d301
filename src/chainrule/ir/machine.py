"""What a schedule is made for: how much work a block should be, how many there may be, what shares a kernel.

Times are nanoseconds of one core of a CPU, the unit of the cost model, for both machines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rates:
    """What decides whether a product's kernel does more than the product: nanoseconds of the machine itself.

    launch_ns: of one kernel more in a graph. bytes: to or from memory in a nanosecond. flops: of our own tiles in a
    nanosecond, in float32; library_flops: of a library. sector: bytes that memory moves at least.
    """

    launch_ns: float
    bytes: float
    flops: float
    library_flops: float
    sector: int


@dataclass(frozen=True)
class Machine:
    """Where the blocks of a kernel run.

    tiny_ns: work below this is not worth a range of its own. serial_ns: nor is a program below it, where one thread
    runs a block, or a layer. block_ns: what a block should take at least. blocks: as many keep the machine busy, and
    more would only be more to start; parts: the same where each has a partial result, which somebody adds. tiles: one
    thread runs a block, in vectors, and a product shares a kernel with others, whose blocks its tiles want long; else
    threads share a block, and a product is a kernel of its own, whose tiles divide rows and columns. sums_apart:
    partial results are so many that blocks of a kernel of their own add them. typical: the size that an unbound dim is
    scheduled for, unless the call says one. kernel_ns: what a kernel takes that does nothing, and part_ns, what it
    takes as a part of another one; where they differ, a small network may be one kernel. Where blocks = 1, kernels
    have no blocks, and where parts = 1, there are no partial results. rates: of a machine whose products are kernels of
    their own. shared_bytes: what the threads of a block share; 0: nothing but memory.
    """

    tiny_ns: float
    serial_ns: float
    block_ns: float
    blocks: int
    parts: int
    tiles: bool
    sums_apart: bool
    typical: int
    rates: Rates | None = None
    shared_bytes: int = 0
    kernel_ns: float = 0.0
    part_ns: float = 0.0


CPU = Machine(
    tiny_ns=2_000.0,
    serial_ns=30_000.0,
    block_ns=10_000.0,
    blocks=64,
    parts=64,
    tiles=True,
    sums_apart=False,
    typical=32,
)

GPU = Machine(
    tiny_ns=2_000.0,
    serial_ns=30_000.0,
    block_ns=300.0,  # some 256 points: one for each thread
    blocks=1 << 20,
    parts=264,  # two for each of an H200's 132 multiprocessors
    tiles=False,
    sums_apart=True,
    typical=256,
    # an H200's, not measured yet: of its 67 TFLOP/s a library reaches three quarters, a tile half as much; in a lower
    # precision both gain
    rates=Rates(launch_ns=1_300.0, bytes=4_000.0, flops=25_000.0, library_flops=50_000.0, sector=32),
    shared_bytes=48 << 10,  # that need no asking for more
    kernel_ns=2_000.0,  # 1.1 to 1.3 µs in a graph, then ramp, and a load from the second cache that all wait for
    part_ns=350.0,  # a barrier, some 40 cycles of 0.6 ns, and loads, sums and functions that wait for each other
)
"""A block is one of a grid (a CTA), whose threads share its loops."""

BLOCK = replace(GPU, tiny_ns=0.0, blocks=1, parts=1, sums_apart=False, typical=32)
"""One block alone, of as many threads as it may have, on one of a GPU's multiprocessors."""
