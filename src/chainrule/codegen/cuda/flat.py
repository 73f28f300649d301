"""Maps over all places of equal arrays, as loops over one flat index whose extent is a size of the kernel.

    for n < 64:                                         for i < length:
        for m < 128:                             ->         w[i] = w[i] - rate * g[i]
            w[n, m] = w[n, m] - rate * g[n, m]

Arrays of any shape are so one kernel: an optimizer is compiled once for all parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.codegen.cuda.mapping import unblocked
from chainrule.codegen.kernel import KernelSource, nest_of
from chainrule.ir.expression import dim_symbol, index_symbol
from chainrule.ir.formula import Access
from chainrule.ir.graph import Dim
from chainrule.ir.program import Block, Buffer, Kernel, Loop, Program, Range, Statement

LENGTH = dim_symbol("_length")
"""How many places there are."""

PLACE = index_symbol("_place")
FIRST, LAST, NUMBER = dim_symbol("_first"), dim_symbol("_last"), dim_symbol("_block")


@dataclass(frozen=True)
class Flat:
    """A kernel over places 0 to `extent` - 1, which it calls LENGTH; views: its arrays with one axis, by name."""

    kernel: Kernel
    views: Mapping[str, Buffer]
    extent: sp.Expr

    def within(self, program: Program) -> Program:
        """`program` with the arrays as this kernel sees them."""
        buffers = tuple(self.views.get(b.name, b) for b in program.buffers)
        return replace(program, buffers=buffers, dims=(*program.dims, Dim(LENGTH.name)))

    def measured(self, source: KernelSource) -> KernelSource:
        """The kernel's source with its own length."""
        sizes = {LENGTH: self.extent}
        grid = None if source.grid is None else source.grid.xreplace(sizes)
        return replace(source, sizes=tuple(e.xreplace(sizes) for e in source.sizes), grid=grid)


def flattened(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Flat | None:
    """`kernel` over a flat index, if it is one nest of a map's statements, all of whose arrays are read and written at
    the nest's place and are as large as it. buffers: the program's."""
    whole = kernel if kernel.block is None else unblocked(kernel)
    if whole is None or len(whole.body) != 1 or not isinstance(whole.body[0], Loop) or whole.body[0].until is not None:
        return None
    nest = nest_of(whole.body[0])
    known = {b.name: b for b in kernel.locals}
    place, shape = tuple(n.range.symbol for n in nest), tuple(n.range.stop for n in nest)
    views: dict[str, Buffer] = {}
    body = []
    for s in nest[-1].body:
        plain = isinstance(s, Statement) and s.reduce is None and not s.where and s.place is None
        if not plain or not isinstance(s, Statement) or s.value.free_symbols & set(place):
            return None
        for access in (s.target, *s.reads):
            buffer = known.get(access.tensor) or buffers[access.tensor]
            if not access.indices and not buffer.shape:
                continue
            if access.indices != place or buffer.shape != shape or access.outside is not None:
                return None
            views[buffer.name] = replace(buffer, shape=(LENGTH,))
        flat = tuple(Access(a.tensor, (PLACE,) if a.indices else ()) for a in (s.target, *s.reads))
        body.append(replace(s, target=flat[0], reads=flat[1:]))
    if any(n.range.start != 0 for n in nest) or not views or any(b.name in views for b in kernel.locals):
        return None
    loop = Loop(Range(PLACE, FIRST, LAST, "i"), tuple(body))
    block = Block(NUMBER, FIRST, LAST, LENGTH, 1, "i")
    return Flat(replace(kernel, body=(loop,), block=block), views, sp.expand(sp.Mul(*shape)))
