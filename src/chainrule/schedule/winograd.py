"""Convolutions over two axes by fewer multiplications: Cook and Toom's F(m, r), nested, as formulas.

    y[n, i, j, o] = sum[q, r, s] x[n, i + r, j + s, q] * K[r, s, q, o]          with i = m t + e, j = m u + f:
        ->  V[n, k, l, t, u, q] = sum[a, b] B[k, a] B[l, b] x[n, m t + a, m u + b, q]
            U[k, l, q, o]       = sum[r, s] G[k, r] G[l, s] K[r, s, q, o]
            M[n, k, l, t, u, o] = sum[q] V[n, k, l, t, u, q] * U[k, l, q, o]    a batch of α² products
            y[n, m t + e, m u + f, o] = sum[k, l] A[k, e] A[l, f] M[n, k, l, t, u, o]

Where the sum runs along the image and the result is short, as a weight's gradient does and is, tiles of the image are
the filter: F(r, m), whose B is the same, and M sums over t and u. Each transform is done axis by axis. The matrices are
tensors, computed by formulas as well, so that a loop runs over k instead of α statements.

Float32, against float64, over 64 channels and normal numbers (tests/schedule/test_winograd.py holds the bounds): the
root of the mean square error is below 4e-7 of the result's for tiles of 2 × 2 and below 1.4e-6 for 4 × 4, the greatest
error below 3e-6 and 1.1e-5; sums in order have 6e-7 and 6e-6. `accurate=True` computes no convolution so. An infinity
or NaN reaches its whole tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import sympy as sp

from chainrule.choices import Choice
from chainrule.ir.affine import Facts, affine
from chainrule.ir.expression import Select, index_symbol, product, quotient, remainder, slot
from chainrule.ir.formula import Access, Formula, Index
from chainrule.ir.graph import Tensor
from chainrule.schedule.cook_toom import cook_toom
from chainrule.schedule.cost import PRODUCT_NS, Sizes
from chainrule.schedule.product import contraction_of
from chainrule.schedule.task import fresh, task_of
from chainrule.schedule.windows import Laid, nameless

TILES = (4, 2)
"""How many places along the image a tile has."""

SHORT = 3
"""The length of the short side: larger ones lose too many bits."""

CHANNELS = 8
"""What vectors of both operands should at least run along."""

SUMS = Choice("sums")

GAIN = 0.5
"""Of the plain product's time: more formulas take longer to compile, and should be clearly faster."""

STEP_NS = sp.Rational(1, 28)
"""Nanoseconds of one multiply-add of a transform: each is a read from the first or second cache."""


@dataclass(frozen=True)
class Window:
    """An index ``a + sign b + shift`` of one operand, at the place `at` of its indices; a is an axis, b is summed."""

    at: int
    a: Index
    b: Index
    sign: int
    shift: sp.Expr


