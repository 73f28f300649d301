"""Places that tensors hold, windows, edges: what is read or written where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.page import (
    NotExpressible,
    OutOfScope,
    Page,
    Value,
    broadcast,
    names,
    number,
    ranges,
    swap,
    without,
)
from tests.conformance.shapes import bounds, cat, copy, digits, expand, flat, ravel, reshape

Index = tuple[str, ...]


# integer tensors as places
def wrapped(w: Page, index: Value, n: int) -> Value:
    """The places that `index` means on an axis of extent n, counted from the end where negative."""
    return w(index.shape, lambda i: f"({index[i]} + {n}) % {n}", dtype=f"index {n}")


def places(w: Page, index: Value, n: int) -> Value:
    numbers = getattr(index, "numbers", None)
    if n == 0 or numbers is None or numbers.size == 0:
        return index
    return wrapped(w, index, n)


def gather(w: Page, x: Value, dim: int, index: Value) -> Value:
    if not index.size:
        return w(index.shape, lambda i: "0")
    if not x.rank:
        return w(index.shape, lambda i: x.name)
    if not index.rank:
        at = places(w, index, x.shape[0])
        return w((), lambda i: x[at[()]])
    d, at = x.dim(dim), places(w, index, x.shape[x.dim(dim)])
    return w(index.shape, lambda i: x[swap(i, d, at[i])])


def take_along_dim(w: Page, x: Value, index: Value, dim: int | None = None) -> Value:
    if dim is None:
        return gather(w, ravel(w, x), 0, ravel_index(w, index))
    d, at = x.dim(dim), places(w, index, x.shape[x.dim(dim)])
    shape = broadcast(without(x.shape, d), without(index.shape, d))
    shape = (*shape[:d], index.shape[d], *shape[d:])

    def read(i: Index) -> str:
        own = swap(i, d, at.wide(i))
        return x[tuple("0" if n == 1 and k != d else j for k, (j, n) in enumerate(zip(own, x.shape, strict=True)))]

    return w(shape, read)


def take(w: Page, x: Value, index: Value) -> Value:
    line = ravel(w, x)
    if not index.size:
        return w(index.shape, lambda i: "0")
    at = places(w, index, x.size)
    return w(index.shape, lambda i: line[at[i]])


def index_select(w: Page, x: Value, dim: int, index: Value) -> Value:
    if not x.rank:
        return copy(w, x)
    d = x.dim(dim)
    index = index if index.rank else one_axis(w, index)
    at = places(w, index, x.shape[d])
    return w((*x.shape[:d], at.size, *x.shape[d + 1 :]), lambda i: x[swap(i, d, at[i[d]])])


def embedding(w: Page, table: Value, token: Value) -> Value:
    at = places(w, token, table.shape[0])
    return w((*token.shape, table.shape[1]), lambda i: table[at[i[:-1]], i[-1]])


def one_axis(w: Page, index: Value) -> Value:
    value = w((1,), lambda i: index.name, dtype="int")
    return Numbered(value.name, value.shape, value.dtype, index.numbers.reshape(1))


class Numbered(Value):
    """An integer tensor with known numbers."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, numbers: Any) -> None:
        super().__init__(name, shape, dtype)
        object.__setattr__(self, "numbers", numbers)


def index_fill(w: Page, x: Value, dim: int, index: Value, value: Any) -> Value:
    v = value[()] if isinstance(value, Value) else number(value)
    if not x.rank:
        return w((), lambda i: v if index.size else x.name)
    d = x.dim(dim)
    index = index if index.rank else one_axis(w, index)
    at = places(w, index, x.shape[d])
    hit = w((x.shape[d],), lambda i: f"any[e < {at.size}] ({at['e']} == {i[0]})", dtype="bool")
    return w(x.shape, lambda i: f"if {hit[i[d]]} then {v} else {x[i]}")


def index_copy(w: Page, x: Value, dim: int, index: Value, y: Value) -> Value:
    d = x.dim(dim)
    if not x.rank:
        return w((), lambda i: y[("0",) * y.rank])
    index = index if index.rank else one_axis(w, index)
    y = y if y.rank == x.rank else reshape(w, y, swap(x.shape, d, index.size))
    at = places(w, index, x.shape[d])
    hit = w((x.shape[d],), lambda i: f"any[e < {at.size}] ({at['e']} == {i[0]})", dtype="bool")
    return w(
        x.shape,
        lambda i: (
            f"(if {hit[i[d]]} then 0 else {x[i]}) + sum[e < {at.size} where {at['e']} == {i[d]}] {y[swap(i, d, 'e')]}"
        ),
    )


