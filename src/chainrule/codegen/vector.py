"""Vectors in kernels' source: load, store, arithmetic lane by lane, horizontal sums, tiles of accumulators.

    v = load(x, (n, j), 16)                  # 16 elements of x from x[n, j] on, in memory's order
    store(y, (n, j), max(v * s, 0.0))        # scalars among vectors are broadcast
    w = load_part(x, (n, j), 16, rest)       # the lanes from `rest` on are 0 and their memory is not touched

An index is a tuple, or one integer: the flat position. A tile holds rows × vectors of sums of products in
registers; `product` prints the loops around it. In plain Python a vector is a small NumPy array and a tile a matrix.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default

from chainrule.codegen.emit import (
    LLVM,
    NUMBA,
    Traced,
    Vector,
    declare,
    element_name,
    elementwise,
    lanes_of,
    lowered,
    splat,
)
from chainrule.codegen.view import View, element_pointer, flat_position

__all__ = [
    "add_tile",
    "broadcast",
    "element",
    "gemm",
    "greatest",
    "load",
    "load_part",
    "rank1",
    "rank1_part",
    "store",
    "store_part",
    "store_tile",
    "stream",
    "tile",
    "total",
    "transpose",
]

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
Numbers = np.ndarray[Any, Any]
Place = int | tuple[int, ...]

# Plain Python


def load(view: Numbers, index: Place, lanes: int) -> Numbers:
    """`lanes` elements from `view[index]` on."""
    at = flat_position(view, index)
    return view.reshape(-1)[at : at + lanes].copy()


def load_part(view: Numbers, index: Place, lanes: int, count: int) -> Numbers:
    """The first `count` of `lanes` elements from `view[index]` on, then zeros; count may be any integer."""
    at, found = flat_position(view, index), np.zeros(lanes, view.dtype)
    count = min(max(count, 0), lanes)
    found[:count] = view.reshape(-1)[at : at + count]
    return found


def store(view: Numbers, index: Place, vector: Numbers) -> None:
    """`vector` into the elements from `view[index]` on."""
    at = flat_position(view, index)
    view.reshape(-1)[at : at + len(vector)] = vector


def store_part(view: Numbers, index: Place, vector: Numbers, count: int) -> None:
    """The first `count` lanes of `vector` into the elements from `view[index]` on."""
    at, count = flat_position(view, index), min(max(count, 0), len(vector))
    view.reshape(-1)[at : at + count] = vector[:count]


def element(view: Numbers, at: int) -> Any:
    """The element at a flat position."""
    return view.reshape(-1)[at]


def stream(view: Numbers, index: Place, vector: Numbers) -> None:
    """`store` past the cache, for what is not read again soon; the place is a multiple of the vector's bytes."""
    store(view, index, vector)


def broadcast(x: Any, lanes: int) -> Numbers:
    """`x` in every lane."""
    return np.full(lanes, x)


def _halves(vector: Any, combine: Any) -> Any:
    while len(vector) > 1:
        half = len(vector) // 2
        vector = combine(vector[:half], vector[half:])
    return vector[0]


def total(vector: Numbers) -> Any:
    """The sum of the lanes, in a fixed tree: halves are added until one lane is left."""
    return _halves(vector, np.add)


def greatest(vector: Numbers) -> Any:
    """The largest lane; NaN if there is one."""
    return _halves(vector, np.maximum)


def tile(view: Numbers, rows: int, vectors: int, lanes: int) -> Numbers:
    """Zero sums for rows × (vectors · lanes) elements of `view`'s type."""
    return np.zeros((rows, vectors * lanes), view.dtype)


def rank1(acc: Numbers, a: Numbers, at: int, step: int, b: Numbers, place: int) -> Numbers:
    """``acc[r, c] + a[at + r step] b[place + c]`` for each row and column of the tile; places are flat."""
    rows, columns = acc.shape
    left = a.reshape(-1)[[at + r * step for r in range(rows)]]
    return acc + left[:, None] * b.reshape(-1)[place : place + columns]


def rank1_part(acc: Numbers, a: Numbers, at: int, step: int, b: Numbers, place: int, count: int) -> Numbers:
    """`rank1` where `b` ends after `count` columns; the sums beyond are of no meaning."""
    rows, columns = acc.shape
    left = a.reshape(-1)[[at + r * step for r in range(rows)]]
    return acc + left[:, None] * load_part(b, place, columns, count)


def store_tile(acc: Numbers, view: Numbers, at: int, step: int, scale: float, count: int) -> None:
    """``view[at + r step + c] = scale acc[r, c]`` for each row and the first `count` columns."""
    for r, row in enumerate(acc):
        store_part(view, at + r * step, row * row.dtype.type(scale), count)


