"""Short loops whose index decides what is computed: one statement for each value of it, that one's alone.

for g < 4:  z_bar[n, g, j] = (if 0 == g then a[n, j] else 0) + (if 1 == g then b[n, j] else 0) + …
    ->  z_bar[n, 0, j] = a[n, j];  z_bar[n, 1, j] = b[n, j];  …
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import Sort, is_slot, slot, slot_number
from chainrule.ir.program import Leaf, Loop, Statement, leaves

SHORT = 8
"""Steps of a loop that are written out, at most."""


def unrolled(body: Iterable[Leaf]) -> Iterator[Leaf]:
    """`body` with the short loops written out whose index a condition compares with a number."""
    for node in body:
        if not isinstance(node, Loop):
            yield node
            continue
        inside = tuple(unrolled(node.body))
        if not _decides(node.range.symbol, inside) or not _is_short(node):
            yield replace(node, body=inside)
            continue
        for k in range(int(node.range.start), int(node.range.stop)):
            yield from _at({node.range.symbol: sp.Integer(k)}, inside)


def _is_short(loop: Loop) -> bool:
    start, stop = loop.range.start, loop.range.stop
    return bool(start.is_Integer and stop.is_Integer and stop - start <= SHORT)


def _decides(symbol: sp.Symbol, body: tuple[Leaf, ...]) -> bool:
    """Whether some condition in `body`, in which there are statements alone, is of `symbol` and a number."""
    found = list(leaves(body))
    return all(isinstance(leaf, Statement) for leaf in found) and any(
        part.free_symbols == {symbol}
        for leaf in found
        if isinstance(leaf, Statement)
        for e in (leaf.value, *leaf.where)
        for part in e.atoms(sp.Rel)
    )


def _at(place: Mapping[sp.Basic, sp.Basic], body: Iterable[Leaf]) -> Iterator[Leaf]:
    """`body` at one value of an index."""
    for node in body:
        match node:
            case Loop():
                r = replace(node.range, start=node.range.start.xreplace(place), stop=node.range.stop.xreplace(place))
                yield replace(node, range=r, body=tuple(_at(place, node.body)))
            case Statement():
                where = tuple(c for c in (c.xreplace(place) for c in node.where) if c is not sp.true)
                if sp.false not in where:
                    yield _read(
                        replace(
                            node,
                            target=node.target.renamed(place),
                            value=node.value.xreplace(place),
                            reads=tuple(read.renamed(place) for read in node.reads),
                            where=where,
                            place=None if node.place is None else node.place.xreplace(place),
                        )
                    )
            case _:
                yield node


def _read(s: Statement) -> Statement:
    """`s` without the reads that nothing needs."""
    needed: set[int] = set()
    waiting = [slot_number(x) for e in (s.value, *s.where, *s.target.indices) for x in e.free_symbols if is_slot(x)]
    while waiting:
        k = waiting.pop()
        if k not in needed:
            needed.add(k)
            waiting += [slot_number(x) for x in s.reads[k].slots]
    if len(needed) == len(s.reads):
        return s
    kept = sorted(needed)
    names = {slot(old, sort): slot(new, sort) for new, old in enumerate(kept) for sort in Sort if new != old}
    return replace(
        s,
        target=s.target.renamed(names),
        value=s.value.xreplace(names),
        reads=tuple(s.reads[k].renamed(names) for k in kept),
        where=tuple(c.xreplace(names) for c in s.where),
    )
