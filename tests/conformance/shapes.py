"""Shapes and places: every one of these is a statement that reads its tensor somewhere else."""

from __future__ import annotations

import itertools
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

Index = tuple[str, ...]


def flat(i: Sequence[str], shape: Sequence[int]) -> str:
    """The place in the order of rows."""
    terms = [f"{math.prod(shape[k + 1 :])} * ({n})" if math.prod(shape[k + 1 :]) != 1 else f"({n})"
             for k, n in enumerate(i) if shape[k] != 1]
    return " + ".join(terms) if terms else "0"


def digits(place: str, shape: Sequence[int]) -> Index:
    """The indices at a place in the order of rows."""
    found = []
    for k, n in enumerate(shape):
        stride = math.prod(shape[k + 1 :])
        digit = f"({place}) // {stride}" if stride > 1 else f"({place})"
        found.append("0" if n == 1 else digit if not any(m > 1 for m in shape[:k]) else f"({digit}) % {n}")
    return tuple(found)


def sizes(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    first = arguments[0] if arguments else ()
    return tuple(first if isinstance(first, (tuple, list, range)) else arguments)


def copy(w: Page, x: Value) -> Value:
    return w(x.shape, lambda i: x[i])


def reshape(w: Page, x: Value, *shape: Any) -> Value:
    to = list(sizes(shape))
    if -1 in to:
        rest = math.prod(n for n in to if n != -1)
        to[to.index(-1)] = x.size // rest if rest else 0
    if x.size == 0:
        return w(to, lambda i: "0")
    if [n for n in to if n != 1] == [n for n in x.shape if n != 1]:  # only axes of extent 1 come or go
        def kept(i: Index) -> str:
            wide = iter([name for name, n in zip(i, to, strict=True) if n != 1])
            return x[tuple("0" if n == 1 else next(wide) for n in x.shape)]

        return w(to, kept)
    return w(to, lambda i: x[digits(flat(i, to), x.shape)])


def reshape_as(w: Page, x: Value, y: Value) -> Value:
    return reshape(w, x, y.shape)


def view(w: Page, x: Value, *shape: Any, **_: Any) -> Value:
    return reshape(w, x, *shape)


def flatten(w: Page, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if not x.rank:
        return reshape(w, x, (1,))
    a, b = x.dim(start_dim), x.dim(end_dim)
    return reshape(w, x, (*x.shape[:a], math.prod(x.shape[a : b + 1]), *x.shape[b + 1 :]))


def unflatten(w: Page, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    d = x.dim(dim)
    to = list(sizes)
    if -1 in to:
        to[to.index(-1)] = x.shape[d] // math.prod(n for n in to if n != -1)
    return reshape(w, x, (*x.shape[:d], *to, *x.shape[d + 1 :]))


def ravel(w: Page, x: Value) -> Value:
    return reshape(w, x, (x.size,))


def squeeze(w: Page, x: Value, dim: Any = None) -> Value:
    gone = {d for d in x.dims(dim) if d < x.rank and x.shape[d] == 1} if dim != () else set()
    return reshape(w, x, tuple(n for d, n in enumerate(x.shape) if d not in gone))


def unsqueeze(w: Page, x: Value, dim: int) -> Value:
    d = dim + x.rank + 1 if dim < 0 else dim
    return reshape(w, x, (*x.shape[:d], 1, *x.shape[d:]))


def expand(w: Page, x: Value, *shape: Any) -> Value:
    to = list(sizes(shape))
    for k in range(1, x.rank + 1):
        to[-k] = x.shape[-k] if to[-k] == -1 else to[-k]
    return w(to, lambda i: x.wide(i))


def expand_as(w: Page, x: Value, y: Value) -> Value:
    return expand(w, x, y.shape)


def broadcast_tensors(w: Page, *xs: Value) -> list[Value]:
    return [expand(w, x, broadcast(*(x.shape for x in xs))) for x in xs]


def atleast(rank: int) -> Callable[..., Any]:
    def one(w: Page, x: Value) -> Value:
        if x.rank >= rank:
            return copy(w, x)
        to = {1: (1,), 2: (1, *x.shape) if x.rank else (1, 1), 3: (1, *x.shape, 1)[-3:]}[rank]
        to = {0: (1,) * rank, 1: (1, *x.shape, 1) if rank == 3 else (1, *x.shape), 2: (*x.shape, 1)}[x.rank]
        return reshape(w, x, to)

    def row(w: Page, *xs: Any) -> Any:
        if isinstance(xs[0], (tuple, list)):
            return [one(w, x) for x in xs[0]]
        return one(w, xs[0]) if len(xs) == 1 else [one(w, x) for x in xs]

    return row


def permute(w: Page, x: Value, *dims: Any) -> Value:
    order = [x.dim(d) for d in sizes(dims)]
    return w([x.shape[d] for d in order], lambda i: x[tuple(i[order.index(d)] for d in range(x.rank))])


def transpose(w: Page, x: Value, dim0: int = -2, dim1: int = -1) -> Value:
    if x.rank < 2:
        return copy(w, x)
    order = list(range(x.rank))
    a, b = x.dim(dim0), x.dim(dim1)
    order[a], order[b] = order[b], order[a]
    return permute(w, x, order)


def t(w: Page, x: Value) -> Value:
    return permute(w, x, range(x.rank)[::-1]) if x.rank == 2 else copy(w, x)


def movedim(w: Page, x: Value, source: Any, destination: Any) -> Value:
    a = [x.dim(d) for d in ((source,) if isinstance(source, int) else source)]
    b = [x.dim(d) for d in ((destination,) if isinstance(destination, int) else destination)]
    rest = iter(d for d in range(x.rank) if d not in a)
    return permute(w, x, [a[b.index(k)] if k in b else next(rest) for k in range(x.rank)])


def flip(w: Page, x: Value, dims: Any) -> Value:
    back = {x.dim(d) for d in sizes((dims,))}
    return w(x.shape, lambda i: x[tuple(f"{n - 1} - {k}" if d in back else k for d, (k, n) in enumerate(
        zip(i, x.shape, strict=True)))])


def roll(w: Page, x: Value, shifts: Any, dims: Any = ()) -> Value:
    if dims in ((), None):
        return reshape(w, roll(w, reshape(w, x, (x.size,)), shifts, 0), x.shape) if x.rank else copy(w, x)
    by: dict[int, int] = {}
    for s, d in zip((shifts,) if isinstance(shifts, int) else shifts, x.dims(dims) if isinstance(dims, int) else [
            x.dim(d) for d in dims], strict=True):
        by[d] = by.get(d, 0) + s
    if not x.size:
        return copy(w, x)
    return w(x.shape, lambda i: x[tuple(
        f"({k} + {-by[d] % x.shape[d]}) % {x.shape[d]}" if d in by else k for d, k in enumerate(i))])


def rot90(w: Page, x: Value, k: int = 1, dims: Sequence[int] = (0, 1)) -> Value:
    a, b = x.dim(dims[0]), x.dim(dims[1])
    for _ in range(k % 4):
        x = transpose(w, flip(w, x, (b,)), a, b)
    return copy(w, x)


def select(w: Page, x: Value, dim: int, index: int) -> Value:
    d = x.dim(dim)
    return w(without(x.shape, d), lambda i: x[(*i[:d], str(index % x.shape[d]), *i[d:])])


def cut(w: Page, x: Value, d: int, start: int, length: int, step: int = 1) -> Value:
    def read(i: Index) -> str:
        return x[swap(i, d, f"{step} * {i[d]} + {start}")]

    return w((*x.shape[:d], length, *x.shape[d + 1 :]), read)


def bounds(n: int, start: int | None, end: int | None, step: int) -> tuple[int, int]:
    first, stop, step = slice(start, end, step).indices(n)
    return first, len(range(first, stop, step))


def slice_(w: Page, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    d = x.dim(dim)
    return cut(w, x, d, *bounds(x.shape[d], start, end, step), step)


def narrow(w: Page, x: Value, dim: int, start: Any, length: int) -> Value:
    d = x.dim(dim)
    first = int(start.numbers) if isinstance(start, Value) else start
    return cut(w, x, d, first % x.shape[d] if x.shape[d] and first < 0 else first, length)


def parts(w: Page, x: Value, dim: int, lengths: Sequence[int]) -> list[Value]:
    starts = [0, *itertools.accumulate(lengths)]
    return [cut(w, x, x.dim(dim), a, n) for a, n in zip(starts, lengths, strict=False)]


def split(w: Page, x: Value, size: Any, dim: int = 0) -> list[Value]:
    n = x.shape[x.dim(dim)]
    if isinstance(size, int):
        size = [min(size, n - a) for a in range(0, n, size)]
    return parts(w, x, dim, size)


def chunk(w: Page, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return split(w, x, -(-x.shape[x.dim(dim)] // chunks), dim)


def tensor_split(w: Page, x: Value, at: Any, dim: int = 0) -> list[Value]:
    n = x.shape[x.dim(dim)]
    if isinstance(at, Value):
        at = at.numbers.tolist()
    if isinstance(at, int):
        lengths = [n // at + (k < n % at) for k in range(at)]
    else:
        edges = [0, *(min(a if a >= 0 else a + n, n) for a in at), n]
        lengths = [max(b - a, 0) for a, b in itertools.pairwise(edges)]
    return parts(w, x, dim, lengths)


def splitter(dim: int) -> Callable[..., Any]:
    return lambda w, x, at: tensor_split(w, x, at, 0 if x.rank == 1 and dim == 1 else dim)


def unbind(w: Page, x: Value, dim: int = 0) -> list[Value]:
    return [select(w, x, dim, k) for k in range(x.shape[x.dim(dim)])]


def cat(w: Page, xs: Sequence[Value], dim: int = 0, **named: Any) -> Value:
    xs = [x for x in xs if x.shape != (0,)] or list(xs)
    d = xs[0].dim(named.get("axis", dim))
    starts = [0, *itertools.accumulate(x.shape[d] for x in xs)]
    total = (*xs[0].shape[:d], starts[-1], *xs[0].shape[d + 1 :])
    if not math.prod(total):
        return w(total, lambda i: "0")

    def read(i: Index) -> str:
        reads = [x.outside(swap(i, d, f"{i[d]} - {a}")) for x, a in zip(xs, starts, strict=False) if x.shape[d]]
        return " + ".join(reads) or "0"

    return w(total, read)


def stack(w: Page, xs: Sequence[Value], dim: int = 0) -> Value:
    return cat(w, [unsqueeze(w, x, dim) for x in xs], dim if dim >= 0 else dim + xs[0].rank + 1)


def stacked(rank: int, dim: int) -> Callable[..., Any]:
    def row(w: Page, xs: Sequence[Value]) -> Value:
        wide = [atleast(rank)(w, x) for x in xs]
        return cat(w, wide, 0 if wide[0].rank == 1 else dim)

    return row


def column_stack(w: Page, xs: Sequence[Value]) -> Value:
    return cat(w, [x if x.rank > 1 else reshape(w, x, (x.size, 1)) for x in xs], 1)


def repeat(w: Page, x: Value, *repeats: Any) -> Value:
    times = sizes(repeats)
    shape = (1,) * (len(times) - x.rank) + x.shape
    total = [n * m for n, m in zip(times, shape, strict=True)]
    if not math.prod(total):
        return w(total, lambda i: "0")

    def read(i: Index) -> str:
        return x[tuple("0" if n == 1 else f"{k} % {n}" for k, n in zip(i[len(i) - x.rank :], x.shape, strict=True))]

    return w(total, read)


def tile(w: Page, x: Value, *dims: Any) -> Value:
    times = sizes(dims)
    return repeat(w, x, (1,) * (x.rank - len(times)) + tuple(times))


def repeat_interleave(w: Page, x: Value, repeats: Any, dim: int | None = None, output_size: Any = None) -> Value:
    if dim is None:
        x, dim = reshape(w, x, (x.size,)), 0
    d = x.dim(dim)
    if x.rank == 0:
        x = reshape(w, x, (1,))
    if isinstance(repeats, int):
        total = x.shape[d] * repeats
        return w((*x.shape[:d], total, *x.shape[d + 1 :]), lambda i: x[swap(i, d, f"{i[d]} // {repeats}")])
    counts = repeats.numbers.reshape(-1)
    if counts.size == 1:
        return repeat_interleave(w, x, int(counts[0]), dim)
    ends = w((counts.size,), lambda i: f"sum[k < {counts.size} where k <= {i[0]}] {repeats['k']}", dtype="int")

    def read(i: Index) -> str:  # the first whose end lies beyond
        n = counts.size
        after, before = f"{ends['k']} > {i[d]}", f"{ends.outside(('k - 1',))} <= {i[d]}"
        return f"sum[k < {n} where {after} and {before}] {x[swap(i, d, 'k')]}"

    return w((*x.shape[:d], int(counts.sum()), *x.shape[d + 1 :]), read)


# diagonals, triangles, products of places
def diagonal(w: Page, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1, **named: Any) -> Value:
    a, b = x.dim(dim1), x.dim(dim2)
    length = max(0, min(x.shape[a] - max(-offset, 0), x.shape[b] - max(offset, 0)))
    rest = [d for d in range(x.rank) if d not in (a, b)]

    def read(i: Index) -> str:
        at = {a: f"{i[-1]} + {max(-offset, 0)}", b: f"{i[-1]} + {max(offset, 0)}"}
        return x[tuple(at.get(d) or i[rest.index(d)] for d in range(x.rank))]

    return w([*(x.shape[d] for d in rest), length], read)


def linalg_diagonal(w: Page, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    return diagonal(w, x, offset, dim1, dim2)


def diag_embed(w: Page, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    rank, n = x.rank + 1, x.shape[-1] + abs(offset)
    a, b = dim1 % rank, dim2 % rank
    rest = [d for d in range(rank) if d not in (a, b)]
    shape = [n if d in (a, b) else x.shape[rest.index(d)] for d in range(rank)]
    low = max(-offset, 0)
    return w(shape, lambda i: x.outside((*(i[d] for d in rest), f"{i[a]} - {low}" if low else i[a])),
             where=f"i{b} == i{a} + {offset}")


def diag(w: Page, x: Value, diagonal_: int = 0, **named: Any) -> Value:
    k = named.get("diagonal", diagonal_)
    return diag_embed(w, x, k) if x.rank == 1 else diagonal(w, x, k)


def diagflat(w: Page, x: Value, offset: int = 0) -> Value:
    return diag_embed(w, ravel(w, x), offset)


def diagonal_scatter(w: Page, x: Value, y: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    a, b = x.dim(dim1), x.dim(dim2)
    rest = [d for d in range(x.rank) if d not in (a, b)]
    low = max(-offset, 0)

    def read(i: Index) -> str:
        return (f"if {i[b]} == {i[a]} + {offset} then {y.outside((*(i[d] for d in rest), f'{i[a]} - {low}'))}"
                f" else {x[i]}")

    return w(x.shape, read)


def triangle(relation: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, diagonal: int = 0) -> Value:
        return w(x.shape, lambda i: f"if {i[-1]} {relation} {i[-2]} + {diagonal} then {x[i]} else 0")

    return row


def trace(w: Page, x: Value) -> Value:
    return w((), lambda i: f"sum[k < {min(x.shape)}] {x['k', 'k']}")


def block_diag(w: Page, *xs: Value) -> Value:
    xs = tuple(atleast(2)(w, x) for x in xs)
    rows = [0, *itertools.accumulate(x.shape[0] for x in xs)]
    cols = [0, *itertools.accumulate(x.shape[1] for x in xs)]
    return w((rows[-1], cols[-1]), lambda i: " + ".join(
        x.outside((f"{i[0]} - {r}", f"{i[1]} - {c}")) for x, r, c in zip(xs, rows, cols, strict=False) if x.size))


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
        return (x[tuple(f"{k} // {n}" for k, n in zip(i, y.shape, strict=True))] + " * "
                + y[tuple(f"{k} % {n}" for k, n in zip(i, y.shape, strict=True))])

    return w(shape, read)


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
    return w(x.shape, lambda i: f"(if {hit[i[d]]} then 0 else {x[i]}) + "
             f"sum[e < {at.size} where {at['e']} == {i[d]}] {y[swap(i, d, 'e')]}")


def index_add(w: Page, x: Value, dim: int, index: Value, y: Value, alpha: float = 1) -> Value:
    d = x.dim(dim)
    if not x.rank:
        return w((), lambda i: f"{x.name} + {number(alpha)} * {y[('0',) * y.rank]}")
    index = index if index.rank else one_axis(w, index)
    y = y if y.rank == x.rank else reshape(w, y, swap(x.shape, d, index.size))
    at = places(w, index, x.shape[d])
    return w(x.shape, lambda i: f"{x[i]} + "
             f"{number(alpha)} * (sum[e < {at.size} where {at['e']} == {i[d]}] {y[swap(i, d, 'e')]})")


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
        inside = [f"{k} < {m}" for j, (k, m) in enumerate(zip(i, index.shape, strict=True)) if j != d and m < x.shape[j]]
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
        return (f"if (sum[e < {n} where {condition}] 1) > 0 then sum[e < {n} where {condition}] {value} else {wide[i]}")

    found = w(wide.shape, body)
    return reshape(w, found, x.shape) if not x.rank else found


def scatter_reduce(w: Page, x: Value, dim: int, index: Value, y: Value, reduce: str, include_self: bool = True) -> Value:
    if not index.size:
        return copy(w, x)
    wide, n, sent = scattered(w, x, dim, index, y)
    kind = {"sum": "sum", "mean": "sum", "prod": "prod", "amin": "min", "amax": "max"}[reduce]

    def body(i: Index) -> str:
        condition, value = sent(i)
        found = f"({kind}[e < {n} where {condition}] {value})"
        count = f"(sum[e < {n} where {condition}] 1)"
        own = wide[i]
        joined = {"sum": f"{own} + {found}", "mean": f"({own} + {found}) / (1 + {count})", "prod": f"{own} * {found}",
                  "min": f"min({own}, {found})", "max": f"max({own}, {found})"}[kind if reduce != "mean" else "mean"]
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
        joined = {"mean": f"({own} + {found}) / (1 + {count})", "prod": f"{own} * {found}",
                  "amin": f"min({own}, {found})", "amax": f"max({own}, {found})"}[reduce]
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


def slice_scatter(w: Page, x: Value, y: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    d = x.dim(dim)
    first, length = bounds(x.shape[d], start, end, step)
    if not length:
        return copy(w, x)
    last = first + step * (length - 1)

    def read(i: Index) -> str:
        k = i[d]
        inside = f"{k} >= {first} and {k} <= {last}" + (f" and ({k} + {-first % step}) % {step} == 0" if step > 1 else "")
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
    return w((*x.shape[:d], count, *x.shape[d + 1 :], size),
             lambda i: x[swap(i[:-1], d, f"{step} * {i[d]} + {i[-1]}")])


def as_strided(w: Page, x: Value, size: Any, stride: Any, storage_offset: int = 0) -> Value:
    if not x.packed:
        raise OutOfScope("how a view lies in memory")
    if not x.rank:
        return w(size, lambda i: x.name)
    line = ravel(w, x)
    return w(size, lambda i: line[" + ".join([str(storage_offset or 0),
             *(f"{s} * {k}" for s, k in zip(stride, i, strict=True))])])


# padding: before and after each axis, from the last axis on
def sides(x: Value, pad: Sequence[int]) -> list[tuple[int, int]]:
    found = [(0, 0)] * x.rank
    for k in range(len(pad) // 2):
        found[x.rank - 1 - k] = (pad[2 * k], pad[2 * k + 1])
    return found


def pad(w: Page, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    both = sides(x, pad)
    shape = [n + a + b for n, (a, b) in zip(x.shape, both, strict=True)]
    if mode == "constant":
        return w(shape, lambda i: x.outside(tuple(f"{k} - {a}" if a > 0 else f"{k} + {-a}" if a else k
                 for k, (a, _) in zip(i, both, strict=True)), number(value or 0)))
    for d, (a, b) in enumerate(both):
        if mode == "circular" and min(a, b) < 0:  # what remains goes round
            cropped = x.shape[d] + min(a, 0) + min(b, 0)
            x, a, b = cut(w, x, d, max(-a, 0), cropped), max(a, 0), max(b, 0)
        if (a, b) != (0, 0):
            x = padded(w, x, d, a, b, mode)
    return x


def padded(w: Page, x: Value, d: int, a: int, b: int, mode: str) -> Value:
    n = x.shape[d]

    def read(i: Index) -> str:
        k = f"({i[d]} - {a})"
        if mode == "circular":
            k = f"({i[d]} + {-a % n}) % {n}"
        elif mode == "replicate":
            k = f"clip({k}, 0, {n - 1})"
        else:  # a reflection on either side
            k = f"clip({n - 1} - abs({n - 1} - abs({k})), 0, {n - 1})"
        return x[swap(i, d, k)]

    return w((*x.shape[:d], n + a + b, *x.shape[d + 1 :]), read)


def constant_pad_nd(w: Page, x: Value, by: Sequence[int], value: float = 0) -> Value:
    return pad(w, x, by, "constant", value)


# pictures
def pixel_shuffle(w: Page, x: Value, upscale_factor: int) -> Value:
    r = upscale_factor
    *lead, c, h, width = x.shape
    return w((*lead, c // (r * r), h * r, width * r), lambda i: x[(
        *i[:-3], f"({i[-3]} * {r} + {i[-2]} % {r}) * {r} + {i[-1]} % {r}", f"{i[-2]} // {r}", f"{i[-1]} // {r}")])


def pixel_unshuffle(w: Page, x: Value, downscale_factor: int) -> Value:
    r = downscale_factor
    *lead, c, h, width = x.shape
    return w((*lead, c * r * r, h // r, width // r), lambda i: x[(
        *i[:-3], f"{i[-3]} // {r * r}", f"{r} * {i[-2]} + ({i[-3]} // {r}) % {r}", f"{r} * {i[-1]} + {i[-3]} % {r}")])


def channel_shuffle(w: Page, x: Value, groups: int) -> Value:
    c = x.shape[1]
    return w(x.shape, lambda i: x[swap(i, 1, f"{i[1]} % {groups} * {c // groups} + {i[1]} // {groups}")])


def fftshift(w: Page, x: Value, dim: Any = None) -> Value:
    dims = x.dims(dim)
    return roll(w, x, [x.shape[d] // 2 for d in dims], list(dims))


def ifftshift(w: Page, x: Value, dim: Any = None) -> Value:
    dims = x.dims(dim)
    return roll(w, x, [-(x.shape[d] // 2) for d in dims], list(dims))


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
            return masked_scatter(w, x, indices[0], y) if y.size > 1 else w(
                x.shape, lambda i: f"if {indices[0][i]} then {y[('0',) * y.rank]} else {x[i]}")
        raise NotExpressible("a shape that depends on the data (a boolean mask as index)")
    at = [places(w, k, n) for k, n in zip(indices, x.shape, strict=False)]
    spread = broadcast(*(k.shape for k in at))
    e = names("e", len(spread))
    rank = len(at)

    def body(i: Index) -> str:
        condition = " and ".join(f"{k.wide(e)} == {i[d]}" for d, k in enumerate(at))
        sent = f"sum[{ranges(e, spread)} where {condition}] {y.wide((*e, *i[rank:]))}"
        return f"{x[i]} + {sent}" if accumulate else (
            f"if any[{ranges(e, spread)}] ({condition}) then {sent} else {x[i]}")

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
    **dict.fromkeys(("reshape", "nn.functional.reshape"), reshape),
    **dict.fromkeys(("view", "view_copy"), view),
    **dict.fromkeys(("reshape_as", "view_as"), reshape_as),
    "flatten": flatten,
    "unflatten": unflatten,
    "ravel": ravel,
    **dict.fromkeys(("squeeze", "squeeze.multiple", "squeeze_copy"), squeeze),
    **dict.fromkeys(("unsqueeze", "unsqueeze_copy"), unsqueeze),
    **dict.fromkeys(("expand", "expand_copy", "broadcast_to"), expand),
    "expand_as": expand_as,
    "broadcast_tensors": broadcast_tensors,
    **{f"atleast_{n}d": atleast(n) for n in (1, 2, 3)},
    **dict.fromkeys(("permute", "permute_copy"), permute),
    **dict.fromkeys(("transpose", "transpose_copy", "mT", "mH"), transpose),
    **dict.fromkeys(("t", "t_copy", "T", "H"), t),
    "movedim": movedim,
    "flip": flip,
    "fliplr": lambda w, x: flip(w, x, (1,)),
    "flipud": lambda w, x: flip(w, x, (0,)),
    "roll": roll,
    "rot90": rot90,
    "select": select,
    "slice": slice_,
    **dict.fromkeys(("narrow", "narrow_copy"), narrow),
    **dict.fromkeys(("split", "split.list_args", "unsafe_split", "split_with_sizes", "split_with_sizes_copy"), split),
    **dict.fromkeys(("chunk", "unsafe_chunk"), chunk),
    "tensor_split": tensor_split,
    "hsplit": splitter(1),
    "vsplit": splitter(0),
    "dsplit": splitter(2),
    **dict.fromkeys(("unbind", "unbind_copy"), unbind),
    "cat": cat,
    "stack": stack,
    "hstack": stacked(1, 1),
    "vstack": stacked(2, 0),
    "dstack": stacked(3, 2),
    "column_stack": column_stack,
    "repeat": repeat,
    "tile": tile,
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("diagonal", "diagonal_copy"), diagonal),
    "linalg.diagonal": linalg_diagonal,
    "diag_embed": diag_embed,
    "diag": diag,
    "diagflat": diagflat,
    "diagonal_scatter": diagonal_scatter,
    "tril": triangle("<="),
    "triu": triangle(">="),
    "trace": trace,
    "block_diag": block_diag,
    **dict.fromkeys(("meshgrid.variadic_tensors", "meshgrid.list_of_tensors"), meshgrid),
    "cartesian_prod": cartesian_prod,
    "combinations": combinations,
    "kron": kron,
    "gather": gather,
    "take_along_dim": take_along_dim,
    "take": take,
    "index_select": index_select,
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
    **{f"nn.functional.pad.{kind}": pad for kind in (
        "constant", "reflect", "replicate", "replicate_negative", "circular")},
    "constant_pad_nd": constant_pad_nd,
    "nn.functional.pixel_shuffle": pixel_shuffle,
    "nn.functional.pixel_unshuffle": pixel_unshuffle,
    "nn.functional.channel_shuffle": channel_shuffle,
    "fft.fftshift": fftshift,
    "fft.ifftshift": ifftshift,
    "__getitem__": getitem,
    "index_put": index_put,
    "diff": diff,
}
ROWS.pop("nn.functional.reshape")
