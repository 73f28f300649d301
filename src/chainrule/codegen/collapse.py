"""Loops over whole tensors as one loop over all elements, where rows are too short to fill vectors.

    for n in range(32):                                          for i in range(320):
        for m in range(10): w[n, m] -= rate * g[n, m]     ->         flat(w)[i] -= rate * flat(g)[i]

Each element meets the same arithmetic: no bit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from chainrule.codegen.cpu_writer import CpuWriter
from chainrule.codegen.flatten import STORED
from chainrule.ir.expression import product
from chainrule.ir.formula import Access
from chainrule.ir.program import Loop, Statement, accesses

SHORT = 8  # vectors: of longer rows, what is left over does not count


def collapsed(nest: Sequence[Loop], w: CpuWriter) -> Loop | None:
    """The one loop that does what the loops of a perfect nest do, if all that they touch lies in their order."""
    ranges = [loop.range for loop in nest]
    steps = [node for node in nest[-1].body if isinstance(node, Statement)]
    if len(nest) < 2 or len(steps) < len(nest[-1].body) or not _is_short(ranges[-1].stop, w):
        return None
    if any(r.start != 0 or r.stop.free_symbols - w.dims for r in ranges):
        return None
    own = {r.symbol for r in ranges}
    for step in steps:
        reads, target = accesses(step)
        plain = not step.where and step.companion is None and not step.value.free_symbols & own
        if not plain or target.indices != tuple(r.symbol for r in ranges):
            return None
        if not all(_is_whole(access, nest, w) or not _moves(access, own) for access in (*reads, target)):
            return None
    symbol = ranges[-1].symbol
    whole = replace(ranges[-1], stop=product(r.stop for r in ranges))

    def flat(access: Access) -> Access:
        return replace(access, indices=(symbol,)) if _moves(access, own) else access

    return Loop(whole, tuple(replace(s, target=flat(s.target), reads=tuple(map(flat, s.reads))) for s in steps))


def _is_short(count: sp.Expr, w: CpuWriter) -> bool:
    """Whether a row of so many elements leaves a good part of its vectors empty."""
    lanes = w.target.lanes(w.element)
    return bool(count.is_Integer and count % lanes and count < SHORT * lanes)


def _moves(access: Access, own: set[sp.Symbol]) -> bool:
    return any(index.free_symbols & own for index in access.indices)


def _is_whole(access: Access, nest: Sequence[Loop], w: CpuWriter) -> bool:
    """Whether the loops go through the whole tensor, element by element as it is stored."""
    buffer = w.buffer(access.tensor)
    if access.outside is not None or buffer.space not in STORED or access.tensor in w.moved:
        return False
    places = tuple((loop.range.symbol, loop.range.stop) for loop in nest)
    return places == tuple(zip(access.indices, buffer.shape, strict=True))
