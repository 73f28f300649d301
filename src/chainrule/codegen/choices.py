"""The way of each product: what the table of measured choices says, else what the cost model does (`product.choose`).

A case is a product as the choice sees it. Of one case several ways are right, and give the same sums in another order
at most; `candidates` are those worth measuring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from chainrule.choices import Choice, Choices
from chainrule.codegen.operand import Operand, Shape, Way
from chainrule.codegen.product import choose, is_matrix
from chainrule.codegen.target import Target

UNROLLED = 1 << 14  # multiplications: above, nobody measures plain loops
DEPTHS = (128, 256, 512)


@dataclass(frozen=True)
class Case:
    """``into (+)= left right``. loops: whether plain loops and OpenBLAS are right too: no range was clipped for it."""

    shape: Shape
    element: str
    left: Operand
    right: Operand
    into: Operand
    accumulate: bool = False
    loops: bool = True

    @property
    def key(self) -> str:
        """Its canonical form, ``float32 64x256x784 784,1 256,1 256``: extents, then the strides of left, right, into.

        Of the operands the strides along inner indices stand last and first: as a matrix's strides would.
        """
        rows = f"~{self.shape.typical_rows}" if self.shape.rows is None else str(self.shape.rows)
        extents = "x".join((rows, *("?" if n is None else str(n) for n in (self.shape.columns, self.shape.inner))))
        left, right = (self.left.row, *self.left.inner), (*self.right.inner, self.right.column)
        strides = [",".join(s if s.isdigit() else "?" for s in part) for part in (left, right, (self.into.row,))]
        return " ".join((self.element, extents, *strides, *(["added"] if self.accumulate else [])))

    @property
    def multiplications(self) -> int:
        """How many, of an unknown size as many as it usually has."""
        s = self.shape
        return (s.rows or s.typical_rows) * (s.columns or 256) * (s.inner or 256)


def by_cost(case: Case, target: Target) -> Way:
    """What the cost model chooses."""
    return choose(
        case.shape, case.element, target, case.left, case.right, case.into, accumulate=case.accumulate
    )  # fmt: skip


def way_of(case: Case, target: Target, choices: Choices) -> Way:
    """What was measured to be best, where that is a way of this case; else what the cost model chooses."""
    chosen = choices.get(case.key)
    return (chosen and made(case, chosen, target)) or by_cost(case, target)


def choice_of(way: Way) -> Choice:
    """A way as the table has it."""
    if way.method != "tile":
        return Choice(way.method)
    return Choice("tile", way.rows, way.vectors, way.panel is not None, way.strip, way.depth)


def made(case: Case, choice: Choice, target: Target) -> Way | None:
    """`choice` for this case; None where that would be wrong."""
    if choice.method == "direct" or choice.method == "blas":
        plain = is_matrix(case.left, case.left.row) and is_matrix(case.right, case.right.column)
        right = case.loops and (choice.method == "direct" or (plain and case.into.column == "1"))
        return Way(choice.method) if right else None
    wrong = choice.method != "tile" or case.into.column != "1" or (case.right.column != "1" and not choice.packed)
    plain = len(case.left.inner) == len(case.right.inner) == 1 and not case.accumulate
    cut = plain and (choice.packed or choice.strip)
    side = plain and case.left.row == "1" and choice.rows in (1, 2, 4, 8, 16)  # a load takes a power of two
    if wrong or (choice.depth is not None and not cut) or (choice.strip and not side):
        return None
    lanes = target.lanes(case.element)
    panel = (choice.depth or case.shape.inner, lanes * choice.vectors) if choice.packed else None
    return Way("tile", choice.rows, choice.vectors, lanes, panel, choice.depth, choice.strip)


def candidates(case: Case, target: Target, around: Choice) -> tuple[Choice, ...]:
    """Choices that differ from `around` in one thing, all of them right for this case, and `around` first."""
    found = dict.fromkeys((around, *_others(case, target, around)))
    return tuple(choice for choice in found if choice == around or made(case, choice, target) is not None)


def _others(case: Case, target: Target, around: Choice) -> Iterator[Choice]:
    tile = around if around.method == "tile" else _first_tile(case, target)
    for vectors in range(1, target.widest + 2):
        most = min(target.tallest(vectors), 16)
        if (vectors - 1) * target.lanes(case.element) < (case.shape.columns or 256):
            for rows in (most, min(8, most), min(case.shape.rows or most, most)):
                yield Choice("tile", rows, vectors, tile.packed, tile.strip, tile.depth)
    yield tile
    depths = [None, *(depth for depth in DEPTHS if depth < (case.shape.inner or depth + 1))]
    for packed, strip in ((tile.packed, tile.strip), (not tile.packed, tile.strip), (tile.packed, not tile.strip)):
        for depth in depths if packed or strip else (None,):
            yield Choice("tile", tile.rows, tile.vectors, packed, strip, depth)
    yield Choice("blas")
    if case.multiplications <= UNROLLED:
        yield Choice("direct")


def _first_tile(case: Case, target: Target) -> Choice:
    """The cost model's tile, as if the product were of a size that deserves one."""
    grown = replace(case, shape=Shape(case.shape.rows, case.shape.columns, None, case.shape.typical_rows))
    way = by_cost(grown, target)
    usual = Choice("tile", min(8, target.tallest(2)), 2, packed=case.right.column != "1")
    return choice_of(way) if way.method == "tile" else usual
