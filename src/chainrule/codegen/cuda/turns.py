"""What the turns of a loop have to do with each other: nothing, a reduction, or that they follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import sympy as sp

from chainrule.codegen.cuda.device import UNKNOWN
from chainrule.codegen.cuda.team import Carried
from chainrule.executable import Precision
from chainrule.ir.expression import is_slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Range, Statement, accesses, leaves, ranges


@dataclass
class Tree:
    """A kernel while it is mapped. factors: what those of its products are rounded to. sizes: what dims are about."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    factors: Precision = "float32"
    sizes: Mapping[sp.Symbol, sp.Integer] = field(default_factory=dict)
    added: list[Buffer] = field(default_factory=list)

    @cached_property
    def total(self) -> Mapping[str, int]:
        """How many accesses the kernel makes to each tensor, for what is private to a loop."""
        return count(self.kernel.body)

    def is_variable(self, name: str) -> bool:
        buffer = self.known(name)
        return buffer is None or (buffer.space == "scratch" and not buffer.shape)

    def known(self, name: str) -> Buffer | None:
        return self.buffers.get(name) or next((b for b in self.added if b.name == name), None)

    def dtype(self, name: str) -> DType:
        buffer = self.known(name)
        assert buffer is not None
        return buffer.dtype

    def is_own(self, name: str, times: int) -> bool:
        """Whether so many accesses to a tensor are all, and it is scratch."""
        return self.total.get(name) == times and self.buffers[name].space == "scratch"

    def extent(self, r: Range) -> int:
        """How many turns a loop has, about."""
        n = sp.expand(r.stop - r.start)
        block = self.kernel.block
        if block is not None:
            n = sp.expand(n.xreplace({block.last: block.first + block.size}))
        n = n.xreplace(self.sizes)
        return max(int(n), 0) if n.is_Integer else UNKNOWN

    def points(self, ranges: Sequence[Range]) -> int:
        total = 1
        for r in ranges:
            total *= self.extent(r)
        return total

    def local(self, like: str, dtype: DType, shape: tuple[sp.Expr, ...] = ()) -> str:
        """A new local variable, or array."""
        taken = {*self.buffers, *(b.name for b in self.added)}
        name, k = f"{like}_own", 2
        while name in taken:
            name, k = f"{like}_own{k}", k + 1
        known = self.known(like)
        stands_for = known.stands_for if known is not None else ""
        self.added.append(Buffer(name, shape, dtype, "scratch", stands_for=stands_for or like))
        return name


def count(body: Sequence[Leaf]) -> dict[str, int]:
    found: dict[str, int] = {}
    for leaf in leaves(tuple(body)):
        reads, target = accesses(leaf)
        companion = leaf.companion if isinstance(leaf, Statement) else None
        for name in (target.tensor, *(r.tensor for r in reads), *((companion,) if companion else ())):
            found[name] = found.get(name, 0) + 1
    return found


def carried_by(loop: Loop, tree: Tree, beside: Sequence[Loop] = ()) -> tuple[Carried, ...] | None:
    """The reductions that the turns of `loop` add to; none: they are independent. None: they follow each other.

    A tensor that only this loop's body touches, at places that do not move with it, is each turn's own. Another that
    it writes must be touched at places that differ from turn to turn. beside: the other loops of a nest, whose order
    may change: what they move counts as moving.
    """
    if loop.until is not None:
        return None
    i = loop.range.symbol
    around = {n.range.symbol: n.range for n in beside if n is not loop} | ranges_of(loop.body)
    inside = count(loop.body)
    found: dict[str, Carried] = {}
    for name in dict.fromkeys(accesses(leaf)[1].tensor for leaf in leaves(loop.body)):
        touched = [(leaf, a) for leaf in leaves(loop.body) for a in touches(leaf) if a.tensor == name]
        moves = any(i in e.free_symbols for _, a in touched for e in a.indices)
        if tree.is_own(name, inside[name]) and not moves:
            continue
        axes = range(min(len(a.indices) for _, a in touched))
        if any(turns_differ([a.indices[axis] for _, a in touched], i, around) for axis in axes):
            continue
        one = reduction_of(touched, i)
        buffer = tree.known(name)
        if one is None or (buffer is not None and buffer.dtype is DType.BOOL):
            return None
        found[name] = one
    return tuple(found.values())


