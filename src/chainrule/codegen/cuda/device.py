"""The hardware that kernels are mapped to: threads in warps of 32, warps in blocks (CTAs), blocks in a grid.

All that the mapping knows of a GPU stands here. Figures are those of every device since compute capability 7.0.
"""

from __future__ import annotations

from chainrule.ir.machine import GPU

WARP = 32
"""Threads that run together, and pass registers to each other."""

THREADS = 256
"""Of a block: eight of them fill a multiprocessor's 2048 places, and each may have 32 registers or many more."""

MOST_THREADS = 512
"""Of a block that is a kernel alone: more would leave each fewer registers than a formula wants."""

WIDEST = 8
"""Bytes of an element at most."""

ACCESS = 16
"""Bytes of the widest load or store of a thread."""

SHARED_BYTES = GPU.shared_bytes
"""Shared memory of a block that needs no asking for more."""

PRIVATE = 32
"""Elements of an array that each thread has to itself: it should lie in registers."""

DEALT = 96
"""Registers of a thread that hold its parts of rows, at most: as many again are left for everything else."""

KEPT = 512
"""Elements of an array that each warp keeps a part of: so many for eight warps are a third of shared memory."""

WARP_ROW = 1024
"""A row of up to so many elements is one warp's work, a longer one a block's."""

THREAD_ROW = 16
"""Less than so much work in a row is one thread's."""

SIDE = 16
"""Threads along each side of a product's tile."""

TILE_DEPTH = 16
"""Terms of a product's sums that a tile is worth while for."""

FRAGMENT = 16
"""Rows and columns of a product that a warp's tensor core does at once, in two instructions."""

TILES = ((128, 128), (64, 64), (32, 64), (64, 32), (32, 32), (16, 64), (64, 16), (16, 16))
"""Rows and columns of tiles: 8 x 8 places a thread at most, for their sums lie in registers."""

ENDING = 2048
"""Operations on a thread's sums at most, when they are stored: each of its places has instructions of its own."""

DRAW = 100
"""Operations of a random number."""

BLOCK_SIDE = 64
"""Rows and columns at most of a tile whose block has other arrays in shared memory than its panels."""

FILLED = 132
"""Multiprocessors of an H200: fewer tiles leave some idle."""

HELD = FILLED * 2048
"""Threads that an H200 holds at a time: a launch of fewer leaves room for another."""

OWNERS = 64
"""Of the places of a sum into computed places, at least: two warps' worth for each row of a wide tensor."""

OWNER_THREADS = 1 << 15
"""So many threads add by owners, if there are places: a quarter of what an H200 holds at a time."""

UNKNOWN = 64
"""What an extent counts for that is known when inputs are."""
