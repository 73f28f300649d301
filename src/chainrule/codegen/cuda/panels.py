"""Panels of a product's operands: from memory into a thread's registers, and from there into shared memory.

What a panel needs next is on its way while the panel before it is multiplied: loaded into registers before, stored to
the other half of shared memory after that. A thread takes a few neighbours at a time, in one access where they are a
row's; what lies beyond an operand, or is padding, is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sympy as sp

from chainrule.codegen.cuda.device import ACCESS
from chainrule.codegen.cuda.fragments import WORDS
from chainrule.codegen.cuda.groups import is_row
from chainrule.codegen.cuda.indices import indices, places
from chainrule.codegen.cuda.team import Tiled
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import literal
from chainrule.codegen.statement import bounds
from chainrule.executable import Precision
from chainrule.ir.formula import Access
from chainrule.ir.program import Range


@dataclass(frozen=True)
class Form:
    """How factors lie in shared memory: for multiplications one by one, the factors of a term of the sum side by side;
    for tensor cores, quads of words of one or two factors (`fragments`).
    """

    factors: Precision
    item: int  # bytes of an element

    @property
    def fragments(self) -> bool:
        return self.factors != "float32"

    @property
    def wide(self) -> int:
        """Elements or words that one access moves."""
        return ACCESS // self.item

    @property
    def each(self) -> int:
        """Factors in a word."""
        return 2 if self.factors == "bf16" else 1

    @property
    def depth(self) -> int:
        """Terms of the sums in a panel: four accesses of words for each row or column."""
        return 4 * self.wide * self.each

    @property
    def quads(self) -> int:
        """Accesses in which a thread stores a part of a panel."""
        return 2 if self.fragments else 1

    def words(self, size: int) -> int:
        """Of a panel of `size` rows or columns. Terms are 16 bytes more than those apart: neighbours in the sum are
        stored without bank conflicts."""
        return WORDS * size if self.fragments else self.depth * (size + self.wide)

    def parts(self, size: int) -> int:
        """Of a panel, one for a thread each."""
        return 4 * size // self.quads


@dataclass(frozen=True)
class Side:
    """One operand's part in a tile.

    own: its indices beside the sum's, `size` of whose places a tile spans from `first` on. ahead: the registers that
    hold a thread's part of the next panel. after: threads before the first that has a part. deep: neighbours that a
    thread takes are neighbours in the sum. row: they are a row's, one access.
    """

    access: Access
    own: tuple[Range, ...]
    inner: tuple[Range, ...]
    size: int
    first: str
    panel: str
    ahead: str
    after: int
    deep: bool
    row: bool


def sides_of(t: Tiled, at: tuple[str, str], form: Form, w: CudaWriter) -> tuple[Side, Side]:
    """Both operands of the tile whose first place is `at`, and the memory for them."""
    p = t.product
    left = _side("left", p.left, p.rows, p.inner, t.rows, at[0], 0, t.threads, form, w)
    others = form.parts(t.rows) if form.parts(t.rows) + form.parts(t.columns) <= t.threads else 0
    return left, _side("right", p.right, p.columns, p.inner, t.columns, at[1], others, t.threads, form, w)


def _side(
    name: str,
    access: Access,
    own: tuple[Range, ...],
    inner: tuple[Range, ...],
    size: int,
    first: str,
    after: int,
    threads: int,
    form: Form,
    w: CudaWriter,
) -> Side:
    panel, ahead = w.panel(f"{name}_panel", 2 * form.words(size)), w.names.fresh(f"{name}_ahead", never_had=True)
    count = form.wide * form.each * form.quads * turns_of(size, form, threads)
    w.top.append(f"{ahead} = {w.call(f'local_{w.element}')}({count})")
    along_sum, along_own = (_is_row(access, ranges[-1], form.wide, w) for ranges in (inner, own))
    deep = along_sum or (not along_own and bool(access.indices) and access.indices[-1].has(inner[-1].symbol))
    return Side(access, own, inner, size, first, panel, ahead, after, deep, along_sum or along_own)


def turns_of(size: int, form: Form, threads: int) -> int:
    """How many parts a thread has at most."""
    return -(-form.parts(size) // threads)


def _is_row(access: Access, last: Range, count: int, w: CudaWriter) -> bool:
    whole = last.start == 0 and bool(last.stop.is_Integer) and int(last.stop) % count == 0
    return whole and is_row(access, last, count, w)


@contextmanager
def _parts(side: Side, form: Form, threads: int, w: CudaWriter) -> Iterator[tuple[str, str, str, str]]:
    """The parts of a panel that a thread has: the part's number, where its registers begin, its first row or column,
    and its first word of that.

    A part is one access of neighbours; with quads, a square of two by two of them. So many neighbouring threads go
    along the neighbours in memory that no two lanes of a warp store to one bank.
    """
    turns, registers = turns_of(side.size, form, threads), form.wide * form.each * form.quads
    modulo, divide = w.call("modulo"), w.call("divide")
    with _loop("turn", turns, w) as turn, w.named("part", "own", "word") as (part, own, word):
        number = f"{w.call('thread')}()"
        if side.after:
            number = f"{modulo}({number} + {threads - side.after}, {threads})"
        w.line(f"{part} = {added(number, times(threads, turn))}")
        if side.deep:
            along, runs, across = (4 if form.fragments else 2), 4, side.size // form.quads
        else:
            runs, across = side.size // form.wide, form.depth // form.each // form.quads
            along = min(8, runs) if form.fragments else runs
        run, other = f"{modulo}({part}, {along})", f"{divide}({part}, {along})"
        if along < runs:
            run = f"({run} + {along} * {divide}({part}, {along * across}))"
            other = f"{modulo}({other}, {across})"
        run, other = times(form.wide, run), times(form.quads, other)
        w.line(f"{own} = {other if side.deep else run}")
        w.line(f"{word} = {run if side.deep else other}")
        yield part, times(registers, turn), own, word


@contextmanager
def _loop(name: str, count: int, w: CudaWriter) -> Iterator[str]:
    """A loop of so many turns; none for one of them, whose number is 0."""
    if count == 1:
        yield "0"
        return
    with w.named(name) as (turn,), w.inside(f"for {turn} in range({count}):"):
        yield turn


def load_panel(side: Side, form: Form, first: str, threads: int, w: CudaWriter) -> None:
    """A thread's part of the panel of the terms from `first` on, into registers."""
    extent, depth = (w.integer(places(ranges)) for ranges in (side.own, side.inner))
    lines, accesses = (form.quads, form.each) if side.deep else (form.quads * form.each, 1)
    with (
        _parts(side, form, threads, w) as (part, registers, own, word),
        _loop("line", lines, w) as line,
        w.named("still", "moving", "here") as (still, moving, here),
    ):
        exists = f"({part} < {form.parts(side.size)}) & " if form.parts(side.size) < threads else ""
        term, mine = added(first, times(form.each, word)), added(side.first, own)
        ends = (extent, depth) if side.deep else (depth, extent)
        apart, along = (side.own, side.inner) if side.deep else (side.inner, side.own)
        w.line(f"{still} = {added(mine if side.deep else term, line)}")
        place = added(registers, times(accesses * form.wide, line))
        with indices(apart, still, w), _loop("k", accesses, w) as k:
            w.line(f"{moving} = {added(term if side.deep else mine, times(form.wide, k))}")
            place = added(place, times(form.wide, k))
            with _loop("e", 1 if side.row else form.wide, w) as e:
                w.line(f"{here} = {added(moving, e)}")
                there = f"{exists}({still} < {ends[0]}) & ({here} < {ends[1]})"
                _load(side, along, here, there, added(place, e), form.wide if side.row else 1, w)


