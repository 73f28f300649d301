"""ONNX's operators that move numbers: shapes, slices, gathers, scatters, and tensors that a rule fills."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.conformance import indexing, shapes
from tests.conformance.edges import padded
from tests.conformance.page import NotExpressible, OutOfScope, Page, Value, broadcast, names, number, ranges, swap

Index = tuple[str, ...]


def ints(value: Any) -> list[int]:
    """The numbers of an input that decides a shape."""
    return [int(n) for n in np.asarray(value.numbers).reshape(-1)]


def same(w: Page, x: Value, shape: Sequence[int], read: Callable[[Index], Index]) -> Value:
    """Numbers moved, of whatever type."""
    return w(shape, lambda i: x[read(i)], dtype=x.dtype)


def reshape(w: Page, x: Value, shape: Any, allowzero: int = 0) -> Value:
    to = [x.shape[k] if n == 0 and not allowzero else n for k, n in enumerate(ints(shape))]
    return shapes.reshape(w, x, to)


def flatten(w: Page, x: Value, axis: int = 1) -> Value:
    d = axis + x.rank if axis < 0 else axis
    return shapes.reshape(w, x, (math.prod(x.shape[:d]), math.prod(x.shape[d:])))


def squeeze(w: Page, x: Value, axes: Any = None) -> Value:
    gone = {x.dim(d) for d in ints(axes)} if axes is not None else {d for d, n in enumerate(x.shape) if n == 1}
    return shapes.reshape(w, x, [n for d, n in enumerate(x.shape) if d not in gone])


def unsqueeze(w: Page, x: Value, axes: Any) -> Value:
    rank = x.rank + len(ints(axes))
    new, old = {d % rank for d in ints(axes)}, iter(x.shape)
    return shapes.reshape(w, x, [1 if d in new else next(old) for d in range(rank)])


def transpose(w: Page, x: Value, perm: Any = None) -> Value:
    return shapes.permute(w, x, list(range(x.rank))[::-1] if perm is None else perm)


def expand(w: Page, x: Value, shape: Any) -> Value:
    return w(broadcast(x.shape, tuple(ints(shape))), lambda i: x.wide(i), dtype=x.dtype)


def tile(w: Page, x: Value, repeats: Any) -> Value:
    shape = [n * k for n, k in zip(x.shape, ints(repeats), strict=True)]
    return same(w, x, shape, lambda i: tuple(f"{k} % {n}" for k, n in zip(i, x.shape, strict=True)))


def concat(w: Page, *xs: Value, axis: int = 0) -> Value:
    return shapes.cat(w, list(xs), axis)


def split(w: Page, x: Value, lengths: Any = None, axis: int = 0, num_outputs: int = 0) -> list[Value]:
    n = x.shape[x.dim(axis)]
    if lengths is not None:
        return shapes.parts(w, x, axis, ints(lengths))
    each = -(-n // (num_outputs or w.asked))
    return shapes.parts(w, x, axis, [min(each, n - a) for a in range(0, n, each)])


def slice_(w: Page, x: Value, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Value:
    first, last = ints(starts), ints(ends)
    on = [x.dim(d) for d in (ints(axes) if axes is not None else range(len(first)))]
    by = ints(steps) if steps is not None else [1] * len(first)
    cuts = {d: range(x.shape[d])[slice(a, b, c)] for d, a, b, c in zip(on, first, last, by, strict=True)}
    shape = [len(cuts.get(d, range(n))) for d, n in enumerate(x.shape)]

    def read(i: Index) -> Index:
        return tuple(f"{cuts[d].start} + {cuts[d].step} * {k}" if d in cuts else k for d, k in enumerate(i))

    return same(w, x, shape, lambda i: tuple(k.replace("+ -", "- ") for k in read(i)))


def pad(w: Page, x: Value, pads: Any, value: Any = None, axes: Any = None, mode: str = "constant") -> Value:
    n = [x.dim(d) for d in (ints(axes) if axes is not None else range(x.rank))]
    both = dict(zip(n, zip(ints(pads)[: len(n)], ints(pads)[len(n) :], strict=True), strict=True))
    if mode == "constant":
        shape = [m + sum(both.get(d, (0, 0))) for d, m in enumerate(x.shape)]
        v = number(float(value.numbers)) if value is not None else "0"
        return w(shape, lambda i: x.outside(tuple(f"{k} - {both.get(d, (0, 0))[0]}" for d, k in enumerate(i)), v))
    x = w(x.shape, lambda i: f"float({x[i]})") if x.dtype != "float" else x
    for d, (a, b) in both.items():
        if a or b:
            x = padded(w, x, d, a, b, {"edge": "replicate", "wrap": "circular"}.get(mode, mode))
    return w(x.shape, lambda i: f"int({x[i]})", dtype="int")


def center_crop_pad(w: Page, x: Value, shape: Any, axes: Any = None) -> Value:
    to = dict(zip([x.dim(d) for d in (axes or range(x.rank))], ints(shape), strict=True))
    moved = [(to.get(d, n) - n) // 2 if to.get(d, n) > n else -((n - to.get(d, n)) // 2) for d, n in enumerate(x.shape)]

    def read(i: Index) -> Index:
        return tuple(f"{k} - {m}" if m > 0 else f"{k} + {-m}" for k, m in zip(i, moved, strict=True))

    return w([to.get(d, n) for d, n in enumerate(x.shape)], lambda i: x.outside(read(i)))


def depth_to_space(w: Page, x: Value, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, v = x.shape
    b = blocksize
    to = c // (b * b)

    def read(i: Index) -> Index:
        within = f"(({i[2]} % {b}) * {b} + {i[3]} % {b})"
        channel = f"{within} * {to} + {i[1]}" if mode == "DCR" else f"{i[1]} * {b * b} + {within}"
        return (i[0], channel, f"{i[2]} // {b}", f"{i[3]} // {b}")

    return same(w, x, (n, to, h * b, v * b), read)


def space_to_depth(w: Page, x: Value, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, v = x.shape
    b = blocksize

    def read(i: Index) -> Index:
        if mode == "DCR":
            within, channel = f"{i[1]} // {c}", f"{i[1]} % {c}"
        else:
            within, channel = f"{i[1]} % {b * b}", f"{i[1]} // {b * b}"
        return (i[0], channel, f"{b} * {i[2]} + ({within}) // {b}", f"{b} * {i[3]} + ({within}) % {b}")

    return same(w, x, (n, c * b * b, h // b, v // b), read)


# gathers
def gather(w: Page, x: Value, index: Value, axis: int = 0) -> Value:
    d, at = x.dim(axis), indexing.places(w, index, x.shape[x.dim(axis)])
    shape = (*x.shape[:d], *index.shape, *x.shape[d + 1 :])
    return same(w, x, shape, lambda i: (*i[:d], at[i[d : d + index.rank]], *i[d + index.rank :]))


def gather_elements(w: Page, x: Value, index: Value, axis: int = 0) -> Value:
    d, at = x.dim(axis), indexing.places(w, index, x.shape[x.dim(axis)])
    return same(w, x, index.shape, lambda i: swap(i, d, at[i]))


def parted(w: Page, index: Value, shape: Sequence[int]) -> list[Value]:
    """The columns of a table of places, one for each axis."""
    return [
        w(index.shape[:-1], lambda i, k=k, n=n: f"({index[(*i, str(k))]} + {n}) % {n}", dtype=f"index {n}")
        for k, n in enumerate(shape)
    ]


def gather_nd(w: Page, x: Value, index: Value, batch_dims: int = 0) -> Value:
    b, k = batch_dims, index.shape[-1]
    at = parted(w, index, x.shape[b : b + k])
    lead = index.rank - 1
    shape = (*index.shape[:-1], *x.shape[b + k :])
    return same(w, x, shape, lambda i: (*i[:b], *(p[i[:lead]] for p in at), *i[lead:]))


def take_features(w: Page, x: Value, index: Value) -> Value:
    return gather(w, x, index, -1)


# scatters
def scatter_elements(w: Page, x: Value, index: Value, y: Value, axis: int = 0, reduction: str = "none") -> Value:
    kinds = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    if kinds[reduction] is None:
        return indexing.scatter(w, x, axis, index, y)
    return indexing.scatter_reduce(w, x, axis, index, y, kinds[reduction])


def scatter_nd(w: Page, x: Value, index: Value, y: Value, reduction: str = "none") -> Value:
    k, lead = index.shape[-1], index.shape[:-1]
    at, e = parted(w, index, x.shape[:k]), names("e", len(lead))

    def body(i: Index) -> str:
        hit = " and ".join(f"{p[e]} == {i[d]}" for d, p in enumerate(at))
        kind = {"add": "sum", "mul": "prod", "max": "max", "min": "min", "none": "sum"}[reduction]
        sent = f"{kind}[{ranges(e, lead)} where {hit}] {y[(*e, *i[k:])]}"
        own = x[i]
        if reduction == "none":
            return f"if any[{ranges(e, lead)}] ({hit}) then {sent} else {own}"
        return {"add": f"{own} + {sent}", "mul": f"{own} * {sent}"}.get(reduction, f"{kind}({own}, {sent})")

    return w(x.shape, body)


def tensor_scatter(
    w: Page, x: Value, y: Value, start: Value | None = None, axis: int = -2, mode: str = "linear"
) -> Value:
    d, n, m = x.dim(axis), x.shape[x.dim(axis)], y.shape[x.dim(axis)]

    def body(i: Index) -> str:
        first = start[i[0]] if start is not None else "0"
        k = f"({i[d]} - {first} + {n}) % {n}" if mode == "circular" else f"({i[d]} - {first})"
        at = w_at[(i[0], i[d])] if w_at is not None else k
        return f"if {at} >= 0 and {at} < {m} then {y.outside(swap(i, d, at))} else {x[i]}"

    w_at = None
    if start is not None:

        def place(i: Index) -> str:
            return f"({i[1]} - {start[i[0]]} + {n}) % {n}" if mode == "circular" else f"{i[1]} - {start[i[0]]}"

        w_at = w((x.shape[0], n), place, dtype="int")
    return w(x.shape, body)


def max_unpool(
    w: Page, x: Value, index: Value, shape: Any = None, kernel_shape: Any = (), strides: Any = None, pads: Any = None
) -> Value:
    n = len(kernel_shape)
    s, p = strides or [1] * n, pads or [0] * (2 * n)
    own = [
        (m - 1) * t + k - p[a] - p[a + n] for a, (m, t, k) in enumerate(zip(x.shape[2:], s, kernel_shape, strict=True))
    ]
    to = ints(shape) if shape is not None else [*x.shape[:2], *own]
    e, wide = names("e", x.rank), [*x.shape[:2], *own]

    def flat(i: Index) -> str:
        return " + ".join(f"{math.prod(wide[k + 1 :])} * {j}" for k, j in enumerate(i))

    values = w(wide, lambda i: f"sum[{ranges(e, x.shape)} where {index[e]} == {flat(i)}] {x[e]}")
    return w(to, lambda i: values.outside(i))


def reverse_sequence(w: Page, x: Value, lengths: Value, batch_axis: int = 1, time_axis: int = 0) -> Value:
    n = x.shape[time_axis]

    def place(i: Index) -> str:
        return f"if {i[1]} < {lengths[i[0]]} then clip({lengths[i[0]]} - 1 - {i[1]}, 0, {n - 1}) else {i[1]}"

    at = w((x.shape[batch_axis], n), place, dtype=f"index {n}")
    return same(w, x, x.shape, lambda i: swap(i, time_axis, at[i[batch_axis], i[time_axis]]))


# order
def top_k(w: Page, x: Value, k: Value, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    """The library's functions of the last axis, the axis moved there and back."""
    d, dtype, n = x.dim(axis), x.dtype, ints(k)[0]
    order = [a for a in range(x.rank) if a != d] + [d]
    line = shapes.permute(w, x, order) if d != x.rank - 1 else x
    real = w(line.shape, lambda i: f"float({line[i]})") if dtype != "float" else line
    settings = f"{real.name}, {n}{'' if largest else ', largest = false'}"
    kept = (*real.shape[:-1], n)
    values, at = w.whole(kept, f"topk({settings})"), w.whole(kept, f"topk_places({settings})", dtype="int")
    back = [order.index(a) for a in range(x.rank)]
    shape = [kept[a] for a in back]
    place = lambda i: tuple(i[a] for a in order)  # noqa: E731
    read = (lambda i: f"int({values[place(i)]})") if dtype != "float" else lambda i: values[place(i)]
    return w(shape, read, dtype=dtype), w(shape, lambda i: at[place(i)], dtype="int")


