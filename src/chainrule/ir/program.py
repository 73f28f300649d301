"""The program: a graph's formulas as kernels, each a tree of loops with statements and products at its leaves.

Symbols of a kernel (loop indices, a block's bounds) are unique within it; dims are the graph's. Expressions over
slots read as in a formula: slot k of a statement's value is the value of its reads[k].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

import sympy as sp

from chainrule.choices import Choice
from chainrule.ir.formula import Access, DType, Origin, Reduce
from chainrule.ir.graph import Dim, Init

Space = Literal["input", "param", "state", "scalar", "clock", "constant", "arena", "random", "scratch"]
"""Where a buffer lives. arena: between kernels, placed by liveness. scratch: inside one kernel, private to a thread;
of rank 0 it is a local variable. random: nowhere, a read computes it. clock: int64 (seed, step)."""


@dataclass(frozen=True)
class Range:
    """``start <= symbol < stop``; pretty is the name that the generated source uses, made unique by the printer."""

    symbol: sp.Symbol
    start: sp.Expr
    stop: sp.Expr
    pretty: str = field(default="", compare=False)


@dataclass(frozen=True)
class Loop:
    """``for range.symbol in [range.start, range.stop): body``, in increasing order.

    until: a place that is looked at before each turn; above 0, the loop ends there.
    """

    range: Range
    body: tuple[Leaf, ...]
    until: Access | None = None


@dataclass(frozen=True)
class Statement:
    """``target = value`` where the conditions hold, or with `reduce`: ``target = reduce(target, value)``.

    ARGMAX keeps its running maximum in the local named `companion` (a scratch buffer of the target's shape): value is
    what is compared, `place` is the flattened index that is stored where it is greater (the first one wins).
    Reads with `outside` are guarded by the buffer's shape.
    """

    target: Access
    value: sp.Expr
    reads: tuple[Access, ...] = ()
    where: tuple[sp.Basic, ...] = ()
    reduce: Reduce | None = None
    companion: str | None = None
    place: sp.Expr | None = None
    origin: Origin = field(default=Origin(), compare=False)
    text: str = field(default="", compare=False)  # the equation that it computes


@dataclass(frozen=True)
class Product:
    """``target[...] = (target +) scale * sum[inner] left * right``: a contraction leaf.

    `rows` index target and left, `columns` target and right, `inner` left and right; `batch` all three. Accesses are
    affine in the ranges' symbols and in what is open around the leaf; their `outside` is None or 0 (padding).
    A product without rows and columns is one place of those that the loops around it run over: statements beside it
    there make something of the sum.
    where: conditions on the ranges' symbols; a term or a place where one does not hold may be left out (a
    place then is 0), for an operand is 0 there, or nobody looks.
    """

    target: Access
    left: Access
    right: Access
    rows: tuple[Range, ...]
    columns: tuple[Range, ...]
    inner: tuple[Range, ...]
    batch: tuple[Range, ...] = ()
    scale: sp.Expr = sp.S.One
    accumulate: bool = False
    where: tuple[sp.Basic, ...] = ()
    origin: Origin = field(default=Origin(), compare=False)
    text: str = field(default="", compare=False)


Leaf = Loop | Statement | Product


@dataclass(frozen=True)
class Buffer:
    """A tensor's storage, row-major. `stands_for`: the graph's tensor that it holds, for comments and pictures."""

    name: str
    shape: tuple[sp.Expr, ...]
    dtype: DType
    space: Space
    key: str = ""  # of a random one: what its counter is keyed by
    stands_for: str = field(default="", compare=False)


@dataclass(frozen=True)
class Block:
    """The kernel's top loop, cut into blocks that threads divide: block b covers [b*size, min(b*size + size, extent)).

    Inside, `first` and `last` stand for that interval's ends; `number` is b itself (the row of a partial result).
    """

    number: sp.Symbol
    first: sp.Symbol
    last: sp.Symbol
    extent: sp.Expr
    size: int
    pretty: str = field(default="", compare=False)


@dataclass(frozen=True)
class Kernel:
    """One compiled function. Without a block it runs once, on one thread.

    locals: its scratch buffers. cost: nanoseconds, roughly, of the whole kernel on one core, over the dims; flops: its
    arithmetic operations. when, unless: polynomials in the dims; it runs where the one is above 0 and the other is not.
    """

    name: str
    body: tuple[Leaf, ...]
    locals: tuple[Buffer, ...] = ()
    block: Block | None = None
    cost: sp.Expr = sp.S.Zero
    flops: sp.Expr = sp.S.Zero
    formulas: tuple[str, ...] = field(default=(), compare=False)  # the graph's nodes that it computes
    when: sp.Expr = sp.S.One
    unless: sp.Expr = sp.S.Zero


@dataclass(frozen=True)
class Program:
    """Kernels in order, and the buffers between them. Inputs, params, … are named as on the graph.

    results: for each output and each state or parameter that is updated, the buffer that holds its value at the end
    (an update's target is the store's own buffer). sizes: of dims, what the kernels were planned for.
    """

    name: str
    training: bool
    dims: tuple[Dim, ...]
    buffers: tuple[Buffer, ...]
    kernels: tuple[Kernel, ...]
    outputs: tuple[tuple[str, str], ...]  # (output's name, buffer)
    inits: tuple[tuple[str, Init], ...]  # of the params
    values: tuple[tuple[str, float], ...]  # of states and scalars: at start, by default
    bounds: tuple[tuple[str, sp.Expr], ...] = ()  # of int inputs: 0 <= value < bound
    convolutions: tuple[tuple[str, Choice], ...] = ()  # what was chosen for each that fewer multiplications can compute
    sizes: tuple[tuple[str, int], ...] = ()


def alternatives(kernels: Sequence[Kernel]) -> list[tuple[Kernel, ...]]:
    """The ways to a program's results: kernels that run at the same sizes."""
    found: dict[tuple[sp.Expr, sp.Expr], list[Kernel]] = {}
    for kernel in kernels:
        found.setdefault((kernel.when, kernel.unless), []).append(kernel)
    return list(map(tuple, found.values()))


