"""Padding by a rule for what lies beyond the edge, and pictures whose channels become places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.page import (
    Page,
    Value,
    number,
    swap,
)
from tests.conformance.shapes import cut, roll

Index = tuple[str, ...]


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
        return w(
            shape,
            lambda i: x.outside(
                tuple(f"{k} - {a}" if a > 0 else f"{k} + {-a}" if a else k for k, (a, _) in zip(i, both, strict=True)),
                number(value or 0),
            ),
        )
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
    return w(
        (*lead, c // (r * r), h * r, width * r),
        lambda i: x[
            (*i[:-3], f"({i[-3]} * {r} + {i[-2]} % {r}) * {r} + {i[-1]} % {r}", f"{i[-2]} // {r}", f"{i[-1]} // {r}")
        ],
    )


def pixel_unshuffle(w: Page, x: Value, downscale_factor: int) -> Value:
    r = downscale_factor
    *lead, c, h, width = x.shape
    return w(
        (*lead, c * r * r, h // r, width // r),
        lambda i: x[
            (
                *i[:-3],
                f"{i[-3]} // {r * r}",
                f"{r} * {i[-2]} + ({i[-3]} // {r}) % {r}",
                f"{r} * {i[-1]} + {i[-3]} % {r}",
            )
        ],
    )


def channel_shuffle(w: Page, x: Value, groups: int) -> Value:
    c = x.shape[1]
    return w(x.shape, lambda i: x[swap(i, 1, f"{i[1]} % {groups} * {c // groups} + {i[1]} // {groups}")])


def fftshift(w: Page, x: Value, dim: Any = None) -> Value:
    dims = x.dims(dim)
    return roll(w, x, [x.shape[d] // 2 for d in dims], list(dims))


def ifftshift(w: Page, x: Value, dim: Any = None) -> Value:
    dims = x.dims(dim)
    return roll(w, x, [-(x.shape[d] // 2) for d in dims], list(dims))


ROWS: dict[str, Callable[..., Any]] = {
    **{
        f"nn.functional.pad.{kind}": pad
        for kind in ("constant", "reflect", "replicate", "replicate_negative", "circular")
    },
    "constant_pad_nd": constant_pad_nd,
    "nn.functional.pixel_shuffle": pixel_shuffle,
    "nn.functional.pixel_unshuffle": pixel_unshuffle,
    "nn.functional.channel_shuffle": channel_shuffle,
    "fft.fftshift": fftshift,
    "fft.ifftshift": ifftshift,
}
