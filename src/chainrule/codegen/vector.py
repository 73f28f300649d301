"""Vectors in kernels' source: load, store, arithmetic lane by lane, horizontal sums, tiles of accumulators.

    v = load(x, (n, j), 16)                  # 16 elements of x from x[n, j] on, in memory's order
    store(y, (n, j), max(v * s, 0.0))        # scalars among vectors are broadcast
    w = load_part(x, (n, j), 16, rest)       # the lanes from `rest` on are 0 and their memory is not touched

An index is a tuple, or one integer: the flat position. In plain Python a vector is a small NumPy array. The tiles
of `tile` are offered here too.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen.lowering import (
    NUMBA,
    Traced,
    Vector,
    element_name,
    elementwise,
    lowered,
    splat,
)
from chainrule.codegen.memory import (
    I32,
    is_place,
    item_bytes,
    lane_mask,
    literals,
    read,
    vector_pointer,
    write,
)
from chainrule.codegen.tile import (
    add_tile,
    element,
    flat,
    gemm,
    load_tile,
    rank1,
    rank1_part,
    store_tile,
    tile,
    transpose,
)
from chainrule.codegen.view import View, flat_position

__all__ = [
    "add_tile",
    "broadcast",
    "element",
    "flat",
    "gemm",
    "greatest",
    "load",
    "load_part",
    "load_tile",
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


# Code: memory


def _load_type(view: types.Type, index: types.Type, lanes: types.Type, *count: types.Type) -> Any:
    known = literals(lanes)
    if not isinstance(view, View) or not is_place(index) or known is None:
        return None
    return (Vector(view.element, known[0]), view, index, lanes, *[types.int64 for _ in count])


def _emit_load(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.return_type
    pointer = vector_pointer(context, builder, sig, args, kind)
    mask = lane_mask(builder, args[3], kind.lanes) if len(args) == 4 else None
    return read(builder, pointer, context.get_value_type(kind), mask)


def _store_type(view: types.Type, index: types.Type, vector: types.Type, *count: types.Type) -> Any:
    if not isinstance(view, View) or not is_place(index) or not isinstance(vector, Vector):
        return None
    if vector.element != view.element:
        return None
    return (types.none, view, index, vector, *[types.int64 for _ in count])


def _emit_store(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    pointer = vector_pointer(context, builder, sig, args, sig.args[2])
    mask = lane_mask(builder, args[3], sig.args[2].lanes) if len(args) == 4 else None
    write(builder, args[2], pointer, mask)
    return context.get_dummy_value()


def _emit_stream(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    kind = sig.args[2]
    pointer = vector_pointer(context, builder, sig, args, kind)
    stored = builder.store(args[2], pointer, align=kind.lanes * item_bytes(args[2].type))
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
    return context.get_dummy_value()


lowered(load, lambda *kinds: _load_type(*kinds) if len(kinds) == 3 else None, _emit_load)
lowered(load_part, lambda *kinds: _load_type(*kinds) if len(kinds) == 4 else None, _emit_load)
lowered(store, lambda *kinds: _store_type(*kinds) if len(kinds) == 3 else None, _emit_store)
lowered(store_part, lambda *kinds: _store_type(*kinds) if len(kinds) == 4 else None, _emit_store)
lowered(stream, lambda *kinds: _store_type(*kinds) if len(kinds) == 3 else None, _emit_stream)

# Code: lanes


def _broadcast_type(x: types.Type, lanes: types.Type) -> Any:
    known, element = literals(lanes), element_name(x)
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
            halves = [[ir.Constant(I32, k) for k in half] for half in (range(lanes), range(lanes, 2 * lanes))]
            picks = [ir.Constant(ir.VectorType(I32, lanes), half) for half in halves]
            parts = [builder.shuffle_vector(value, nothing, pick) for pick in picks]
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
