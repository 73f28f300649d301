"""A product leaf made ready for a tile: ranges that are one stretch of memory become one, guards become bounds.

    h[n, t - 1, k; 0] · U[k, g, j]: the guard of t - 1 says whether there are any k at all; (g, j) is one range
    h[n, t - 1, k; 0] · z[n, t, g, j], summed over t: the guard clips t's range to start at 1

A sum over no index is 0, as the guarded read makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import sympy as sp

from chainrule.codegen.kernel import Writer
from chainrule.codegen.operand import Extent
from chainrule.ir.formula import Access
from chainrule.ir.program import Product, Range

STORED = ("input", "param", "state", "constant", "arena", "scratch")
LEAST = 8  # columns: products of fewer are plain loops, which guard each read


@dataclass(frozen=True)
class Guard:
    """0 <= index < extent, or the whole product is 0; `inner`: where it depends on an inner range, by +1."""

    index: sp.Expr
    extent: sp.Expr
    inner: Range | None


def flat_position(access: Access, w: Writer) -> sp.Expr | None:
    """Where the element lies in the flattened buffer, as a polynomial; None for a variable or a guarded read."""
    buffer = w.buffer(access.tensor)
    if access.outside is not None or not buffer.shape or buffer.space not in STORED:
        return None
    flat: sp.Expr = sp.S.Zero
    for index, extent in zip(access.indices, buffer.shape, strict=True):
        flat = flat * w.over_dims(extent) + index
    return sp.expand(flat)


def unguarded(leaf: Product, w: Writer) -> tuple[Product, tuple[Guard, ...]]:
    """`leaf` without guards, and what they ask for; the same leaf where a row or column depends on one."""
    guards: list[Guard] = []
    reads = []
    for read in (leaf.left, leaf.right):
        if read.outside is not None:
            found = _guards(read, leaf, w)
            if read.outside != 0 or found is None:
                return leaf, ()
            guards += found
        reads.append(replace(read, outside=None))
    return (replace(leaf, left=reads[0], right=reads[1]), tuple(guards)) if guards else (leaf, ())


def _guards(read: Access, leaf: Product, w: Writer) -> list[Guard] | None:
    buffer = w.buffer(read.tensor)
    own = {r.symbol: r for r in (*leaf.batch, *leaf.rows, *leaf.columns, *leaf.inner)}
    inner = {r.symbol: r for r in leaf.inner}
    found = []
    for index, extent in zip(read.indices, buffer.shape, strict=True):
        moving = index.free_symbols & own.keys()
        if index in own and _stays(own[index], extent, w):
            continue
        if not moving:
            if not all(w.is_inside(index, extent, buffer)):
                found.append(Guard(index, extent, None))
            continue
        if len(moving) > 1 or not moving <= inner.keys():
            return None
        (symbol,) = moving
        if (index - symbol).expand().free_symbols & {symbol}:
            return None
        found.append(Guard(index, extent, inner[symbol]))
    return found


def _stays(r: Range, extent: sp.Expr, w: Writer) -> bool:
    block = w.kernel.block
    stop = block.extent if block is not None and r.stop == block.last else r.stop
    return r.start.is_nonnegative is True and bool(stop == extent)


def clipped(extents: Sequence[Extent], ranges: Sequence[Range], guards: Sequence[Guard], w: Writer) -> list[Extent]:
    """The inner loops under `guards`; one that depends on no inner range leaves nothing of the first, or all."""
    found = dict(zip(ranges, extents, strict=True))
    for guard in guards:
        r = guard.inner or ranges[0]
        start, stop = found[r].start, found[r].stop
        if guard.inner is None:
            name = w.names.fresh("stop")
            w.line(f"{name} = {stop} if {w.holds([guard.index >= 0, guard.index < guard.extent], {})} else {start}")
            found[r] = Extent(found[r].name, start, name)
            continue
        offset = sp.expand(guard.index - r.symbol)
        names = w.names.fresh("start"), w.names.fresh("stop")
        w.line(f"{names[0]} = maximum({start}, {w.integer(-offset)})")
        w.line(f"{names[1]} = maximum({names[0]}, minimum({stop}, {w.integer(sp.expand(guard.extent - offset))}))")
        w.used |= {"maximum", "minimum"}
        found[r] = Extent(found[r].name, *names)
    return list(found.values())


def merged(leaf: Product, guards: Sequence[Guard], w: Writer) -> Product:
    """`leaf` with two ranges of a kind made one wherever every access goes through them as through one."""
    kept = {guard.inner for guard in guards}
    for kind in ("rows", "columns", "inner"):
        ranges: tuple[Range, ...] = getattr(leaf, kind)
        for a, b in permutations(ranges, 2):
            if a not in kept and b not in kept and b.start == 0 and _is_one(leaf, a, b, w):
                both = replace(b, start=sp.expand(a.start * b.stop), stop=sp.expand(a.stop * b.stop))
                rest = tuple(both if r == b else r for r in ranges if r != a)
                names: dict[sp.Basic, sp.Basic] = {a.symbol: sp.S.Zero}
                made = replace(
                    leaf,
                    target=leaf.target.renamed(names),
                    left=leaf.left.renamed(names),
                    right=leaf.right.renamed(names),
                    where=tuple(c for c in leaf.where if c.free_symbols.isdisjoint({a.symbol, b.symbol})),
                )
                return merged(_with(made, kind, rest), guards, w)
    return leaf


def _with(leaf: Product, kind: str, ranges: tuple[Range, ...]) -> Product:
    match kind:
        case "rows":
            return replace(leaf, rows=ranges)
        case "columns":
            return replace(leaf, columns=ranges)
        case _:
            return replace(leaf, inner=ranges)


def _is_one(leaf: Product, a: Range, b: Range, w: Writer) -> bool:
    if b.stop.free_symbols & set(w.symbols):  # a block's bound is no stride
        return False
    for access in (leaf.target, leaf.left, leaf.right):
        flat = flat_position(access, w)
        if flat is None:
            return False
        outer, inner = flat.coeff(a.symbol, 1), flat.coeff(b.symbol, 1)
        if sp.expand(outer - inner * b.stop) != 0:
            return False
    return True
