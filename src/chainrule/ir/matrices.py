"""Which kernels are products of matrices in memory that a library may do, with what it may do to them at once.

    target[i, j] = f(scale * sum[k] left[i, k] * right[k, j] + beta * added[i, j] + bias[j])

f is nothing, relu, or gelu as its approximation by tanh. What follows a product is recognised by its formulas: they are
composed as far as they are sums of what is read, and what is left must be f.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import sympy as sp

from chainrule.executable import Activation, Precision
from chainrule.ir.expression import Select, is_slot, product, slot_number
from chainrule.ir.formula import Access
from chainrule.ir.program import Product, Range, Statement, gathered

Group = tuple[Range, ...]
Shapes = Mapping[str, tuple[sp.Expr, ...]]


@dataclass(frozen=True)
class Matrices:
    """Equal matrices in a buffer, by their number, first element, and steps in elements: down, across, to the next."""

    buffer: str
    offset: sp.Expr
    down: sp.Expr
    across: sp.Expr
    batch: sp.Expr


@dataclass(frozen=True)
class Multiplied:
    """``target[i, j] = f(scale * sum[k] left[i, k] * right[k, j] + beta * added[i, j] + bias[i, j])``, for each of
    `batch` matrices; over the dims. A bias stands still along one of its axes."""

    rows: sp.Expr
    columns: sp.Expr
    inner: sp.Expr
    batch: sp.Expr
    left: Matrices
    right: Matrices
    target: Matrices
    scale: sp.Expr
    added: Matrices | None = None
    beta: sp.Expr = sp.S.Zero
    bias: Matrices | None = None
    activation: Activation = ""
    precision: Precision = "float32"


def multiplied(p: Product, around: Group, then: Sequence[Statement], shapes: Shapes) -> Multiplied | None:
    """The product with what follows it, if a library can do that: no operand is padded, and indices that rows, columns,
    sums or batches consist of are one index in memory.

    around: loops over the product's places. shapes: of the tensors of floats that lie in memory; what else is written
    is seen by nobody.
    """
    p, batch = gathered(p, around)
    ranges = (*batch, *p.rows, *p.columns, *p.inner)
    padded = any(a.outside is not None for a in (p.left, p.right))
    known = {p.left.tensor, p.right.tensor} <= shapes.keys()
    if padded or not known or p.scale.free_symbols or any(r.start != 0 for r in ranges):
        return None
    ending = ending_of(p, then, shapes)
    if ending is None:
        return None
    found = (_of(p, ending, *groups, shapes) for groups in _groups(p, batch))
    return next((one for one in found if one is not None), None)


@dataclass(frozen=True)
class Sum:
    """``scale * product + sum of factor * read``, and what was made of it: a law over `U`."""

    scale: sp.Expr
    terms: Mapping[Access, sp.Expr]
    law: sp.Expr


@dataclass(frozen=True)
class Ending:
    """What follows a product: ``target = f(scale * product + sum of factor * read)``."""

    target: Access
    scale: sp.Expr
    terms: Mapping[Access, sp.Expr] = field(default_factory=dict)
    activation: Activation = ""


U = sp.Symbol("u", real=True)
"""The sum that an activation is of."""


def ending_of(p: Product, then: Sequence[Statement], shapes: Shapes) -> Ending | None:
    """What the statements after a product make of it, if that is one tensor in memory, by an activation of a sum."""
    if not then:
        accumulated = {p.target: sp.S.One} if p.accumulate else {}
        return Ending(p.target, p.scale, accumulated) if p.target.tensor in shapes else None
    stored = [a for a in (p.target, *(s.target for s in then)) if a.tensor in shapes]
    if p.accumulate or stored != [then[-1].target]:
        return None
    made = {p.target: Sum(p.scale, {}, U)}
    for s in then:
        guarded = any(read.outside is not None for read in s.reads)
        found = None if guarded or s.where or s.reduce is not None else _composed(s, made, shapes)
        if found is None:
            return None
        made[s.target] = found
    last = made[then[-1].target]
    activation = activation_of(last.law)
    return None if activation is None else Ending(then[-1].target, last.scale, last.terms, activation)


def _composed(s: Statement, made: Mapping[Access, Sum], shapes: Shapes) -> Sum | None:
    """The value of a statement: a sum again, or a law of one."""
    symbols = {x: s.reads[slot_number(x)] for x in s.value.free_symbols if is_slot(x)}
    if len(symbols) < len(s.value.free_symbols):
        return None
    branches = s.value.args[1:] if isinstance(s.value, Select) else ()
    inside = next((e for e in branches if not is_slot(e) and s.value in rectified(e)), None)
    if inside is not None:
        found = _composed(replace(s, value=inside), made, shapes)
        return None if found is None or found.law != U else replace(found, law=s.value.xreplace({inside: U}))
    sums = [made[read] for read in symbols.values() if read in made]
    if len(sums) == len(symbols) and sums and all((x.scale, x.terms) == (sums[0].scale, sums[0].terms) for x in sums):
        law = s.value.xreplace({x: made[read].law for x, read in symbols.items()})
        if linear(law, U) is None:
            return replace(sums[0], law=law)
    scale: sp.Expr = sp.S.Zero
    terms: dict[Access, sp.Expr] = {}
    rest = sp.expand(s.value)
    for x, read in symbols.items():
        factor = rest.coeff(x, 1)
        rest = sp.expand(rest - factor * x)
        if factor.free_symbols:
            return None
        part = made.get(read)
        if part is None:
            if read.tensor not in shapes:
                return None
            part = Sum(sp.S.Zero, {read: sp.S.One}, U)
        of_law = linear(part.law, U)
        if of_law is None:
            return None
        scale += factor * of_law * part.scale
        for term, times in part.terms.items():
            terms[term] = terms.get(term, sp.S.Zero) + factor * of_law * times
    return Sum(scale, terms, U) if rest == 0 and scale != 0 else None


def linear(law: sp.Expr, u: sp.Symbol) -> sp.Expr | None:
    """The number that `law` multiplies u by; None where it does anything else."""
    factor = sp.expand(law).coeff(u, 1)
    return factor if not factor.free_symbols and sp.expand(law - factor * u) == 0 else None


def rectified(e: sp.Expr) -> tuple[sp.Expr, ...]:
    """The forms of max(e, 0)."""
    return tuple(Select(c(e, 0), 0, e) for c in (sp.Le, sp.Lt)) + tuple(Select(c(e, 0), e, 0) for c in (sp.Gt, sp.Ge))


@lru_cache(maxsize=1024)
def activation_of(law: sp.Expr) -> Activation | None:
    """Which activation of u a law is; None: no library knows it."""
    if law == U:
        return ""
    if law in rectified(U):
        return "relu"
    clipped = [e for e in law.atoms(Select) if law.has(sp.tanh)]
    inside = max(clipped, key=lambda e: len(e.atoms(Select)), default=U)  # beyond 10 the tanh is 1 to the last bit
    if inside is not U and not _is_clipped(inside):
        return None
    gelu = U * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (inside + sp.Rational(44715, 10**6) * inside**3))) / 2
    return "gelu" if sp.expand(law - gelu) == 0 else None


def _is_clipped(e: sp.Expr) -> bool:
    """Whether `e` is u within [-c, c], where c is so large that tanh of gelu's argument is 1 there."""
    bounds = sorted(e.atoms(sp.Integer) | {-x for x in e.atoms(sp.Integer)})
    if not bounds or bounds[-1] < 10 or len(bounds) != 2:
        return False
    low, high = bounds
    above, below = Select(sp.Gt(U, high), high, U), Select(sp.Lt(U, low), low, U)
    return e in (Select(sp.Lt(U, low), low, above), Select(sp.Gt(U, high), high, below))


