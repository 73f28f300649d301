"""Operations of several steps: distances, differences, medians, bags of rows, spectrograms, aligned sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance.edges import padded
from tests.conformance.indexing import constant_index, places
from tests.conformance.losses import ROWS as LOSSES
from tests.conformance.orders import ordered
from tests.conformance.page import Page, Value, broadcast, number, swap, without
from tests.conformance.reductions import norm_of
from tests.conformance.shapes import copy, ravel, reshape

Index = tuple[str, ...]


# distances
def cdist(w: Page, x: Value, y: Value, p: float = 2.0, compute_mode: Any = None) -> Value:
    lead, n = broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-1]

    def body(i: Index) -> str:
        return f"{x.wide((*i[:-2], i[-1]))} - {y.wide((*i[:-3], i[-2], i[-1]))}"

    return norm_of(w, w((*lead, x.shape[-2], y.shape[-2], n), body), p, -1, False)


def pdist(w: Page, x: Value, p: float = 2.0) -> Value:
    """Of every two rows, in order: the places above the diagonal."""
    n, k = x.shape
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    if not pairs:
        return w((0,), lambda i: "0")
    a, b = (constant_index(w, column, n) for column in zip(*pairs, strict=True))
    d = w((len(pairs), k), lambda i: f"{x[a[i[0]], i[1]]} - {x[b[i[0]], i[1]]}")
    return norm_of(w, d, p, -1, False)


# differences
def gradient(w: Page, x: Value, spacing: Any = None, dim: Any = None, edge_order: int = 1) -> list[Value]:
    """Slopes of parabolas through three neighbours, or of lines at the ends: Fornberg 1988."""
    dims = range(x.rank) if dim is None else [x.dim(d) for d in ((dim,) if isinstance(dim, int) else dim)]
    steps = spacing if isinstance(spacing, (list, tuple)) else [1.0 if spacing is None else spacing] * len(dims)
    return [sloped(w, x, d, step, edge_order) for d, step in zip(dims, steps, strict=True)]


def sloped(w: Page, x: Value, d: int, step: Any, order: int) -> Value:
    n = x.shape[d]

    def gap(k: str) -> str:
        """How far place k + 1 is from place k."""
        return f"({step.outside((f'{k} + 1',))} - {step.outside((k,))})" if isinstance(step, Value) else number(step)

    def through(i: Index, first: str, weights: Callable[[str, str], tuple[str, str, str]]) -> str:
        a, b = gap(first), gap(f"{first} + 1")
        reads = [x.outside(swap(i, d, f"{first} + {k}")) for k in range(3)]
        return " + ".join(f"({weight}) * {read}" for weight, read in zip(weights(a, b), reads, strict=True))

    def line(i: Index, first: str) -> str:
        return f"({x.outside(swap(i, d, f'{first} + 1'))} - {x.outside(swap(i, d, first))}) / {gap(first)}"

    def middle(a: str, b: str) -> tuple[str, str, str]:
        return (f"-{b} / ({a} * ({a} + {b}))", f"({b} - {a}) / ({a} * {b})", f"{a} / ({b} * ({a} + {b}))")

    def left(a: str, b: str) -> tuple[str, str, str]:
        return (f"-(2 * {a} + {b}) / ({a} * ({a} + {b}))", f"({a} + {b}) / ({a} * {b})", f"-{a} / ({b} * ({a} + {b}))")

    def right(a: str, b: str) -> tuple[str, str, str]:
        return (f"{b} / ({a} * ({a} + {b}))", f"-({a} + {b}) / ({a} * {b})", f"(2 * {b} + {a}) / ({b} * ({a} + {b}))")

    def body(i: Index) -> str:
        k = i[d]
        ends = (line(i, "0"), line(i, str(n - 2))) if order == 1 else ("", "")
        if order == 2:
            ends = (through(i, "0", left), through(i, str(n - 3), right))
        return f"if {k} == 0 then {ends[0]} else if {k} == {n - 1} then {ends[1]} else {through(i, f'{k} - 1', middle)}"

    return w(x.shape, body)


# order, of what is no NaN
def counted(w: Page, x: Value, d: int) -> Value:
    """How many along an axis are no NaN, that axis kept."""
    at = lambda i: x[swap(i, d, "r")]  # noqa: E731
    return w(swap(x.shape, d, 1), lambda i: f"sum[r < {x.shape[d]} where {at(i)} == {at(i)}] 1", dtype="int")


def nanmedian(w: Page, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    if not x.rank:
        y = copy(w, x)
        return y if dim is None else (y, w((), lambda i: "0", dtype="int"))
    line = ravel(w, x) if dim is None else x
    d = line.dim(0 if dim is None else dim)
    n, count = line.shape[d], counted(w, line, d)
    values, at = ordered(w, line, d)

    def chosen(of: Value, fill: str) -> Value:
        def body(i: Index) -> str:
            m = count[swap(i, d, "0")]
            found = f"sum[r < {n} where r == ({m} - 1) // 2] {of[swap(i, d, 'r')]}"
            return f"if {m} == 0 then {fill} else ({found})"

        kept = w(swap(line.shape, d, 1), body, dtype="int" if of is at else "float")
        if keepdim and dim is not None:
            return kept
        shape = without(line.shape, d)
        return w(shape, lambda i: kept[(*i[:d], "0", *i[d:])], dtype=kept.dtype)

    return chosen(values, "nan") if dim is None else (chosen(values, "nan"), chosen(at, "0"))


def masked_median(w: Page, x: Value, dim: int, keepdim: bool = False, mask: Any = None, dtype: Any = None) -> Value:
    y = x if mask is None else w(x.shape, lambda i: f"if {mask.wide(i)} then {x[i]} else nan")
    return nanmedian(w, y, dim, keepdim)[0]


def nanquantile(
    w: Page, x: Value, q: Any, dim: int | None = None, keepdim: bool = False, interpolation: str = "linear"
) -> Value:
    rank, whole = x.rank, dim is None or not x.rank
    if whole:
        x, dim = ravel(w, x), 0
    d, n = x.dim(dim or 0), x.shape[x.dim(dim or 0)]
    values, count = ordered(w, x, d)[0], counted(w, x, d)
    many = isinstance(q, Value) and q.rank == 1
    at = q["i0"] if many else (q.name if isinstance(q, Value) else number(q))
    shape = swap(x.shape, d, 1) if keepdim and not whole else without(x.shape, d)
    shape = (1,) * rank if keepdim and whole else shape

    def body(i: Index) -> str:
        own = i[1:] if many else i
        own = () if whole else swap(own, d, "r") if keepdim else (*own[:d], "r", *own[d:])
        place = ("r",) if whole else own
        m = count[swap(place, d, "0")]
        t = f"({at} * float({m} - 1))"
        weight = {
            "linear": f"max(1 - abs({t} - r), 0)",
            "lower": f"(if floor({t}) == r then 1 else 0)",
            "higher": f"(if ceil({t}) == r then 1 else 0)",
            "nearest": f"(if round({t}) == r then 1 else 0)",
            "midpoint": f"((if floor({t}) == r then 1 else 0) + (if ceil({t}) == r then 1 else 0)) / 2",
        }[interpolation]
        return f"if {m} == 0 then nan else (sum[r < {n} where r < {m}] {weight} * {values[place]})"

    return w((*(q.shape if many else ()), *shape), body)


def mode(w: Page, x: Value, dim: int = -1, keepdim: bool = False) -> Any:
    """The least of those that are there most often, and its last place."""
    if not x.rank:
        return copy(w, x), w((), lambda i: "0", dtype="int")
    d, n = x.dim(dim), x.shape[x.dim(dim)]
    count = w(x.shape, lambda i: f"sum[r < {n} where {x[swap(i, d, 'r')]} == {x[i]}] 1", dtype="int")
    kept = swap(x.shape, d, 1)
    most = w(kept, lambda i: f"max[r < {n}] {count[swap(i, d, 'r')]}", dtype="int")
    often = lambda i: f"{count[swap(i, d, 'r')]} == {most[swap(i, d, '0')]}"  # noqa: E731
    least = w(kept, lambda i: f"min[r < {n} where {often(i)}] {x[swap(i, d, 'r')]}", stop=True)
    back = lambda i: x[swap(i, d, f"{n - 1} - r")]  # noqa: E731
    at = w(kept, lambda i: f"{n - 1} - argmax[r < {n}] ({back(i)} == {least[i]})", dtype="int")
    at = w(kept, lambda i: f"clip({at[i]}, 0, {n - 1})", dtype=f"index {n}")
    y = w(kept, lambda i: x[swap(i, d, at[i])])
    if keepdim:
        return y, w(kept, lambda i: at[i], dtype="int")
    shape = without(x.shape, d)
    return reshape(w, y, shape), w(shape, lambda i: at[(*i[:d], "0", *i[d:])], dtype="int")


# rows of tables
def embedding_bag(
    w: Page,
    table: Value,
    token: Value,
    offsets: Any = None,
    mode: str = "mean",
    per_sample_weights: Any = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    **_: Any,
) -> Value:
    at = places(w, token, table.shape[0])
    if token.rank == 2:
        bags, r = token.shape[0], f"e < {token.shape[1]}"
        read = lambda i: (i[0], "e")  # noqa: E731
        within: Callable[[Index], list[str]] = lambda i: []  # noqa: E731
    else:
        bags, n = offsets.size - include_last_offset, token.size
        r = f"e < {n}"
        read = lambda i: ("e",)  # noqa: E731
        ends = [*offsets.numbers.tolist()[1:bags], offsets.numbers.tolist()[-1] if include_last_offset else n]
        last = constant_index(w, ends, n + 1)
        within = lambda i: [f"e >= {offsets[i[0]]}", f"e < {last[i[0]]}"]  # noqa: E731

    def counts(i: Index) -> str:
        conditions = within(i)
        if padding_idx is not None:
            conditions = [*conditions, f"{at[read(i)]} != {padding_idx % table.shape[0]}"]
        return f"{r} where {' and '.join(conditions)}" if conditions else r

    def body(i: Index) -> str:
        row = table[at[read(i)], i[1]]
        weight = f"{per_sample_weights[read(i)]} * " if per_sample_weights is not None else ""
        count = f"(sum[{counts(i)}] 1)"
        if mode == "sum":
            return f"sum[{counts(i)}] {weight}{row}"
        if mode == "mean":
            return f"if {count} == 0 then 0 else (sum[{counts(i)}] {row}) / {count}"
        return f"if {count} == 0 then 0 else max[{counts(i)}] {row}"

    return w((bags, table.shape[1]), body)


def linear_cross_entropy(w: Page, x: Value, matrix: Value, target: Value, **named: Any) -> Value:
    """Cross-entropy of the logits x W, the product's axes of the weight between the class and the feature."""
    named.pop("options", None)
    k, lead = x.shape[-1], x.rank - 1

    def body(i: Index) -> str:
        return f"sum[k < {k}] {x[(*i[:lead], 'k')]} * {matrix[(*i[lead:], 'k')]}"

    logits = w((*x.shape[:-1], *matrix.shape[:-1]), body)
    bias = named.pop("linear_bias", None)
    if bias is not None:
        plain = logits
        logits = w(plain.shape, lambda i: f"{plain[i]} + {bias[i[lead:]]}")
    return LOSSES["nn.functional.cross_entropy"](w, logits, target, **named)


