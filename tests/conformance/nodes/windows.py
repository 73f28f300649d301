"""ONNX's operators over windows and between places: convolutions, pooling, sampling, Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.conformance import contractions
from tests.conformance.nodes.maps import each, quantize
from tests.conformance.nodes.places import Index, ints
from tests.conformance.page import NotExpressible, Page, Value, names, number, ranges, swap
from tests.conformance.sampling import grid_sample, sampled
from tests.conformance.shapes import reshape


@dataclass(frozen=True)
class Windows:
    """Windows that move along the last axes: extents, steps, spacing, how far before the tensor they begin."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]

    def at(self, i: Index, r: Index) -> Index:
        parts = zip(i, r, self.strides, self.dilations, self.before, strict=True)
        return tuple(f"{s} * {j} + {d} * {k} - {b}" for j, k, s, d, b in parts)


def windows(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Any = None,
    pads: Any = None,
    dilations: Any = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Windows:
    n = len(kernel)
    s, d = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    p = tuple(pads or (0,) * (2 * n))
    before, after = p[:n], p[n:]
    wide = [e * (k - 1) + 1 for e, k in zip(d, kernel, strict=True)]
    if auto_pad.startswith("SAME"):
        total = [max((-(-m // t) - 1) * t + k - m, 0) for m, t, k in zip(extents, s, wide, strict=True)]
        before = tuple(t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total)
        after = tuple(t - b for t, b in zip(total, before, strict=True))
    out = []
    for m, k, t, a, b in zip(extents, wide, s, before, after, strict=True):
        size = -(-(m + a + b - k) // t) + 1 if ceil_mode else (m + a + b - k) // t + 1
        out.append(size - 1 if ceil_mode and (size - 1) * t >= m + a else size)
    return Windows(tuple(kernel), s, d, before, after, tuple(out))


def conv(
    w: Page, x: Value, weight: Value, bias: Any = None, group: int = 1, kernel_shape: Any = None, **named: Any
) -> Value:
    v = windows(x.shape[2:], weight.shape[2:], **named)
    r, (o, c) = names("r", len(v.kernel)), weight.shape[:2]

    def body(i: Index) -> str:
        channel = f"({i[1]} // {o // group}) * {c} + c" if group > 1 else "c"
        read = x.outside((i[0], channel, *v.at(i[2:], r)))
        total = f"sum[c < {c}, {ranges(r, v.kernel)}] {read} * {weight[(i[1], 'c', *r)]}"
        return total if bias is None else f"({total}) + {bias[i[1]]}"

    return w((x.shape[0], o, *v.out), body, dtype=x.dtype)


def conv_integer(w: Page, x: Value, weight: Value, x_zero: Any = None, w_zero: Any = None, **named: Any) -> Value:
    a = each(w, "{x} - {z}", x=x, z=reshaped(w, x_zero)) if x_zero is not None else x
    b = each(w, "{x} - {z}", x=weight, z=reshaped(w, w_zero, weight.rank)) if w_zero is not None else weight
    return conv(w, a, b, **named)


def quantized_conv(
    w: Page,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    weight: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Any = None,
    **named: Any,
) -> Value:
    z = conv_integer(w, x, weight, x_zero, w_zero, **named)
    s, t = reshaped(w, x_scale), channels(w, w_scale)
    b = (lambda i: f" + float({bias[i[1]]})") if bias is not None else lambda i: ""
    y = w(z.shape, lambda i: f"(float({z[i]}){b(i)}) * {s.name} * {t.wide((i[1],))}")
    return quantize(w, y, y_scale, y_zero)


def channels(w: Page, s: Value) -> Value:
    return w((s.size,), lambda i: s[("0",) * s.rank] if s.size == 1 else s[i[0]])


def reshaped(w: Page, z: Value, rank: int = 0) -> Value:
    """One number for all, or one for each place of the first of `rank` axes."""
    if z.size == 1:
        return w((), lambda i: z[("0",) * z.rank], dtype=z.dtype)
    return w((z.size, *(1,) * (rank - 1)), lambda i: z[i[0]], dtype=z.dtype)


def conv_transpose(
    w: Page,
    x: Value,
    weight: Value,
    bias: Any = None,
    group: int = 1,
    strides: Any = None,
    pads: Any = None,
    dilations: Any = None,
    output_padding: Any = None,
    output_shape: Any = None,
    kernel_shape: Any = None,
    auto_pad: str = "NOTSET",
) -> Value:
    k = weight.shape[2:]
    n = len(k)
    s, d = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    p, q = tuple(pads or (0,) * (2 * n)), tuple(output_padding or (0,) * n)
    whole = [(m - 1) * t + e * (z - 1) + 1 + u for m, t, e, z, u in zip(x.shape[2:], s, d, k, q, strict=True)]
    if output_shape or auto_pad.startswith("SAME"):
        size = list(output_shape or [m * t for m, t in zip(x.shape[2:], s, strict=True)])
        total = [a - b for a, b in zip(whole, size, strict=True)]
        before = [max(t - t // 2 if auto_pad == "SAME_LOWER" else t // 2, 0) for t in total]
    else:
        before = list(p[:n])
        size = [a - b - c for a, b, c in zip(whole, p[:n], p[n:], strict=True)]
    r, (c, o) = names("r", n), weight.shape[:2]
    full = [e * (z - 1) for e, z in zip(d, k, strict=True)]

    def body(i: Index) -> str:
        lead = f"({i[1]} // {o}) * {c // group} + c" if group > 1 else "c"
        own = f"{i[1]} % {o}" if group > 1 else i[1]
        far = [
            f"({j} + {b + t * f} - {e} * {z})" for j, b, t, f, e, z in zip(i[2:], before, s, full, d, r, strict=True)
        ]
        at = tuple(f"{z} // {t} - {f}" for z, t, f in zip(far, s, full, strict=True))
        fits = " and ".join(f"{z} % {t} == 0" for z, t in zip(far, s, strict=True) if t > 1)
        total = (
            f"sum[c < {c // group}, {ranges(r, k)}{' where ' + fits if fits else ''}] "
            f"{x.outside((i[0], lead, *at))} * {weight[(lead, own, *r)]}"
        )
        return total if bias is None else f"({total}) + {bias[i[1]]}"

    return w((x.shape[0], o * group, *size), body)


def max_pool(w: Page, x: Value, kernel_shape: Any, storage_order: int = 0, **named: Any) -> Any:
    v = windows(x.shape[2:], kernel_shape, **named)
    n, dtype = len(v.kernel), x.dtype
    x = w(x.shape, lambda i: f"float({x_[i]})") if (x_ := x).dtype != "float" else x
    r = names("r", n)
    read = lambda i: x.outside((*i[:2], *v.at(i[2:], r)), "-inf")  # noqa: E731
    shape = (*x.shape[:2], *v.out)
    y = w(shape, lambda i: f"max[{ranges(r, v.kernel)}] {read(i)}")
    if dtype != "float":
        return w(shape, lambda i: f"int({y[i]})", dtype=dtype)
    first = w(shape, lambda i: f"argmax[{ranges(r, v.kernel)}] {read(i)}", dtype="int")

    def place(i: Index) -> str:
        order = list(range(n))
        terms = [f"({i[0]} * {x.shape[1]} + {i[1]}) * {math.prod(x.shape[2:])}"]
        for a in order:
            inner = f"({first[i]} // {math.prod(v.kernel[a + 1 :])}) % {v.kernel[a]}"
            later = order[:a] if storage_order else order[a + 1 :]
            stride = math.prod(x.shape[2 + b] for b in later)
            terms.append(f"({v.strides[a]} * {i[2 + a]} + {v.dilations[a]} * ({inner}) - {v.before[a]}) * {stride}")
        return " + ".join(terms)

    return y, w(shape, place, dtype="int")


def average_pool(w: Page, x: Value, kernel_shape: Any, count_include_pad: int = 0, **named: Any) -> Value:
    v = windows(x.shape[2:], kernel_shape, **named)
    r = names("r", len(v.kernel))
    counts = []
    for m, k, s, d, b, a, o in zip(
        x.shape[2:], v.kernel, v.strides, v.dilations, v.before, v.after, v.out, strict=True
    ):
        low, high = (-b, m + a) if count_include_pad else (0, m)

        def inside(i: Index, k: int = k, s: int = s, d: int = d, b: int = b, low: int = low, high: int = high) -> str:
            at = f"{s} * {i[0]} + {d} * r - {b}"
            return f"sum[r < {k} where {at} >= {number(low)} and {at} < {high}] 1"

        counts.append(w((o,), inside))

    def body(i: Index) -> str:
        total = f"sum[{ranges(r, v.kernel)}] {x.outside((*i[:2], *v.at(i[2:], r)))}"
        return f"({total}) / ({' * '.join(c[j] for c, j in zip(counts, i[2:], strict=True))})"

    return w((*x.shape[:2], *v.out), body)


def lp_pool(w: Page, x: Value, kernel_shape: Any, p: int = 2, **named: Any) -> Value:
    v = windows(x.shape[2:], kernel_shape, **named)
    r = names("r", len(v.kernel))

    def body(i: Index) -> str:
        return f"(sum[{ranges(r, v.kernel)}] abs({x.outside((*i[:2], *v.at(i[2:], r)))})^{p})^(1 / {p})"

    return w((*x.shape[:2], *v.out), body)


def global_pool(kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value) -> Value:
        r, n = names("r", x.rank - 2), x.shape[2:]
        return w((*x.shape[:2], *(1,) * len(n)), lambda i: f"{kind}[{ranges(r, n)}] {x[(*i[:2], *r)]}")

    return row


def col_to_image(
    w: Page, x: Value, image: Value, block: Value, strides: Any = None, pads: Any = None, dilations: Any = None
) -> Value:
    """Windows added up where they lie: the transpose of taking them out."""
    k, size = ints(block), ints(image)
    v = windows(size, k, strides, pads, dilations)
    c = x.shape[1] // math.prod(k)
    r = names("r", len(k))
    u = reshape(w, x, (x.shape[0], c, *k, *v.out))

    def body(i: Index) -> str:
        far = [f"({j} + {b + s * d * (m - 1)} - {d} * {z})" for j, b, s, d, m, z in zip(
            i[2:], v.before, v.strides, v.dilations, k, r, strict=True
        )]  # fmt: skip
        at = [f"{f} // {s} - {d * (m - 1)}" for f, s, d, m in zip(far, v.strides, v.dilations, k, strict=True)]
        fits = " and ".join(f"{f} % {s} == 0" for f, s in zip(far, v.strides, strict=True) if s > 1)
        return f"sum[{ranges(r, k)}{' where ' + fits if fits else ''}] {u.outside((*i[:2], *r, *at))}"

    return w((x.shape[0], c, *size), body)


def causal_conv(
    w: Page, x: Value, weight: Value, bias: Any = None, past: Any = None, activation: str = "none", **_: Any
) -> Any:
    n, c, t = x.shape
    k = weight.shape[-1]

    def joined(i: Index) -> str:
        new = x.outside((i[0], i[1], f"{i[2]} - {k - 1}"))
        return new if past is None else f"if {i[2]} < {k - 1} then {past.outside(i)} else {new}"

    both = w((n, c, t + k - 1), joined)

    def body(i: Index) -> str:
        total = f"sum[r < {k}] {both[i[0], i[1], f'{i[2]} + r']} * {weight[i[1], '0', 'r']}"
        return total if bias is None else f"({total}) + {bias[i[1]]}"

    y = w(x.shape, body)
    y = w.whole(x.shape, f"silu({y.name})") if activation in ("silu", "swish") else y
    return y, w((n, c, k - 1), lambda i: both[i[0], i[1], f"{i[2]} + {t}"])


# sampling
def grid(
    w: Page, x: Value, g: Value, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Value:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    return grid_sample(w, x, g, modes.get(mode, mode), padding_mode, bool(align_corners))


def affine_grid(w: Page, theta: Value, size: Value, align_corners: int = 0) -> Value:
    n, _, *extents = ints(size)
    k = len(extents)

    def at(i: Index, a: int) -> str:  # the coordinate that stands a-th: the last axis first
        j, m = i[k - a], extents[k - 1 - a]
        if align_corners:
            return f"({j} * 2 / {m - 1} - 1)" if m > 1 else "0"
        return f"((2 * {j} + 1) / {m} - 1)"

    def body(i: Index) -> str:
        terms = [f"{theta[i[0], i[-1], str(a)]} * {at(i, a)}" for a in range(k)]
        return " + ".join([*terms, theta[i[0], i[-1], str(k)]])

    return w((n, *extents, k), body)


def deform_conv(
    w: Page,
    x: Value,
    weight: Value,
    offset: Value,
    bias: Any = None,
    mask: Any = None,
    offset_group: int = 1,
    group: int = 1,
    kernel_shape: Any = None,
    **named: Any,
) -> Value:
    if group != 1 or x.rank != 4:
        raise NotExpressible("no row yet for groups of a deformable convolution")
    v = windows(x.shape[2:], weight.shape[2:], **named)
    (n, c, _, _), (kh, kw), og = x.shape, v.kernel, offset_group
    each_group = c // og
    shape = (n * og, kh, kw, *v.out)

    def moved(a: int) -> Value:
        def body(i: Index) -> str:
            channel = f"((({i[0]} % {og}) * {kh} + {i[1]}) * {kw} + {i[2]}) * 2 + {a}"
            at = v.at(i[3:], i[1:3])[a]
            return f"float({at}) + {offset[f'{i[0]} // {og}', channel, i[3], i[4]]}"

        return w(shape, body)

    parts = reshape(w, x, (n * og, each_group, *x.shape[2:]))
    s = sampled(w, parts, [moved(0), moved(1)], "bilinear")

    def body(i: Index) -> str:
        lead, own = f"{i[0]} * {og} + c // {each_group}", f"c % {each_group}"
        m = ""
        if mask is not None:
            m = f" * {mask[i[0], f'((c // {each_group}) * {kh} + r) * {kw} + s', i[2], i[3]]}"
        total = (
            f"sum[c < {c}, r < {kh}, s < {kw}] {s[lead, own, 'r', 's', i[2], i[3]]} * {weight[i[1], 'c', 'r', 's']}{m}"
        )
        return total if bias is None else f"({total}) + {bias[i[1]]}"

    return w((n, weight.shape[0], *v.out), body)


def roi_align(
    w: Page,
    x: Value,
    rois: Value,
    batch: Value,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1,
    coordinate_transformation_mode: str = "half_pixel",
) -> Value:
    if not sampling_ratio:
        raise NotExpressible("how many points are read depends on the data")
    n, half = rois.shape[0], coordinate_transformation_mode == "half_pixel"
    out, s = (output_height, output_width), sampling_ratio

    def line(a: int) -> Value:  # coordinates of the points along an axis; rois are x1, y1, x2, y2
        def body(i: Index) -> str:
            first, last = (f"({rois[i[0], str(1 - a + k)]} * {spatial_scale} - {0.5 if half else 0})" for k in (0, 2))
            size = f"({last} - {first})" if half else f"max({last} - {first}, 1)"
            return f"{first} + (float({i[1]}) + (float({i[2]}) + 1 / 2) / {s}) * {size} / {out[a]}"

        u = w((n, out[a], s), body)
        return w(
            u.shape,
            lambda i: f"if {u[i]} < -1 or {u[i]} > {x.shape[2 + a]} then -9 else clip({u[i]}, 0, {x.shape[2 + a] - 1})",
        )

    lines = [line(0), line(1)]
    low = [w(u.shape, lambda i, u=u: f"int(floor({u[i]}))", dtype="int") for u in lines]
    at = indexed(w, batch, x.shape[0])

    def point(i: Index, p: str, q: str, a: str, b: str) -> str:
        (u, v), (f, g) = lines, low
        j, k = (i[0], i[2], p), (i[0], i[3], q)
        weights = [f"(1 - abs({u[j]} - float({f[j]} + {a})))", f"(1 - abs({v[k]} - float({g[k]} + {b})))"]
        return f"{' * '.join(weights)} * {x.outside((at[i[0]], i[1], f'{f[j]} + {a}', f'{g[k]} + {b}'))}"

    def body(i: Index) -> str:
        if mode == "max":
            return f"max[p < {s}, q < {s}, a < 2, b < 2] ({point(i, 'p', 'q', 'a', 'b')})"
        return f"(sum[p < {s}, q < {s}, a < 2, b < 2] {point(i, 'p', 'q', 'a', 'b')}) / {s * s}"

    return w((n, x.shape[1], *out), body)


def indexed(w: Page, index: Value, n: int) -> Value:
    return w(index.shape, lambda i: f"clip({index[i]}, 0, {n - 1})", dtype=f"index {n}")


# Fourier transforms
def dft(w: Page, x: Value, length: Any = None, axis: Any = None, inverse: int = 0, onesided: int = 0) -> Value:
    d = x.dim(-2 if axis is None else axis if isinstance(axis, int) else ints(axis)[0])
    n = ints(length)[0] if length is not None else 2 * (x.shape[d] - 1) if inverse and onesided else x.shape[d]
    if inverse and onesided:
        half = n // 2 + 1

        def body(i: Index) -> str:
            angle = f"2 * pi * (({i[d]} * j) % {n}) / {n}"
            re, im = x[(*swap(i[:-1], d, "j"), "0")], x[(*swap(i[:-1], d, "j"), "1")]
            weight = f"(if j == 0 or 2 * j == {n} then 1 else 2)"
            return f"(sum[j < {half}] {weight} * ({re} * cos({angle}) - {im} * sin({angle}))) / {n}"

        return w((*swap(x.shape[:-1], d, n), 1), body)
    z = x if x.shape[-1] == 2 else contractions.pairs(w, w(x.shape[:-1], lambda i: x[(*i, "0")]))
    if n != x.shape[d]:
        z = w(swap(z.shape, d, n), lambda i, z=z: z.outside(i) if n > z.shape[d] else z[i])
    return contractions.dft(w, z, d, 1 if inverse else -1, 1 / n if inverse else 1.0, n // 2 + 1 if onesided else None)


def stft(w: Page, x: Value, step: Value, window: Any = None, length: Any = None, onesided: int = 1) -> Value:
    n = ints(length)[0] if length is not None else window.shape[0]
    s = ints(step)[0]
    frames, bins = (x.shape[1] - n) // s + 1, n // 2 + 1 if onesided else n
    v = (lambda j: f"{window[j]} * ") if window is not None else lambda j: ""

    def body(i: Index) -> str:
        angle = f"2 * pi * (({i[2]} * j) % {n}) / {n}"
        e = f"{v('j')}{x[i[0], f'{s} * {i[1]} + j', '0']}"
        return f"if {i[3]} == 0 then sum[j < {n}] {e} * cos({angle}) else -(sum[j < {n}] {e} * sin({angle}))"

    return w((x.shape[0], frames, bins, 2), body)


ROWS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvInteger": conv_integer,
    "QLinearConv": quantized_conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_pool("mean"),
    "GlobalMaxPool": global_pool("max"),
    "Col2Im": col_to_image,
    "CausalConvWithState": causal_conv,
    "GridSample": grid,
    "AffineGrid": affine_grid,
    "DeformConv": deform_conv,
    "RoiAlign": roi_align,
    "DFT": dft,
    "STFT": stft,
}
