"""ONNX's Resize: one axis at a time, since the weights of an interpolation are products."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tests.conformance.nodes.places import Index, ints
from tests.conformance.page import NotExpressible, Page, Value, number, swap
from tests.conformance.sampling import cubic


def resize(
    w: Page,
    x: Value,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    mode: str = "nearest",
    axes: Any = None,
    coordinate_transformation_mode: str = "half_pixel",
    keep_aspect_ratio_policy: str = "stretch",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0,
    nearest_mode: str = "round_prefer_floor",
    antialias: int = 0,
) -> Value:
    on = [x.dim(d) for d in (axes if axes is not None else range(x.rank))]
    if scales is not None and scales.size:
        by = [Fraction(float(s)).limit_denominator(1 << 20) for s in scales.numbers]
        to = [math.floor(x.shape[d] * f) for d, f in zip(on, by, strict=True)]
    else:
        to = ints(sizes)
        by = [Fraction(n, x.shape[d]) for d, n in zip(on, to, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            f = min(by) if keep_aspect_ratio_policy == "not_larger" else max(by)
            to = [math.floor(f * x.shape[d] + Fraction(1, 2)) for d in on]
            by = [f] * len(on)
    corners = [float(v) for v in roi.numbers] if roi is not None and roi.size else [0.0, 1.0] * len(on)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    far: list[tuple[int, Value]] = []
    y = x
    for k, (d, n, f) in enumerate(zip(on, to, by, strict=True)):
        m = x.shape[d]
        if n == m and f == 1 and not crop:
            continue
        if mode == "nearest":
            y = nearest(w, y, d, n, f, coordinate_transformation_mode, nearest_mode)
            continue
        ends = (corners[k], corners[k + len(on)]) if crop else (0.0, 1.0)
        u = w((n,), lambda i, n=n, m=m, f=f, ends=ends: place(i[0], m, n, f, coordinate_transformation_mode, ends))
        far.append((d, u))
        shrink = min(f, Fraction(1)) if antialias else Fraction(1)
        y = weighted(w, y, d, u, mode, cubic_coeff_a, bool(exclude_outside), shrink)
    if not crop:
        return y if y is not x else w(x.shape, lambda i: x[i])
    outside = [(d, u, x.shape[d] - 1) for d, u in far]

    def shown(i: Index) -> str:
        lost = " or ".join(f"{u[i[d]]} < 0 or {u[i[d]]} > {m}" for d, u, m in outside)
        return f"if {lost} then {number(extrapolation_value)} else {y[i]}"

    return w(y.shape, shown)


def place(i: str, m: int, n: int, f: Fraction, mode: str, ends: tuple[float, float]) -> str:
    """Where place i of n lies among m, f being n / m as it was asked for."""
    if mode == "tf_crop_and_resize":
        a, b = ends
        if n == 1:
            return number((a + b) * (m - 1) / 2)
        return f"{number(a)} * {m - 1} + {i} * ({number(b)} - {number(a)}) * {m - 1} / {n - 1}"
    above, below = quotient(i, m, n, f, mode)
    return f"({above}) / {below}"


def quotient(i: str, m: int, n: int, f: Fraction, mode: str) -> tuple[str, int]:
    """The same as a quotient of integers."""
    p, q = f.numerator, f.denominator
    if mode == "pytorch_half_pixel" and n == 1:
        return "0", 1
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return f"(2 * {i} + 1) * {q} - {p}", 2 * p
    if mode == "half_pixel_symmetric":
        moved = Fraction(m, 2) * (1 - Fraction(n) / (f * m))
        by = moved.denominator
        return f"((2 * {i} + 1) * {q} - {p}) * {by} + {moved.numerator * 2 * p}", 2 * p * by
    if mode == "align_corners":
        step = Fraction(m - 1) / (f * m - 1) if n > 1 else Fraction(0)
        return f"{i} * {step.numerator}", step.denominator
    if mode == "asymmetric":
        return f"{i} * {q}", p
    raise NotExpressible(f"coordinates by {mode}")


def nearest(w: Page, x: Value, d: int, n: int, f: Fraction, coordinates: str, mode: str) -> Value:
    """Rounding in integers: a tie is a tie in every floating-point type."""
    m = x.shape[d]

    def body(i: Index) -> str:
        u, v = quotient(i[0], m, n, f, coordinates)
        return {
            "round_prefer_floor": f"-(({v} - 2 * ({u})) // {2 * v})",
            "round_prefer_ceil": f"(2 * ({u}) + {v}) // {2 * v}",
            "floor": f"({u}) // {v}",
            "ceil": f"-((-({u})) // {v})",
        }[mode]

    near = w((n,), body, dtype="int")
    at = w((n,), lambda i: f"clip({near[i]}, 0, {m - 1})", dtype=f"index {m}")
    return w(swap(x.shape, d, n), lambda i: x[swap(i, d, at[i[d]])])


def weighted(w: Page, x: Value, d: int, u: Value, mode: str, a: float, exclude: bool, shrink: Fraction) -> Value:
    """Each place a sum of those around it, weighted by a kernel of their distance; beyond the edge stands the edge."""
    m, f = x.shape[d], float(shrink)
    reach = 0 if exclude else math.ceil((1 if mode == "linear" else 2) / f) + 1
    t = w((u.size, m + 2 * reach), lambda i: f"abs(float({i[1]} - {reach}) - {u[i[0]]}) * {number(f)}")
    k = w(t.shape, lambda i: f"max(1 - {t[i]}, 0)" if mode == "linear" else cubic(t[i], a))
    total = w(u.shape, lambda i: f"sum[t < {t.shape[1]}] {k[i[0], 't']}")
    at = w((t.shape[1],), lambda i: f"clip({i[0]} - {reach}, 0, {m - 1})", dtype=f"index {m}")

    def body(i: Index) -> str:
        return f"(sum[t < {t.shape[1]}] {k[i[d], 't']} * {x[swap(i, d, at['t'])]}) / {total[i[d]]}"

    return w(swap(x.shape, d, u.size), body)


def upsample(w: Page, x: Value, scales: Any, mode: str = "nearest") -> Value:
    return resize(w, x, None, scales, None, mode, None, "asymmetric", nearest_mode="floor")


ROWS: dict[str, Callable[..., Any]] = {"Resize": resize, "Upsample": upsample}
