"""Tiles: rows × vectors of sums of products in registers; and OpenBLAS, which takes over where they end.

`product` prints the loops around them. In plain Python a tile is a matrix. Places are flat positions in a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models, register_default

from chainrule.codegen.lowering import LLVM, Traced, declare, lowered, splat
from chainrule.codegen.memory import I32, I64, data, is_place, lane_mask, literals, read, write
from chainrule.codegen.view import View

__all__ = ["add_tile", "element", "flat", "gemm", "load_tile", "rank1", "rank1_part", "store_tile", "tile", "transpose"]

Numbers = np.ndarray[Any, Any]

# Plain Python


def element(view: Numbers, at: int) -> Any:
    """The element at a flat position."""
    return view.reshape(-1)[at]


def flat(view: Numbers) -> Numbers:
    """The same elements under one index, their flat position."""
    return view.reshape(-1)


def tile(view: Numbers, rows: int, vectors: int, lanes: int) -> Numbers:
    """Zero sums for rows × (vectors · lanes) elements of `view`'s type."""
    return np.zeros((rows, vectors * lanes), view.dtype)


def rank1(acc: Numbers, a: Numbers, at: int, step: int, b: Numbers, place: int) -> Numbers:
    """``acc[r, c] + a[at + r step] b[place + c]`` for each row and column of the tile; places are flat."""
    return rank1_part(acc, a, at, step, b, place, len(acc), acc.shape[1])


def rank1_part(
    acc: Numbers, a: Numbers, at: int, step: int, b: Numbers, place: int, rows: int, columns: int
) -> Numbers:
    """`rank1` where only so many rows and columns exist, at least one row; the other sums are of no meaning."""
    left = a.reshape(-1)[[at + min(r, rows - 1) * step for r in range(len(acc))]]
    right = np.zeros(acc.shape[1], acc.dtype)
    right[:columns] = b.reshape(-1)[place : place + min(columns, len(right))]
    found: Numbers = acc + left[:, None] * right
    return found


def store_tile(acc: Numbers, view: Numbers, at: int, step: int, scale: float, rows: int, columns: int) -> None:
    """``view[at + r step + c] = scale acc[r, c]`` for the first rows and columns."""
    flat, columns = view.reshape(-1), min(max(columns, 0), acc.shape[1])
    for r, row in enumerate(acc[: max(rows, 0), :columns]):
        flat[at + r * step : at + r * step + columns] = row * row.dtype.type(scale)


def add_tile(acc: Numbers, view: Numbers, at: int, step: int, scale: float, rows: int, columns: int) -> None:
    """``view[at + r step + c] += scale acc[r, c]`` for the first rows and columns."""
    flat, columns = view.reshape(-1), min(max(columns, 0), acc.shape[1])
    for r, row in enumerate(acc[: max(rows, 0), :columns]):
        flat[at + r * step : at + r * step + columns] += row * row.dtype.type(scale)


def load_tile(
    view: Numbers, at: int, step: int, height: int, vectors: int, lanes: int, rows: int, columns: int
) -> Numbers:
    """What `store_tile` stored with scale 1: sums that wait for the rest; those that do not exist are 0."""
    found = tile(view, height, vectors, lanes)
    flat, columns = view.reshape(-1), min(max(columns, 0), vectors * lanes)
    for r in range(min(max(rows, 0), height)):
        found[r, :columns] = flat[at + r * step : at + r * step + columns]
    return found


def transpose(source: Numbers, at: int, step: int, target: Numbers, place: int, stride: int, size: int) -> None:
    """``target[place + c stride + r] = source[at + r step + c]`` for a square of `size` rows and columns."""
    flat, into = source.reshape(-1), target.reshape(-1)
    for r in range(size):
        into[place + r : place + r + size * stride : stride] = flat[at + r * step : at + r * step + size]


