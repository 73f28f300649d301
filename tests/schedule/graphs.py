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


def cross_entropy(n: int | sp.Expr = BATCH, k: int | sp.Expr = 10) -> Graph:
    """From logits and integer labels: the stable loss, and the gradient of the logits."""
    g = Builder(n=n, k=k)
    g.input("x", "nk")
    g.input("label", "n", DType.INT, g.extents["k"])
    label = slot(1, DType.INT.sort)
    g.formula("m n", ["x nk"], A, over="k", reduce=Reduce.MAX)
    g.formula("e nk", ["x nk", "m n"], sp.exp(A - B))
    g.formula("s n", ["e nk"], A, over="k")
    picked = [Access("x", (g.index("n"), label)), "label n", "m n", "s n"]
    g.formula("each n", picked, C + sp.log(D) - A)
    g.formula("loss", ["each n"], A, over="n")
    at = slot(2, DType.INT.sort)
    hit = Select(sp.Eq(at, g.index("k"), evaluate=False), 1, 0)
    g.formula("x_bar nk", ["e nk", "s n", "label n"], A / B - hit)
    return g.graph("cross_entropy", ("loss", "x_bar"))


def layer_norm(n: int | sp.Expr = BATCH, k: int | sp.Expr = 64) -> Graph:
    """Forward and backward, with the gradients of gain and bias."""
    g = Builder(n=n, k=k)
    g.input("x", "nk")
    g.input("y_bar", "nk")
    g.param("gain", "k")
    g.param("bias", "k")
    width = g.extents["k"]
    g.formula("total n", ["x nk"], A, over="k")
    g.formula("c nk", ["x nk", "total n"], A - B / width)
    g.formula("v n", ["c nk"], A**2, over="k")
    g.formula("r n", ["v n"], 1 / sp.sqrt(A / width + sp.Rational(1, 100000)))
    g.formula("y nk", ["c nk", "r n", "gain k", "bias k"], A * B * C + D)
    g.formula("gain_bar k", ["y_bar nk", "c nk", "r n"], A * B * C, over="n")
    g.formula("bias_bar k", ["y_bar nk"], A, over="n")
    g.formula("r_bar n", ["y_bar nk", "c nk", "gain k"], A * B * C, over="k")
    g.formula("c_bar nk", ["y_bar nk", "r n", "gain k", "c nk", "r_bar n"],
              A * B * C - D * slot(4) * B**3 / width)  # fmt: skip
    g.formula("mean n", ["c_bar nk"], A, over="k")
    g.formula("x_bar nk", ["c_bar nk", "mean n"], A - B / width)
    return g.graph("layer_norm", ("y", "gain_bar", "bias_bar", "x_bar"))


def attention(b: int | sp.Expr = BATCH, h: int = 2, t: int | sp.Expr = 8, d: int = 8) -> Graph:
    """Softmax attention and its backward pass; one time axis is read as query q and as key k."""
    g = Builder(b=b, h=h, q=t, k=t, d=d)
    for name in ("Q", "K", "V", "O_bar"):
        g.input(name, "bhqd")
    g.formula("S bhqk", ["Q bhqd", "K bhkd"], A * B / 2, over="d")
    g.formula("m bhq", ["S bhqk"], A, over="k", reduce=Reduce.MAX)
    g.formula("e bhqk", ["S bhqk", "m bhq"], sp.exp(A - B))
    g.formula("l bhq", ["e bhqk"], A, over="k")
    g.formula("P bhqk", ["e bhqk", "l bhq"], A / B)
    g.formula("O bhqd", ["P bhqk", "V bhkd"], A * B, over="k")
    g.formula("P_bar bhqk", ["O_bar bhqd", "V bhkd"], A * B, over="d")
    g.formula("V_bar bhkd", ["P bhqk", "O_bar bhqd"], A * B, over="q")
    g.formula("l_bar bhq", ["P_bar bhqk", "P bhqk"], A * B, over="k")
    g.formula("S_bar bhqk", ["P bhqk", "P_bar bhqk", "l_bar bhq"], A * (B - C) / 2)
    g.formula("Q_bar bhqd", ["S_bar bhqk", "K bhkd"], A * B, over="k")
    g.formula("K_bar bhkd", ["S_bar bhqk", "Q bhqd"], A * B, over="q")
    return g.graph("attention", ("O", "Q_bar", "K_bar", "V_bar"))


