"""Equal kernels, found before they are printed: kernels that differ in the names of buffers and dims alone.

A deep network has hundreds of them, and to print one takes a hundred times as long as to compare its form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, assert_never

import sympy as sp

from chainrule.ir.expression import dim_symbol
from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Range, Statement

SPECIAL = ("scalar", "clock")
"""Spaces whose buffers a kernel knows by name: the step's number, the seed."""


@dataclass
class Form:
    """What two kernels must have in common to be one; buffers and dims are numbered as they appear.

    key: all of it, hashable. buffers, dims: the numbers by what they stand for in this kernel.
    """

    own: Mapping[str, Buffer]  # the kernel's
    known: Mapping[str, Buffer]  # the program's
    over: frozenset[sp.Symbol]  # the program's dims
    key: Any = ()
    buffers: dict[str, int] = field(default_factory=dict)
    dims: dict[sp.Symbol, sp.Symbol] = field(default_factory=dict)

    def to(self, other: Form) -> tuple[dict[str, str], dict[sp.Basic, sp.Basic]]:
        """What the buffers and the dims of this kernel are called in `other`, which is equal."""
        dims = dict(zip(self.dims, other.dims, strict=True))
        return dict(zip(self.buffers, other.buffers, strict=True)), {a: b for a, b in dims.items() if a != b}

    def leaf(self, node: Leaf) -> Any:
        match node:
            case Loop():
                until = None if node.until is None else self.access(node.until)
                return "loop", self.range(node.range), until, tuple(map(self.leaf, node.body))
            case Statement():
                read = tuple(map(self.access, node.reads))
                value, where = self.expression(node.value), tuple(map(self.expression, node.where))
                place = None if node.place is None else self.expression(node.place)
                companion = None if node.companion is None else self.buffer(node.companion)
                return self.access(node.target), value, read, where, node.reduce, companion, place
            case Product():
                accesses = tuple(map(self.access, (node.target, node.left, node.right)))
                groups = (node.rows, node.columns, node.inner, node.batch)
                ranges = tuple(tuple(map(self.range, group)) for group in groups)
                where = tuple(map(self.expression, node.where))
                return accesses, ranges, self.expression(node.scale), node.accumulate, where
            case _:
                assert_never(node)

    def range(self, r: Range) -> Any:
        return r.symbol, self.expression(r.start), self.expression(r.stop)

    def access(self, access: Access) -> Any:
        outside = None if access.outside is None else self.expression(access.outside)
        return self.buffer(access.tensor), self.expressions(access.indices), outside

    def buffer(self, name: str) -> Any:
        """Its number; with what it is, where it appears first."""
        if name in self.buffers:
            return self.buffers[name]
        self.buffers[name] = len(self.buffers)
        buffer = self.own.get(name) or self.known.get(name)
        if buffer is None:
            return name
        special = buffer.name if buffer.space in SPECIAL else ""
        return self.expressions(buffer.shape), buffer.dtype, buffer.space, special

    def expressions(self, several: tuple[sp.Basic, ...]) -> Any:
        return tuple(map(self.expression, several)) if _mention(several, self.over) else several

    def expression(self, e: sp.Basic) -> sp.Basic:
        """`e`, the dims in it called by number."""
        found = _dims_in(e, self.over)
        for dim in found:
            self.dims.setdefault(dim, dim_symbol(f"_{len(self.dims)}"))
        return e.xreplace({dim: self.dims[dim] for dim in found}) if found else e


@lru_cache(maxsize=65536)
def _mention(several: tuple[sp.Basic, ...], over: frozenset[sp.Symbol]) -> bool:
    """Whether a dim is in one of them."""
    return any(e.free_symbols & over for e in several)


@lru_cache(maxsize=65536)
def _dims_in(e: sp.Basic, over: frozenset[sp.Symbol]) -> tuple[sp.Symbol, ...]:
    return tuple(sorted(e.free_symbols & over, key=lambda s: s.name))


def form_of(kernel: Kernel, buffers: Mapping[str, Buffer], dims: frozenset[sp.Symbol]) -> Form:
    """The form of `kernel`. buffers: the program's; what lies in them is told apart, where they lie is not."""
    form = Form({buffer.name: buffer for buffer in kernel.locals}, buffers, dims)
    block = kernel.block
    blocks = () if block is None else (block.number, block.first, block.last, block.extent, sp.Integer(block.size))
    form.key = form.expressions(blocks), tuple(map(form.leaf, kernel.body))
    return form
