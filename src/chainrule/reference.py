"""The oracle: every tensor of a graph, formula by formula, in float64 over NumPy index grids.

No fusion, no index algebra, no scheduling: a formula is computed at every point of the box that its indices span, as
its definition says. Every later stage, and `chainrule check`, is compared with this; plain loops check it in turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp

from chainrule.errors import ChainruleError
from chainrule.ir.expression import TRAINING, dim_symbol, is_slot, slot
from chainrule.ir.formula import Access, DType, Extent, Formula, Reduce
from chainrule.ir.graph import Graph
from chainrule.ir.primitive import Primitive, hash_of
from chainrule.ir.value import value
from chainrule.philox import uniforms

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]
GRID = 1 << 22  # points computed at once: 32 MB a temporary


def evaluate(
    graph: Graph,
    values: Mapping[str, Any],
    *,
    training: bool = True,
    seed: int = 0,
    step: int = 1,
    dtype: type[np.floating[Any]] = np.float64,
) -> dict[str, Array]:
    """Every tensor of `graph` by name: those given, and those that its nodes compute.

    values: inputs and parameters, states and scalars where they differ from their start. Dims are bound by the
    inputs' shapes. Updates change nothing here: the new value of a store is the tensor `update.value`, and
    `updated` collects them. Raises ChainruleError for a missing tensor or a wrong shape.
    """
    sizes = sizes_of(graph, {name: np.shape(v) for name, v in values.items()})
    result = given(graph, values, sizes, step, dtype)
    for nodes in graph.components:
        first = nodes[0]
        fixed = [node for node in nodes if isinstance(node, Primitive) and node.kind == "fixed_point"]
        if fixed:
            formulas = [node for node in nodes if isinstance(node, Formula)]
            result |= evaluate_fixed_point(fixed[0], formulas, result, sizes, training=training, dtype=dtype)
        elif isinstance(first, Primitive):
            result[first.out] = evaluate_primitive(first, values, sizes, seed, step, dtype)
        elif not graph.is_recurrent(first.out):
            result[first.out] = evaluate_formula(first, result, sizes, training=training, dtype=dtype)
        else:
            formulas = [node for node in nodes if isinstance(node, Formula)]
            result |= evaluate_recurrence(formulas, result, sizes, training=training, dtype=dtype)
    return result


def evaluate_recurrence(
    formulas: Sequence[Formula],
    values: Mapping[str, Array],
    sizes: Sizes,
    *,
    training: bool = True,
    dtype: type[np.floating[Any]] = np.float64,
) -> dict[str, Array]:
    """The tensors that read each other at earlier places, by sweeps over all of them until none changes.

    Each sweep makes at least one more place right for good, so no more are needed than there are places; and nothing
    is asked about the way in which the recurrence runs. Raises ChainruleError if it has no end: a circle of reads.
    """
    found = {f.out: np.zeros(shape_of(f.shape, sizes), numpy_dtype(f.dtype, dtype)) for f in formulas}
    for _ in range(2 + sum(array.size for array in found.values())):
        before = dict(found)
        with np.errstate(all="ignore"):  # what is not right yet may be anything
            for f in formulas:
                found[f.out] = evaluate_formula(f, {**values, **found}, sizes, training=training, dtype=dtype)
        if all(np.array_equal(before[name], found[name], equal_nan=True) for name in found):
            return found
    raise ChainruleError(f"{', '.join(found)} read each other in a circle that has no start")


def evaluate_fixed_point(
    z: Primitive,
    formulas: Sequence[Formula],
    values: Mapping[str, Array],
    sizes: Sizes,
    *,
    training: bool = True,
    dtype: type[np.floating[Any]] = np.float64,
) -> dict[str, Array]:
    """The tensors of a circle through the fixed point `z`, by doing it again and again under its limits."""
    known = {**values, z.out: np.full(shape_of(z.shape, sizes), z.start, numpy_dtype(z.dtype, dtype))}

    def once() -> Array:
        left = list(formulas)
        while left:  # each when all that it reads is new
            waiting = {f.out for f in left}
            f = next(f for f in left if waiting.isdisjoint(f.tensors))
            known[f.out] = evaluate_formula(f, known, sizes, training=training, dtype=dtype)
            left.remove(f)
        return known[z.reads[0]]

    for _ in range(z.steps):
        before, known[z.out] = known[z.out], once()
        change, size = (np.max(np.abs(a), initial=0) for a in (known[z.out] - before, known[z.out]))
        if change <= z.within * (1 + size):
            break
    once()
    return {name: known[name] for name in (z.out, *(f.out for f in formulas))}


def updated(graph: Graph, result: Mapping[str, Array]) -> dict[str, Array]:
    """What the stores (states, and parameters of an optimizer) hold after the step that gave `result`."""
    return {update.store: result[update.value] for update in graph.updates}


def sizes_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The dims of `graph` by the shapes of its inputs, derived ones by their definitions."""
    sizes: dict[str, int] = {}
    stored = (*(p.tensor for p in graph.params), *(s.tensor for s in graph.states))
    for tensor in (*graph.inputs, *stored):
        for extent, size in zip(tensor.shape, shapes.get(tensor.name, ()), strict=False):
            if extent.is_Symbol:
                sizes.setdefault(extent.name, size)
    for dim in graph.dims:
        if dim.definition is not None:
            sizes[dim.name] = exact(value(dim.definition, {dim_symbol(n): s for n, s in sizes.items()}), dim.name)
        elif sizes.get(dim.name, dim.minimum) < dim.minimum:
            raise ChainruleError(f"{dim.name} is {sizes[dim.name]}, and must be at least {dim.minimum}")
    return sizes


