"""Which kernels are plain matrix products, that a library may do: matrices in memory, by offset and strides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sympy as sp

from chainrule.codegen.kernel import Matrices, Multiplied
from chainrule.ir.expression import product
from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Range

Group = tuple[Range, ...]


def multiplied(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Multiplied | None:
    """The product that all of a kernel of whole extents is, if its operands are matrices: none is padded, and indices
    that rows, columns, sums or batches consist of are one index in memory."""
    around: list[Range] = []
    body: Sequence[Leaf] = kernel.body
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].until is None:
        around.append(body[0].range)
        body = body[0].body
    if len(body) != 1 or not isinstance(body[0], Product):
        return None
    p = body[0]
    ranges = (*around, *p.batch, *p.rows, *p.columns, *p.inner)
    if (
        any(a.outside is not None for a in (p.left, p.right))
        or p.scale.free_symbols
        or any(r.start != 0 for r in ranges)
    ):
        return None
    found = (of(p, *groups, buffers) for groups in _groups(p, tuple(around)))
    return next((one for one in found if one is not None), None)


def _groups(p: Product, around: Group) -> Iterator[tuple[Group, Group, Group]]:
    """Batch, rows and columns: leading rows or columns may count as a batch, whose other operand stands still."""
    for k in range(len(p.rows)):
        yield (*around, *p.batch, *p.rows[:k]), p.rows[k:], p.columns
    for k in range(1, len(p.columns)):
        yield (*around, *p.batch, *p.columns[:k]), p.rows, p.columns[k:]


def of(p: Product, batch: Group, rows: Group, columns: Group, buffers: Mapping[str, Buffer]) -> Multiplied | None:
    """The product with its indices in these groups, where each group is one index of each operand."""
    matrices = []
    for access, down, across in ((p.left, rows, p.inner), (p.right, p.inner, columns), (p.target, rows, columns)):
        flat = _flat(access, buffers[access.tensor])
        strides = [_stride(flat, group) for group in (down, across, batch)]
        if any(s is None for s in strides):
            return None
        offset = flat.xreplace(dict.fromkeys((r.symbol for r in (*down, *across, *batch)), sp.S.Zero))
        one, other, apart = (s if s is not None else sp.S.Zero for s in strides)
        if sp.S.One not in (one, other):
            return None
        matrices.append(Matrices(access.tensor, sp.expand(offset), one, other, apart))
    left, right, target = matrices
    m, n, k, times = (product(r.stop for r in group) for group in (rows, columns, p.inner, batch))
    return Multiplied(m, n, k, times, left, right, target, p.scale, p.accumulate)


def _flat(access: Access, buffer: Buffer) -> sp.Expr:
    """The element's place in memory."""
    flat: sp.Expr = sp.S.Zero
    for index, extent in zip(access.indices, buffer.shape, strict=True):
        flat = flat * extent + index
    return sp.expand(flat)


def _stride(flat: sp.Expr, group: Group) -> sp.Expr | None:
    """How far apart the places of a group's index are, its ranges being digits of one number; None if they are not.

    An index of one place lies at any distance: 1.
    """
    own = {r.symbol for r in group}
    stride: sp.Expr | None = None
    found: sp.Expr | None = None
    reach: sp.Expr = sp.S.One
    for r in reversed(group):
        if r.stop == 1:
            continue
        c = flat.coeff(r.symbol, 1)
        if c.free_symbols & own or sp.expand(flat - c * r.symbol).has(r.symbol):
            return None
        if stride is None:
            stride = found = c
        elif sp.expand(c - stride * reach) != 0:
            return None
        reach, stride = r.stop, c
    return sp.S.One if found is None else found
