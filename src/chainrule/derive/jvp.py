"""Forward mode, of one formula: what the laws hold reverse mode against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import sympy as sp

from chainrule.derive.vjp import _weights
from chainrule.ir.calculus import derivative, times
from chainrule.ir.expression import slot
from chainrule.ir.formula import Formula, Origin


def jvp(f: Formula, tangents: Mapping[str, str], y_dot: str, others: str = "") -> Formula:
    """How the map, sum or product `f` changes along the tangents of the tensors that it reads.

    For ``y[o] = sum[r] φ(x0, ...)`` whose slot k reads X_k at α_k(o, r):

        y_dot[o] = sum[r]  Σ_k ∂φ/∂x_k · x_dot_k[α_k(o, r)]

    tangents: the name of the tangent of each tensor that has one. Outside its bounds a read does not change.
    Raises ValueError for other reductions: `expand_reductions` has rewritten them.
    """
    factors, reads = _weights(f, others)
    terms = []
    for k, read in enumerate(f.reads):
        if read.tensor in tangents and slot(k) in f.body.free_symbols:
            terms.append(times(derivative(f.body, slot(k)), *factors, slot(len(reads))))
            outside = None if read.outside is None else sp.S.Zero
            reads = (*reads, replace(read, tensor=tangents[read.tensor], outside=outside))
    return Formula(
        out=y_dot,
        axes=f.axes,
        over=f.over,
        body=sp.Add(*terms),
        reads=reads,
        where=f.where,
        origin=Origin(formula=f.out, rule="jvp", layer=f.origin.layer),
    )
