"""Convolutions made products that a register tile can compute: what a window reads is gathered once.

    y[n, o, i, j] = sum[q, r, s] x[n, q, i + r - 1, j + s - 1; 0] * K[o, q, r, s]
        ->  xg[n, q, a, b] = x[n, q, a - 1, b - 1; 0];  Kg[r, s, q, o] = K[o, q, r, s]
            y[n, i, j, o] = sum[r, s, q] xg[n, q, i + r, j + s] * Kg[r, s, q, o]

A read that needs several indices only in their sum is computed once for each sum: so padding, dilation and the
correlation that is a weight's gradient are one case. Where a condition says that d divides such a sum, which is what
a stride d leaves in the other operand's gradient, axis and index are first split into their quotient and remainder;
an axis on which alone such a condition stands is computed where it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from chainrule.ir.affine import Facts, affine
from chainrule.ir.expression import index_symbol, is_slot, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Reduce, free_symbols
from chainrule.ir.graph import Tensor
from chainrule.schedule.cost import Sizes
from chainrule.schedule.groups import apart, together
from chainrule.schedule.product import NARROW, Contraction, contraction_of
from chainrule.schedule.task import fresh, task_of

WIDE = 4
"""What the columns of a tile should be at least."""


@dataclass(frozen=True)
class Laid:
    """Formulas that compute a tensor in another order of axes: the last of them, read at `places`.

    places: over the symbols of the tensor's own axes. exact: a place beyond the tensor is one beyond `made` too.
    """

    made: tuple[Formula, ...]
    places: tuple[sp.Expr, ...]
    exact: bool = True


def windowed(
    f: Formula, tensors: Mapping[str, Tensor], sizes: Sizes, always: bool, known: Mapping[Formula, str]
) -> Laid | None:
    """`f` as a product over gathered operands; None where it is none, or has no window and not `always`.

    known: what was gathered before, under the name of nothing (`nameless`).
    """
    f = pinned(f, tensors)
    parted = apart(f)
    if parted is None:
        return _windowed(f, tensors, sizes, always, known)
    g, groups = parted
    laid = _windowed(g, tensors, sizes, always, known)
    symbols = [axis.symbol for axis in g.axes]
    group, member = symbols[groups.axis], symbols[groups.axis + 1]
    if laid is None or {group, member} - set(laid.places):
        return None
    result = together(laid.made[-1], laid.places.index(group), laid.places.index(member), groups)
    own = [axis.symbol for axis in f.axes]
    names: dict[sp.Basic, sp.Basic] = dict(zip([s for s in symbols if s != group], own, strict=True))
    places = tuple(place.xreplace(names) for place in laid.places if place != group)
    return Laid((*laid.made[:-1], result), places, laid.exact)


def _windowed(
    f: Formula, tensors: Mapping[str, Tensor], sizes: Sizes, always: bool, known: Mapping[Formula, str]
) -> Laid | None:
    """The same for a formula whose axes are one thing each."""
    if not f.over or sizes.points(i.extent for i in f.indices) < NARROW:
        return None
    at = unstrided(f)
    whole = at.formula
    c = contraction_of(task_of(whole, tensors))
    order = _as_channels(whole) if c is None else _as_product(c, whole, always or whole is not f)
    if order is None:
        return None
    whole, column, over = order.formula, order.column, order.over
    axes = (*(a for a in whole.axes if a != column), column)
    taken = dict(tensors)
    made: list[Formula] = []
    reads: list[Access] = []
    for read, memory in order.operands:
        found = _gathered(read, whole, memory, order.batch, taken)
        if found is None:
            return None
        gathered, access = found
        if gathered is not None and (same := known.get(nameless(gathered))) is not None:
            access = replace(access, tensor=same)
        elif gathered is not None:
            made.append(gathered)
            taken[gathered.out] = Tensor(gathered.out, gathered.shape)
        reads.append(access)
    numbers = {slot_of: k for k, slot_of in enumerate(whole.reads)}
    kept = list(whole.reads)
    for (old, _), new in zip(order.operands, reads, strict=True):
        kept[numbers[old]] = new
    result = replace(whole, axes=axes, over=over, reads=tuple(kept))
    where_is = {a.symbol: place for a, place in zip(whole.axes, at.places, strict=True)}
    places = tuple(where_is[a.symbol] for a in axes)
    if not at.where:
        return Laid((*made, result), places, at.exact)
    last = next((a for a in f.axes if a.symbol == places[-1]), None)
    if last is None:
        return None
    result = replace(result, out=fresh(f"{f.out}_product", taken), stop=False)
    axes = (*(a for a in f.axes if a != last), last)
    spread = replace(f, axes=axes, over=(), body=slot(0), reads=(Access(result.out, places),), where=at.where)
    return Laid((*made, result, spread), tuple(a.symbol for a in axes))


@dataclass(frozen=True)
class Order:
    """How a formula is computed: its operands with the order of indices that each should have in memory (None: as they
    are), its column, which vectors run along, and the loops of its sum. A batch stands still."""

    formula: Formula
    operands: tuple[tuple[Access, Sequence[sp.Symbol] | None], ...]
    column: Index
    over: tuple[Index, ...]
    batch: tuple[Index, ...]


def _as_product(c: Contraction, f: Formula, always: bool) -> Order | None:
    """As a tile's product, whose columns are channels; None where it has no window and not `always`."""
    if not (always or any(_is_window(read, f) for read in (c.left, c.right))):
        return None
    chosen = _oriented(c, f)
    if chosen is None:
        return None
    c, column = chosen
    over = _in_order(c.inner, f, c.batch)
    beside = [a for a in c.columns if a != column]
    memory = [i.symbol for i in (*c.batch, *beside, *over, column)]
    return Order(f, ((c.left, None), (c.right, memory)), column, over, c.batch)