def arg(kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
        d, n = x.dim(axis), x.shape[x.dim(axis)]

        def body(i: Index) -> str:
            rest = (*i[:d], *i[d + bool(keepdims) :])
            at = (*rest[:d], f"{n - 1} - r" if select_last_index else "r", *rest[d:])
            found = f"arg{kind}[r < {n}] {x[at]}"
            return f"{n - 1} - {found}" if select_last_index else found

        return w((*x.shape[:d], *([1] if keepdims else []), *x.shape[d + 1 :]), body, dtype="int")

    return row


def hardmax(w: Page, x: Value, axis: int = -1) -> Value:
    d = x.dim(axis)
    r = f"r < {x.shape[d]}"
    return w(x.shape, lambda i: f"if (argmax[{r}] {x[swap(i, d, 'r')]}) == {i[d]} then 1 else 0")


def one_hot(w: Page, index: Value, depth: Any, values: Value, axis: int = -1) -> Value:
    n = ints(depth)[0]
    d = axis % (index.rank + 1)
    shape = (*index.shape[:d], n, *index.shape[d:])
    at = w(index.shape, lambda i: f"int({index[i]})", dtype="int") if index.dtype == "float" else index

    def body(i: Index) -> str:
        v = at[(*i[:d], *i[d + 1 :])]
        return f"if {v} == {i[d]} or {v} + {n} == {i[d]} then {values['1']} else {values['0']}"

    return w(shape, body, dtype=values.dtype)


def trilu(w: Page, x: Value, k: Any = None, upper: int = 1) -> Value:
    offset = ints(k)[0] if k is not None else 0
    sign = ">=" if upper else "<="
    return w(x.shape, lambda i: f"if {i[-1]} {sign} {i[-2]} + {number(offset)} then {x[i]} else 0", dtype=x.dtype)


# tensors that a rule fills
def constant_of_shape(w: Page, shape: Any, value: Any = None) -> Value:
    array = np.zeros(1, np.float32) if value is None else numpy_of(value)
    dtype = "float" if array.dtype.kind == "f" else "int"
    return w(ints(shape), lambda i: number(array.reshape(-1)[0].item()), dtype=dtype)


def numpy_of(value: Any) -> Any:
    if value.data_type not in (1, 5, 6, 7, 11):
        raise OutOfScope("another type than float, int and bool")
    stored = value.float_data or value.int32_data or value.int64_data or value.double_data
    types = {1: np.float32, 5: np.int16, 6: np.int32, 7: np.int64, 11: np.float64}
    array = np.frombuffer(value.raw_data, types[value.data_type]) if value.raw_data else np.array(stored)
    return array.astype(types[value.data_type]).reshape(tuple(value.dims))


def constant(w: Page, value: Any) -> Value:
    table = numpy_of(value)
    if table.size > 90:
        raise NotExpressible("a table longer than the limit of nested choices")

    def read(i: Index) -> str:
        text = "0"
        for at in np.ndindex(table.shape):
            hit = " and ".join(f"{k} == {n}" for k, n in zip(i, at, strict=True)) or "true"
            text = f"if {hit} then {number(table[at].item())} else {text}"
        return text

    return w(table.shape, read)


def eye_like(w: Page, x: Value, dtype: int = 0, k: int = 0) -> Value:
    kind = {0: x.dtype, 1: "float", 11: "float"}.get(dtype, "int")
    return w(x.shape, lambda i: f"if {i[1]} == {i[0]} + {k} then 1 else 0", dtype=kind)


def range_(w: Page, start: Value, limit: Value, delta: Value) -> Value:
    n = max(0, math.ceil((limit.numbers - start.numbers) / delta.numbers))
    k = "float({})" if start.dtype == "float" else "{}"
    return w((n,), lambda i: f"{start.name} + {k.format(i[0])} * {delta.name}", dtype=start.dtype)


def shape_(w: Page, x: Value, start: int = 0, end: int | None = None) -> Value:
    return table(w, list(x.shape[start:end]))


def table(w: Page, numbers: list[int]) -> Value:
    def read(i: Index) -> str:
        text = "0"
        for k, n in enumerate(numbers):
            text = f"if {i[0]} == {k} then {n} else {text}"
        return text

    return w((len(numbers),), read, dtype="int")


def size_(w: Page, x: Value) -> Value:
    return w((), lambda i: str(x.size), dtype="int")


def window(terms: Sequence[float]) -> Callable[..., Any]:
    """Sums of cosines: Hann, Hamming, Blackman."""

    def row(w: Page, size: Value, periodic: int = 1, output_datatype: int = 1) -> Value:
        n = ints(size)[0]
        angle = f"2 * pi * float({{}}) / {n if periodic else n - 1}"
        parts = [f"{(-1) ** k * a!r} * cos({k} * {angle})" for k, a in enumerate(terms)]
        return w((n,), lambda i: " + ".join(parts).format(*[i[0]] * len(parts)))

    return row


def compress(w: Page, x: Value, condition: Value, axis: Any = None) -> Value:
    raise NotExpressible("a shape that depends on the data")


ROWS: dict[str, Callable[..., Any]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "CenterCropPad": center_crop_pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ml.ArrayFeatureExtractor": take_features,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "MaxUnpool": max_unpool,
    "ReverseSequence": reverse_sequence,
    "TopK": top_k,
    "ArgMax": arg("max"),
    "ArgMin": arg("min"),
    "Hardmax": hardmax,
    "OneHot": one_hot,
    "Trilu": trilu,
    "ConstantOfShape": constant_of_shape,
    "Constant": constant,
    "EyeLike": eye_like,
    "Range": range_,
    "Shape": shape_,
    "Size": size_,
    "HannWindow": window((0.5, 0.5)),
    "HammingWindow": window((25 / 46, 21 / 46)),
    "BlackmanWindow": window((0.42, 0.5, 0.08)),
    "Compress": compress,
}