def _load(side: Side, along: Sequence[Range], here: str, there: str, place: str, count: int, w: CudaWriter) -> None:
    """The element or the access `here`, if it is `there`, into the registers from `place` on; else 0."""
    zero = literal(sp.S.Zero, w.scope()).text
    with w.named(*(f"value_{e}" if count > 1 else "value" for e in range(count))) as values:
        w.line(f"{', '.join(values)} = {', '.join([zero] * count)}")
        with w.inside(f"if {there}:"), indices(along, here, w):
            if count == 1:
                _read(side.access, values[0], w)
            else:
                array, at = w.element_at(side.access, {})
                w.line(f"{', '.join(values)} = {w.call(f'load{count}')}({array}, {at})")
        for e, value in enumerate(values):
            w.line(f"{side.ahead}[{added(place, str(e))}] = {value}")


def _read(access: Access, value: str, w: CudaWriter) -> None:
    """An element, where it is no padding."""
    text = w.place(access, {})
    inside = bounds(access, w.buffer(access.tensor), {}, w) if access.outside is not None else ""
    if inside:
        with w.inside(f"if {inside}:"):
            w.line(f"{value} = {text}")
    else:
        w.line(f"{value} = {text}")


def store_panel(side: Side, form: Form, first: str, left: bool, threads: int, w: CudaWriter) -> None:
    """What was loaded, into the half of shared memory for the panel of the terms from `first` on."""
    apart = form.words(side.size) // form.depth
    half = "0" if first == "0" else f"({first} & {form.depth}) * {apart}"
    with _parts(side, form, threads, w) as (part, registers, own, word), _existing(side, form, part, threads, w):
        if form.fragments:
            _store_quads(side, form, half, registers, (own, word), left, w)
        elif side.deep:
            with _loop("e", form.wide, w) as e:
                at = added(half, f"({word} + {e}) * {side.size + form.wide}", own)
                w.line(f"{side.panel}[{at}] = {side.ahead}[{added(registers, e)}]")
        else:
            at = added(half, f"{word} * {side.size + form.wide}", own)
            values = ", ".join(f"{side.ahead}[{added(registers, str(e))}]" for e in range(form.wide))
            w.line(f"{w.call(f'store{form.wide}')}({side.panel}, {at}, {values})")