def _as_channels(f: Formula) -> Order | None:
    """As loops around one over channels, each of which has a sum of its own: a convolution of every channel by itself.

    y[n, c, i, j] = sum[r, s] x[n, c, i + r, j + s] * K[c, r, s]: vectors run along c.
    """
    once: dict[sp.Basic, sp.Basic] = {i.symbol: sp.S.Zero for i in f.indices if i.extent == 1}
    over = tuple(i for i in f.over if i.symbol not in once)
    if f.where or f.reduce is not Reduce.SUM or f.dtype is not DType.FLOAT or not over or len(f.reads) != 2:
        return None
    f = replace(f, over=over, reads=tuple(read.renamed(once) for read in f.reads), body=f.body.xreplace(once))
    if any(is_slot(s) for read in f.reads for i in read.indices for s in i.free_symbols):
        return None
    if not any(_is_window(read, f) for read in f.reads):
        return None
    alone = [
        a for a in f.axes if a.extent.is_Integer and a.extent >= WIDE and all(_stands_alone(a, r) for r in f.reads)
    ]
    if not alone:
        return None
    column = max(alone, key=lambda a: int(a.extent))
    memory = [i.symbol for i in (*(a for a in f.axes if a != column), *f.over, column)]
    left, right = (free_symbols(read.indices) for read in f.reads)
    batch = tuple(a for a in f.axes if a != column and a.symbol in left & right)
    return Order(f, tuple((read, memory) for read in f.reads), column, f.over, batch)


def _stands_alone(axis: Index, read: Access) -> bool:
    """Whether the axis is a place of the read, and in no other."""
    return [i for i in read.indices if axis.symbol in i.free_symbols] == [axis.symbol]


def nameless(f: Formula) -> Formula:
    """What is equal for all formulas that compute the same."""
    return replace(f, out="")


@dataclass(frozen=True)
class Split:
    """A formula whose axes stand for another's at `places`, over that one's symbols; it is 0 unless `where`.

    exact: every extent that was split is a whole number of parts.
    """

    formula: Formula
    places: tuple[sp.Expr, ...]
    where: tuple[sp.Basic, ...] = ()
    exact: bool = True


def pinned(f: Formula, tensors: Mapping[str, Tensor]) -> Formula:
    """`f` where the one place of an axis is read that ``x[h % d; 0]`` leaves of it: as a condition, ``h % d == 0``.

    A kernel of 1 × 1 with a stride leaves such a read in its image's gradient.
    """
    if not f.over or f.reduce is not Reduce.SUM:
        return f
    factors = sp.Mul.make_args(f.body)
    where, reads = list(f.where), list(f.reads)
    for k, read in enumerate(f.reads):
        if read.outside != 0 or slot(k) not in factors:
            continue
        ones = [
            at
            for at, (i, extent) in enumerate(zip(read.indices, tensors[read.tensor].shape, strict=True))
            if extent == 1 and isinstance(i, remainder)
        ]
        where += [sp.Eq(read.indices[at], 0, evaluate=False) for at in ones]
        indices = tuple(sp.S.Zero if at in ones else i for at, i in enumerate(read.indices))
        reads[k] = replace(read, indices=indices)
    return f if len(where) == len(f.where) else replace(f, reads=tuple(reads), where=tuple(where))


def unstrided(f: Formula) -> Split:
    """`f` with h = d h' + e and r = d r' + (e + c) % d for each condition (h + c - r) % d == 0.

    Where there is no r, h' = (h + c) // d, and the condition is left to who reads it.
    """
    at = Split(f, tuple(a.symbol for a in f.axes))
    for _ in f.where:
        at = next((made for c in at.formula.where if (made := _without(at, c)) is not None), at)
    return at