def _groups(p: Product, batch: Group) -> Iterator[tuple[Group, Group, Group]]:
    """Batch, rows and columns: leading rows or columns may count as a batch, whose other operand stands still."""
    for k in range(len(p.rows)):
        yield (*batch, *p.rows[:k]), p.rows[k:], p.columns
    for k in range(1, len(p.columns)):
        yield (*batch, *p.columns[:k]), p.rows, p.columns[k:]


def _of(p: Product, ending: Ending, batch: Group, rows: Group, columns: Group, shapes: Shapes) -> Multiplied | None:
    """The product with its indices in these groups, where each group is one index of each operand."""
    found = [
        matrices_of(access, groups, shapes[access.tensor])
        for access, groups in (
            (p.left, (rows, p.inner, batch)),
            (p.right, (p.inner, columns, batch)),
            (ending.target, (rows, columns, batch)),
        )
    ]
    left, right, target = found
    if left is None or right is None or target is None or any(sp.S.One not in (m.down, m.across) for m in found if m):
        return None
    m, n, k, times = (product(r.stop for r in group) for group in (rows, columns, p.inner, batch))
    whole = Multiplied(m, n, k, times, left, right, target, ending.scale, activation=ending.activation)
    for access, factor in ending.terms.items():
        term = matrices_of(access, (rows, columns, batch), shapes[access.tensor])
        more = None if term is None else _with_term(whole, term, factor)
        if more is None:
            return None
        whole = more
    return whole


