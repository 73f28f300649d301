"""The nouns of the mapping: teams of threads, and a loop tree that says which team runs which turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from chainrule.codegen.cuda.device import THREADS
from chainrule.executable import Precision
from chainrule.ir.formula import Access, Reduce
from chainrule.ir.program import Buffer, Kernel, Loop, Product, Range, Statement, accesses


class Team(IntEnum):
    """Who runs a part of a kernel together."""

    THREAD = 0
    WARP = 1
    BLOCK = 2
    GRID = 3


@dataclass(frozen=True)
class Carried:
    """A reduction whose target stands still while a loop turns; an argmax has its running maximum beside it."""

    target: Access
    reduce: Reduce
    companion: str | None = None


@dataclass(frozen=True)
class Kept:
    """A reduction into an array that turns of a loop share: each member adds to an array of its own, whose places are
    those of `ranges`, and at the end all are added to the target in a fixed order. fresh: nothing was there, so
    the total is stored."""

    target: Access
    reduce: Reduce
    private: str
    ranges: tuple[Range, ...]
    fresh: bool = False


@dataclass(frozen=True)
class Turns:
    """A loop that the whole team runs, turn after turn."""

    loop: Loop
    body: tuple[Mapped, ...]


@dataclass(frozen=True)
class Deal:
    """How turns of a row of a known length are dealt: neighbours, `width` of them, go to each of `threads` in turn."""

    threads: int
    length: int
    width: int

    @property
    def rounds(self) -> int:
        return self.length // (self.threads * self.width)


@dataclass(frozen=True)
class Spread:
    """Loops that nest perfectly, flattened and divided among `members` of `team`, in strides.

    members: the smaller team that each turn belongs to. carried: scalars that turns add to: each member has a part.
    kept: the same of arrays. deal: how turns are dealt, where registers hold what they touch.
    """

    ranges: tuple[Range, ...]
    team: Team
    members: Team
    body: tuple[Mapped, ...]
    carried: tuple[Carried, ...] = ()
    kept: tuple[Kept, ...] = ()
    deal: Deal | None = None


@dataclass(frozen=True)
class Tiled:
    """A product that is a kernel: each block of threads has a tile of its rows and columns, in one of the matrices.

    factors: what they are rounded to; on tensor cores unless to float32.
    then: what is made of each sum, at its place, while it is in a register.
    """

    product: Product
    batch: tuple[Range, ...]
    rows: int
    columns: int
    threads: int = THREADS
    factors: Precision = "float32"
    then: tuple[Statement, ...] = ()


Mapped = Turns | Spread | Statement | Tiled


@dataclass(frozen=True)
class Plan:
    """A kernel's mapped tree. around: loops around all of it, whose turns are blocks of a grid of their own. whole: the
    kernel over its whole extent, where the grid divides that as it likes. arrays: the team that each array of scratch
    belongs to. added: locals that the mapping made. dealt: rows in registers."""

    body: tuple[Mapped, ...]
    whole: Kernel | None
    threads: int
    arrays: Mapping[str, Team]
    added: tuple[Buffer, ...]
    around: tuple[Range, ...] = ()
    dealt: Mapping[str, Deal] = field(default_factory=dict)


def tiles_in(nodes: Sequence[Mapped]) -> Iterator[Tiled]:
    """The tiles among `nodes` and inside them."""
    for node in nodes:
        match node:
            case Tiled():
                yield node
            case Turns() | Spread():
                yield from tiles_in(node.body)
            case Statement():
                pass


def touched(node: Mapped) -> tuple[set[str], set[str]]:
    """The tensors that a mapped node reads, and those that it writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    match node:
        case Statement():
            read, target = accesses(node)
            reads |= {a.tensor for a in read}
            writes.add(target.tensor)
        case Tiled():
            both: tuple[Product | Statement, ...] = (node.product, *node.then)
            for leaf in both:
                read, target = accesses(leaf)
                reads |= {a.tensor for a in read}
                writes.add(target.tensor)
        case Turns() | Spread():
            for child in node.body:
                r, w = touched(child)
                reads |= r
                writes |= w
            if isinstance(node, Turns) and node.loop.until is not None:
                reads.add(node.loop.until.tensor)
    return reads, writes
