"""Convolutions, pooling and interpolation: one row an operation, with attributes drawn."""

from __future__ import annotations

from typing import Any

import torch

from tests.library.oracle import Case
from tests.library.rows_shapes import integer

F = torch.nn.functional
Draw = Any


def attributes(draw: Draw, most: int = 3) -> tuple[int, int, int, int]:
    """kernel, stride, pad, dilation"""
    return integer(draw, 1, most), integer(draw, 1, 3), integer(draw, 0, 2), integer(draw, 1, 2)


def places(draw: Draw, axes: int, least: int = 5) -> tuple[str, str, dict[str, int]]:
    """Dims, the shape of x beyond its channels, and sizes: some axes are dims, some integers."""
    sizes = {"n": integer(draw, 0, 2), "h": integer(draw, least, least + 2)}
    shape = ", ".join(("h", str(least + 1), str(least))[:axes])
    return f"dim n; dim h >= {least}", shape, sizes


def convolution(axes: int) -> Any:
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]

    def row(draw: Draw) -> Case:
        dims, shape, sizes = places(draw, axes)
        k, stride, pad, dilation = attributes(draw)
        groups = (1, 2, 4)[integer(draw, 0, 2)]
        call = f"conv{axes}d(x, 8, {k}, stride = {stride}, pad = {pad}, dilation = {dilation}, groups = {groups})"
        oracle = lambda x, K, b: function(x, K, b, stride, pad, dilation, groups)  # noqa: E731
        return Case(f"{dims}; input x[n, 4, {shape}]", call, oracle, sizes)

    return row


def rectangles(draw: Draw) -> Case:
    dims, shape, sizes = places(draw, 2)
    call = "conv2d(x, 3, 3, pad = 1, kernel_w = 2, stride_w = 2, pad_w = 0, dilation_w = 3, bias = false)"
    oracle = lambda x, K: F.conv2d(x, K, None, (1, 2), (1, 0), (1, 3))  # noqa: E731
    return Case(f"{dims}; input x[n, 2, {shape}]", call, oracle, sizes)


def depthwise(draw: Draw) -> Case:
    dims, shape, sizes = places(draw, 2)
    k, stride, pad, dilation = attributes(draw)
    multiple = integer(draw, 1, 2)
    call = f"depthwise_conv2d(x, {k}, {stride}, {pad}, {dilation}, multiple = {multiple})"
    oracle = lambda x, K, b: F.conv2d(x, K[:, None], b, stride, pad, dilation, 3)  # noqa: E731
    return Case(f"{dims}; input x[n, 3, {shape}]", call, oracle, sizes)


def transposed(axes: int) -> Any:
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]

    def row(draw: Draw) -> Case:
        dims, shape, sizes = places(draw, axes, 3)
        k, stride, pad, dilation = attributes(draw)
        extra = integer(draw, 0, max(stride, dilation) - 1)
        call = f"conv_transpose{axes}d(x, 3, {k}, {stride}, {pad}, {dilation}, extra = {extra})"
        oracle = lambda x, K, b: function(x, K, b, stride, pad, extra, 1, dilation)  # noqa: E731
        return Case(f"{dims}; input x[n, 2, {shape}]", call, oracle, {**sizes, "h": max(sizes["h"], 4)})

    return row


def unfolds(draw: Draw) -> Case:
    dims, shape, sizes = places(draw, 2)
    k, stride, pad, dilation = attributes(draw, 2)
    call = f"unfold(x, {k}, {stride}, {pad}, {dilation})"
    oracle = lambda x: F.unfold(x, k, dilation, pad, stride)  # noqa: E731
    return Case(f"{dims}; input x[n, 2, {shape}]", call, oracle, {**sizes, "n": max(sizes["n"], 1)})


