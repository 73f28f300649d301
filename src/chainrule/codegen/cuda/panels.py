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
from chainrule.codegen.cuda.teams import split
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.expressions import Symbol, literal
from chainrule.codegen.statement import bounds
from chainrule.executable import Precision
from chainrule.ir.expression import product
from chainrule.ir.formula import Access
from chainrule.ir.program import Range


@dataclass(frozen=True)
class Form:
    """How factors lie in shared memory: for multiplications one by one, the factors of a term of the sum side by side;
    for tensor cores, words of one or two factors, 16 for each row or column (`fragments`).
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

    def words(self, size: int) -> int:
        """Of a panel of `size` rows or columns. Terms are 16 bytes more than those apart: neighbours in the sum are
        stored without bank conflicts."""
        return WORDS * size if self.fragments else self.depth * (size + self.wide)

    def place(self, size: int, own: str, word: str, w: CudaWriter) -> str:
        if self.fragments:
            return f"{w.call('swizzled')}({WORDS} * ({own}) + {word})"
        return f"({word}) * {size + self.wide} + {own}"


@dataclass(frozen=True)
class Side:
    """One operand's part in a tile.

    own: its indices beside the sum's, `size` of whose places a tile spans from `first` on. ahead: the registers that
    hold a thread's part of the next panel. deep: neighbours that a thread takes are neighbours in the sum. row: they
    are a row's, one access.
    """

    access: Access
    own: tuple[Range, ...]
    inner: tuple[Range, ...]
    size: int
    first: str
    panel: str
    ahead: str
    deep: bool
    row: bool


def side_of(
    name: str,
    access: Access,
    own: tuple[Range, ...],
    inner: tuple[Range, ...],
    size: int,
    first: str,
    threads: int,
    form: Form,
    w: CudaWriter,
) -> Side:
    """An operand's part, and the memory for it."""
    panel, ahead = (w.names.fresh(f"{name}_{what}", never_had=True) for what in ("panel", "ahead"))
    w.top.append(f"{panel} = {w.call(f'shared_{w.element}')}({2 * form.words(size)})")
    count = form.wide * form.each * turns_of(size, threads)
    w.top.append(f"{ahead} = {w.call(f'local_{w.element}')}({count})")
    along_sum, along_own = (_is_row(access, ranges[-1], form.wide, w) for ranges in (inner, own))
    deep = along_sum or (not along_own and bool(access.indices) and access.indices[-1].has(inner[-1].symbol))
    return Side(access, own, inner, size, first, panel, ahead, deep, along_sum or along_own)