def add_tile(acc: Numbers, view: Numbers, at: int, step: int, scale: float, count: int) -> None:
    """``view[at + r step + c] += scale acc[r, c]`` for each row and the first `count` columns."""
    for r, row in enumerate(acc):
        old = load_part(view, at + r * step, len(row), count)
        store_part(view, at + r * step, old + row * row.dtype.type(scale), count)


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


class Tile(types.Type):  # type: ignore[misc]
    """rows × vectors registers of `lanes` sums."""

    def __init__(self, element: types.Type, rows: int, vectors: int, lanes: int) -> None:
        self.element, self.rows, self.vectors, self.lanes = element, rows, vectors, lanes
        super().__init__(name=f"Tile({element}, {rows}, {vectors}, {lanes})")


@register_default(Tile)
class TileModel(models.PrimitiveModel):  # type: ignore[misc]
    """An array of vectors as one value; LLVM takes it apart into registers."""

    def __init__(self, manager: Any, kind: Tile) -> None:
        vector = ir.VectorType(manager[kind.element].get_value_type(), kind.lanes)
        super().__init__(manager, kind, ir.ArrayType(vector, kind.rows * kind.vectors))


def _literals(*kinds: types.Type) -> list[int] | None:
    """The values of constants in the source, or None if one is no constant."""
    found = [kind.literal_value for kind in kinds if isinstance(kind, types.IntegerLiteral)]
    return found if len(found) == len(kinds) else None


def _is_place(kind: types.Type) -> bool:
    return isinstance(kind, (types.Integer, types.BaseTuple))


# Code: memory


def _vector_pointer(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value], kind: Vector) -> ir.Value:
    pointer = element_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1])
    return builder.bitcast(pointer, ir.VectorType(LLVM[str(kind.element)], kind.lanes).as_pointer())


def _mask(builder: ir.IRBuilder, count: ir.Value, lanes: int, start: int = 0) -> ir.Value:
    """A bit for each lane: start + lane < count, compared as 32 bits after clamping to what can matter."""
    low, high = ir.Constant(I64, start), ir.Constant(I64, start + lanes)
    clamped = builder.select(builder.icmp_signed("<", count, low), low, count)
    clamped = builder.select(builder.icmp_signed(">", clamped, high), high, clamped)
    wide = splat(builder, builder.trunc(clamped, I32), lanes)
    steps = ir.Constant(ir.VectorType(I32, lanes), [ir.Constant(I32, start + k) for k in range(lanes)])
    return builder.icmp_signed("<", steps, wide)


def _suffix(kind: ir.VectorType) -> str:
    return f"v{kind.count}" + {"float": "f32", "double": "f64", "i64": "i64"}[str(kind.element)]


def read(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value | None = None) -> ir.Value:
    """A vector from memory, aligned as its elements are; lanes out of the mask are 0."""
    size = _bytes(kind)
    if mask is None:
        return builder.load(pointer, align=size)
    pointer_type = kind.as_pointer()
    name = f"llvm.masked.load.{_suffix(kind)}.p0"
    known = declare(builder.module, name, kind, [pointer_type, I32, mask.type, kind])
    return builder.call(known, [pointer, ir.Constant(I32, size), mask, ir.Constant(kind, None)])


def write(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None = None) -> None:
    """A vector into memory; lanes out of the mask leave it as it is."""
    kind = value.type
    size = _bytes(kind)
    if mask is None:
        builder.store(value, pointer, align=size)
        return
    name = f"llvm.masked.store.{_suffix(kind)}.p0"
    known = declare(builder.module, name, ir.VoidType(), [kind, kind.as_pointer(), I32, mask.type])
    builder.call(known, [value, pointer, ir.Constant(I32, size), mask])


def _bytes(kind: ir.VectorType) -> int:
    return 4 if str(kind.element) == "float" else 8


def _load_type(view: types.Type, index: types.Type, lanes: types.Type, *count: types.Type) -> Any:
    known = _literals(lanes)
    if not isinstance(view, View) or not _is_place(index) or known is None:
        return None
    return (Vector(view.element, known[0]), view, index, lanes, *[types.int64 for _ in count])


