"""Which loops after a product run inside it, panel by panel, while its results are in the first cache.

    z[r, c] = sum[k] x[r, k] * w[k, c]                  for each panel of columns:
    for r, c: y[r, c] = f(z[r, c], b[c])         ->         z_tile[r, c] = sum[k] x[r, k] * w[k, c]
                                                            for r, c in the panel: y[r, c] = f(z_tile[r, c], b[c])

A bias with its activation, a gradient's mask with the bias's gradient, a plain update: any nest over the product's own
rows and columns, each of whose steps needs the product at its own place only. No element's value changes: what is
summed over rows meets them in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sympy as sp

from chainrule.ir.formula import Access
from chainrule.ir.program import Leaf, Loop, Product, Range, Statement, accesses, leaves

Names = Mapping[sp.Basic, sp.Basic]


def arranged(body: Sequence[Leaf]) -> list[tuple[Leaf, Loop | None]]:
    """The nodes of a tree in an order with the same results; beside a product, the nest that may run inside it."""
    placed: list[tuple[Leaf, Loop | None]] = []
    for node in body:
        found = _product_of(node, placed) if isinstance(node, Loop) else None
        if found is None or not isinstance(node, Loop):
            placed.append((node, None))
        else:
            product, _ = placed.pop(found)
            placed.append((product, node))
    return placed


def _product_of(nest: Loop, placed: Sequence[tuple[Leaf, Loop | None]]) -> int | None:
    """The latest product that `nest` may run inside, where it can wait for the nest."""
    for at in range(len(placed) - 1, -1, -1):
        product, taken = placed[at]
        if isinstance(product, Product) and taken is None and runs_inside(nest, product):
            between = [leaf for node, its in placed[at + 1 :] for leaf in leaves((node, *([its] if its else [])))]
            return at if _may_wait(product, between) else None
    return None


def _may_wait(product: Product, others: Iterable[Statement | Product]) -> bool:
    for other in others:
        reads, target = accesses(other)
        if product.target.tensor in {target.tensor, *(read.tensor for read in reads)}:
            return False
        if target.tensor in (product.left.tensor, product.right.tensor):
            return False
    return True


def runs_inside(nest: Loop, product: Product) -> bool:
    """Whether `nest` is loops over the product's rows and columns that need it at their own place alone."""
    inner = nest.body[0] if len(nest.body) == 1 else None
    if not isinstance(inner, Loop) or len(product.rows) != 1 or len(product.columns) != 1 or product.batch:
        return False
    if not (_same(nest.range, product.rows[0]) and _same(inner.range, product.columns[0])):
        return False
    steps = [node for node in inner.body if isinstance(node, Statement)]
    if len(steps) < len(inner.body):
        return False
    row, column = nest.range.symbol, inner.range.symbol
    names = {row: product.rows[0].symbol, column: product.columns[0].symbol}
    uses = [read for step in steps for read in step.reads if read.tensor == product.target.tensor]
    written = {step.target.tensor for step in steps}
    if not uses or any(use.renamed(names).indices != product.target.indices for use in uses):
        return False
    if written & {product.target.tensor, product.left.tensor, product.right.tensor}:
        return False
    return all(_keeps_order(tensor, steps, row, column) for tensor in written)


def _keeps_order(tensor: str, steps: Sequence[Statement], row: sp.Symbol, column: sp.Symbol) -> bool:
    """Whether panel after panel does the same to what the steps write as row after row."""
    places: set[tuple[sp.Expr, ...]] = set()
    read_first = False
    for step in steps:
        own = step.target.tensor == tensor
        if step.companion is not None:
            return False
        found = [read.indices for read in step.reads if read.tensor == tensor]
        read_first = read_first or (bool(found) and not places)
        places.update(found)
        if own:
            read_first = read_first or (step.reduce is not None and not places)
            places.add(step.target.indices)
    if len(places) != 1:
        return False
    moves = {s for i in next(iter(places)) for s in i.free_symbols}
    return column in moves if read_first else True


def _same(a: Range, b: Range) -> bool:
    return bool(a.start == b.start and a.stop == b.stop)


def is_matrix(access: Access, row: sp.Symbol, column: sp.Symbol) -> bool:
    """Whether it is read at [row + something, column + something]."""
    if len(access.indices) != 2:
        return False
    parts = [sp.expand(i - s).free_symbols for i, s in zip(access.indices, (row, column), strict=True)]
    return not any(part & {row, column} for part in parts)


def is_alone(product: Product, nest: Loop, body: Sequence[Leaf]) -> bool:
    """Whether no one in `body` but the nest needs the product."""

    def users(some: Sequence[Leaf]) -> int:
        found = [accesses(leaf) for leaf in leaves(tuple(some))]
        return sum(product.target.tensor in {t.tensor, *(r.tensor for r in reads)} for reads, t in found)

    return users(body) == 1 + users([nest])