def index_add(w: Page, x: Value, dim: int, index: Value, y: Value, alpha: float = 1) -> Value:
    d = x.dim(dim)
    if not x.rank:
        return w((), lambda i: f"{x.name} + {number(alpha)} * {y[('0',) * y.rank]}")
    index = index if index.rank else one_axis(w, index)
    y = y if y.rank == x.rank else reshape(w, y, swap(x.shape, d, index.size))
    at = places(w, index, x.shape[d])
    return w(
        x.shape,
        lambda i: f"{x[i]} + {number(alpha)} * (sum[e < {at.size} where {at['e']} == {i[d]}] {y[swap(i, d, 'e')]})",
    )


def scattered(w: Page, x: Value, dim: int, index: Value, y: Any) -> tuple[Any, ...]:
    """What scatter's forms share: the axis, the places, the indices of the sum, the condition, what is sent."""
    if not x.rank:
        x = reshape(w, x, (1,))
    if isinstance(y, Value) and not y.rank and index.rank:
        y = reshape(w, y, (1,) * index.rank)
    if not index.rank:
        index = one_axis(w, index)
        y = reshape(w, y, (1,)) if isinstance(y, Value) else y
    d = x.dim(dim)
    at = places(w, index, x.shape[d])
    n = index.shape[d]

    def sent(i: Index, e: str = "e") -> tuple[str, str]:
        here = swap(i, d, e)
        inside = [
            f"{k} < {m}" for j, (k, m) in enumerate(zip(i, index.shape, strict=True)) if j != d and m < x.shape[j]
        ]
        return " and ".join([*inside, f"{at[here]} == {i[d]}"]), y[here] if isinstance(y, Value) else number(y)

    return x, n, sent


def scatter_add(w: Page, x: Value, dim: int, index: Value, y: Value) -> Value:
    if not index.size:
        return copy(w, x)
    wide, n, sent = scattered(w, x, dim, index, y)

    def body(i: Index) -> str:
        condition, value = sent(i)
        return f"{wide[i]} + sum[e < {n} where {condition}] {value}"

    return reshape(w, w(wide.shape, body), x.shape) if not x.rank else w(wide.shape, body)


def scatter(w: Page, x: Value, dim: int, index: Value, y: Any, reduce: str | None = None) -> Value:
    if not index.size:
        return copy(w, x)
    wide, n, sent = scattered(w, x, dim, index, y)

    def body(i: Index) -> str:
        condition, value = sent(i)
        if reduce in ("add", "multiply"):
            kind, sign = ("sum", "+") if reduce == "add" else ("prod", "*")
            return f"{wide[i]} {sign} ({kind}[e < {n} where {condition}] {value})"
        return f"if (sum[e < {n} where {condition}] 1) > 0 then sum[e < {n} where {condition}] {value} else {wide[i]}"

    found = w(wide.shape, body)
    return reshape(w, found, x.shape) if not x.rank else found


def scatter_reduce(
    w: Page, x: Value, dim: int, index: Value, y: Value, reduce: str, include_self: bool = True
) -> Value:
    if not index.size:
        return copy(w, x)
    wide, n, sent = scattered(w, x, dim, index, y)
    kind = {"sum": "sum", "mean": "sum", "prod": "prod", "amin": "min", "amax": "max"}[reduce]

    def body(i: Index) -> str:
        condition, value = sent(i)
        found = f"({kind}[e < {n} where {condition}] {value})"
        count = f"(sum[e < {n} where {condition}] 1)"
        own = wide[i]
        joined = {
            "sum": f"{own} + {found}",
            "mean": f"({own} + {found}) / (1 + {count})",
            "prod": f"{own} * {found}",
            "min": f"min({own}, {found})",
            "max": f"max({own}, {found})",
        }[kind if reduce != "mean" else "mean"]
        alone = f"{found} / {count}" if reduce == "mean" else found
        return f"if {count} == 0 then {own} else {joined if include_self else alone}"

    found = w(wide.shape, body)
    return reshape(w, found, x.shape) if not x.rank else found


def index_reduce(w: Page, x: Value, dim: int, index: Value, y: Value, reduce: str, include_self: bool = True) -> Value:
    if not x.rank:
        x = reshape(w, x, (1,))
        y = y if y.rank else reshape(w, y, (1,))
        return reshape(w, index_reduce(w, x, 0, index, y, reduce, include_self), ())
    d = x.dim(dim)
    index = index if index.rank else one_axis(w, index)
    at = places(w, index, x.shape[d])
    y = y if y.rank == x.rank else reshape(w, y, swap(x.shape, d, index.size))
    kind = {"mean": "sum", "prod": "prod", "amin": "min", "amax": "max"}[reduce]

    def body(i: Index) -> str:
        condition, value = f"{at['e']} == {i[d]}", y[swap(i, d, "e")]
        found = f"({kind}[e < {at.size} where {condition}] {value})"
        count = f"(sum[e < {at.size} where {condition}] 1)"
        own = x[i]
        joined = {
            "mean": f"({own} + {found}) / (1 + {count})",
            "prod": f"{own} * {found}",
            "amin": f"min({own}, {found})",
            "amax": f"max({own}, {found})",
        }[reduce]
        alone = f"{found} / {count}" if reduce == "mean" else found
        return f"if {count} == 0 then {own} else {joined if include_self else alone}"

    return w(x.shape, body)