# sequences
def stft(
    w: Page,
    x: Value,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    onesided: bool = True,
    **_: Any,
) -> Value:
    """Spectra of windows that move on: pairs (real, imaginary), each a sum over the window."""
    n, hop = n_fft, hop_length or n_fft // 4
    x = padded(w, x, x.rank - 1, n // 2, n // 2, "reflect") if center else x
    frames, bins = (x.shape[-1] - n) // hop + 1, n // 2 + 1 if onesided else n
    v = (lambda j: f"{window[j]} * ") if window is not None else lambda j: ""

    def body(i: Index) -> str:
        *lead, k, frame, part = i
        e = f"{v('j')}{x[(*lead, f'{hop} * {frame} + j')]}"
        angle = f"2 * pi * (({k} * j) % {n}) / {n}"
        return f"if {part} == 0 then sum[j < {n}] {e} * cos({angle}) else -(sum[j < {n}] {e} * sin({angle}))"

    return w((*x.shape[:-1], bins, frames, 2), body)


def ctc_loss(
    w: Page,
    logp: Value,
    target: Value,
    frames: Any,
    counts: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Value:
    """The library's recurrence, its axes in another order."""
    t, n, c = logp.shape
    z = w((n, t, c), lambda i: logp[i[1], i[0], i[2]])
    f, k = (lengths(w, v, most) for v, most in ((frames, t), (counts, target.shape[1])))
    y = w.whole((n,), f"ctc({z.name}, {target.name}, {f.name}, {k.name}, blank = {blank})")
    if reduction == "none":
        return y
    if reduction == "sum":
        return w((), lambda i: f"sum({y.name})")
    shares = w((n,), lambda i: f"{y[i]} / float(max({k[i]}, 1))")
    return w((), lambda i: f"mean({shares.name})")


def lengths(w: Page, value: Any, most: int) -> Value:
    if isinstance(value, Value):
        return w(value.shape, lambda i: f"clip({value[i]}, 0, {most})", dtype=f"index {most + 1}")
    return constant_index(w, list(value), most + 1)


ROWS: dict[str, Callable[..., Any]] = {
    "cdist": cdist,
    "nn.functional.pdist": pdist,
    "gradient": gradient,
    "nanmedian": nanmedian,
    "masked.median": masked_median,
    "nanquantile": nanquantile,
    "mode": mode,
    "nn.functional.embedding_bag": embedding_bag,
    **{f"nn.functional.linear_cross_entropy{form}": linear_cross_entropy for form in ("", ".chunked", ".chunked_none")},
    "stft": stft,
    "nn.functional.ctc_loss": ctc_loss,
}