def greatest(e: sp.Expr, around: Mapping[sp.Symbol, Range]) -> sp.Expr:
    """The bound `e` of a loop in the last turns of those `around` it: a strip's grows with its number."""
    for symbol in e.free_symbols & around.keys():
        stop = around[symbol].stop
        if stop.is_Integer and sp.expand(e).coeff(symbol, 1).is_positive:
            e = sp.expand(e.xreplace({symbol: stop - 1}))
    return e


def leaves(body: tuple[Leaf, ...]) -> Iterator[Statement | Product]:
    """The statements and products of a tree, in order."""
    for node in body:
        match node:
            case Loop():
                yield from leaves(node.body)
            case Statement() | Product():
                yield node
            case _:
                assert_never(node)


def accesses(leaf: Statement | Product) -> tuple[tuple[Access, ...], Access]:
    """What a leaf reads, and what it writes (an accumulating leaf reads its target too)."""
    match leaf:
        case Statement():
            again = (leaf.target,) if leaf.reduce is not None else ()
            return (*leaf.reads, *again), leaf.target
        case Product():
            again = (leaf.target,) if leaf.accumulate else ()
            return (leaf.left, leaf.right, *again), leaf.target
        case _:
            assert_never(leaf)


def gathered(p: Product, around: Sequence[Range]) -> tuple[Product, tuple[Range, ...]]:
    """A product with the loops around it, which are its batch; of one whose rows and columns are all loops around it,
    those that move an operand alone are its own again."""
    if p.rows or p.columns:
        return p, (*around, *p.batch)
    left, right = ({s for i in a.indices for s in i.free_symbols} for a in (p.left, p.right))
    rows = tuple(r for r in around if r.symbol not in right)
    columns = tuple(r for r in around if r.symbol not in left)
    batch = tuple(r for r in around if r not in rows and r not in columns)
    return replace(p, rows=rows, columns=columns), (*batch, *p.batch)


def mapped(node: Leaf, change: Callable[[Access], Access]) -> Leaf:
    """`node` with every access changed."""
    match node:
        case Loop():
            until = None if node.until is None else change(node.until)
            return replace(node, body=tuple(mapped(child, change) for child in node.body), until=until)
        case Statement():
            return replace(node, target=change(node.target), reads=tuple(map(change, node.reads)))
        case Product():
            return replace(node, target=change(node.target), left=change(node.left), right=change(node.right))
        case _:
            assert_never(node)


def ranges(body: Sequence[Leaf]) -> Iterator[Range]:
    """The ranges of all loops in a tree, products' own among them, in order."""
    for node in body:
        match node:
            case Loop():
                yield node.range
                yield from ranges(node.body)
            case Product():
                yield from (*node.batch, *node.rows, *node.columns, *node.inner)
            case Statement():
                pass
            case _:
                assert_never(node)


def renamed(node: Leaf, names: Mapping[sp.Basic, sp.Basic]) -> Leaf:
    """`node` with other expressions for the symbols of loops and of a block's bounds."""

    def span(r: Range) -> Range:
        return replace(
            r, symbol=names.get(r.symbol, r.symbol), start=r.start.xreplace(names), stop=r.stop.xreplace(names)
        )

    def spans(group: tuple[Range, ...]) -> tuple[Range, ...]:
        return tuple(map(span, group))

    def all_of(several: tuple[sp.Basic, ...]) -> tuple[sp.Basic, ...]:
        return tuple(e.xreplace(names) for e in several)

    node = mapped(node, lambda access: access.renamed(names)) if not isinstance(node, Loop) else node
    match node:
        case Loop():
            until = None if node.until is None else node.until.renamed(names)
            return Loop(span(node.range), tuple(renamed(child, names) for child in node.body), until)
        case Statement():
            place = None if node.place is None else node.place.xreplace(names)
            return replace(node, value=node.value.xreplace(names), where=all_of(node.where), place=place)
        case Product():
            return replace(
                node,
                rows=spans(node.rows),
                columns=spans(node.columns),
                inner=spans(node.inner),
                batch=spans(node.batch),
                scale=node.scale.xreplace(names),
                where=all_of(node.where),
            )
        case _:
            assert_never(node)