def embedding(n: int | sp.Expr = BATCH, v: int | sp.Expr = 7, j: int | sp.Expr = 4) -> Graph:
    """A gather, its scatter-add, and the update of the table in the same step."""
    g = Builder(n=n, v=v, j=j)
    g.input("token", "n", DType.INT, g.extents["v"])
    g.input("y", "nj")
    g.param("table", "vj")
    token = slot(0, DType.INT.sort)
    g.formula("e nj", ["token n", Access("table", (token, g.index("j")))], B)
    g.formula("e_bar nj", ["e nj", "y nj"], A - B)
    meets = sp.Eq(slot(1, DType.INT.sort), g.index("v"), evaluate=False)
    g.formula("table_bar vj", ["e_bar nj", "token n"], A, over="n", where=(meets,))
    g.formula("table_new vj", ["table vj", "table_bar vj"], A - B / 8)
    g.updates.append(Update("table", "table_new"))
    return g.graph("embedding", ("e",))


def convolution(n: int | sp.Expr = BATCH, c: int = 2, o: int = 8, h: int = 5) -> Graph:
    """A padded 3 by 3 convolution, and the gradients of its data (guarded reads) and of its kernel."""
    g = Builder(n=n, c=c, o=o, h=h, w=h, r=3, s=3)
    g.input("x", "nchw")
    g.input("y_bar", "nohw")
    g.param("K", "ocrs")
    n_, c_, o_, h_, w_, r_, s_ = map(g.index, "ncohwrs")
    zero = sp.S.Zero
    g.formula("y nohw", [Access("x", (n_, c_, h_ + r_ - 1, w_ + s_ - 1), zero), "K ocrs"], A * B, over="crs")
    back = Access("y_bar", (n_, o_, h_ - r_ + 1, w_ - s_ + 1), zero)
    g.formula("x_bar nchw", [back, "K ocrs"], A * B, over="ors")
    g.formula("K_bar ocrs", [Access("x", (n_, c_, h_ + r_ - 1, w_ + s_ - 1), zero), "y_bar nohw"], A * B, over="nhw")
    g.formula("K_new ocrs", ["K ocrs", "K_bar ocrs"], A - B / 8)
    g.updates.append(Update("K", "K_new"))
    return g.graph("convolution", ("y", "x_bar"))


def odd_ends(n: int | sp.Expr = BATCH, k: int | sp.Expr = 3) -> Graph:
    """Argmax, min, prod, conditions on maps and reductions, copies, a stored output, two updates that cross."""
    g = Builder(n=n, k=k, i=n)
    g.input("x", "nk")
    for name in ("p", "q"):
        g.param(name, "k")
    k_, n_ = g.index("k"), g.index("n")
    g.formula("best n", ["x nk"], A, over="k", reduce=Reduce.ARGMAX, dtype=DType.INT)
    g.formula("best_all", ["x nk"], A, over="nk", reduce=Reduce.ARGMAX, dtype=DType.INT)
    g.formula("low k", ["x nk"], A, over="n", reduce=Reduce.MIN)
    g.formula("all n", ["x nk"], A, over="k", reduce=Reduce.PROD)
    g.formula("upper nk", ["x nk"], A, where=(sp.Ge(k_, n_),))
    g.formula("before n", ["x ik"], A, over="ik", where=(sp.Le(g.index("i"), n_),))
    g.formula("same n", ["before n"], A)
    g.formula("shifted nk", [Access("x", (n_ - 1, k_), sp.Integer(7)), "same n"], A + B)
    g.formula("p_new k", ["p k", "q k"], A + B)
    g.formula("q_new k", ["p k", "q k", "low k"], A - B + C)
    g.updates += [Update("p", "p_new"), Update("q", "q_new")]
    outputs = ("best", "best_all", "low", "all", "upper", "same", "shifted", "p", "p_new")
    return g.graph("odd_ends", outputs)
