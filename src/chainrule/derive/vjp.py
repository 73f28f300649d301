"""The one rule of reverse mode: no operation has a gradient of its own."""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from chainrule.derive.support import EVERYWHERE, Support, masked
from chainrule.ir.calculus import derivative, times
from chainrule.ir.expression import index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Origin, Reduce


def vjp(
    f: Formula,
    k: int,
    x: tuple[Index, ...],
    x_bar: str,
    y_bar: str,
    others: str = "",
    support: Support = EVERYWHERE,
) -> Formula:
    """What the map, sum or product `f` sends to the cotangent of the tensor behind its k-th read.

    For ``y[o] = sum[r] φ(x0, ...)`` whose slot k reads X at α(o, r):

        x_bar[p] = sum[o, r where α(o, r) = p]  ∂φ/∂x_k · y_bar[o]

    and for a product over r, ``others[o, r]`` (see below) is one more factor. Nothing is solved here:
    `optimize.eliminate` removes the indices that the equations determine. One that stays, such as
    ``token[b] = p``, is a gather's scatter-add.

    x: the axes of X, with fresh symbols; the result has these axes. x_bar, y_bar, others: names. support: outside of
    it y_bar is 0, and so is what is sent, whatever ∂φ/∂x_k is.
    Raises ValueError for other reductions: `expand_reductions` has rewritten them.
    Source: Urban and van der Smagt, arXiv:1711.01348, section 5.1.
    """
    factors, reads = _weights(f, others)
    sent = Access(y_bar, tuple(axis.symbol for axis in f.axes))
    reached = zip(f.reads[k].indices, x, strict=True)
    meets = (sp.Eq(a, p.symbol, evaluate=False) for a, p in reached)
    reads = (*reads, sent)
    body = times(derivative(f.body, slot(k)), *factors, slot(len(reads) - 1))
    body, reads = masked(support, body, reads)
    return Formula(
        out=x_bar,
        axes=x,
        over=f.axes + f.over,
        body=body,
        reads=reads,
        where=(*f.where, *meets),
        origin=Origin(formula=f.out, rule="vjp", layer=f.origin.layer),
    )


def _weights(f: Formula, others: str) -> tuple[tuple[sp.Expr, ...], tuple[Access, ...]]:
    """What each term of a sum is multiplied by when it changes: 1; of a product: the other terms."""
    if f.reduce is Reduce.SUM:
        return (), f.reads
    if f.reduce is Reduce.PROD:
        return (slot(len(f.reads)),), (*f.reads, Access(others, tuple(i.symbol for i in f.indices)))
    raise ValueError(f"{f.reduce.value} has no derivative: expand it first")


def other_terms(f: Formula, out: str) -> Formula:
    """``y[o] = prod[r] φ(r)`` without one of its terms: ``out[o, r] = prod[q where q != r] φ(q)``.

    Right at zeros, and itself a product, so the same rule derives it again, to any order. (Exclusive prefix and
    suffix products would be two formulas, of the same cost wherever they are not stepped along r.)
    """
    kept = tuple(Index(index_symbol(f"_k{j:02}"), r.extent, r.name) for j, r in enumerate(f.over))
    differs = sp.Or(*(sp.Ne(r.symbol, q.symbol) for r, q in zip(f.over, kept, strict=True)))
    return Formula(
        out=out,
        axes=f.axes + kept,
        over=f.over,
        body=f.body,
        reads=f.reads,
        where=(*f.where, differs),
        reduce=f.reduce,
        origin=Origin(formula=f.out, rule="other terms", layer=f.origin.layer),
    )


def fresh_axes(shape: tuple[sp.Expr, ...], names: tuple[str, ...] = ()) -> tuple[Index, ...]:
    """Axes of a tensor of this shape, named as where it was made, in symbols that no canonical formula uses."""
    shown: Iterator[str] = iter((*names, *(f"p{k}" for k in range(len(names), len(shape)))))
    return tuple(Index(index_symbol(f"_p{k:02}"), extent, next(shown)) for k, extent in enumerate(shape))