def touches(leaf: Statement | Product) -> tuple[Access, ...]:
    """What a leaf reads or writes."""
    reads, target = accesses(leaf)
    return (target, *(read for read in reads if read is not target))


def ranges_of(body: Sequence[Leaf]) -> dict[sp.Symbol, Range]:
    """The ranges of all loops in `body`, by their symbols."""
    return {r.symbol: r for r in ranges(body)}


def turns_differ(places: Sequence[sp.Expr], i: sp.Symbol, around: Mapping[sp.Symbol, Range]) -> bool:
    """Whether turns of the loop over `i` touch places of their own along an axis: all are ``c i + b + r`` with the
    same c and b, and r, which inner loops move, always within a window shorter than c."""
    first: sp.Expr | None = None
    step, low, high = sp.S.Zero, sp.S.Zero, sp.S.Zero
    for place in places:
        e = sp.expand(place)
        c = e.coeff(i, 1)
        rest = sp.expand(e - c * i)
        if not c.is_Integer or c == 0 or i in rest.free_symbols or any(map(is_slot, rest.free_symbols)):
            return False
        below = above = sp.S.Zero
        for s in rest.free_symbols & around.keys():
            k, r = rest.coeff(s, 1), around[s]
            rest = sp.expand(rest - k * s)
            if not (k.is_Integer and r.start.is_Integer and r.stop.is_Integer) or rest.has(s):
                return False
            ends = (k * r.start, k * (r.stop - 1))
            below, above = below + min(ends), above + max(ends)
        if first is None:
            first, step = rest, c
        apart = sp.expand(rest - first)
        if c != step or not apart.is_Integer:
            return False
        low, high = min(low, apart + below), max(high, apart + above)
    return bool(high - low < abs(step))


def reduction_of(touched: Sequence[tuple[Statement | Product, Access]], i: sp.Symbol) -> Carried | None:
    """What all of `touched` reduce into, at a place that stands still; None where they do anything else."""
    leaf, target = touched[0]
    if not isinstance(leaf, Statement) or leaf.reduce is None:
        return None
    moving = {s for e in target.indices for s in e.free_symbols}
    if i in moving or any(map(is_slot, moving)):
        return None
    for other, access in touched:
        if not isinstance(other, Statement) or other.reduce is not leaf.reduce or access != target:
            return None
        if other.target != target or any(read.tensor == target.tensor for read in other.reads):
            return None
    return Carried(target, leaf.reduce, leaf.companion)


def places_of(c: Carried, body: Sequence[Leaf], tree: Tree) -> tuple[Range, ...] | None:
    """The loops of `body` that say which places of a target are added to; None where that is no array of known size."""
    inner = ranges_of(body)
    found: list[Range] = []
    for e in c.target.indices:
        if not e.free_symbols & inner.keys():
            continue
        r = inner.get(e)
        if r is None or r.start != 0 or not r.stop.is_Integer or r in found:
            return None
        found.append(r)
    sums = c.reduce is not Reduce.ARGMAX and tree.buffers[c.target.tensor].dtype is DType.FLOAT
    return tuple(found) if sums and found else None


def retargeted(node: Leaf, target: Access, own: Access) -> Leaf:
    """`node` with what it reduces into `target` reduced into `own`."""
    match node:
        case Loop():
            return replace(node, body=tuple(retargeted(n, target, own) for n in node.body))
        case Statement():
            return replace(node, target=own) if node.target == target and node.reduce is not None else node
        case Product():
            return node
