"""Convolutions, pooling, interpolation: sums over a window that moves along the last axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from tests.conformance.page import OutOfScope, Page, Value, names, number, ranges
from tests.conformance.shapes import reshape

Index = tuple[str, ...]


def each(value: Any, n: int) -> tuple[int, ...]:
    """One number for each of n axes."""
    found = (value,) * n if isinstance(value, int) else tuple(value)
    return found * n if len(found) == 1 else found


def batched(w: Page, x: Value, n: int, row: Callable[[Value], Any]) -> Any:
    """The row for a tensor with a batch; one without is a batch of one."""
    if x.rank == n + 2:
        return row(x)
    found = row(reshape(w, x, (1, *x.shape)))

    def drop(y: Value) -> Value:
        if y.dtype == "float":
            return reshape(w, y, y.shape[1:])
        return w(y.shape[1:], lambda i: y[("0", *i)], dtype="int")

    return tuple(map(drop, found)) if isinstance(found, tuple) else drop(found)


def window(i: str, r: str, stride: int, pad: int, dilation: int) -> str:
    """Where the window's place r lies in the tensor."""
    return f"{stride} * {i} + {dilation} * {r} - {pad}" if pad >= 0 else f"{stride} * {i} + {dilation} * {r} + {-pad}"


def conv(n: int) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        weight: Value,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Value:
        s, d = each(stride, n), each(dilation, n)
        k = weight.shape[2:]
        if padding == "valid":
            before = after = (0,) * n
        elif padding == "same":
            total = [b * (a - 1) for a, b in zip(k, d, strict=True)]
            before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        else:
            before = after = each(padding, n)

        def one(x: Value) -> Value:
            size = [
                (m + a + b - e * (c - 1) - 1) // t + 1
                for m, a, b, c, e, t in zip(x.shape[2:], before, after, k, d, s, strict=True)
            ]
            r, (o, c) = names("r", n), weight.shape[:2]

            def body(i: Index) -> str:
                channel = f"({i[1]} // {o // groups}) * {c} + c" if groups > 1 else "c"
                at = tuple(window(*z) for z in zip(i[2:], r, s, before, d, strict=True))
                total = f"sum[c < {c}, {ranges(r, k)}] {x.outside((i[0], channel, *at))} * {weight[(i[1], 'c', *r)]}"
                return f"({total}) + {bias[i[1]]}" if bias is not None else total

            return w((x.shape[0], o, *size), body)

        return batched(w, x, n, one)

    return row


def conv_transpose(n: int) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        weight: Value,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Value:
        s, d, p, q = (each(v, n) for v in (stride, dilation, padding, output_padding))
        k = weight.shape[2:]

        def one(x: Value) -> Value:
            size = [
                (m - 1) * t - 2 * a + e * (c - 1) + b + 1
                for m, t, a, e, c, b in zip(x.shape[2:], s, p, d, k, q, strict=True)
            ]
            r, (c, o) = names("r", n), weight.shape[:2]

            def body(i: Index) -> str:
                lead = f"({i[1]} // {o}) * {c // groups} + c" if groups > 1 else "c"
                own = f"{i[1]} % {o}" if groups > 1 else i[1]
                far = [
                    f"({j} + {a} - {e} * {z} + {t * f})"
                    for j, a, e, z, t, f in zip(i[2:], p, d, r, s, k_full(d, k), strict=True)
                ]
                at = tuple(
                    f"{z} // {t} - {f}" if t > 1 else f"{z} - {f * t}"
                    for z, t, f in zip(far, s, k_full(d, k), strict=True)
                )
                fits = " and ".join(f"{z} % {t} == 0" for z, t in zip(far, s, strict=True) if t > 1)
                total = (
                    f"sum[c < {c // groups}, {ranges(r, k)}{' where ' + fits if fits else ''}] "
                    f"{x.outside((i[0], lead, *at))} * {weight[(lead, own, *r)]}"
                )
                return f"({total}) + {bias[i[1]]}" if bias is not None else total

            return w((x.shape[0], o * groups, *size), body)

        return batched(w, x, n, one)

    return row