def _without(split: Split, condition: sp.Basic) -> Split | None:
    """The same without `condition`, if it is one that says that a number divides a place."""
    stride = _stride_of(condition, split.formula)
    if stride is None:
        return None
    return _alone(split, stride) if stride.r is None else _split(split, stride, stride.r)


@dataclass(frozen=True)
class Stride:
    """``(h + s r + c) % d == 0`` with s = 1 or -1; r is None where there is none."""

    condition: sp.Basic
    sum: sp.Expr
    d: int
    h: Index
    r: Index | None
    s: int
    c: int


def _stride_of(condition: sp.Basic, f: Formula) -> Stride | None:
    if not (isinstance(condition, sp.Eq) and isinstance(condition.lhs, remainder) and condition.rhs == 0):
        return None
    total, d = condition.lhs.args
    form = affine(total)
    if form is None or not d.is_Integer or not form.rest.is_Integer:
        return None
    axes = [a for a in f.axes if form.coefficients.get(a.symbol) == 1 and a.extent.is_Integer]
    over = [r for r in f.over if form.coefficients.get(r.symbol) in (1, -1) and r.extent.is_Integer]
    if len(axes) != 1 or len(over) != len(form.coefficients) - 1 or len(over) > 1:
        return None
    names = {i.symbol for i in (*axes, *over)}
    if any(read.outside not in (None, sp.S.Zero) for read in f.reads if names & free_symbols(read.indices)):
        return None
    r = over[0] if over else None
    return Stride(condition, total, int(d), axes[0], r, int(form.coefficients[r.symbol]) if r else 0, int(form.rest))


