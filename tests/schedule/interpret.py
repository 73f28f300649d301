"""A program run as it stands, loop by loop in Python: what the laws compare with the reference.

Unwritten memory is NaN (or a far integer), so that what is read before it is written shows. Blocks may run in any
order: `blocks` says in which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import sympy as sp

from chainrule.ir.expression import dim_symbol, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Program, Range, Statement
from chainrule.ir.value import value

TYPES = {DType.FLOAT: np.float64, DType.INT: np.int64, DType.BOOL: np.bool_}
FAR = -(10**12)


def interpret(
    program: Program,
    values: Mapping[str, Any],
    sizes: Mapping[str, int],
    blocks: Callable[[range], Iterable[int]] = iter,
) -> dict[str, np.ndarray]:
    """The outputs by name, and the stores as they are after the step. values: of inputs, params, states, scalars,
    and of random buffers."""
    known: dict[sp.Basic, Any] = {dim_symbol(name): size for name, size in sizes.items()}
    for dim in program.dims:
        if dim.definition is not None:
            known[dim_symbol(dim.name)] = int(value(dim.definition, known))
    memory: dict[str, np.ndarray] = {}
    starts = dict(program.values)
    for buffer in program.buffers:
        memory[buffer.name] = unwritten(buffer, known)
        if buffer.name in values:
            memory[buffer.name][...] = values[buffer.name]
        elif buffer.name in starts:
            memory[buffer.name][...] = starts[buffer.name]
    for kernel in program.kernels:
        if value(kernel.when, known) > 0 and not value(kernel.unless, known) > 0:
            run(kernel, memory, known, blocks)
    stores = [b.name for b in program.buffers if b.space in ("param", "state")]
    return {name: memory[name] for name in stores} | {name: memory[of].copy() for name, of in program.outputs}


def unwritten(buffer: Buffer, known: Mapping[sp.Basic, Any]) -> np.ndarray:
    shape = tuple(int(value(e, known)) for e in buffer.shape)
    array = np.empty(shape, TYPES[buffer.dtype])
    array[...] = {DType.FLOAT: np.nan, DType.INT: FAR, DType.BOOL: False}[buffer.dtype]
    return array


def run(kernel: Kernel, memory: dict[str, np.ndarray], known: Mapping[sp.Basic, Any], blocks: Any) -> None:
    if kernel.block is None:
        here = {**memory, **{b.name: unwritten(b, known) for b in kernel.locals}}
        walk(kernel.body, here, dict(known))
        return
    b = kernel.block
    extent = int(value(b.extent, known))
    for number in blocks(range(-(-extent // b.size))):
        here = {**memory, **{local.name: unwritten(local, known) for local in kernel.locals}}
        first = number * b.size
        names = {b.number: number, b.first: first, b.last: min(first + b.size, extent)}
        walk(kernel.body, here, {**known, **names})


def walk(body: Iterable[Leaf], memory: dict[str, np.ndarray], names: dict[sp.Basic, Any]) -> None:
    for node in body:
        match node:
            case Loop():
                for i in points(node.range, names):
                    inside = {**names, node.range.symbol: i}
                    if node.until is not None and read(node.until, memory, inside) > 0:
                        break
                    walk(node.body, memory, inside)
            case Statement():
                statement(node, memory, dict(names))
            case Product():
                product(node, memory, names)


def points(r: Range, names: Mapping[sp.Basic, Any]) -> range:
    return range(int(value(r.start, names)), int(value(r.stop, names)))


def read(access: Access, memory: Mapping[str, np.ndarray], names: Mapping[sp.Basic, Any]) -> Any:
    array = memory[access.tensor]
    place = tuple(int(value(i, names)) for i in access.indices)
    if all(0 <= i < n for i, n in zip(place, array.shape, strict=True)):
        return array[place].item()
    if access.outside is None:
        raise IndexError(f"{access} at {place} leaves {array.shape}")
    return value(access.outside, names)


def write(access: Access, x: Any, memory: Mapping[str, np.ndarray], names: Mapping[sp.Basic, Any]) -> None:
    array = memory[access.tensor]
    place = tuple(int(value(i, names)) for i in access.indices)
    if not all(0 <= i < n for i, n in zip(place, array.shape, strict=True)):
        raise IndexError(f"{access} at {place} leaves {array.shape}")
    array[place] = x


def statement(s: Statement, memory: dict[str, np.ndarray], names: dict[sp.Basic, Any]) -> None:
    waiting = dict(enumerate(s.reads))

    def holds(c: sp.Basic) -> bool:
        for symbol in c.free_symbols:
            fetch(symbol)
        return bool(value(c, names))

    def fetch(symbol: sp.Basic) -> None:
        if symbol in names or not symbol.name[1:].isdigit():
            return
        k = int(symbol.name[1:])
        access = waiting.pop(k)
        for inner in access.slots:
            fetch(inner)
        names[slot(k)] = names[slot(k, DType.INT.sort)] = read(access, memory, names)

    if not all(holds(c) for c in s.where):
        return
    places = [p for p in (*s.target.indices, s.place) if p is not None]
    for symbol in set().union(s.value.free_symbols, *(p.free_symbols for p in places)):
        fetch(symbol)
    x = value(s.value, names)
    if s.reduce is Reduce.ARGMAX:
        greatest = Access(s.companion, s.target.indices)
        old = read(greatest, memory, names)
        if x > old or (math.isnan(x) and not math.isnan(old)):
            write(greatest, x, memory, names)
            write(s.target, value(s.place, names), memory, names)
        return
    if s.reduce is not None:
        old = read(s.target, memory, names)
        joined = {Reduce.SUM: np.add, Reduce.PROD: np.multiply, Reduce.MAX: np.maximum, Reduce.MIN: np.minimum}
        x = joined[s.reduce](old, x)
    write(s.target, x, memory, names)


def product(p: Product, memory: dict[str, np.ndarray], names: dict[sp.Basic, Any]) -> None:
    def over(ranges: tuple[Range, ...], names: dict[sp.Basic, Any]) -> Iterable[dict[sp.Basic, Any]]:
        if not ranges:
            yield names
            return
        for i in points(ranges[0], names):
            yield from over(ranges[1:], {**names, ranges[0].symbol: i})

    scale = value(p.scale, names)
    for at in over((*p.batch, *p.rows, *p.columns), dict(names)):
        needed = (n for n in over(p.inner, at) if all(value(c, n) for c in p.where))
        total = sum(read(p.left, memory, n) * read(p.right, memory, n) for n in needed)
        old = read(p.target, memory, at) if p.accumulate else 0.0
        write(p.target, old + scale * total, memory, at)