def k_full(d: Sequence[int], k: Sequence[int]) -> list[int]:
    """What makes a place non-negative before it is divided."""
    return [e * (c - 1) for e, c in zip(d, k, strict=True)]


def pooled(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    """The extent after pooling an axis of extent n: no window begins in the padding at the end."""
    m = n + 2 * p - d * (k - 1) - 1
    size = (-(-m // s) if ceil_mode else m // s) + 1
    return size - 1 if ceil_mode and (size - 1) * s >= n + p else size


def avg_pool(n: int) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        k = each(kernel_size, n)
        s, p = each(stride, n) if stride not in (None, ()) else k, each(padding, n)

        def one(x: Value) -> Value:
            size = [pooled(m, a, b, c, 1, ceil_mode) for m, a, b, c in zip(x.shape[2:], k, s, p, strict=True)]
            r = names("r", n)

            def body(i: Index) -> str:
                at = tuple(window(j, z, a, b, 1) for j, z, a, b in zip(i[2:], r, s, p, strict=True))
                total = f"sum[{ranges(r, k)}] {x.outside((*i[:2], *at))}"
                if divisor_override:
                    return f"({total}) / {number(divisor_override)}"
                widths = []
                for j, a, b, c, m in zip(i[2:], s, p, k, x.shape[2:], strict=True):
                    low, high = f"({a} * {j} - {b})", f"min({a} * {j} - {b} + {c}, {m + b})"
                    inner = f"(min({high}, {m}) - max({low}, 0))"
                    widths.append(f"({high} - {low})" if count_include_pad else inner)
                return f"({total}) / ({' * '.join(widths)})"

            return w((*x.shape[:2], *size), body)

        return batched(w, x, n, one)

    return row


def max_pool(n: int) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        k, d, p = each(kernel_size, n), each(dilation, n), each(padding, n)
        s = each(stride, n) if stride not in (None, ()) else k

        def one(x: Value) -> Any:
            size = [pooled(m, *z, ceil_mode) for m, *z in zip(x.shape[2:], k, s, p, d, strict=True)]
            r = names("r", n)

            def read(i: Index) -> str:
                at = tuple(window(*z) for z in zip(i[2:], r, s, p, d, strict=True))
                return x.outside((*i[:2], *at), "-inf")

            y = w((*x.shape[:2], *size), lambda i: f"max[{ranges(r, k)}] {read(i)}")
            if not return_indices:
                return y
            first = w(y.shape, lambda i: f"argmax[{ranges(r, k)}] {read(i)}", dtype="int")

            def place(i: Index) -> str:  # decode the window's place, then the tensor's, in the order of rows
                terms = []
                for a in range(n):
                    inner = f"({first[i]} // {math.prod(k[a + 1 :])}) % {k[a]}"
                    terms.append(f"({s[a]} * {i[2 + a]} + {d[a]} * ({inner}) - {p[a]}) * {math.prod(x.shape[3 + a :])}")
                return " + ".join(terms)

            return y, w(y.shape, place, dtype="int")

        return batched(w, x, n, one)

    return row


def edges(i: str, m: int, out: int) -> tuple[str, str]:
    """Adaptive windows: from floor(i m / out) to ceil((i + 1) m / out)."""
    return f"({i} * {m}) // {out}", f"(({i} + 1) * {m} + {out - 1}) // {out}"


def adaptive(n: int, kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, output_size: Any, return_indices: bool = False) -> Any:
        asked = each(output_size, n)

        def one(x: Value) -> Any:
            size = [m if o is None else o for m, o in zip(x.shape[2:], asked, strict=True)]
            k = [
                max(-(-(j + 1) * m // o) - j * m // o for j in range(o)) if o else 1
                for m, o in zip(x.shape[2:], size, strict=True)
            ]
            r = names("r", n)

            def windows(i: Index) -> tuple[str, str, str]:
                low_high = [edges(j, m, o) for j, m, o in zip(i[2:], x.shape[2:], size, strict=True)]
                at = tuple(f"{low} + {z}" for (low, _), z in zip(low_high, r, strict=True))
                inside = " and ".join(f"{a} < {high}" for a, (_, high) in zip(at, low_high, strict=True))
                count = " * ".join(f"({high} - {low})" for low, high in low_high)
                return inside, x.outside((*i[:2], *at), "-inf" if kind == "max" else "0"), count

            def body(i: Index) -> str:
                inside, read, count = windows(i)
                if kind == "max":
                    return f"max[{ranges(r, k)} where {inside}] {read}"
                return f"(sum[{ranges(r, k)} where {inside}] {read}) / ({count})"

            y = w((*x.shape[:2], *size), body)
            if not return_indices:
                return y

            def first(i: Index) -> str:
                inside, read, _ = windows(i)
                return f"argmax[{ranges(r, k)} where {inside}] {read}"

            found = w(y.shape, first, dtype="int")

            def place(i: Index) -> str:
                terms = []
                for a, (m, o) in enumerate(zip(x.shape[2:], size, strict=True)):
                    inner = f"({found[i]} // {math.prod(k[a + 1 :])}) % {k[a]}"
                    terms.append(f"({edges(i[2 + a], m, o)[0]} + {inner}) * {math.prod(x.shape[3 + a :])}")
                return " + ".join(terms)

            return y, w(y.shape, place, dtype="int")

        return batched(w, x, n, one)

    return row


def max_unpool(n: int) -> Callable[..., Any]:
    def row(
        w: Page, x: Value, index: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
    ) -> Value:
        places = tuple(output_size[-n:])
        count, lead = math.prod(x.shape[-n:]), x.shape[:-n]
        at = names("e", n)

        def body(i: Index) -> str:
            j = i[: len(lead)]
            flat_place = " + ".join(f"{i[len(lead) + a]} * {math.prod(places[a + 1 :])}" for a in range(n))
            hit = f"{index[(*j, *at)]} == {flat_place}"
            return f"sum[{ranges(at, x.shape[-n:])} where {hit}] {x[(*j, *at)]}"

        if any(len(set(line.tolist())) < count for line in index.numbers.reshape(-1, count)):
            raise OutOfScope("two values written to one place: which one stays is not said")
        return w((*lead, *places), body)

    return row


def unfold(w: Page, x: Value, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Value:
    k, d, p, s = (each(v, 2) for v in (kernel_size, dilation, padding, stride))

    def one(x: Value) -> Value:
        n, c = x.shape[:2]
        size = [(m + 2 * b - e * (a - 1) - 1) // t + 1 for m, a, b, e, t in zip(x.shape[2:], k, p, d, s, strict=True)]

        def body(i: Index) -> str:
            rows = window(f"({i[2]} // {size[1]})", f"(({i[1]} // {k[1]}) % {k[0]})", s[0], p[0], d[0])
            cols = window(f"({i[2]} % {size[1]})", f"({i[1]} % {k[1]})", s[1], p[1], d[1])
            return x.outside((i[0], f"{i[1]} // {k[0] * k[1]}", rows, cols))

        return w((n, c * k[0] * k[1], size[0] * size[1]), body)

    return batched(w, x, 2, one)


# interpolation: where a place of the result lies in the tensor, and what its neighbours weigh
def interpolate(
    w: Page,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Value:
    n = x.rank - 2
    if size is None:
        factors = (scale_factor,) * n if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
        out = [math.floor(m * f) for m, f in zip(x.shape[2:], factors, strict=True)]
        ratios = (
            [Fraction(1 / f) for f in factors]
            if not recompute_scale_factor
            else [Fraction(m, o) for m, o in zip(x.shape[2:], out, strict=True)]
        )
    else:
        out = list(each(size, n))
        ratios = [Fraction(m, o) for m, o in zip(x.shape[2:], out, strict=True)]
    if mode == "area":
        return adaptive(n, "mean")(w, x, out)
    y = x
    for a in range(n):
        y = resampled(w, y, 2 + a, out[a], ratios[a], mode, bool(align_corners))
    return y


def resampled(w: Page, x: Value, d: int, out: int, ratio: Fraction, mode: str, corners: bool) -> Value:
    """One axis at a time: the weights of an interpolation are products."""
    m = x.shape[d]
    shape = (*x.shape[:d], out, *x.shape[d + 1 :])
    at = lambda i, k: x[(*i[:d], k, *i[d + 1 :])]  # noqa: E731
    if mode in ("nearest", "nearest-exact"):
        half = Fraction(1, 2) if mode == "nearest-exact" else Fraction(0)
        # PyTorch multiplies in single precision, then rounds down
        places = [
            min(int(np.floor(np.float32(np.float32(j + float(half)) * np.float32(float(ratio))))), m - 1)
            for j in range(out)
        ]
        text = str(places[-1])
        for j in range(out - 2, -1, -1):
            text = f"if {{i}} == {j} then {places[j]} else {text}"
        where = w((out,), lambda i: text.format(i=i[0]), dtype=f"index {m}")
        return w(shape, lambda i: at(i, where[i[d]]))
    if corners:
        ratio = Fraction(m - 1, out - 1) if out > 1 else Fraction(0)
        place = f"{{i}} * {number(float(ratio))}"
    else:
        place = f"({{i}} + 1 / 2) * {number(float(ratio))} - 1 / 2"
        if mode != "bicubic":
            place = f"max({place}, 0)"
    u = w((out,), lambda i: place.format(i=i[0]))
    if mode == "bicubic":
        return cubic(w, x, d, out, u)
    return w(shape, lambda i: f"sum[r < {m}] max(1 - abs(min({u[i[d]]}, {m - 1}) - r), 0) * {at(i, 'r')}")


def cubic(w: Page, x: Value, d: int, out: int, u: Value) -> Value:
    """Keys 1981 with a = -3/4; places beyond the edges are the edge's."""
    m = x.shape[d]
    t = w((out, 4), lambda i: f"abs({u[i[0]]} - floor({u[i[0]]}) + 1 - {i[1]})")
    weight = w(
        (out, 4),
        lambda i: (
            f"if {t[i]} <= 1 then (5 / 4 * {t[i]} - 9 / 4) * {t[i]}^2 + 1 else "
            f"-3 / 4 * ({t[i]}^3 - 5 * {t[i]}^2 + 8 * {t[i]} - 4)"
        ),
    )
    place = w((out, 4), lambda i: f"int(floor({u[i[0]]})) - 1 + {i[1]}", dtype="int")
    near = w((out, 4), lambda i: f"clip({place[i]}, 0, {m - 1})", dtype=f"index {m}")
    shape = (*x.shape[:d], out, *x.shape[d + 1 :])
    return w(shape, lambda i: f"sum[r < 4] {weight[i[d], 'r']} * {x[(*i[:d], near[i[d], 'r'], *i[d + 1 :])]}")


ROWS: dict[str, Callable[..., Any]] = {
    **{f"nn.functional.conv{n}d": conv(n) for n in (1, 2, 3)},
    **{f"nn.functional.conv_transpose{n}d": conv_transpose(n) for n in (1, 2, 3)},
    **{f"nn.functional.avg_pool{n}d": avg_pool(n) for n in (1, 2, 3)},
    **{f"nn.functional.max_pool{n}d": max_pool(n) for n in (1, 2, 3)},
    **{f"nn.functional.adaptive_avg_pool{n}d": adaptive(n, "mean") for n in (1, 2, 3)},
    **{f"nn.functional.adaptive_max_pool{n}d": adaptive(n, "max") for n in (1, 2, 3)},
    **{f"nn.functional.max_unpool{n}d{form}": max_unpool(n) for n in (1, 2, 3) for form in ("", ".grad")},
    "nn.functional.unfold": unfold,
    **{
        f"nn.functional.interpolate.{mode}": interpolate
        for mode in ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")
    },
    "nn.functional.upsample_nearest": lambda w, x, **named: interpolate(w, x, mode="nearest", **named),
    "nn.functional.upsample_bilinear": lambda w, x, **named: interpolate(
        w, x, mode="bilinear", align_corners=True, **named
    ),
}