def gemm(
    left_turned: int,
    right_turned: int,
    rows: int,
    columns: int,
    inner: int,
    scale: float,
    left: Numbers,
    left_at: int,
    left_step: int,
    right: Numbers,
    right_at: int,
    right_step: int,
    keep: float,
    target: Numbers,
    target_at: int,
    target_step: int,
) -> None:
    """OpenBLAS's ``target = keep target + scale left right``, row-major; `turned` is 1 for a transposed operand.

    Each matrix starts at a flat position of its view, its rows (as stored) `step` elements apart.
    """

    def matrix(view: Numbers, at: int, step: int, shape: tuple[int, int]) -> Numbers:
        flat, size = view.reshape(-1)[at:], view.itemsize
        return np.lib.stride_tricks.as_strided(flat, shape, (step * size, size))

    if rows <= 0 or columns <= 0:
        return
    into = matrix(target, target_at, target_step, (rows, columns))
    a = matrix(left, left_at, left_step, (inner, rows) if left_turned else (rows, inner))
    b = matrix(right, right_at, right_step, (columns, inner) if right_turned else (inner, columns))
    found = (a.T if left_turned else a) @ (b.T if right_turned else b)
    into[...] = scale * found + (keep * into if keep else 0)


# Types


class Tile(types.Type):
    """rows × vectors registers of `lanes` sums."""

    def __init__(self, element: types.Type, rows: int, vectors: int, lanes: int) -> None:
        self.element, self.rows, self.vectors, self.lanes = element, rows, vectors, lanes
        super().__init__(name=f"Tile({element}, {rows}, {vectors}, {lanes})")


@register_default(Tile)
class TileModel(models.PrimitiveModel):
    """An array of vectors as one value; LLVM takes it apart into registers."""

    def __init__(self, manager: Any, kind: Tile) -> None:
        vector = ir.VectorType(manager[kind.element].get_value_type(), kind.lanes)
        super().__init__(manager, kind, ir.ArrayType(vector, kind.rows * kind.vectors))


# Code: tiles


def _tile_type(view: types.Type, *shape: types.Type) -> Any:
    known = literals(*shape)
    if not isinstance(view, View) or known is None or len(known) != 3:
        return None
    return (Tile(view.element, *known), view, *shape)


