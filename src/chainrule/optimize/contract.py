"""Products of three or more tensors under a sum, made into products of two in the cheapest order."""

from __future__ import annotations

from dataclasses import replace

import opt_einsum
import sympy as sp

from chainrule.ir.affine import weight
from chainrule.ir.expression import is_slot, slot, slot_number
from chainrule.ir.formula import Access, Formula, Index, Origin, Reduce
from chainrule.ir.graph import Graph, Node
from chainrule.ir.rename import fresh_name

GAIN = 0.5  # an intermediate tensor is made where at least half of the work goes away


def contract(graph: Graph) -> Graph:
    """Sum products of three or more reads pairwise, in opt_einsum's order, where that is cheaper.

    y[n, o] = sum[i, j] x[n, i] * A[i, j] * B[j, o]  ->  y_pair[n, j] = sum[i] x[n, i] * A[i, j]
                                                         y[n, o] = sum[j] y_pair[n, j] * B[j, o]
    """
    nodes: list[Node] = []
    taken = set(graph.tensors)
    for node in graph.nodes:
        nodes += _pairwise(node, taken) if isinstance(node, Formula) and _is_long(node) else [node]
    return graph if len(nodes) == len(graph.nodes) else replace(graph, nodes=tuple(nodes))


def _is_long(f: Formula) -> bool:
    """A sum of products of three or more plain reads, without conditions, with two indices to sum over or more."""
    factors = sp.Mul.make_args(f.body)
    reads = [g for g in factors if is_slot(g)]
    symbols = {i.symbol for i in f.indices}
    return (
        f.reduce is Reduce.SUM
        and len(f.over) > 1
        and len(reads) > 2
        and not f.where
        and f.out not in f.tensors
        and all(is_slot(g) or not (g.free_symbols & symbols or any(map(is_slot, g.free_symbols))) for g in factors)
        and all(read.outside is None and set(read.indices) <= symbols for read in f.reads)
    )


def _pairwise(f: Formula, taken: set[str]) -> list[Node]:
    factors = sp.Mul.make_args(f.body)
    scale = [g for g in factors if not is_slot(g)]
    operands = [f.reads[slot_number(g)] for g in factors if is_slot(g)]
    extents = {i.symbol: i for i in f.indices}
    letters = {symbol: opt_einsum.get_symbol(k) for k, symbol in enumerate(extents)}
    output = "".join(letters[a.symbol] for a in f.axes if any(a.symbol in r.indices for r in operands))
    terms = ["".join(letters[i] for i in dict.fromkeys(r.indices)) for r in operands]
    used = set().union(*terms)
    if any(letters[r.symbol] not in used for r in f.over) or len(output) < len(f.axes):
        return [f]
    shapes = [tuple(int(weight([extents[i].extent])) for i in dict.fromkeys(r.indices)) for r in operands]
    equation = f"{','.join(terms)}->{output}"
    path, info = opt_einsum.contract_path(
        equation, *shapes, shapes=True, optimize="optimal" if len(operands) < 6 else "greedy"
    )
    together = weight([i.extent for i in f.indices]) * len(operands)
    if float(info.opt_cost) > GAIN * together:
        return [f]
    return _steps(f, list(path), operands, scale, extents, taken)


def _steps(
    f: Formula,
    path: list[tuple[int, ...]],
    operands: list[Access],
    scale: list[sp.Expr],
    extents: dict[sp.Symbol, Index],
    taken: set[str],
) -> list[Node]:
    """One formula for each step of the path; the last one keeps the name, and the factors without reads."""
    made: list[Node] = []
    for k, step in enumerate(path):
        chosen = [operands[i] for i in step]
        operands = [r for i, r in enumerate(operands) if i not in step]
        if k == len(path) - 1:
            over = tuple(r for r in f.over if any(r.symbol in read.indices for read in chosen))
            made.append(replace(f, over=over, body=sp.Mul(*scale, *_slots(chosen)), reads=tuple(chosen)))
            break
        wanted = {i for read in operands for i in read.indices} | {a.symbol for a in f.axes}
        kept = [i for i in dict.fromkeys(i for read in chosen for i in read.indices) if i in wanted]
        summed = [i for i in dict.fromkeys(i for read in chosen for i in read.indices) if i not in wanted]
        name = fresh_name(f"{f.out}_pair", taken)
        taken.add(name)
        origin = Origin(f.origin.span, f.origin.formula or f.out, f.origin.rule or "contract", f.origin.layer)
        axes, over = tuple(extents[i] for i in kept), tuple(extents[i] for i in summed)
        made.append(Formula(name, axes, over, sp.Mul(*_slots(chosen)), tuple(chosen), origin=origin))
        operands.append(Access(name, tuple(kept)))
    return made


def _slots(reads: list[Access]) -> list[sp.Symbol]:
    return [slot(k) for k in range(len(reads))]
