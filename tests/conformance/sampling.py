"""Reading a picture between its places: grids of coordinates, near places and their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.page import NotExpressible, Page, Value, names, number, ranges, swap

Index = tuple[str, ...]
LARGEST = 10**8  # products of a picture's and a grid's sizes


def placed(w: Page, grid: Value, a: int, n: int, m: int, align: bool) -> Value:
    """The coordinate along axis a of n that `grid`, from -1 to 1, means on an extent m; its last axis runs backward."""
    x = lambda i: grid[(*i, str(n - 1 - a))]  # noqa: E731
    if align:
        return w(grid.shape[:-1], lambda i: f"({x(i)} + 1) * {m - 1} / 2")
    return w(grid.shape[:-1], lambda i: f"(({x(i)} + 1) * {m} - 1) / 2")


def reflected(w: Page, u: Value, m: int, align: bool) -> Value:
    """u thrown back at the borders as often as it takes: at the outer places' centers, or at their outer edges."""
    low, span = (0.0, m - 1) if align else (-0.5, m)
    if not span:
        return w(u.shape, lambda i: "0")
    t = w(u.shape, lambda i: f"abs({u[i]} + {-low})")
    k = w(u.shape, lambda i: f"floor({t[i]} / {span})")
    rest = lambda i: f"({t[i]} - {span} * {k[i]})"  # noqa: E731
    back = w(u.shape, lambda i: f"(if {k[i]} == 2 * floor({k[i]} / 2) then {rest(i)} else {span} - {rest(i)}) - {-low}")
    return w(u.shape, lambda i: f"clip({back[i]}, 0, {m - 1})")


def inside(w: Page, u: Value, m: int, padding: str, align: bool) -> Value:
    """What padding makes of a coordinate; zeros leave it, and reads outside are 0."""
    if padding == "border":
        return w(u.shape, lambda i: f"clip({u[i]}, 0, {m - 1})")
    return reflected(w, u, m, align) if padding == "reflection" else u


CUBIC = -0.75


def cubic(t: str, a: float = CUBIC) -> str:
    """Keys 1981: the weight at distance t, an expression that is not negative and below 2."""
    near = f"(({a + 2}) * {t} - {a + 3}) * {t}^2 + 1"
    far = f"({a}) * ({t}^3 - 5 * {t}^2 + 8 * {t} - 4)"
    return f"if {t} <= 1 then {near} else if {t} < 2 then {far} else 0"


def near_places(
    w: Page, u: Value, m: int, mode: str, padding: str, align: bool
) -> tuple[int, Callable[[Index, str], str], Callable[[Index, str], str]]:
    """How many places along one axis count, and the text of the r-th place and of its weight, at an index of u."""
    taps = {"nearest": 1, "bilinear": 2, "bicubic": 4}[mode]
    if mode != "bicubic":
        u = inside(w, u, m, padding, align)
    first = w(
        u.shape,
        lambda i: f"int(round({u[i]}))" if mode == "nearest" else f"int(floor({u[i]})) - {taps // 2 - 1}",
        dtype="int",
    )
    if mode == "nearest":
        return 1, (lambda i, r: first[i]), (lambda i, r: "1")
    spread = (*u.shape, taps)
    t = w(spread, lambda i: f"abs({u[i[:-1]]} - float({first[i[:-1]]} + {i[-1]}))")
    weight = w(spread, lambda i: f"1 - {t[i]}" if mode == "bilinear" else cubic(t[i]))
    if mode == "bilinear":
        return 2, (lambda i, r: f"{first[i]} + {r}"), (lambda i, r: weight[(*i, r)])
    at = w(spread, lambda i: f"{first[i[:-1]]} + {i[-1]}", dtype="int")
    if padding != "zeros":
        moved = inside(w, w(spread, lambda i: f"float({at[i]})"), m, padding, align)
        at = w(spread, lambda i: f"int(round({moved[i]}))", dtype="int")
    return 4, (lambda i, r: at[(*i, r)]), (lambda i, r: weight[(*i, r)])


def sampled(
    w: Page, x: Value, coordinates: Sequence[Value], mode: str, padding: str = "zeros", align: bool = False
) -> Value:
    """x[n, c, …] at coordinates[n, …], one tensor of them for each axis: y[n, c, …]."""
    parts = [near_places(w, u, m, mode, padding, align) for u, m in zip(coordinates, x.shape[2:], strict=True)]
    r = names("r", len(parts))

    def body(i: Index) -> str:
        own = (i[0], *i[2:])
        read = x.outside((*i[:2], *(place(own, k) for (_, place, _), k in zip(parts, r, strict=True))))
        weights = [weight(own, k) for (_, _, weight), k in zip(parts, r, strict=True)]
        if mode == "nearest":
            return read
        return f"sum[{ranges(r, [n for n, _, _ in parts])}] {' * '.join([*weights, read])}"

    return w((*x.shape[:2], *coordinates[0].shape[1:]), body)


def grid_sample(
    w: Page,
    x: Value,
    grid: Value,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Value:
    n, align = x.rank - 2, bool(align_corners)
    coordinates = [placed(w, grid, a, n, x.shape[2 + a], align) for a in range(n)]
    return sampled(w, x, coordinates, mode, padding_mode, align)


MODES, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


def grid_sampler(w: Page, x: Value, grid: Value, mode: int, padding: int, align: bool) -> Value:
    if x.size * grid.size > LARGEST:
        raise NotExpressible("too large for the evaluator of formulas")
    return grid_sample(w, x, grid, MODES[mode], PADDINGS[padding], align)


def upsample_smooth(
    w: Page, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None, **scales: Any
) -> Value:
    """Bilinear where the picture grows; where it shrinks, the hat is as much wider, so that no place is left out."""
    factors = scale_factors or [scales.get("scales_h"), scales.get("scales_w")]
    for a, (m, f) in enumerate(zip(x.shape[2:], factors, strict=True)):
        n = output_size[a] if output_size is not None else int(m * f)
        ratio = (m - 1) / (n - 1) if align_corners and n > 1 else 1 / f if f is not None else m / n
        x = smoothed(w, x, 2 + a, n, ratio)
    return x


def smoothed(w: Page, x: Value, d: int, n: int, ratio: float) -> Value:
    m, shrink = x.shape[d], number(1 / max(ratio, 1.0))
    k = w((n, m), lambda i: f"max(1 - abs({i[1]} + 1 / 2 - ({i[0]} + 1 / 2) * {number(ratio)}) * {shrink}, 0)")
    total = w((n,), lambda i: f"sum[r < {m}] {k[i[0], 'r']}")

    def body(i: Index) -> str:
        return f"(sum[r < {m}] {k[i[d], 'r']} * {x[swap(i, d, 'r')]}) / {total[i[d]]}"

    return w(swap(x.shape, d, n), body)


ROWS: dict[str, Callable[..., Any]] = {
    "nn.functional.grid_sample": grid_sample,
    "grid_sampler_2d": grid_sampler,
    "grid_sampler_3d": grid_sampler,
    "_upsample_bilinear2d_aa": upsample_smooth,
}
