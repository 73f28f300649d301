"""Graphs by hand: formulas written as an equation's parts, and small networks with their backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from chainrule.ir.expression import Select, dim_symbol, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Reduce
from chainrule.ir.graph import Dim, Graph, Init, Param, Scalar, Tensor, Update

BATCH = dim_symbol("batch")


class Builder:
    """Collects a graph's parts; indices are letters, whose extents are given once."""

    def __init__(self, **extents: int | sp.Expr) -> None:
        self.extents = {name: sp.Integer(e) if isinstance(e, int) else e for name, e in extents.items()}
        self.inputs: list[Tensor] = []
        self.params: list[Param] = []
        self.scalars: list[Scalar] = []
        self.nodes: list[Formula] = []
        self.updates: list[Update] = []

    def index(self, name: str) -> sp.Symbol:
        return sp.Symbol(name, integer=True, nonnegative=True)

    def shape(self, letters: str) -> tuple[sp.Expr, ...]:
        return tuple(self.extents[c] for c in letters)

    def input(self, name: str, letters: str, dtype: DType = DType.FLOAT, bound: sp.Expr | None = None) -> None:
        self.inputs.append(Tensor(name, self.shape(letters), dtype, bound))

    def param(self, name: str, letters: str) -> None:
        self.params.append(Param(Tensor(name, self.shape(letters)), Init("normal", (0.0, 1.0))))

    def read(self, text: str) -> Access:
        """``x[n, i]`` as "x ni"."""
        name, _, letters = text.partition(" ")
        return Access(name, tuple(self.index(c) for c in letters))

    def formula(
        self,
        out: str,
        reads: Sequence[str | Access],
        body: sp.Expr,
        over: str = "",
        reduce: Reduce = Reduce.SUM,
        where: tuple[sp.Basic, ...] = (),
        dtype: DType = DType.FLOAT,
    ) -> None:
        """out: ``z[n, j]`` as "z nj"."""
        name, _, letters = out.partition(" ")
        accesses = tuple(self.read(r) if isinstance(r, str) else r for r in reads)
        axes = tuple(Index(self.index(c), self.extents[c], c) for c in letters)
        reduced = tuple(Index(self.index(c), self.extents[c], c) for c in over)
        self.nodes.append(Formula(name, axes, reduced, body, accesses, where, reduce, dtype))

    def graph(self, name: str, outputs: Sequence[str], dims: Sequence[Dim] = (Dim("batch"),)) -> Graph:
        return Graph(
            name, tuple(dims), tuple(self.inputs), tuple(self.params), (), tuple(self.scalars),
            tuple(self.nodes), tuple(self.updates), tuple(outputs),
        )  # fmt: skip


A, B, C, D = slot(0), slot(1), slot(2), slot(3)


def mlp(*widths: int, batch: sp.Expr = BATCH) -> Graph:
    """A training step: relu layers, half the mean squared error of the last, its gradients, SGD."""
    letters = "abcdefgh"[: len(widths)]
    g = Builder(n=batch, **dict(zip(letters, widths, strict=True)))
    g.input("h0", "n" + letters[0])
    g.input("y", "n" + letters[-1])
    g.scalars.append(Scalar("rate", 0.1))
    last = len(widths) - 1
    for k in range(1, last + 1):
        i, o = letters[k - 1], letters[k]
        g.param(f"W{k}", i + o)
        g.param(f"b{k}", o)
        g.formula(f"p{k} n{o}", [f"h{k - 1} n{i}", f"W{k} {i}{o}"], A * B, over=i)
        body = A + B if k == last else Select(A + B <= 0, 0, A + B)
        g.formula(f"h{k} n{o}", [f"p{k} n{o}", f"b{k} {o}"], body)
    o = letters[last]
    g.formula("total", [f"h{last} n{o}", f"y n{o}"], (A - B) ** 2, over="n" + o)
    g.formula("loss", ["total"], A / 2 / batch)
    g.formula(f"z{last}_bar n{o}", [f"h{last} n{o}", f"y n{o}"], (A - B) / batch)
    for k in range(last, 0, -1):
        i, o = letters[k - 1], letters[k]
        g.formula(f"W{k}_bar {i}{o}", [f"h{k - 1} n{i}", f"z{k}_bar n{o}"], A * B, over="n")
        g.formula(f"b{k}_bar {o}", [f"z{k}_bar n{o}"], A, over="n")
        if k > 1:
            g.formula(f"h{k - 1}_bar n{i}", [f"z{k}_bar n{o}", f"W{k} {i}{o}"], A * B, over=o)
            g.formula(f"z{k - 1}_bar n{i}", [f"h{k - 1} n{i}", f"h{k - 1}_bar n{i}"], Select(A > 0, B, 0))
    for k in range(1, last + 1):
        for name, where in ((f"W{k}", letters[k - 1 : k + 1]), (f"b{k}", letters[k])):
            g.formula(f"{name}_new {where}", [f"{name} {where}", "rate", f"{name}_bar {where}"], A - B * C)
            g.updates.append(Update(name, f"{name}_new"))
    return g.graph("mlp", ("loss",))
