"""Tensors of all combinations of places: grids, products of sets, Kronecker's product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from tests.conformance.page import (
    NotExpressible,
    Page,
    Value,
)
from tests.conformance.shapes import copy, digits, reshape, stack

Index = tuple[str, ...]


def meshgrid(w: Page, *xs: Any, indexing: str = "ij") -> list[Value]:
    xs = tuple(xs[0]) if isinstance(xs[0], (tuple, list)) else xs
    xs = tuple(x if x.rank else reshape(w, x, (1,)) for x in xs)
    order = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        order[0], order[1] = 1, 0
    shape = [xs[k].size for k in order]
    return [w(shape, lambda i, x=x, k=k: x[i[order.index(k)]]) for k, x in enumerate(xs)]


def cartesian_prod(w: Page, *xs: Value) -> Value:
    if len(xs) == 1:
        return copy(w, xs[0])
    shape = [x.size for x in xs]
    columns = [w((math.prod(shape),), lambda i, x=x, k=k: x[digits(i[0], shape)[k]]) for k, x in enumerate(xs)]
    return stack(w, columns, 1)


def combinations(w: Page, x: Value, r: int = 2, with_replacement: bool = False) -> Value:
    make = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(make(range(x.size), r))
    if not rows or not r:
        return w((len(rows), r) if r else (0,), lambda i: "0")

    def read(i: Index) -> str:
        chosen = "0"
        for (a, row), k in itertools.product(enumerate(rows), range(r)):
            chosen = f"if {i[0]} == {a} and {i[1]} == {k} then {row[k]} else {chosen}"
        return chosen

    if len(rows) * r > 90:
        raise NotExpressible("a table of places longer than the limit of nested choices")
    place = w((len(rows), r), read, dtype=f"index {x.size}")
    return w((len(rows), r), lambda i: x[place[i]])


def kron(w: Page, x: Value, y: Value) -> Value:
    rank = max(x.rank, y.rank)
    x = reshape(w, x, (1,) * (rank - x.rank) + x.shape)
    y = reshape(w, y, (1,) * (rank - y.rank) + y.shape)
    shape = [a * b for a, b in zip(x.shape, y.shape, strict=True)]

    def read(i: Index) -> str:
        return (
            x[tuple(f"{k} // {n}" for k, n in zip(i, y.shape, strict=True))]
            + " * "
            + y[tuple(f"{k} % {n}" for k, n in zip(i, y.shape, strict=True))]
        )

    return w(shape, read)


ROWS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("meshgrid.variadic_tensors", "meshgrid.list_of_tensors"), meshgrid),
    "cartesian_prod": cartesian_prod,
    "combinations": combinations,
    "kron": kron,
}
