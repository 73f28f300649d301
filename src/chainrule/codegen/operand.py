"""What a product's printer works with: extents and operands as source, the shape, the way that was chosen, the leaf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Method = Literal["direct", "tile", "blas"]

EPILOGUE = "<epilogue>"
"""The line where a panel's results are done: what follows the product there, while they are in the cache."""


@dataclass(frozen=True)
class Extent:
    """A loop of the leaf, ``for name in range(start, stop)``, as source; a number where it is known.

    even: what the number of its indices is a multiple of.
    """

    name: str
    start: str
    stop: str
    even: int = 1

    @property
    def known(self) -> int | None:
        """How many indices there are, if that is known now."""
        digits = self.start.isdigit() and self.stop.isdigit()
        return max(int(self.stop) - int(self.start), 0) if digits else None

    def is_whole(self, size: int) -> bool:
        """Whether its indices are surely whole runs of `size`."""
        return (self.even if self.known is None else self.known) % size == 0


@dataclass(frozen=True)
class Operand:
    """An operand: the element of row r and column c lies at ``offset + r row + c column`` of the flattened `view`.

    All are source; `offset` may mention the inner loops' names and what is open around the leaf, never rows and
    columns. `left` has column "0", `right` row "0".
    """

    view: str
    offset: str
    row: str
    column: str
    inner: tuple[str, ...] = ()  # what offset moves by with each inner range, where that is a plain stride


@dataclass(frozen=True)
class Shape:
    """What the choice depends on; None: known at run time only. `typical_rows`: a block's usual number of rows."""

    rows: int | None
    columns: int | None
    inner: int | None
    typical_rows: int = 32


@dataclass(frozen=True)
class Way:
    """How a product is computed. panel: the shape of the scratch array that `right` is packed into, or None.

    The panel's first extent is None where the number of inner indices is known at run time only. depth: so many inner
    indices are summed at a time, or None: all. strip: `left` is packed as well, all rows of so many inner indices.
    """

    method: Method
    rows: int = 1
    vectors: int = 1
    lanes: int = 1
    panel: tuple[int | None, int] | None = None
    depth: int | None = None
    strip: bool = False


Index = Literal["row", "column", "inner"]


@dataclass(frozen=True)
class Bound:
    """``low <= high + shift``: what a tile may leave out is where this does not hold."""

    low: Index
    high: Index
    shift: str


@dataclass(frozen=True)
class Leaf:
    """A product to print; of a part of the inner indices where `around` is the whole range."""

    way: Way
    target: Operand
    left: Operand
    right: Operand
    rows: Extent
    columns: Extent
    inner: tuple[Extent, ...]
    scale: str
    accumulate: bool
    prefix: str
    panel: str
    strip: str = ""
    around: Extent | None = None
    bounds: tuple[Bound, ...] = ()

    def name(self, of: str) -> str:
        return f"{self.prefix}_{of}"

    @property
    def width(self) -> int:
        return self.way.lanes * self.way.vectors

    @property
    def is_plain(self) -> bool:
        """Whether the sums are the result: they are not scaled."""
        return self.scale in ("1.0", "float32(1.0)")


# Source.


def indent(lines: Iterable[str], depth: int = 1) -> Iterator[str]:
    return ("    " * depth + line for line in lines)


def times(index: str, stride: str) -> str:
    if stride == "1":
        return index
    if index.isdigit() and stride.isdigit():
        return str(int(index) * int(stride))
    return f"{atom(index)} * {atom(stride)}"


def atom(text: str) -> str:
    return text if text.replace("_", "").isalnum() else f"({text})"


def plus(*terms: str) -> str:
    return " + ".join(term for term in terms if term != "0") or "0"


def minus(a: str, b: str) -> str:
    return a if b == "0" else f"{a} - {atom(b)}"


def place(operand: Operand, row: str, column: str) -> str:
    """The flat position of an element."""
    parts = [times(i, s) for i, s in ((row, operand.row), (column, operand.column)) if s != "0"]
    return plus(operand.offset, *parts)


def wholes(leaf: Leaf, extent: Extent, size: int, name: str) -> tuple[list[str], str]:
    """Where the last whole run of `size` indices ends: lines that compute it, and its source."""
    if extent.known is not None:
        return [], str(int(extent.start) + extent.known // size * size)
    if extent.is_whole(size):
        return [], extent.stop
    end = leaf.name(name)
    return [f"{end} = {plus(extent.start, f'max({minus(extent.stop, extent.start)}, 0) // {size} * {size}')}"], end


def inner_loops(leaf: Leaf, body: list[str]) -> Iterator[str]:
    for depth, extent in enumerate(leaf.inner):
        yield "    " * depth + f"for {extent.name} in range({extent.start}, {extent.stop}):"
    yield from indent(body, len(leaf.inner))
