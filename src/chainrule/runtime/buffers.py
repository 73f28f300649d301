"""Sizes and places: the inputs' shapes bind the dims, and each temporary gets its bytes in one arena.

A new batch size evaluates polynomials and packs intervals; nothing is compiled.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.executable import Buffer, Dim, Executable, Polynomial, derived_sizes, evaluate

LINE = 64  # bytes: every buffer starts on a cache line, which is also the widest vector
ELEMENTS = {name: np.dtype(name) for name in ("float32", "float64", "int64", "bool")}
IN_ARENA = ("arena", "input")

Shape = tuple[int, ...]


LENT = 1 << 12  # bytes from which a result is not copied out of the arena: kernels write it where it stays


class Plan(msgspec.Struct, frozen=True):
    """An executable's sizes, bound: of dims, and by buffer its shape, bytes and arena offset (None: elsewhere).

    kept: the bytes that are kept between launches, at most; the arena holds them, what is fed, and gaps.
    """

    sizes: Mapping[str, int]
    shapes: tuple[Shape, ...]
    bytes: tuple[int, ...]
    offsets: tuple[int | None, ...]
    arena: int
    kept: int


class Interval(msgspec.Struct, frozen=True):
    """A block of the arena that is wanted: so many bytes from launch `first` to launch `last`, both included."""

    bytes: int
    first: int
    last: int


def bind(executable: Executable, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The size of every dim, from the shapes of all inputs. Raises ChainruleError where they do not fit."""
    declared = {item.name: executable.buffers[item.buffer].shape for item in executable.inputs}
    free = {dim.name: dim for dim in executable.dims if dim.numerator is None}
    sizes = {name: dim.minimum for name, dim in free.items() if dim.minimum == dim.maximum}
    bound_by: dict[str, str] = {}
    for name, axes in declared.items():
        _check_rank(name, axes, shapes[name])
        for extent, axis in zip(shapes[name], axes, strict=True):
            symbol = _plain(axis)
            if symbol in free and symbol not in sizes:
                sizes[symbol], bound_by[symbol] = extent, name
    for name, axes in declared.items():
        for extent, axis in zip(shapes[name], axes, strict=True):
            _solve(axis, extent, free, sizes)
    for name, dim in free.items():
        if name not in sizes:
            raise ChainruleError(
                f"the size of {name} follows from no input of {executable.name}"
                f"\n  Way out: declare an input with an axis [{name}], or give {name} a fixed size"
            )
        _check_range(dim, sizes[name], bound_by.get(name))
    sizes = derived_sizes(executable.dims, sizes)
    for name, axes in declared.items():
        expected = tuple(evaluate(axis, sizes) for axis in axes)
        if expected != shapes[name]:
            raise ChainruleError(_disagreement(name, axes, shapes, expected, sizes, bound_by))
    return sizes


def plan(executable: Executable, sizes: Mapping[str, int], alignment: int = LINE) -> Plan:
    """Shapes, bytes and arena offsets, on multiples of `alignment`, of all buffers for these sizes."""
    shapes = tuple(tuple(evaluate(axis, sizes) for axis in buffer.shape) for buffer in executable.buffers)
    counts = tuple(
        math.prod(shape) * ELEMENTS[buffer.element].itemsize
        for shape, buffer in zip(shapes, executable.buffers, strict=True)
    )
    end = max(len(executable.launches) - 1, 0)
    results = [output.buffer for output in executable.outputs]
    inside = {k for k, buffer in enumerate(executable.buffers) if buffer.space in IN_ARENA}
    inside -= {k for k in results if is_lent(executable.buffers[k], counts[k]) and results.count(k) == 1}
    wanted = {
        k: Interval(counts[k], 0, end)
        if (buffer := executable.buffers[k]).space == "input"  # fed before the step, perhaps for several steps
        else Interval(counts[k], buffer.first, end if k in results else buffer.last)
        for k in sorted(inside)
    }
    places, arena = pack(list(wanted.values()), alignment)
    offsets = dict(zip(wanted, places, strict=True))
    kept = kept_bytes(executable, counts)
    if executable.memory is not None and kept > executable.memory:
        told = ", ".join(f"{dim.name} = {sizes[dim.name]}" for dim in executable.dims if dim.numerator is None)
        raise ChainruleError(
            f"a step of {executable.name} with {told} keeps {kept:,} bytes between its kernels, "
            f"and may keep {executable.memory:,}\n  Way out: compile it with these sizes, or give it a smaller batch"
        )
    return Plan(dict(sizes), shapes, counts, tuple(offsets.get(k) for k in range(len(shapes))), arena, kept)


def kept_bytes(executable: Executable, counts: Sequence[int]) -> int:
    """The bytes of all that is kept between launches, during the launch where that is most."""
    changes = np.zeros(len(executable.launches) + 1, np.int64)
    for buffer, count in zip(executable.buffers, counts, strict=True):
        if buffer.space == "arena":
            changes[buffer.first] += count
            changes[buffer.last + 1] -= count
    return int(changes.cumsum().max())


def is_lent(buffer: Buffer, count: int) -> bool:
    """Whether a result in this buffer of `count` bytes is written where the caller keeps it."""
    return buffer.space == "arena" and count >= LENT