@contextmanager
def _existing(side: Side, form: Form, part: str, threads: int, w: CudaWriter) -> Iterator[None]:
    """What follows is done by the threads that have a part."""
    if form.parts(side.size) >= threads:
        yield
        return
    with w.inside(f"if {part} < {form.parts(side.size)}:"):
        yield


def _store_quads(
    side: Side, form: Form, half: str, registers: str, at: tuple[str, str], left: bool, w: CudaWriter
) -> None:
    """Two quads: in the order of A, whose words come for both rows, or of B, whose columns come one by one."""
    own, word = at
    order = [(0, 0), (1, 0), (0, 1), (1, 1)] if left else [(0, 0), (0, 1), (1, 0), (1, 1)]
    for quad in (0, 1):
        values = []
        for line, k in order:
            of, which = (line, 2 * quad + k) if side.deep else (2 * quad + line, k)
            factors = [which * form.each + f for f in range(form.each)]
            places = [of * 4 * form.each + f for f in factors] if side.deep else [f * 4 + of for f in factors]
            read = ", ".join(f"{side.ahead}[{added(registers, str(place))}]" for place in places)
            values.append(f"{w.call(f'to_{form.factors}')}({read})")
        further = str(quad * (4 if side.deep else 2 * WORDS))
        place = f"{w.call('swizzled')}({added(f'{WORDS} * {own} + 2 * {word}', further)})"
        w.line(f"{w.call('store4')}({side.panel}, {added(half, place)}, {', '.join(values)})")


def added(*terms: str) -> str:
    """A sum as source, without its zeros."""
    return " + ".join(term for term in terms if term != "0") or "0"


def times(factor: int, text: str) -> str:
    if text.isdigit():
        return str(factor * int(text))
    return text if factor == 1 else f"{factor} * {text}"