def folds(draw: Draw) -> Case:
    k, stride, pad, dilation = attributes(draw, 2)
    rows, cols = integer(draw, 4, 6), 5
    down, across = ((m + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for m in (rows, cols))
    call = f"fold(x, {rows}, {cols}, {k}, {stride}, {pad}, {dilation})"
    oracle = lambda x: F.fold(x, (rows, cols), k, dilation, pad, stride)  # noqa: E731
    return Case(f"dim n; input x[n, {2 * k * k}, {down * across}]", call, oracle, {"n": integer(draw, 1, 2)})


def samples(draw: Draw) -> Case:
    dims, shape, sizes = places(draw, 2)
    align = integer(draw, 0, 1) == 1
    call = f"grid_sample(x, grid{', align = true' if align else ''})"
    oracle = lambda x, grid: F.grid_sample(x, grid, align_corners=align)  # noqa: E731
    text = f"{dims}; input x[n, 2, {shape}]; input grid[n, 3, 4, 2]"
    return Case(text, call, oracle, {**sizes, "n": max(sizes["n"], 1)}, twice=False)  # PyTorch has none


def max_pool(axes: int) -> Any:
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]

    def row(draw: Draw) -> Case:
        dims, shape, sizes = places(draw, axes)
        k, stride, pad, dilation = attributes(draw)
        pad = min(pad, k // 2)
        call = f"max_pool{axes}d(x, {k}, {stride}, {pad}, {dilation})"
        oracle = lambda x: function(x, k, stride, pad, dilation)  # noqa: E731
        return Case(f"{dims}; input x[n, 2, {shape}]", call, oracle, {**sizes, "n": max(sizes["n"], 1)})

    return row


def avg_pool(axes: int) -> Any:
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]

    def row(draw: Draw) -> Case:
        dims, shape, sizes = places(draw, axes)
        k, stride, pad, _ = attributes(draw)
        pad, inside = min(pad, k // 2), axes < 3 and integer(draw, 0, 1) == 1
        call = f"avg_pool{axes}d(x, {k}, {stride}, {pad}{', count_pad = false' if inside else ''})"
        oracle = lambda x: function(x, k, stride, pad, False, not inside)  # noqa: E731
        return Case(f"{dims}; input x[n, 2, {shape}]", call, oracle, {**sizes, "n": max(sizes["n"], 1)})

    return row


def whole(call: str, oracle: Any, axes: int = 2) -> Any:
    """An operation without attributes, or with a target's size."""

    def row(draw: Draw) -> Case:
        dims, shape, sizes = places(draw, axes)
        rows, cols = integer(draw, 1, 8), integer(draw, 1, 8)
        said = call.format(rows=rows, cols=cols)
        sizes["n"] = max(sizes["n"], 1)
        return Case(f"{dims}; input x[n, 2, {shape}]", said, lambda x: oracle(x, rows, cols), sizes)

    return row


def resized(mode: str, **more: Any) -> Any:
    return lambda x, r, c: F.interpolate(x, (r, c) if x.ndim == 4 else r, mode=mode, **more)


ROWS = {
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "conv3d": convolution(3),
    "convolve2d": rectangles,
    "depthwise_conv2d": depthwise,
    "conv_transpose1d": transposed(1),
    "conv_transpose2d": transposed(2),
    "conv_transpose3d": transposed(3),
    "unfold": unfolds,
    "fold": folds,
    "grid_sample": samples,
    "max_pool1d": max_pool(1),
    "max_pool2d": max_pool(2),
    "max_pool3d": max_pool(3),
    "avg_pool1d": avg_pool(1),
    "avg_pool2d": avg_pool(2),
    "avg_pool3d": avg_pool(3),
    "global_avg_pool": whole("global_avg_pool(x)", lambda x, r, c: x.mean((2, 3))),
    "global_max_pool": whole("global_max_pool(x)", lambda x, r, c: x.amax((2, 3))),
    "adaptive_avg_pool1d": whole("adaptive_avg_pool1d(x, {rows})", lambda x, r, c: F.adaptive_avg_pool1d(x, r), axes=1),
    "adaptive_avg_pool2d": whole(
        "adaptive_avg_pool2d(x, {rows}, {cols})", lambda x, r, c: F.adaptive_avg_pool2d(x, (r, c))
    ),
    "adaptive_max_pool2d": whole(
        "adaptive_max_pool2d(x, {rows}, {cols})", lambda x, r, c: F.adaptive_max_pool2d(x, (r, c))
    ),
    "adaptive_avg_pool3d": whole(
        "adaptive_avg_pool3d(x, {rows}, {cols}, 2)", lambda x, r, c: F.adaptive_avg_pool3d(x, (r, c, 2)), axes=3
    ),
    "adaptive_max_pool1d": whole("adaptive_max_pool1d(x, {rows})", lambda x, r, c: F.adaptive_max_pool1d(x, r), axes=1),
    "adaptive_max_pool3d": whole(
        "adaptive_max_pool3d(x, {rows}, {cols}, 2)", lambda x, r, c: F.adaptive_max_pool3d(x, (r, c, 2)), axes=3
    ),
    "upsample": whole("upsample(x, 3)", lambda x, r, c: F.interpolate(x, scale_factor=3, mode="nearest")),
    "resize_nearest": whole("resize_nearest(x, {rows}, {cols})", resized("nearest")),
    "resize_linear1d": whole("resize_linear1d(x, {rows})", resized("linear"), axes=1),
    "resize_linear1d, align": whole(
        "resize_linear1d(x, {rows}, align = true)", resized("linear", align_corners=True), axes=1
    ),
    "resize_cubic1d": whole(
        "resize_cubic1d(x, {rows})",
        lambda x, r, c: F.interpolate(x[:, :, None], (1, r), mode="bicubic")[:, :, 0],
        axes=1,
    ),
    "resize_bicubic": whole("resize_bicubic(x, {rows}, {cols})", resized("bicubic")),
    "resize_bicubic, align": whole(
        "resize_bicubic(x, {rows}, {cols}, align = true)", resized("bicubic", align_corners=True)
    ),
    "resize_bilinear": whole("resize_bilinear(x, {rows}, {cols})", resized("bilinear")),
    "resize_bilinear, align": whole(
        "resize_bilinear(x, {rows}, {cols}, align = true)", resized("bilinear", align_corners=True)
    ),
}
