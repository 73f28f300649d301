"""Vectors between memory and registers, with and without masks: what `vector` and `tile` are emitted with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from chainrule.codegen.lowering import LLVM, Vector, declare, splat
from chainrule.codegen.view import View, element_pointer

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def literals(*kinds: types.Type) -> list[int] | None:
    """The values of constants in the source, or None if one is no constant."""
    found = [kind.literal_value for kind in kinds if isinstance(kind, types.IntegerLiteral)]
    return found if len(found) == len(kinds) else None


def is_place(kind: types.Type) -> bool:
    return isinstance(kind, (types.Integer, types.BaseTuple))  # type: ignore[attr-defined]


def vector_pointer(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value], kind: Vector) -> ir.Value:
    pointer = element_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1])
    return builder.bitcast(pointer, ir.VectorType(LLVM[str(kind.element)], kind.lanes).as_pointer())


def lane_mask(builder: ir.IRBuilder, count: ir.Value, lanes: int, start: int = 0) -> ir.Value:
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
    size = item_bytes(kind)
    if mask is None:
        return builder.load(pointer, align=size)
    pointer_type = kind.as_pointer()
    name = f"llvm.masked.load.{_suffix(kind)}.p0"
    known = declare(builder.module, name, kind, [pointer_type, I32, mask.type, kind])
    return builder.call(known, [pointer, ir.Constant(I32, size), mask, ir.Constant(kind, None)])


def write(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None = None) -> None:
    """A vector into memory; lanes out of the mask leave it as it is."""
    kind = value.type
    size = item_bytes(kind)
    if mask is None:
        builder.store(value, pointer, align=size)
        return
    name = f"llvm.masked.store.{_suffix(kind)}.p0"
    known = declare(builder.module, name, ir.VoidType(), [kind, kind.as_pointer(), I32, mask.type])
    builder.call(known, [value, pointer, ir.Constant(I32, size), mask])


def item_bytes(kind: ir.VectorType) -> int:
    return 4 if str(kind.element) == "float" else 8


def data(context: Any, builder: ir.IRBuilder, view: View, value: ir.Value) -> ir.Value:
    return cgutils.create_struct_proxy(view)(context, builder, value).data