def _emit_tile(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return ir.Constant(context.get_value_type(sig.return_type), None)


def _rank1_type(acc: types.Type, a: types.Type, at: Any, step: Any, b: types.Type, place: Any, *count: Any) -> Any:
    if not isinstance(acc, Tile) or not isinstance(a, View) or not isinstance(b, View):
        return None
    return (acc, acc, a, types.int64, types.int64, b, types.int64, *[types.int64 for _ in count])


def _emit_rank1(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """The loads of b's vectors, then for each row one broadcast and a fused multiply-add for each vector."""
    kind = sig.return_type
    element, acc, part = str(kind.element), args[0], len(args) == 8
    vector = ir.VectorType(LLVM[element], kind.lanes)
    first = builder.gep(data(context, builder, sig.args[4], args[4]), [args[5]], inbounds=True)
    columns = []
    for v in range(kind.vectors):
        pointer = builder.gep(first, [ir.Constant(I64, v * kind.lanes)], inbounds=True)
        pointer = builder.bitcast(pointer, vector.as_pointer())
        mask = lane_mask(builder, args[7], kind.lanes, v * kind.lanes) if part else None
        columns.append(Traced(builder, read(builder, pointer, vector, mask), element, kind.lanes))
    left = builder.gep(data(context, builder, sig.args[1], args[1]), [args[2]], inbounds=True)
    for r in range(kind.rows):
        which: ir.Value = ir.Constant(I64, r)
        if part:  # a row that does not exist repeats the last one
            last = builder.sub(args[6], ir.Constant(I64, 1))
            which = builder.select(builder.icmp_signed("<", which, last), which, last)
        pointer = builder.gep(left, [builder.mul(args[3], which, flags=("nsw",))], inbounds=True)
        row = Traced(builder, splat(builder, builder.load(pointer), kind.lanes), element, kind.lanes)
        for v, column in enumerate(columns):
            k = r * kind.vectors + v
            old = Traced(builder, builder.extract_value(acc, k), element, kind.lanes)
            acc = builder.insert_value(acc, row.intrinsic("llvm.fmuladd", column, old).value, k)
    return acc


def _store_tile_type(acc: types.Type, view: types.Type, *rest: types.Type) -> Any:
    if not isinstance(acc, Tile) or not isinstance(view, View) or len(rest) != 5:
        return None
    return types.none, acc, view, types.int64, types.int64, acc.element, types.int64, types.int64


def _store_tile(add: bool) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        kind = sig.args[0]
        acc, view, at, step, scale, rows, columns = args
        element = str(kind.element)
        vector = ir.VectorType(LLVM[element], kind.lanes)
        factor = Traced(builder, splat(builder, scale, kind.lanes), element, kind.lanes)
        first = builder.gep(data(context, builder, sig.args[1], view), [at], inbounds=True)
        for r, v, pointer, mask in _cells(builder, kind, vector, first, step, rows, columns):
            value = Traced(builder, builder.extract_value(acc, r * kind.vectors + v), element, kind.lanes)
            if add:
                old = Traced(builder, read(builder, pointer, vector, mask), element, kind.lanes)
                value = value.intrinsic("llvm.fmuladd", factor, old)
            else:
                value = value * factor
            write(builder, value.value, pointer, mask)
        return context.get_dummy_value()

    return emit


def _load_tile_type(view: types.Type, at: Any, step: Any, *rest: types.Type) -> Any:
    known = literals(*rest[:3])
    if not isinstance(view, View) or known is None or len(rest) != 5:
        return None
    i = types.int64
    return Tile(view.element, *known), view, i, i, *rest[:3], i, i


def _emit_load_tile(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.return_type
    vector = ir.VectorType(LLVM[str(kind.element)], kind.lanes)
    first = builder.gep(data(context, builder, sig.args[0], args[0]), [args[1]], inbounds=True)
    acc: ir.Value = ir.Constant(context.get_value_type(kind), None)
    for r, v, pointer, mask in _cells(builder, kind, vector, first, args[2], args[6], args[7]):
        acc = builder.insert_value(acc, read(builder, pointer, vector, mask), r * kind.vectors + v)
    return acc


def _cells(
    builder: ir.IRBuilder,
    kind: Tile,
    vector: ir.Type,
    first: ir.Value,
    step: ir.Value,
    rows: ir.Value,
    columns: ir.Value,
) -> Iterator[tuple[int, int, ir.Value, ir.Value]]:
    """Each row and vector of a tile in memory: its address, and which of its lanes exist."""
    for r in range(kind.rows):
        exists = builder.icmp_signed("<", ir.Constant(I64, r), rows)
        count = builder.select(exists, columns, ir.Constant(I64, 0))
        for v in range(kind.vectors):
            mask = lane_mask(builder, count, kind.lanes, v * kind.lanes)
            offset = builder.mul(step, ir.Constant(I64, r), flags=("nsw",))
            offset = builder.add(offset, ir.Constant(I64, v * kind.lanes), flags=("nsw",))
            yield r, v, builder.bitcast(builder.gep(first, [offset]), vector.as_pointer()), mask


lowered(tile, _tile_type, _emit_tile)
lowered(rank1, lambda *kinds: _rank1_type(*kinds) if len(kinds) == 6 else None, _emit_rank1)
lowered(rank1_part, lambda *kinds: _rank1_type(*kinds) if len(kinds) == 8 else None, _emit_rank1)
lowered(load_tile, _load_tile_type, _emit_load_tile)
lowered(store_tile, _store_tile_type, _store_tile(add=False))
lowered(add_tile, _store_tile_type, _store_tile(add=True))


def _transpose_type(
    source: types.Type, at: Any, step: Any, target: types.Type, place: Any, stride: Any, size: Any
) -> Any:
    known = literals(size)
    if not isinstance(source, View) or not isinstance(target, View) or known is None:
        return None
    i = types.int64
    return types.none, source, i, i, target, i, i, size


def _emit_transpose(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """log2(size) rounds, each interleaving the lanes of row k with those of row k + size/2."""
    size = sig.args[6].literal_value
    vector = ir.VectorType(LLVM[str(sig.args[0].element)], size)
    source = builder.gep(data(context, builder, sig.args[0], args[0]), [args[1]], inbounds=True)
    target = builder.gep(data(context, builder, sig.args[3], args[3]), [args[4]], inbounds=True)

    def row(base: ir.Value, step: ir.Value, r: int) -> ir.Value:
        pointer = builder.gep(base, [builder.mul(step, ir.Constant(I64, r), flags=("nsw",))], inbounds=True)
        return builder.bitcast(pointer, vector.as_pointer())

    rows = [read(builder, row(source, args[2], r), vector) for r in range(size)]
    half = size // 2
    picks = [
        [ir.Constant(I32, s + size * odd) for s in range(part, part + half) for odd in (0, 1)] for part in (0, half)
    ]
    low, high = (ir.Constant(ir.VectorType(I32, size), pick) for pick in picks)
    for _ in range(size.bit_length() - 1):
        pairs = [(rows[k], rows[k + half]) for k in range(half)]
        rows = [builder.shuffle_vector(a, b, pick) for a, b in pairs for pick in (low, high)]
    for r in range(size):
        write(builder, rows[r], row(target, args[5], r))
    return context.get_dummy_value()


lowered(transpose, _transpose_type, _emit_transpose)

lowered(
    element,
    lambda view, at: (view.element, view, types.int64) if isinstance(view, View) and is_place(at) else None,
    lambda context, builder, sig, args: context.unpack_value(
        builder,
        sig.return_type,
        builder.gep(data(context, builder, sig.args[0], args[0]), [args[1]], inbounds=True),
    ),
)

lowered(
    flat,
    lambda view: (view, view) if isinstance(view, View) else None,
    lambda context, builder, sig, args: args[0],  # of a view, one integer is the flat position
)

# Code: OpenBLAS

ROW_MAJOR, AS_IS = 101, 111  # cblas.h; one more is transposed


def _gemm_type(*kinds: types.Type) -> Any:
    i: Any = types.int64
    views: list[Any] = [kinds[k] for k in (6, 9, 13)] if len(kinds) == 16 else []
    if not views or not all(isinstance(view, View) for view in views):
        return None
    e = views[0].element
    return types.none, i, i, i, i, i, e, views[0], i, i, views[1], i, i, e, views[2], i, i


def _emit_gemm(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    element = str(sig.args[6].element)
    scalar, pointer = LLVM[element], LLVM[element].as_pointer()
    kind = [I32, I32, I32, I32, I32, I32, scalar, pointer, I32, pointer, I32, scalar, pointer, I32]
    name = "scipy_cblas_sgemm" if element == "float32" else "scipy_cblas_dgemm"
    known = declare(builder.module, name, ir.VoidType(), kind)

    def way(turned: ir.Value) -> ir.Value:
        return builder.add(builder.trunc(turned, I32), ir.Constant(I32, AS_IS))

    def start(k: int) -> ir.Value:
        return builder.gep(data(context, builder, sig.args[k], args[k]), [args[k + 1]], inbounds=True)

    def step(k: int) -> ir.Value:  # a matrix without columns still needs a step of 1
        one = ir.Constant(I64, 1)
        return builder.trunc(builder.select(builder.icmp_signed("<", args[k], one), one, args[k]), I32)

    sizes = [builder.trunc(args[k], I32) for k in (2, 3, 4)]
    operands = [args[5], start(6), step(8), start(9), step(11), args[12], start(13), step(15)]
    builder.call(known, [ir.Constant(I32, ROW_MAJOR), way(args[0]), way(args[1]), *sizes, *operands])
    return context.get_dummy_value()


lowered(gemm, _gemm_type, _emit_gemm)
