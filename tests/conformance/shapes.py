"""Shapes and places: every one of these is a statement that reads its tensor somewhere else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.page import (
    Page,
    Value,
    broadcast,
    swap,
    without,
)

Index = tuple[str, ...]


def flat(i: Sequence[str], shape: Sequence[int]) -> str:
    """The place in the order of rows."""
    terms = [
        f"{math.prod(shape[k + 1 :])} * ({n})" if math.prod(shape[k + 1 :]) != 1 else f"({n})"
        for k, n in enumerate(i)
        if shape[k] != 1
    ]
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
    return w(
        x.shape,
        lambda i: x[
            tuple(f"{n - 1} - {k}" if d in back else k for d, (k, n) in enumerate(zip(i, x.shape, strict=True)))
        ],
    )


def roll(w: Page, x: Value, shifts: Any, dims: Any = ()) -> Value:
    if dims in ((), None):
        return reshape(w, roll(w, reshape(w, x, (x.size,)), shifts, 0), x.shape) if x.rank else copy(w, x)
    by: dict[int, int] = {}
    for s, d in zip(
        (shifts,) if isinstance(shifts, int) else shifts,
        x.dims(dims) if isinstance(dims, int) else [x.dim(d) for d in dims],
        strict=True,
    ):
        by[d] = by.get(d, 0) + s
    if not x.size:
        return copy(w, x)
    return w(
        x.shape,
        lambda i: x[tuple(f"({k} + {-by[d] % x.shape[d]}) % {x.shape[d]}" if d in by else k for d, k in enumerate(i))],
    )


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
    return w(
        shape,
        lambda i: x.outside((*(i[d] for d in rest), f"{i[a]} - {low}" if low else i[a])),
        where=f"i{b} == i{a} + {offset}",
    )


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
        return (
            f"if {i[b]} == {i[a]} + {offset} then {y.outside((*(i[d] for d in rest), f'{i[a]} - {low}'))} else {x[i]}"
        )

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
    return w(
        (rows[-1], cols[-1]),
        lambda i: " + ".join(
            x.outside((f"{i[0]} - {r}", f"{i[1]} - {c}")) for x, r, c in zip(xs, rows, cols, strict=False) if x.size
        ),
    )


ROWS: dict[str, Callable[..., Any]] = {
    "reshape": reshape,
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
}