def turns_of(size: int, threads: int) -> int:
    """How many times a thread takes neighbours: there are four accesses of words for each row or column."""
    return -(-4 * size // threads)


def _is_row(access: Access, last: Range, count: int, w: CudaWriter) -> bool:
    return bool(last.stop.is_Integer) and int(last.stop) % count == 0 and is_row(access, last, count, w)


@contextmanager
def indices(ranges: Sequence[Range], flat: str, w: CudaWriter) -> Iterator[None]:
    """Names for the indices that a flat number consists of."""
    names = []
    for r in ranges:
        name = w.names.fresh(r.pretty or "i")
        names.append(name)
        w.symbols[r.symbol] = Symbol(name, "integer", frozenset({r.symbol}))
    if len(ranges) == 1:
        w.line(f"{names[0]} = {flat}")
    elif ranges:
        number = w.names.fresh("flat")
        w.line(f"{number} = {flat}")
        split(number, [(n, r, w.integer(r.stop)) for n, r in zip(names, ranges, strict=True)], w)
        w.names.release(number)
    yield
    for name in names:
        w.names.release(name)


@contextmanager
def _parts(side: Side, form: Form, threads: int, w: CudaWriter) -> Iterator[tuple[str, str, str, str]]:
    """The parts of a panel that a thread takes: the part's number, where its registers begin, its first row or column,
    and its first word of that.

    So many neighbouring threads go along the neighbours in memory that no two lanes of a warp store to one bank.
    """
    turns, registers = turns_of(side.size, threads), form.wide * form.each
    with _loop("turn", turns, w) as turn, w.named("part", "own", "word") as (part, own, word):
        thread = f"{w.call('thread')}()"
        w.line(f"{part} = {added(thread, times(threads, turn))}")
        if side.deep:
            along, runs, across = (4 if form.fragments else 2), 4, side.size
        else:
            runs, across = side.size // form.wide, form.depth // form.each
            along = min(8, runs) if form.fragments else runs
        modulo, divide = w.call("modulo"), w.call("divide")
        run, other = f"{modulo}({part}, {along})", f"{divide}({part}, {along})"
        if along < runs:
            run, other = (
                f"({run} + {along} * {divide}({part}, {along * across}))",
                f"{modulo}({other}, {across})",
            )
        w.line(f"{own} = {other if side.deep else f'{form.wide} * {run}'}")
        w.line(f"{word} = {f'{form.wide} * {run}' if side.deep else other}")
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
    extent, depth = (w.integer(product(r.stop for r in ranges)) for ranges in (side.own, side.inner))
    zero = literal(sp.S.Zero, w.scope()).text
    with (
        _parts(side, form, threads, w) as (part, registers, own, word),
        _loop("k", form.each, w) as k,
        w.named("still", "moving") as (still, moving),
    ):
        term = added(first, times(form.each, word), k if not side.deep else times(form.wide, k))
        mine = added(side.first, own)
        w.line(f"{still} = {mine if side.deep else term}")
        w.line(f"{moving} = {term if side.deep else mine}")
        ends = (extent, depth) if side.deep else (depth, extent)
        apart, along = (side.own, side.inner) if side.deep else (side.inner, side.own)
        exists = f"({part} < {4 * side.size}) & " if 4 * side.size < threads else ""
        place = added(registers, times(form.wide, k))
        with indices(apart, still, w):
            if side.row:
                with w.named(*(f"value_{e}" for e in range(form.wide))) as values:
                    w.line(f"{', '.join(values)} = {', '.join([zero] * form.wide)}")
                    with (
                        w.inside(f"if {exists}({still} < {ends[0]}) & ({moving} < {ends[1]}):"),
                        indices(along, moving, w),
                    ):
                        array, at = w.element_at(side.access, {})
                        w.line(f"{', '.join(values)} = {w.call(f'load{form.wide}')}({array}, {at})")
                    for number, each in enumerate(values):
                        w.line(f"{side.ahead}[{added(place, str(number))}] = {each}")
            else:
                with _loop("e", form.wide, w) as e, w.named("here", "value") as (here, value):
                    w.line(f"{here} = {added(moving, e)}")
                    w.line(f"{value} = {zero}")
                    with (
                        w.inside(f"if {exists}({still} < {ends[0]}) & ({here} < {ends[1]}):"),
                        indices(along, here, w),
                    ):
                        _read(side.access, value, w)
                    w.line(f"{side.ahead}[{added(place, e)}] = {value}")


def _read(access: Access, value: str, w: CudaWriter) -> None:
    """An element, where it is no padding."""
    text = w.place(access, {})
    inside = bounds(access, w.buffer(access.tensor), {}, w) if access.outside is not None else ""
    if inside:
        with w.inside(f"if {inside}:"):
            w.line(f"{value} = {text}")
    else:
        w.line(f"{value} = {text}")


def store_panel(side: Side, form: Form, first: str, threads: int, w: CudaWriter) -> None:
    """What was loaded, into the half of shared memory for the panel of the terms from `first` on."""
    apart = form.words(side.size) // form.depth
    half = "0" if first == "0" else f"({first} & {form.depth}) * {apart}"
    with _parts(side, form, threads, w) as (part, registers, own, word), _existing(side, part, threads, w):
        if side.deep == form.fragments:  # what a thread took together lies together
            words = [_word(side, form, registers, str(k), w) for k in range(form.wide)]
            at = added(half, form.place(side.size, own, word, w))
            w.line(f"{w.call(f'store{form.wide}')}({side.panel}, {at}, {', '.join(words)})")
            return
        with _loop("e", form.wide, w) as e:
            own, word = (own, added(word, e)) if side.deep else (added(own, e), word)
            at = added(half, form.place(side.size, own, word, w))
            w.line(f"{side.panel}[{at}] = {_word(side, form, registers, e, w)}")


@contextmanager
def _existing(side: Side, part: str, threads: int, w: CudaWriter) -> Iterator[None]:
    """What follows is done by the threads that have a part."""
    if 4 * side.size >= threads:
        yield
        return
    with w.inside(f"if {part} < {4 * side.size}:"):
        yield


def _word(side: Side, form: Form, registers: str, e: str, w: CudaWriter) -> str:
    """The e-th of the words that a thread has in registers."""
    if form.each == 1:
        factor = f"{side.ahead}[{added(registers, e)}]"
        return f"{w.call('to_tf32')}({factor})" if form.fragments else factor
    places = [times(2, e), added(times(2, e), "1")] if side.deep else [e, added(e, str(form.wide))]
    return f"{w.call('to_bf16')}({', '.join(f'{side.ahead}[{added(registers, at)}]' for at in places)})"


def added(*terms: str) -> str:
    """A sum as source, without its zeros."""
    return " + ".join(term for term in terms if term != "0") or "0"


def times(factor: int, text: str) -> str:
    if text.isdigit():
        return str(factor * int(text))
    return text if factor == 1 else f"{factor} * {text}"