def _with_term(m: Multiplied, term: Matrices, factor: sp.Expr) -> Multiplied | None:
    """The product with one more term: a vector along which the target lies in memory, or a matrix that lies as it."""
    by_rows = m.target.across == 1
    along, other = (term.across, term.down) if by_rows else (term.down, term.across)
    if along != 1:
        return None
    if other == 0:
        return replace(m, bias=term) if m.bias is None and factor == 1 and (m.batch == 1 or term.batch == 0) else None
    return replace(m, added=term, beta=factor) if m.added is None else None


def matrices_of(access: Access, groups: tuple[Group, Group, Group], shape: tuple[sp.Expr, ...]) -> Matrices | None:
    """What is accessed, as matrices whose index down, index across, and number are these groups of indices."""
    found = _steps(access.indices, groups, shape)
    return None if found is None else Matrices(access.tensor, *found)


@lru_cache(maxsize=65536)  # equal layers read at equal places
def _steps(
    indices: tuple[sp.Expr, ...], groups: tuple[Group, Group, Group], shape: tuple[sp.Expr, ...]
) -> tuple[sp.Expr, sp.Expr, sp.Expr, sp.Expr] | None:
    """The first place in memory, and the steps down, across and to the next."""
    flat: sp.Expr = sp.S.Zero
    for index, extent in zip(indices, shape, strict=True):
        if any(map(is_slot, index.free_symbols)):
            return None
        flat = flat * extent + index
    flat = sp.expand(flat)
    strides = [_stride(flat, group) for group in groups]
    if any(s is None for s in strides):
        return None
    offset = flat.xreplace(dict.fromkeys((r.symbol for group in groups for r in group), sp.S.Zero))
    down, across, apart = (s if s is not None else sp.S.Zero for s in strides)
    return sp.expand(offset), down, across, apart


def _stride(flat: sp.Expr, group: Group) -> sp.Expr | None:
    """How far apart the places of a group's index are, its ranges being digits of one number; None if they are not.

    An index of one place lies at any distance: 1.
    """
    own = {r.symbol for r in group}
    stride: sp.Expr | None = None
    found: sp.Expr | None = None
    reach: sp.Expr = sp.S.One
    for r in reversed(group):
        if r.stop == 1:
            continue
        c = flat.coeff(r.symbol, 1)
        if c.free_symbols & own or sp.expand(flat - c * r.symbol).has(r.symbol):
            return None
        if stride is None:
            stride = found = c
        elif sp.expand(c - stride * reach) != 0:
            return None
        reach, stride = r.stop, c
    return sp.S.One if found is None else found
