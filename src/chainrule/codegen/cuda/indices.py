"""Indices that a flat number consists of: threads and blocks have one number, where loops have several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sympy as sp

from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import Symbol
from chainrule.ir.expression import product
from chainrule.ir.program import Range


def length(r: Range) -> sp.Expr:
    return sp.expand(r.stop - r.start)


def places(ranges: Sequence[Range]) -> sp.Expr:
    """How many values the indices have together."""
    return product(map(length, ranges))


def split(flat: str, places: Sequence[tuple[str, Range, str]], w: CudaWriter) -> None:
    """The indices of a flattened nest, the last one first."""
    rest = flat
    for k in reversed(range(len(places))):
        name, r, length = places[k]
        start = w.integer(r.start)
        place = rest if k == 0 else f"{w.call('modulo')}({rest}, {length})"
        w.line(f"{name} = {place}" if start == "0" else f"{name} = {start} + {place}")
        if k:
            following = w.names.fresh("rest")
            w.line(f"{following} = {w.call('divide')}({rest}, {length})")
            rest = following


@contextmanager
def opened(ranges: Sequence[Range], w: CudaWriter) -> Iterator[list[str]]:
    """Names for the indices of loops."""
    names = []
    for r in ranges:
        name = w.names.fresh(r.pretty or "i")
        names.append(name)
        w.symbols[r.symbol] = Symbol(name, "integer", frozenset({r.symbol}))
        w.ranges[r.symbol] = r
        w.open.append(r.symbol)
    yield names
    for name in names:
        w.open.pop()
        w.names.release(name)


@contextmanager
def indices(ranges: Sequence[Range], flat: str, w: CudaWriter) -> Iterator[None]:
    """Names for the indices that a flat number consists of."""
    with opened(ranges, w) as names:
        if len(ranges) == 1:
            start = w.integer(ranges[0].start)
            w.line(f"{names[0]} = {flat}" if start == "0" else f"{names[0]} = {start} + {flat}")
        elif ranges:
            number = w.names.fresh("flat")
            w.line(f"{number} = {flat}")
            split(number, [(n, r, w.integer(length(r))) for n, r in zip(names, ranges, strict=True)], w)
            w.names.release(number)
        yield