def put(w: Page, x: Value, index: Value, y: Value, accumulate: bool = False) -> Value:
    if not index.size:
        return copy(w, x)
    line, at = ravel(w, x), places(w, ravel_index(w, index), x.size)
    sent = ravel(w, y)
    both = f"sum[e < {at.size} where {at['e']} == i0] {sent['e']}"
    kept = "{x} + " if accumulate else f"(if any[e < {at.size}] ({at['e']} == i0) then 0 else {{x}}) + "
    return reshape(w, w((x.size,), lambda i: kept.format(x=line[i]) + both), x.shape)


def ravel_index(w: Page, index: Value) -> Value:
    if index.rank == 1:
        return index
    if not index.rank:
        return one_axis(w, index)
    value = w((index.size,), lambda i: index[digits(i[0], index.shape)], dtype="int")
    return Numbered(value.name, value.shape, value.dtype, index.numbers.reshape(-1))


def slice_scatter(
    w: Page, x: Value, y: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    d = x.dim(dim)
    first, length = bounds(x.shape[d], start, end, step)
    if not length:
        return copy(w, x)
    last = first + step * (length - 1)

    def read(i: Index) -> str:
        k = i[d]
        inside = f"{k} >= {first} and {k} <= {last}" + (
            f" and ({k} + {-first % step}) % {step} == 0" if step > 1 else ""
        )
        return f"if {inside} then {y.outside(swap(i, d, f'({k} - {first}) // {step}'))} else {x[i]}"

    return w(x.shape, read)


def select_scatter(w: Page, x: Value, y: Value, dim: int, index: int) -> Value:
    d = x.dim(dim)
    return w(x.shape, lambda i: f"if {i[d]} == {index % x.shape[d]} then {y[without(i, d)]} else {x[i]}")


def masked_scatter(w: Page, x: Value, mask: Value, y: Value) -> Value:
    shape = broadcast(x.shape, mask.shape)
    n = math.prod(shape)
    line = w((n,), lambda i: mask.wide(digits(i[0], shape)), dtype="bool")
    rank = w((n,), lambda i: f"sum[k < {n} where k < {i[0]} and {line['k']}] 1", dtype="int")
    sent = ravel(w, y)
    return w(shape, lambda i: f"if {mask.wide(i)} then {sent.outside((rank[f'{flat(i, shape)}'],))} else {x.wide(i)}")


def unfold(w: Page, x: Value, dimension: int, size: int, step: int) -> Value:
    if not x.rank:
        return w((size,), lambda i: x.name)
    d = x.dim(dimension)
    count = (x.shape[d] - size) // step + 1
    return w((*x.shape[:d], count, *x.shape[d + 1 :], size), lambda i: x[swap(i[:-1], d, f"{step} * {i[d]} + {i[-1]}")])


def as_strided(w: Page, x: Value, size: Any, stride: Any, storage_offset: int = 0) -> Value:
    if not x.packed:
        raise OutOfScope("how a view lies in memory")
    if not x.rank:
        return w(size, lambda i: x.name)
    line = ravel(w, x)
    return w(
        size,
        lambda i: line[" + ".join([str(storage_offset or 0), *(f"{s} * {k}" for s, k in zip(stride, i, strict=True))])],
    )


def getitem(w: Page, x: Value, *key: Any) -> Value:
    key = key[0] if len(key) == 1 and isinstance(key[0], tuple) else key
    if any(isinstance(k, Value) and k.dtype == "bool" for k in key):
        raise NotExpressible("a shape that depends on the data (a boolean mask as index)")
    if not key:
        return copy(w, x)
    listed = list(key)
    if Ellipsis in [k for k in listed if not isinstance(k, Value)]:
        at = next(k for k, v in enumerate(listed) if v is Ellipsis)
        used = sum(v is not None and v is not Ellipsis for v in listed)
        listed[at : at + 1] = [slice(None)] * (x.rank - used)
    used = sum(v is not None for v in listed)
    listed += [slice(None)] * (x.rank - used)
    return picked(w, x, listed)


def picked(w: Page, x: Value, key: list[Any]) -> Value:
    """NumPy's indexing: slices, numbers, new axes, and integer tensors that are spread together."""
    places_, axis, reads, shape = [], 0, [], []
    for k in key:
        if k is None:
            shape.append(1)
            reads.append(None)
            continue
        n = x.shape[axis]
        if isinstance(k, slice):
            step = k.step or 1
            first, length = bounds(n, k.start, k.stop, step)
            reads.append(("slice", first, step, len(shape)))
            shape.append(length)
        elif isinstance(k, int):
            reads.append(("number", k % n))
        else:
            k = k if isinstance(k, Value) else constant_index(w, k, n)
            reads.append(("tensor", places(w, k, n)))
            places_.append(len(reads) - 1)
        axis += 1
    if not places_:
        return w(shape, lambda i: x[tuple(one(r, i, ()) for r in reads if r is not None)])
    spread = broadcast(*(reads[k][1].shape for k in places_))
    together = places_ == list(range(places_[0], places_[-1] + 1))
    before = sum(r is None or r[0] == "slice" for r in reads[: places_[0]]) if together else 0
    full = (*shape[:before], *spread, *shape[before:])

    def read(i: Index) -> str:
        own = (*i[:before], *i[before + len(spread) :])
        return x[tuple(one(r, own, i[before : before + len(spread)]) for r in reads if r is not None)]

    return w(full, read)


def constant_index(w: Page, numbers: Sequence[int], n: int) -> Value:
    def read(i: Index) -> str:
        text = str(numbers[-1] % n)
        for k, v in reversed(list(enumerate(numbers[:-1]))):
            text = f"if {i[0]} == {k} then {v % n} else {text}"
        return text

    return w((len(numbers),), read, dtype=f"index {n}")


def one(r: tuple[Any, ...], own: Index, spread: Index) -> str:
    if r[0] == "slice":
        return f"{r[2]} * {own[r[3]]} + {r[1]}"
    return str(r[1]) if r[0] == "number" else r[1].wide(spread)


def index_put(w: Page, x: Value, indices: Sequence[Value], y: Value, accumulate: bool = False) -> Value:
    if any(k.dtype == "bool" for k in indices):
        if len(indices) == 1 and not accumulate and indices[0].rank == x.rank:
            return (
                masked_scatter(w, x, indices[0], y)
                if y.size > 1
                else w(x.shape, lambda i: f"if {indices[0][i]} then {y[('0',) * y.rank]} else {x[i]}")
            )
        raise NotExpressible("a shape that depends on the data (a boolean mask as index)")
    at = [places(w, k, n) for k, n in zip(indices, x.shape, strict=False)]
    spread = broadcast(*(k.shape for k in at))
    e = names("e", len(spread))
    rank = len(at)

    def body(i: Index) -> str:
        condition = " and ".join(f"{k.wide(e)} == {i[d]}" for d, k in enumerate(at))
        sent = f"sum[{ranges(e, spread)} where {condition}] {y.wide((*e, *i[rank:]))}"
        return (
            f"{x[i]} + {sent}" if accumulate else (f"if any[{ranges(e, spread)}] ({condition}) then {sent} else {x[i]}")
        )

    return w(x.shape, body)


def masked_select(w: Page, x: Value, mask: Value) -> Value:
    raise NotExpressible("a shape that depends on the data")


def diff(w: Page, x: Value, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Value:
    if n == 0:  # what would be joined is not looked at either
        return copy(w, x)
    d = x.dim(dim)
    joined = [p if p.rank else expand(w, p, swap(x.shape, d, 1)) for p in (prepend, x, append) if p is not None]
    y = cat(w, joined, d) if len(joined) > 1 else x
    for _ in range(n):
        if y.shape[d] == 0:
            break
        y = w(swap(y.shape, d, y.shape[d] - 1), lambda i, y=y: f"{y[swap(i, d, f'{i[d]} + 1')]} - {y[i]}")
    return copy(w, y)


ROWS: dict[str, Callable[..., Any]] = {
    "gather": gather,
    "take_along_dim": take_along_dim,
    "take": take,
    "index_select": index_select,
    "nn.functional.embedding": embedding,
    "index_fill": index_fill,
    "index_copy": index_copy,
    "index_add": index_add,
    **{f"index_reduce.{kind}": index_reduce for kind in ("mean", "prod", "amin", "amax")},
    "scatter_add": scatter_add,
    "scatter": scatter,
    **{f"scatter_reduce.{kind}": scatter_reduce for kind in ("sum", "prod", "mean", "amin", "amax")},
    "put": put,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    "masked_scatter": masked_scatter,
    "masked_select": masked_select,
    **dict.fromkeys(("unfold", "unfold_copy"), unfold),
    **dict.fromkeys(("as_strided", "as_strided.partial_views", "as_strided_copy"), as_strided),
    "__getitem__": getitem,
    "index_put": index_put,
    "diff": diff,
}
