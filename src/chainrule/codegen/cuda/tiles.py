"""Which tile a product has: of a grid's blocks each computes one, or a block all of its part."""

from __future__ import annotations

import math

from chainrule.codegen.cuda.device import (
    BLOCK_SIDE,
    DRAW,
    ENDING,
    FILLED,
    FRAGMENT,
    THREADS,
    TILE_DEPTH,
    TILES,
    WARP,
)
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.turns import Tree
from chainrule.executable import Precision
from chainrule.ir.cost import operations
from chainrule.ir.program import Product, Range, Statement


def tile(p: Product, batch: tuple[Range, ...], then: tuple[Statement, ...], tree: Tree) -> Tiled | None:
    """The largest tile of which there are enough, and after which not too much is left to do; None for products that
    are smaller than the smallest. then: what the sums become."""
    rows, columns, inner, times = (tree.points(group) for group in (p.rows, p.columns, p.inner, batch))
    plain = all(r.start == 0 for r in (*p.rows, *p.columns, *p.inner, *batch))
    factors = tree.factors
    if not plain or inner < TILE_DEPTH:
        return None
    each = sum(steps(s, tree) for s in then)
    short = [(m, n) for m, n in TILES if m * n // threads_for(m * n, factors) * each <= ENDING] or TILES[-1:]
    fitting = [(down, across) for down, across in short if 2 * rows > down and 2 * columns > across]
    filling = [(m, n) for m, n in fitting if -(-rows // m) * -(-columns // n) * times >= FILLED]
    chosen = filling or fitting[-1:]
    if not chosen:
        return None
    down, across = chosen[0]
    return Tiled(p, batch, down, across, threads_for(down * across, factors), factors, then)


def threads_for(places: int, factors: Precision) -> int:
    """Of a tile. On tensor cores a warp has 32 by 64 places of the largest, and at least one fragment's."""
    fragments = places // FRAGMENT**2
    return THREADS if factors == "float32" else WARP * max(fragments // 8, min(fragments, 4))


def steps(s: Statement, tree: Tree) -> int:
    """How many operations a statement is, about."""
    draws = sum(tree.buffers[read.tensor].space == "random" for read in s.reads if read.tensor in tree.buffers)
    return operations(s.value) + len(s.reads) + DRAW * draws


def tile_in_block(p: Product, tree: Tree) -> Tiled | None:
    """The largest tile that a block's part of a product fills, which then computes one after the other. On tensor
    cores, if each of its warps has a fragment."""
    down, across, depth = (tree.points(group) for group in (p.rows, p.columns, p.inner))
    fitting = (t for t in TILES if max(t) <= BLOCK_SIDE and 2 * down > t[0] and 2 * across > t[1])
    found = next(fitting, None) if tree.kernel.block is not None and depth >= TILE_DEPTH and not p.batch else None
    if found is None:
        return None
    whole = math.prod(found) * WARP >= FRAGMENT**2 * THREADS
    return Tiled(p, (), *found, THREADS, tree.factors if whole else "float32")