def exact(size: Any, name: str) -> int:
    if size != int(size) or size < 0:
        raise ChainruleError(f"{name} comes out as {size}: a size is a whole number, at least 0")
    return int(size)


def given(graph: Graph, values: Mapping[str, Any], sizes: Sizes, step: int, dtype: Any) -> dict[str, Array]:
    """Inputs, params, states and scalars as arrays of their dtype and shape."""
    result = {s.name: np.asarray(values.get(s.name, s.default), dtype) for s in graph.scalars}
    if "step" in result:
        result["step"] = np.asarray(step, dtype)
    starts: dict[str, Any] = {s.tensor.name: s.value for s in graph.states}
    for tensor in (*graph.inputs, *(p.tensor for p in graph.params), *(s.tensor for s in graph.states)):
        if tensor.name not in values and tensor.name not in starts:
            extents = ", ".join(str(e) for e in tensor.shape)
            raise ChainruleError(f"{tensor.name} has no value: give an array of shape [{extents}]")
        shape = shape_of(tensor.shape, sizes)
        array = np.asarray(values[tensor.name] if tensor.name in values else np.full(shape, starts[tensor.name]))
        if array.shape != shape:
            raise ChainruleError(f"{tensor.name} has shape {array.shape}, and must have {shape}")
        result[tensor.name] = array.astype(numpy_dtype(tensor.dtype, dtype))
    return result


def shape_of(shape: tuple[Extent, ...], sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[e.name] if e.is_Symbol else int(e) for e in shape)


def numpy_dtype(dtype: DType, real: Any) -> Any:
    return {DType.FLOAT: real, DType.INT: np.int64, DType.BOOL: np.bool_}[dtype]


def evaluate_primitive(
    node: Primitive, values: Mapping[str, Any], sizes: Sizes, seed: int, step: int, dtype: Any
) -> Array:
    """A draw: what `values` say, else element k, in the order of rows, of the stream (seed, the node's key, step)."""
    if node.out in values:
        return np.asarray(values[node.out], dtype)
    shape = shape_of(node.shape, sizes)
    drawn = uniforms(seed, hash_of(node.key), step, np.arange(math.prod(shape)))
    return drawn.reshape(shape).astype(dtype)