def _alone(whole: Split, at: Stride) -> Split | None:
    """The axis h becomes (h + c) // d, where nothing needs h but so."""
    f, k, d = whole.formula, whole.formula.axes.index(at.h), sp.Integer(at.d)
    symbol = index_symbol("_h")
    names: dict[sp.Basic, sp.Basic] = {quotient(at.sum, d): symbol}
    reads = tuple(read.renamed(names) for read in f.reads)
    rest = tuple(c.xreplace(names) for c in f.where if c != at.condition)
    if at.c < 0 or at.h.symbol in free_symbols((f.body, *rest, *(i for read in reads for i in read.indices))):
        return None
    axis = Index(symbol, (at.h.extent - 1 + at.c) // d + 1, at.h.name)
    place = whole.places[k] + at.c
    return replace(
        whole,
        formula=replace(f, axes=(*f.axes[:k], axis, *f.axes[k + 1 :]), reads=reads, where=rest),
        places=(*whole.places[:k], quotient(place, d), *whole.places[k + 1 :]),
        where=(*whole.where, sp.Eq(remainder(place, d), 0)),
    )


def _split(split: Split, at: Stride, over: Index) -> Split:
    f, places = split.formula, split.places
    h, e, r = index_symbol("_h"), index_symbol("_e"), index_symbol("_k")
    d, ahead = sp.Integer(at.d), e + at.c
    rest, whole = (
        (remainder(ahead, d), quotient(ahead, d)) if at.s < 0 else (remainder(-ahead, d), quotient(ahead + d - 1, d))
    )
    first: dict[sp.Basic, sp.Basic] = {quotient(at.sum, d): h + at.s * r + whole}
    then: dict[sp.Basic, sp.Basic] = {at.h.symbol: d * h + e, over.symbol: d * r + rest}
    names = {at.h.symbol, over.symbol}

    def moved(read: Access) -> Access:
        if not names & free_symbols(read.indices):
            return read
        return replace(read.renamed(first).renamed(then), outside=sp.S.Zero)  # a last place may be beyond

    k = f.axes.index(at.h)
    split_axes = (Index(h, -(-at.h.extent // d), at.h.name), Index(e, d, f"{at.h.name}_rest"))
    made = replace(
        f,
        axes=(*f.axes[:k], *split_axes, *f.axes[k + 1 :]),
        over=tuple(Index(r, -(-i.extent // d), i.name) if i == over else i for i in f.over),
        body=f.body.xreplace(then),
        reads=tuple(map(moved, f.reads)),
        where=tuple(c.xreplace(first).xreplace(then) for c in f.where if c != at.condition),
    )
    places = (*places[:k], quotient(places[k], d), remainder(places[k], d), *places[k + 1 :])
    return replace(split, formula=made, places=places, exact=split.exact and at.h.extent % d == 0)


def _is_window(read: Access, f: Formula) -> bool:
    """Whether an index of the read moves with several of the formula's."""
    own = {i.symbol for i in f.indices}
    return any(len(i.free_symbols & own) > 1 for i in read.indices)


def _oriented(c: Contraction, f: Formula) -> tuple[Contraction, Index] | None:
    """`c` such that its columns hold the index that is best for vectors: a channel, else a place; and which it is."""
    best: tuple[tuple[bool, int, bool, int], Index, bool] | None = None
    for side, read, right in ((c.columns, c.right, True), (c.rows, c.left, False)):
        for axis in side:
            rank = _rank(axis, read, f, c.batch)
            if rank is not None and (best is None or (*rank, -len(side)) > best[0]):
                best = (*rank, -len(side)), axis, right  # of equals, the one that is a channel by itself
    if best is None:
        return None
    _, axis, right = best
    if not right:
        c = replace(c, left=c.right, right=c.left, rows=c.columns, columns=c.rows)
    return c, axis


def _rank(axis: Index, read: Access, f: Formula, batch: Sequence[Index]) -> tuple[bool, int, bool] | None:
    """How good an axis is as a tile's columns: those that stand alone in their place come first, then the longest,
    then those of a tensor that is read over no windows. A batch stands still."""
    holding = [i for i in read.indices if axis.symbol in i.free_symbols]
    if len(holding) != 1 or not axis.extent.is_Integer or axis.extent < WIDE:
        return None
    form = affine(holding[0])
    if form is None or form.coefficients.get(axis.symbol) != 1:
        return None
    alone = not holding[0].free_symbols & ({i.symbol for i in f.indices if i not in batch} - {axis.symbol})
    return alone, int(axis.extent), not _is_window(read, f)


def _in_order(inner: Sequence[Index], f: Formula, batch: Sequence[Index]) -> tuple[Index, ...]:
    """The loops of a product's sum: sizes that are not known outside, then places of windows, then channels."""
    own = {i.symbol for i in f.indices if i not in batch}
    windows = {s for read in f.reads for i in read.indices if len(i.free_symbols & own) > 1 for s in i.free_symbols}

    def key(index: Index) -> int:
        return 0 if not index.extent.is_Integer else 1 if index.symbol in windows else 2

    return tuple(sorted(inner, key=key))


def _gathered(
    read: Access, f: Formula, order: Sequence[sp.Symbol] | None, batch: Sequence[Index], taken: Mapping[str, Tensor]
) -> tuple[Formula | None, Access] | None:
    """What `read` reads as a tensor of its own, if it must be, and the read of that; None where that cannot be.

    order: of the indices in memory, the columns last; None: as they are.
    """
    own = {i.symbol: i for i in f.indices}
    together = {a.symbol for a in batch}
    facts = Facts({i.symbol: i.extent for i in f.indices})
    axes: list[tuple[int, Index, sp.Expr]] = []  # the rank in memory, the axis, and where it is read
    from_: list[sp.Expr] = []
    guarded = False
    for k, (index, extent) in enumerate(zip(read.indices, taken[read.tensor].shape, strict=True)):
        symbols = [s for s in own if s in index.free_symbols]

        def rank(symbols: Sequence[sp.Symbol], k: int = k) -> int:
            return k if order is None else max(map(order.index, symbols), default=-1)

        if index in own and own[index].extent == extent:
            axes.append((rank(symbols), own[index], index))
            from_.append(index)
            continue
        low, high = facts.low(index), facts.low(-index)
        if low is None or high is None:
            return None
        guarded = guarded or not (facts.is_nonnegative(index) and facts.is_below(index, extent))
        if len(set(symbols) - together) == 1 and together & set(symbols):  # a place for each, for they are few
            axes += [(rank([s]), own[s], s) for s in symbols]
            from_.append(index)
        elif symbols:
            if not (low.is_Integer and high.is_Integer):
                return None
            axis = Index(index_symbol(f"_w{k:02}"), 1 - high - low, own[symbols[0]].name)
            axes.append((rank(symbols), axis, sp.expand(index - low)))
            from_.append(axis.symbol + low)
        else:
            from_.append(index)
    if len({axis.symbol for _, axis, _ in axes}) < len(axes):
        return None
    ordered = axes if order is None else sorted(axes, key=lambda a: a[0])
    if not guarded and ordered == axes and (order is None or read.indices[-1] == axes[-1][1].symbol):
        return None, replace(read, outside=None)
    outside = read.outside if guarded else None
    name = fresh(f"{read.tensor}_gathered", taken)
    copied = Access(read.tensor, tuple(from_), outside)
    made = Formula(name, tuple(axis for _, axis, _ in ordered), (), slot(0), (copied,), origin=f.origin)
    return made, Access(name, tuple(at for _, _, at in ordered))