def pack(wanted: Sequence[Interval], alignment: int = LINE) -> tuple[list[int], int]:
    """Offsets for `wanted` in one block, on multiples of `alignment`, and the block's bytes.

    Greedy best fit: the largest first, each into the smallest gap between those that live at the same time.
    """
    offsets = [0] * len(wanted)
    placed = np.empty((4, len(wanted)), np.int64)  # start, end, first, last of each, in order of their starts
    count = top = 0
    for k in sorted(range(len(wanted)), key=lambda k: (-wanted[k].bytes, wanted[k].first, k)):
        item = wanted[k]
        size = -(-item.bytes // alignment) * alignment
        if size == 0:
            continue
        starts, ends, firsts, lasts = placed[:, :count]
        lives = (lasts >= item.first) & (firsts <= item.last)
        before = np.maximum.accumulate(np.append(0, ends[lives]))  # where what lies below each of them ends
        gaps = starts[lives] - before[:-1]
        fits = np.flatnonzero(gaps >= size)
        start = int(before[fits[gaps[fits].argmin()]] if fits.size else before[-1])
        offsets[k], top = start, max(top, start + size)
        count = _insert(placed, count, (start, start + size, item.first, item.last))
    return offsets, top


def _insert(placed: NDArray[np.int64], count: int, item: tuple[int, int, int, int]) -> int:
    """Put `item` among the first `count` columns, in order of their starts; how many there are then."""
    at = int(placed[0, :count].searchsorted(item[0], side="right"))
    placed[:, at + 1 : count + 1] = placed[:, at:count].copy()
    placed[:, at] = item
    return count + 1


HUGE = 1 << 21
LARGE = 1 << 18  # bytes from which a block is worth huge pages


def aligned(count: int) -> NDArray[np.uint8]:
    """`count` bytes, zero, that start on a cache line; large blocks on a huge page, where the system has them."""
    if count >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        return _on_huge_pages(count)
    block = np.zeros(count + LINE, np.uint8)
    start = -address(block) % LINE
    return block[start : start + count]


def _on_huge_pages(count: int) -> NDArray[np.uint8]:
    """A matrix whose rows lie on a page each exhausts the table of 4 KB pages that a core has at hand."""
    size = -(-count // HUGE) * HUGE
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = np.frombuffer(memory, np.uint8)
    start = -address(block) % HUGE
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE, start, size)
    return block[start : start + count]


def address(array: NDArray[np.generic]) -> int:
    """Where the elements of `array` start in memory."""
    return int(array.__array_interface__["data"][0])


def polynomial_text(polynomial: Polynomial) -> str:
    """``4*batch*width + 3``."""
    terms = []
    for coefficient, names in polynomial:
        number = f"{coefficient:g}"
        terms.append("*".join((number, *names) if coefficient != 1 or not names else names))
    return " + ".join(terms) or "0"


def shape_text(axes: Sequence[Polynomial]) -> str:
    """``[batch, 64]``."""
    return f"[{', '.join(polynomial_text(axis) for axis in axes)}]"


def _plain(axis: Polynomial) -> str | None:
    """The dim that `axis` is, if it is one."""
    return axis[0][1][0] if len(axis) == 1 and axis[0][0] == 1 and len(axis[0][1]) == 1 else None


def _solve(axis: Polynomial, extent: int, free: Mapping[str, Dim], sizes: dict[str, int]) -> None:
    """Bind the one unknown dim of ``c*dim + rest = extent``; what does not fit is found when extents are compared."""
    unknown = [term for term in axis if not all(name in sizes for name in term[1])]
    if len(unknown) == 1 and len(unknown[0][1]) == 1 and unknown[0][1][0] in free and unknown[0][0]:
        coefficient, (name,) = unknown[0]
        rest = tuple(term for term in axis if term is not unknown[0])
        sizes[name] = int((extent - evaluate(rest, sizes)) // coefficient)


def _check_rank(name: str, axes: Sequence[Polynomial], shape: Shape) -> None:
    if len(axes) != len(shape):
        raise ChainruleError(
            f"input {name} has {len(shape)} axes, {len(axes)} are declared"
            f"\n  given: shape {shape}\n  declared: {name}{shape_text(axes)}"
            f"\n  Way out: pass {name} with the shape {shape_text(axes)}"
        )


def _check_range(dim: Dim, size: int, source: str | None) -> None:
    if size < dim.minimum or (dim.maximum is not None and size > dim.maximum):
        most = "" if dim.maximum is None else f" and <= {dim.maximum}"
        raise ChainruleError(
            f"{dim.name} is {size}, declared >= {dim.minimum}{most}"
            + (f"\n  it follows from the shape of input {source}" if source else "")
            + f"\n  Way out: pass fewer or more along {dim.name}, or change its declaration"
        )


def _disagreement(
    name: str,
    axes: Sequence[Polynomial],
    shapes: Mapping[str, Shape],
    expected: Shape,
    sizes: Mapping[str, int],
    bound_by: Mapping[str, str],
) -> str:
    """What is wrong with the shape of input `name`, and which input says otherwise."""
    used = sorted({dim for axis in axes for _, names in axis for dim in names})
    facts = [f"  given: {name} has shape {shapes[name]}", f"  declared: {name}{shape_text(axes)}, which is {expected}"]
    for dim in used:
        source = bound_by.get(dim)
        other = f", from input {source} of shape {shapes[source]}" if source and source != name else ""
        facts.append(f"  {dim} = {sizes[dim]}{other}")
    return "\n".join(
        (
            f"input {name} has the wrong shape",
            *facts,
            f"  Way out: pass {name} with shape {expected}, or fit the others",
        )
    )