def evaluate_formula(
    f: Formula,
    values: Mapping[str, Array],
    sizes: Sizes,
    *,
    training: bool = True,
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """``out[axes] = reduce[over where ...] body`` at every point of the box of its indices.

    values: the tensors read. Raises IndexError where an unguarded read leaves its tensor under the conditions.
    """
    shape = shape_of(f.shape, sizes)
    result = np.empty(shape, numpy_dtype(f.dtype, dtype))
    for block in blocks(shape, math.prod(shape_of(tuple(r.extent for r in f.over), sizes))):
        result[block] = Box(f, values, sizes, training, dtype, block).reduced()
    return result


def blocks(shape: tuple[int, ...], reduced: int) -> Iterator[tuple[slice, ...]]:
    """`shape` in slices along its first axis, each of about GRID points."""
    if not shape:
        yield ()
        return
    rows = max(1, GRID // max(1, reduced * math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


class Box:
    """One formula on a box of index values: each index is an array along an axis of its own."""

    def __init__(
        self,
        f: Formula,
        values: Mapping[str, Array],
        sizes: Sizes,
        training: bool,
        dtype: Any,
        block: tuple[slice, ...],
    ) -> None:
        self.f, self.tensors, self.dtype = f, values, dtype
        extents = shape_of(tuple(index.extent for index in f.indices), sizes)
        ranges = [np.arange(extent) for extent in extents]
        for k, part in enumerate(block):
            ranges[k] = ranges[k][part]
        self.shape = tuple(len(r) for r in ranges)
        self.full = extents[len(f.axes) :]
        self.symbols: dict[sp.Basic, Any] = {dim_symbol(name): size for name, size in sizes.items()}
        self.symbols[TRAINING] = int(training)
        for k, (index, points) in enumerate(zip(f.indices, ranges, strict=True)):
            self.symbols[index.symbol] = points.reshape((-1,) + (1,) * (len(ranges) - k - 1))
        self.counts = self.where()
        for k in range(len(f.reads)):
            self.read(k, self.counts)

    def where(self) -> Array:
        """Which points count; the reads in a condition are made where those without reads hold."""
        counts: Array = np.ones((), np.bool_)
        for c in sorted(self.f.where, key=lambda c: any(map(is_slot, c.free_symbols))):
            for s in sorted(filter(is_slot, c.free_symbols), key=lambda s: s.name):
                self.read(int(s.name[1:]), counts)
            counts = counts & value(c, self.symbols, self.dtype)
        return counts

    def read(self, k: int, counts: Array) -> None:
        """Give slot k its values, those of the slots inside its indices first."""
        access, sort = self.f.reads[k], slot(k)
        if sort in self.symbols:
            return
        for s in access.slots:
            self.read(int(s.name[1:]), counts)
        # the same read, whatever sympy may assume of it
        self.symbols[sort] = self.symbols[slot(k, DType.INT.sort)] = self.gather(access, counts)

    def gather(self, access: Access, counts: Array) -> Array:
        tensor = self.tensors[access.tensor]
        tensor = tensor.astype(np.int64) if tensor.dtype == np.bool_ else tensor
        places = [np.asarray(value(i, self.symbols, self.dtype)) for i in access.indices]
        inside = np.bool_(True)
        for place, extent in zip(places, tensor.shape, strict=True):
            inside = inside & (place >= 0) & (place < extent)
        if access.outside is None and np.any(counts & ~inside):
            raise IndexError(f"{access.tensor}{list(access.indices)} leaves {tensor.shape} in {self.f.out}")
        if tensor.size == 0:
            found: Array = np.zeros(np.broadcast_shapes(*(p.shape for p in places)), tensor.dtype)
        else:
            clipped = (np.clip(p, 0, n - 1).astype(np.int64) for p, n in zip(places, tensor.shape, strict=True))
            found = tensor[tuple(np.broadcast_arrays(*clipped))] if places else tensor
        outside = 0 if access.outside is None else value(access.outside, self.symbols, self.dtype)
        return np.where(inside, found, outside)

    def reduced(self) -> Array:
        """The body, where it counts, reduced over the last axes."""
        body = np.broadcast_to(value(self.f.body, self.symbols, self.dtype), self.shape)
        counts = np.broadcast_to(self.counts, self.shape)
        last = tuple(range(len(self.f.axes), len(self.shape)))
        match self.f.reduce:
            case Reduce.SUM:
                found = np.sum(np.where(counts, body, 0), axis=last)
            case Reduce.PROD:
                found = np.prod(np.where(counts, body, 1), axis=last)
            case Reduce.MAX:
                found = np.max(np.where(counts, body, least(body)), axis=last, initial=least(body))
            case Reduce.MIN:
                found = -np.max(np.where(counts, -body, least(body)), axis=last, initial=least(body))
            case Reduce.ARGMAX:
                found = self.first_greatest(body, counts)
        return np.asarray(found)

    def first_greatest(self, body: Array, counts: Array) -> Array:
        """The first place, flattened, of a NaN, else of the greatest; of nothing: the number of places."""
        rows = self.shape[: len(self.f.axes)]
        n = math.prod(self.full)
        body, counts = body.reshape(*rows, n), counts.reshape(*rows, n)
        top = np.max(np.where(counts, body, least(body)), axis=-1, initial=least(body), keepdims=True)
        found = counts & ((body == top) | np.isnan(top) & np.isnan(body))
        return np.where(found.any(axis=-1), found.argmax(axis=-1), n) if n else np.full(rows, 0)


def least(body: Array) -> Any:
    """What no value lies below."""
    return -np.inf if body.dtype.kind == "f" else np.iinfo(np.int64).min