def _emit_load(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.return_type
    pointer = _vector_pointer(context, builder, sig, args, kind)
    mask = _mask(builder, args[3], kind.lanes) if len(args) == 4 else None
    return read(builder, pointer, context.get_value_type(kind), mask)


def _store_type(view: types.Type, index: types.Type, vector: types.Type, *count: types.Type) -> Any:
    if not isinstance(view, View) or not _is_place(index) or not isinstance(vector, Vector):
        return None
    if vector.element != view.element:
        return None
    return (types.none, view, index, vector, *[types.int64 for _ in count])


def _emit_store(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    pointer = _vector_pointer(context, builder, sig, args, sig.args[2])
    mask = _mask(builder, args[3], sig.args[2].lanes) if len(args) == 4 else None
    write(builder, args[2], pointer, mask)
    return context.get_dummy_value()


def _emit_stream(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.args[2]
    pointer = _vector_pointer(context, builder, sig, args, kind)
    stored = builder.store(args[2], pointer, align=kind.lanes * _bytes(args[2].type))
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
    return context.get_dummy_value()


lowered(load, lambda *kinds: _load_type(*kinds) if len(kinds) == 3 else None, _emit_load)
lowered(load_part, lambda *kinds: _load_type(*kinds) if len(kinds) == 4 else None, _emit_load)
lowered(store, lambda *kinds: _store_type(*kinds) if len(kinds) == 3 else None, _emit_store)
lowered(store_part, lambda *kinds: _store_type(*kinds) if len(kinds) == 4 else None, _emit_store)
lowered(stream, lambda *kinds: _store_type(*kinds) if len(kinds) == 3 else None, _emit_stream)

# Code: lanes


def _broadcast_type(x: types.Type, lanes: types.Type) -> Any:
    known, element = _literals(lanes), element_name(x)
    if known is None or element is None:
        return None
    return Vector(NUMBA[element], known[0]), NUMBA[element], lanes


def _emit_broadcast(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return splat(builder, args[0], sig.return_type.lanes)


def _horizontal(combine: Any) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        value, lanes, element = args[0], sig.args[0].lanes, str(sig.args[0].element)
        while lanes > 1:
            lanes //= 2
            nothing = ir.Constant(value.type, ir.Undefined)
            parts = [
                builder.shuffle_vector(value, nothing, ir.Constant(ir.VectorType(I32, lanes), [ir.Constant(I32, k) for k in half]))
                for half in (range(lanes), range(lanes, 2 * lanes))
            ]
            low, high = (Traced(builder, part, element, lanes) for part in parts)
            value = combine(low, high).value
        return builder.extract_element(value, ir.Constant(I32, 0))

    return emit


def _horizontal_type(kind: types.Type) -> Any:
    return (kind.element, kind) if isinstance(kind, Vector) else None


lowered(broadcast, _broadcast_type, _emit_broadcast)
lowered(total, _horizontal_type, _horizontal(operator.add))
lowered(greatest, _horizontal_type, _horizontal(lambda a, b: a.intrinsic("llvm.maximum", b)))


def _on_vectors(function: Any, result: str | None = None) -> None:
    """Let one of Python's operators work on vectors, and on a vector and a scalar."""
    elementwise(function, function, integers=True, result=result, vectors_only=True)


for _function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg):
    _on_vectors(_function)
for _function in (operator.iadd, operator.isub, operator.imul):
    _on_vectors(_function)
for _function in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
    _on_vectors(_function, "bool")
for _function in (operator.and_, operator.or_):
    _on_vectors(_function)

# Code: tiles


def _tile_type(view: types.Type, *shape: types.Type) -> Any:
    known = _literals(*shape)
    if not isinstance(view, View) or known is None or len(known) != 3:
        return None
    return (Tile(view.element, *known), view, *shape)


def _emit_tile(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return ir.Constant(context.get_value_type(sig.return_type), None)


def _rank1_type(acc: types.Type, a: types.Type, at: Any, step: Any, b: types.Type, place: Any, *count: Any) -> Any:
    if not isinstance(acc, Tile) or not isinstance(a, View) or not isinstance(b, View):
        return None
    return (acc, acc, a, types.int64, types.int64, b, types.int64, *[types.int64 for _ in count])


def _data(context: Any, builder: ir.IRBuilder, view: View, value: ir.Value) -> ir.Value:
    return cgutils.create_struct_proxy(view)(context, builder, value).data


def _emit_rank1(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """The loads of b's vectors, then for each row one broadcast and a fused multiply-add for each vector."""
    kind = sig.return_type
    element, acc = str(kind.element), args[0]
    vector = ir.VectorType(LLVM[element], kind.lanes)
    first = builder.gep(_data(context, builder, sig.args[4], args[4]), [args[5]], inbounds=True)
    columns = []
    for v in range(kind.vectors):
        pointer = builder.gep(first, [ir.Constant(I64, v * kind.lanes)], inbounds=True)
        pointer = builder.bitcast(pointer, vector.as_pointer())
        mask = _mask(builder, args[6], kind.lanes, v * kind.lanes) if len(args) == 7 else None
        columns.append(Traced(builder, read(builder, pointer, vector, mask), element, kind.lanes))
    left = builder.gep(_data(context, builder, sig.args[1], args[1]), [args[2]], inbounds=True)
    for r in range(kind.rows):
        pointer = builder.gep(left, [builder.mul(args[3], ir.Constant(I64, r), flags=("nsw",))], inbounds=True)
        row = Traced(builder, splat(builder, builder.load(pointer), kind.lanes), element, kind.lanes)
        for v, column in enumerate(columns):
            k = r * kind.vectors + v
            old = Traced(builder, builder.extract_value(acc, k), element, kind.lanes)
            acc = builder.insert_value(acc, row.intrinsic("llvm.fmuladd", column, old).value, k)
    return acc


def _store_tile_type(acc: types.Type, view: types.Type, *rest: types.Type) -> Any:
    if not isinstance(acc, Tile) or not isinstance(view, View) or len(rest) != 4:
        return None
    return types.none, acc, view, types.int64, types.int64, acc.element, types.int64


def _store_tile(add: bool) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        kind = sig.args[0]
        acc, view, at, step, scale, count = args
        element = str(kind.element)
        vector = ir.VectorType(LLVM[element], kind.lanes)
        factor = Traced(builder, splat(builder, scale, kind.lanes), element, kind.lanes)
        data = builder.gep(_data(context, builder, sig.args[1], view), [at], inbounds=True)
        for v in range(kind.vectors):
            mask = _mask(builder, count, kind.lanes, v * kind.lanes)
            for r in range(kind.rows):
                offset = builder.mul(step, ir.Constant(I64, r), flags=("nsw",))
                offset = builder.add(offset, ir.Constant(I64, v * kind.lanes), flags=("nsw",))
                pointer = builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())
                value = Traced(builder, builder.extract_value(acc, r * kind.vectors + v), element, kind.lanes)
                if add:
                    old = Traced(builder, read(builder, pointer, vector, mask), element, kind.lanes)
                    value = value.intrinsic("llvm.fmuladd", factor, old)
                else:
                    value = value * factor
                write(builder, value.value, pointer, mask)
        return context.get_dummy_value()

    return emit


lowered(tile, _tile_type, _emit_tile)
lowered(rank1, lambda *kinds: _rank1_type(*kinds) if len(kinds) == 6 else None, _emit_rank1)
lowered(rank1_part, lambda *kinds: _rank1_type(*kinds) if len(kinds) == 7 else None, _emit_rank1)
lowered(store_tile, _store_tile_type, _store_tile(add=False))
lowered(add_tile, _store_tile_type, _store_tile(add=True))


def _transpose_type(source: types.Type, at: Any, step: Any, target: types.Type, place: Any, stride: Any, size: Any) -> Any:
    known = _literals(size)
    if not isinstance(source, View) or not isinstance(target, View) or known is None:
        return None
    i = types.int64
    return types.none, source, i, i, target, i, i, size


def _emit_transpose(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """log2(size) rounds, each interleaving the lanes of row k with those of row k + size/2."""
    size = sig.args[6].literal_value
    vector = ir.VectorType(LLVM[str(sig.args[0].element)], size)
    source = builder.gep(_data(context, builder, sig.args[0], args[0]), [args[1]], inbounds=True)
    target = builder.gep(_data(context, builder, sig.args[3], args[3]), [args[4]], inbounds=True)

    def row(base: ir.Value, step: ir.Value, r: int) -> ir.Value:
        pointer = builder.gep(base, [builder.mul(step, ir.Constant(I64, r), flags=("nsw",))], inbounds=True)
        return builder.bitcast(pointer, vector.as_pointer())

    rows = [read(builder, row(source, args[2], r), vector) for r in range(size)]
    half = size // 2
    picks = [[ir.Constant(I32, s + size * odd) for s in range(part, part + half) for odd in (0, 1)] for part in (0, half)]
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
    lambda view, at: (view.element, view, types.int64) if isinstance(view, View) and _is_place(at) else None,
    lambda context, builder, sig, args: context.unpack_value(
        builder, sig.return_type, builder.gep(_data(context, builder, sig.args[0], args[0]), [args[1]], inbounds=True)
    ),
)

# Code: OpenBLAS

ROW_MAJOR, AS_IS = 101, 111  # cblas.h; one more is transposed


def _gemm_type(*kinds: types.Type) -> Any:
    i, views = types.int64, [kinds[k] for k in (6, 9, 13)] if len(kinds) == 16 else []
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
        return builder.gep(_data(context, builder, sig.args[k], args[k]), [args[k + 1]], inbounds=True)

    def step(k: int) -> ir.Value:  # a matrix without columns still needs a step of 1
        one = ir.Constant(I64, 1)
        return builder.trunc(builder.select(builder.icmp_signed("<", args[k], one), one, args[k]), I32)

    sizes = [builder.trunc(args[k], I32) for k in (2, 3, 4)]
    operands = [args[5], start(6), step(8), start(9), step(11), args[12], start(13), step(15)]
    builder.call(known, [ir.Constant(I32, ROW_MAJOR), way(args[0]), way(args[1]), *sizes, *operands])
    return context.get_dummy_value()


lowered(gemm, _gemm_type, _emit_gemm)
