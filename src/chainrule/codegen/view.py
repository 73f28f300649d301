"""Views: what a kernel's parameters are, a pointer and extents, so that its source says ``h[n, j]``.

A view is C-contiguous, starts on 64 bytes, counts no references, checks no bounds and knows no negative index.
Extents that are known when the kernel is compiled belong to its type, so LLVM sees constant strides. Different
views never overlap (`objects` marks them noalias): a buffer that a kernel reads and writes is one view.
In plain Python a NumPy array stands in for a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default

from chainrule.codegen.lowering import Vector

I64 = ir.IntType(64)

ELEMENTS: dict[str, Any] = {
    "float32": types.float32,
    "float64": types.float64,
    "int64": types.int64,
    "bool": types.boolean,
}


class View(types.Type):
    """An array of `element`; an extent is None where it is known at run time only."""

    def __init__(self, element: types.Type, extents: tuple[int | None, ...]) -> None:
        self.element, self.extents = element, extents
        super().__init__(name=f"View({element}, {extents})")


@register_default(View)
class ViewModel(models.StructModel):
    """The address, then each extent known at run time only; the first axis's is never needed."""

    def __init__(self, manager: Any, view: View) -> None:
        extents = [(f"n{k}", types.int64) for k, n in enumerate(view.extents) if k and n is None]
        super().__init__(manager, view, [("data", types.CPointer(view.element)), *extents])  # type: ignore[attr-defined]


@register_default(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is a value of LLVM's own vector type; a condition per lane is a bit."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        element = ir.IntType(1) if vector.element is types.boolean else manager[vector.element].get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


def indices(context: Any, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> list[ir.Value]:
    """The parts of an index, a tuple or one integer, as int64."""
    if not isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
        return [context.cast(builder, value, kind, types.int64)]
    parts = zip(cgutils.unpack_tuple(builder, value), kind.types, strict=True)
    return [context.cast(builder, part, of, types.int64) for part, of in parts]


def element_pointer(
    context: Any, builder: ir.IRBuilder, view: View, value: ir.Value, index: types.Type, at: ir.Value
) -> ir.Value:
    """The address of ``view[index]`` for an index that is a value: a tuple, or one integer."""
    whole = isinstance(index, types.BaseTuple)  # type: ignore[attr-defined]
    return element_at(builder, view, value, indices(context, builder, index, at), whole)


def element_at(builder: ir.IRBuilder, view: View, value: ir.Value, places: Sequence[ir.Value], whole: bool) -> ir.Value:
    """The address of an element, row-major: ``((i0 n1 + i1) n2 + i2) ...``.

    whole: there is a place for each axis; else the one place is a flat position.
    """
    if whole and len(places) != len(view.extents):
        raise TypeError(f"{view} has {len(view.extents)} axes and is read at {len(places)} indices")
    flat = places[0] if places else ir.Constant(I64, 0)
    parts = 1  # of the view's value: the address, then each extent known at run time only
    for extent, place in zip(view.extents[1:], places[1:], strict=False):
        n = ir.Constant(I64, extent) if extent is not None else builder.extract_value(value, parts)
        parts += extent is None
        flat = builder.add(builder.mul(flat, n, flags=("nsw",)), place, flags=("nsw",))
    return builder.gep(builder.extract_value(value, 0), [flat], inbounds=True)


def flat_position(view: np.ndarray[Any, Any], index: int | tuple[int, ...]) -> int:
    """The flat position of an index in a C-contiguous array: the plain-Python side of `element_pointer`."""
    if not isinstance(index, tuple):
        return int(index)
    position = 0
    for extent, place in zip(view.shape, index, strict=True):
        position = position * extent + int(place)
    return position