@dataclass(frozen=True)
class Side:
    """One of the two windows in tiles: of `long` places along the image, against `short` ones.

    spread: the sum runs over the short side, so that tiles are the result's; else they are the filter's.
    """

    window: Window
    long: int
    spread: bool

    @property
    def short(self) -> int:
        return int(self.window.b.extent if self.spread else self.window.a.extent)

    @property
    def image(self) -> Index:
        return self.window.a if self.spread else self.window.b

    @property
    def tiles(self) -> int:
        return -(-int(self.image.extent) // self.long)

    @property
    def alpha(self) -> int:
        return self.long + self.short - 1

    @property
    def matrices(self) -> tuple[sp.ImmutableMatrix, sp.ImmutableMatrix, sp.ImmutableMatrix]:
        """A, B and G of the bilinear algorithm."""
        f = cook_toom(self.long, self.short) if self.spread else cook_toom(self.short, self.long)
        return f.A, f.B, f.G


@dataclass(frozen=True)
class Convolution:
    """``f`` as a sum over two windows.

    image: the operand that is read in windows, filter: the other. channel and column: what vectors of these run along.
    around: the image's further indices, and the filter's as well where the sum runs over them.
    """

    f: Formula
    image: Access
    filter: Access
    windows: tuple[Window, Window]
    channel: Index
    column: Index
    around: tuple[Index, ...]
    scale: sp.Expr
    spread: bool

    def key(self, sizes: Sizes, item: int) -> str:
        """Its name in a table of choices: ``float32 convolution 3x3 of 32x28x28, 64 to 64`` (or ``gradient``)."""
        short, long = zip(*((w.b, w.a) if self.spread else (w.a, w.b) for w in self.windows), strict=True)
        many = sizes.points(i.extent for i in self.around)
        words = "x".join(str(i.extent) for i in short), "x".join(str(n) for n in (many, *(i.extent for i in long)))
        kind = "convolution" if self.spread else "gradient"
        return f"float{8 * item} {kind} {words[0]} of {words[1]}, {self.channel.extent} to {self.column.extent}"


def convolution_of(f: Formula, tensors: Mapping[str, Tensor]) -> Convolution | None:
    """`f` as what can be tiled; None where it is not a sum of that form."""
    c = None if f.where or not f.over else contraction_of(task_of(f, tensors))
    if c is None or c.batch:
        return None
    for image, filter_ in ((c.left, c.right), (c.right, c.left)):
        found = _windows(image, filter_, f)
        if found is None:
            continue
        spread = all(w.b.extent == SHORT < w.a.extent for w in found)
        if not spread and not all(w.a.extent == SHORT < w.b.extent for w in found):
            continue
        used = {i.symbol for w in found for i in (w.a, w.b)}
        mine, its = (
            [i for i in f.indices if i.symbol in read.indices and i.symbol not in used] for read in (image, filter_)
        )
        both = [i for i in mine if i in its]
        channels, columns = both if spread else [i for i in mine if i not in both], [i for i in its if i not in both]
        if len(channels) != 1 or len(columns) != 1 or not all(_is_wide(i) for i in (*channels, *columns)):
            continue
        around = tuple(i for i in mine if i not in channels)
        return Convolution(f, image, filter_, found, channels[0], columns[0], around, c.scale, spread)
    return None


def _is_wide(i: Index) -> bool:
    return bool(i.extent.is_Integer and i.extent >= CHANNELS)


def _windows(image: Access, filter_: Access, f: Formula) -> tuple[Window, Window] | None:
    """The two windows of `image`, if all other indices of the two operands are each a plain one."""
    own = {i.symbol: i for i in f.indices}
    found, plain = [], []
    for at, index in enumerate(image.indices):
        if index in own:
            plain.append(index)
            continue
        form = affine(index)
        if form is None or not form.rest.is_Integer or len(form.coefficients) != 2:
            return None
        axes = [a for a in f.axes if form.coefficients.get(a.symbol) == 1]
        over = [b for b in f.over if form.coefficients.get(b.symbol) in (1, -1)]
        if len(axes) != 1 or len(over) != 1 or not (axes[0].extent.is_Integer and over[0].extent.is_Integer):
            return None
        found.append(Window(at, axes[0], over[0], int(form.coefficients[over[0].symbol]), form.rest))
    symbols = [*plain, *(i.symbol for w in found for i in (w.a, w.b))]
    reads = {w.b.symbol for w in found} <= set(filter_.indices) <= own.keys() and filter_.outside is None
    once = len(set(symbols)) == len(symbols) and len(set(filter_.indices)) == len(filter_.indices)
    if len(found) != 2 or not reads or not once or {w.a.symbol for w in found} & set(filter_.indices):
        return None
    return found[0], found[1]


def by_cost(c: Convolution, sizes: Sizes) -> Choice:
    """Tiles that take the least time, if that is clearly less than the plain product's."""
    m = min(TILES, key=lambda m: tiled(c, m).cost(sizes))
    plain = float(PRODUCT_NS) * sizes.points(i.extent for i in c.f.indices)
    return Choice("winograd", m) if tiled(c, m).cost(sizes) < GAIN * plain else SUMS


def tiled(c: Convolution, m: int) -> Tiles:
    """`c` in tiles of m × m places."""
    return Tiles(c, (Side(c.windows[0], m, c.spread), Side(c.windows[1], m, c.spread)))


@dataclass(frozen=True)
class Tiles:
    """A convolution and how its windows are cut."""

    c: Convolution
    sides: tuple[Side, Side]

    def cost(self, sizes: Sizes) -> float:
        """Nanoseconds at typical sizes: of the products, and of each transform's multiply-adds."""
        c, (s, z) = self.c, self.sides
        many = sizes.points(i.extent for i in c.around)
        channel, column = int(c.channel.extent), int(c.column.extent)
        tiles, square = s.tiles * z.tiles, s.alpha * z.alpha
        products = many * square * tiles * channel * column
        image = many * channel * s.tiles * s.alpha * (s.alpha * z.long * z.tiles + z.alpha * z.alpha * z.tiles)
        if c.spread:
            filter_ = channel * column * s.alpha * (s.short * z.short + z.alpha * z.short)
            result = many * column * tiles * z.long * s.alpha * (z.alpha + s.long)
        else:
            filter_ = many * column * s.tiles * s.alpha * (s.long * z.long * z.tiles + z.alpha * z.long * z.tiles)
            result = many * channel * column * z.short * s.alpha * (z.alpha + s.short)
        return float(PRODUCT_NS * products + STEP_NS * (image + filter_ + result))

    def laid(self, tensors: Mapping[str, Tensor], known: Mapping[Formula, str]) -> Laid:
        """The formulas. known: what was gathered before, under the name of nothing."""
        c, d, (s, z) = self.c, Draft(dict(tensors), known, self.c.f), self.sides
        matrices = [[d.matrix(name, m) for name, m in zip("ABG", side.matrices, strict=True)] for side in (s, z)]
        A, B, G = zip(*matrices, strict=True)
        k, l = (Index(index_symbol(f"_{name}"), sp.Integer(side.alpha), name) for name, side in (("k", s), ("l", z)))
        t, u = (
            Index(index_symbol(f"_{name}"), sp.Integer(side.tiles), f"{side.image.name}_tile")
            for name, side in (("t", s), ("u", z))
        )
        cut = (Cut(t, s.long, s.alpha), Cut(u, z.long, z.alpha))
        # the filter first: what it is made of is there before the image is, so that one kernel does all that follows
        if c.spread:
            whole = (Cut(None, 0, s.short), Cut(None, 0, z.short))
            filter_ = d.transformed(self.filter(d), G, (), (k, l), whole, (c.channel, c.column))
            axes: tuple[Index, ...] = (*c.around, k, l, t, u, c.column)
            over: tuple[Index, ...] = (c.channel,)
        else:
            parts = (Cut(t, s.long, s.long), Cut(u, z.long, z.long))
            filter_ = d.transformed(self.filter(d), G, c.around, (k, l), parts, (c.column,))
            axes, over = (*c.around, k, l, c.channel, c.column), (t, u)
        cut = (Cut(t, s.long, s.alpha), Cut(u, z.long, z.alpha))
        image = d.transformed(self.image(d), B, c.around, (k, l), cut, (c.channel,))
        products = d.made(f"{c.f.out}_products", axes, product((slot(0), slot(1))), (image, filter_), over)
        return self.spread(products, A, (k, l), (t, u), d) if c.spread else self.gradient(products, A, (k, l), d)

    def image(self, d: Draft) -> Access:
        """What the windows read, from the first place to the last tile's end."""
        c, axes, indices = self.c, [], list(self.c.image.indices)
        for n, side in enumerate(self.sides):
            w = side.window
            first = w.shift if w.sign > 0 else w.shift - (w.b.extent - 1)
            extent = side.long * (side.tiles - 1) + side.alpha
            axes.append(Index(index_symbol(f"_w{n}"), sp.Integer(extent), side.image.name))
            indices[w.at] = axes[-1].symbol + first
        return d.gathered(replace(c.image, indices=tuple(indices)), (*c.around, *axes, c.channel))

    def filter(self, d: Draft) -> Access:
        """The filter, its places in the order of the image's."""
        c, axes, names = self.c, [], dict[sp.Basic, sp.Basic]()
        for n, side in enumerate(self.sides):
            b = side.window.b
            extent = side.short if c.spread else side.long * side.tiles
            axes.append(Index(index_symbol(f"_w{n}"), sp.Integer(extent), b.name))
            names[b.symbol] = axes[-1].symbol if side.window.sign > 0 else b.extent - 1 - axes[-1].symbol
        around, rest = ((), (c.channel, c.column)) if c.spread else (c.around, (c.column,))
        return d.gathered(c.filter.renamed(names), (*around, *axes, *rest))

    def spread(
        self, products: Access, A: Sequence[str], kl: tuple[Index, Index], tu: tuple[Index, Index], d: Draft
    ) -> Laid:
        """``y[…, m t + e, m u + f, o] = sum[k, l] A[k, e] A[l, f] M[…, k, l, t, u, o]``."""
        c, (s, z), (k, l), (t, u) = self.c, self.sides, kl, tu
        f = Index(index_symbol("_f"), sp.Integer(z.long), f"{z.image.name}_rest")
        rows = (*c.around, k, t, u, f, c.column)
        row = d.made(f"{c.f.out}_rows", rows, *_terms(Access(A[1], (l.symbol, f.symbol)), products, l))
        i, j = (
            Index(index_symbol(f"_{n}"), sp.Integer(side.long * side.tiles), side.image.name)
            for n, side in (("i", s), ("j", z))
        )
        (it, e), (jt, f_) = (_divided(a, side) for a, side in ((i, s), (j, z)))
        read = row.renamed({t.symbol: it, u.symbol: jt, f.symbol: f_})
        axes = (*c.around, i, j, c.column)
        body, reads = _terms(Access(A[0], (k.symbol, e)), read, k, c.scale)
        places = tuple(a.symbol for a in (*c.around, s.image, z.image, c.column))
        if all(a.extent == side.image.extent for a, side in ((i, s), (j, z))):
            result = replace(c.f, axes=axes, over=(), body=body, reads=reads)
            return Laid((*d.formulas, result), places)
        whole = d.made(f"{c.f.out}_tiles", axes, body, reads)
        own = tuple(replace(a, extent=side.image.extent) for a, side in ((i, s), (j, z)))
        result = replace(c.f, axes=(*c.around, *own, c.column), over=(), body=slot(0), reads=(whole,))
        return Laid((*d.formulas, result), places)

    def gradient(self, products: Access, A: Sequence[str], kl: tuple[Index, Index], d: Draft) -> Laid:
        """``K[r, s, q, o] = sum[n, k, l] A[k, r] A[l, s] M[n, k, l, q, o]``."""
        c, (k, l) = self.c, kl
        r, s = (side.window.a for side in self.sides)
        rows = (*c.around, k, s, c.channel, c.column)
        row = d.made(f"{c.f.out}_rows", rows, *_terms(Access(A[1], (l.symbol, s.symbol)), products, l))
        axes = (r, s, c.channel, c.column)
        body, reads = _terms(Access(A[0], (k.symbol, r.symbol)), row, k, c.scale)
        result = replace(c.f, axes=axes, over=c.around, body=body, reads=reads)
        return Laid((*d.formulas, result), tuple(a.symbol for a in axes))


def _divided(i: Index, side: Side) -> tuple[sp.Expr, sp.Expr]:
    """Tile and place in it."""
    if side.tiles == 1:
        return sp.S.Zero, i.symbol
    return quotient(i.symbol, sp.Integer(side.long)), remainder(i.symbol, sp.Integer(side.long))


def _terms(matrix: Access, read: Access, over: Index, scale: sp.Expr = sp.S.One) -> tuple[sp.Expr, tuple[Access, ...]]:
    """``sum[over] scale matrix read``, written out: vectors then run along the last axis, and nothing accumulates."""
    at = [{over.symbol: sp.Integer(k)} for k in range(int(over.extent))]
    body = sp.Add(*(product((scale, slot(2 * k), slot(2 * k + 1))) for k in range(len(at))))
    return body, tuple(access.renamed(names) for names in at for access in (matrix, read))


@lru_cache(maxsize=64)
def _matrix(entries: sp.ImmutableMatrix) -> Formula:
    """Its entries as a choice by their place."""
    k, e = (Index(index_symbol(s), sp.Integer(n)) for s, n in zip(("_k", "_e"), entries.shape, strict=True))

    def chosen(of: Index, values: Sequence[sp.Expr]) -> sp.Expr:
        body = values[-1]
        for place in reversed(range(len(values) - 1)):
            body = Select(sp.Eq(of.symbol, place), values[place], body)
        return body

    return Formula("", (k, e), (), chosen(k, [chosen(e, list(entries.row(row))) for row in range(entries.rows)]))


@dataclass(frozen=True)
class Cut:
    """A side's places: `length` of them from each ``step * tile``, or from 0."""

    tile: Index | None
    step: int
    length: int

    def at(self, place: sp.Symbol) -> sp.Expr:
        return place if self.tile is None else self.step * self.tile.symbol + place


@dataclass
class Draft:
    """The formulas so far. known: what others gathered, under the name of nothing."""

    tensors: dict[str, Tensor]
    known: Mapping[Formula, str]
    of: Formula
    formulas: list[Formula] = field(default_factory=list)

    def made(
        self, name: str, axes: tuple[Index, ...], body: sp.Expr, reads: Sequence[Access], over: tuple[Index, ...] = ()
    ) -> Access:
        """A formula of that name or one like it, read at its axes."""
        f = Formula(fresh(name, self.tensors), axes, over, body, tuple(reads), origin=self.of.origin)
        self.formulas.append(f)
        self.tensors[f.out] = Tensor(f.out, f.shape)
        return Access(f.out, tuple(a.symbol for a in axes))

    def shared(self, name: str, axes: tuple[Index, ...], body: sp.Expr, reads: Sequence[Access] = ()) -> Access:
        """The same; what is known is not made again."""
        f = Formula("", axes, (), body, tuple(reads))
        found = self.known.get(f) or next((g.out for g in self.formulas if nameless(g) == f), None)
        return self.made(name, axes, body, reads) if found is None else Access(found, tuple(a.symbol for a in axes))

    def matrix(self, name: str, entries: sp.ImmutableMatrix) -> str:
        f = _matrix(entries)
        return self.shared(f"winograd_{name}", f.axes, f.body).tensor

    def gathered(self, read: Access, axes: tuple[Index, ...]) -> Access:
        """What `read` reads as a tensor with these axes, 0 beyond its own bounds; itself, if it is that."""
        shape = self.tensors[read.tensor].shape
        facts = Facts({a.symbol: a.extent for a in axes})
        inside = all(facts.is_nonnegative(i) and facts.is_below(i, n) for i, n in zip(read.indices, shape, strict=True))
        if inside and read.indices == tuple(a.symbol for a in axes):
            return replace(read, outside=None)
        read = replace(read, outside=None if inside else sp.S.Zero)
        return self.shared(f"{read.tensor}_gathered", axes, slot(0), (read,))

    def transformed(
        self,
        read: Access,
        matrices: Sequence[str],
        around: tuple[Index, ...],
        kl: tuple[Index, Index],
        cut: tuple[Cut, Cut],
        rest: tuple[Index, ...],
    ) -> Access:
        """``[around, k, l, t, u, rest] = sum[a, b] M[k, a] M[l, b] read[around, m t + a, m u + b, rest]``."""
        (k, l), (first, second), n = kl, cut, len(around)
        tiles = tuple(c.tile for c in cut if c.tile is not None)
        before, (_, w), after = read.indices[:n], read.indices[n : n + 2], read.indices[n + 2 :]
        across = Index(w, self.tensors[read.tensor].shape[n + 1])
        a, b = (Index(index_symbol(f"_{name}"), sp.Integer(c.length)) for name, c in (("a", first), ("b", second)))
        taken = replace(read, indices=(*before, first.at(a.symbol), w, *after))
        body, reads = _terms(Access(matrices[0], (k.symbol, a.symbol)), taken, a)
        rows = self.made(f"{read.tensor}_rows", (*around, *tiles[:1], k, across, *rest), body, reads)
        at = {w: second.at(b.symbol)}
        body, reads = _terms(Access(matrices[1], (l.symbol, b.symbol)), rows.renamed(at), b)
        return self.made(f"{read.tensor}_tiles", (*around, k, l, *tiles, *rest), body, reads)
