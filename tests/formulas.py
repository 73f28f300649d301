"""The table of example formulas: a new kind of formula is one more row, and every law holds it.

A row is a small graph of one formula whose inputs are the tensors that it reads, written without the language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import sympy as sp

from chainrule.ir.expression import Select, dim_symbol, index_symbol, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Reduce
from chainrule.ir.graph import Dim, Graph, Tensor

I = sp.Integer
x0, x1, x2, x3 = (slot(k) for k in range(4))
int0, int1, int2 = (slot(k, DType.INT.sort) for k in range(3))
a, b, c, d, e, h, i, j, k, m, n, o, p, q, r, s, t, w = (index_symbol(letter) for letter in "abcdehijkmnopqrstw")


def extent(text: str) -> sp.Expr:
    return I(int(text)) if text.isdigit() else dim_symbol(text)


def axes(text: str) -> tuple[Index, ...]:
    """``axes("n<N j<3")``: indices with their extents, a dim where it is no number."""
    pairs = (part.split("<") for part in text.split())
    return tuple(Index(index_symbol(name), extent(size), name) for name, size in pairs)


def formula(left: str, over: str, body: Any, *reads: Access, **more: Any) -> Formula:
    """``formula("y n<N", "i<M", x0 * x1, x[n, i], W[i])`` with `left` the name and the axes."""
    out, _, rest = left.partition(" ")
    return Formula(out, axes(rest), axes(over), sp.sympify(body, strict=True), reads, **more)


class T:
    """A tensor to read from: ``T("x")[n, i]``, outside 0: ``T("x", 0)[n, i]``."""

    def __init__(self, name: str, outside: Any = None) -> None:
        self.name, self.outside = name, None if outside is None else sp.sympify(outside, strict=True)

    def __getitem__(self, indices: Any) -> Access:
        places = indices if isinstance(indices, tuple) else (indices,)
        return Access(self.name, tuple(sp.sympify(i, strict=True) for i in places), self.outside)


def tensor(text: str) -> Tensor:
    """``x N 3``, ``label N : M`` (an index below M)."""
    left, _, bound = text.partition(" : ")
    name, *shape = left.split()
    kind = DType.INT if bound else DType.FLOAT
    return Tensor(name, tuple(map(extent, shape)), kind, extent(bound) if bound else None)


def graph(*formulas: Formula, inputs: str, outputs: str = "", dims: tuple[Dim, ...] = ()) -> Graph:
    """A graph of `formulas`; inputs: ``"x N 3, label N : 3"``."""
    given = tuple(tensor(part.strip()) for part in inputs.split(","))
    symbols = {x for part in given for x in (*part.shape, part.bound) if x is not None and x.is_Symbol}
    plain = tuple(Dim(name) for name in sorted(x.name for x in symbols) if name not in {z.name for z in dims})
    names = tuple(outputs.split()) or (formulas[-1].out,)
    return Graph("example", (*plain, *dims), given, nodes=formulas, outputs=names)


def positive(x: sp.Expr) -> sp.Expr:
    return Select(x <= 0, I(0), x)


X, W_, B, K, Z = T("x"), T("W"), T("b"), T("K"), T("z")

EXAMPLES: dict[str, Graph] = {
    "matmul": graph(
        formula("y n<N j<M", "i<L", x0 * x1, X[n, i], W_[i, j]), inputs="x N L, W L M"
    ),
    "weighted": graph(
        formula("y n<N", "i<L", x0**2 * x1 + sp.sin(x0), X[n, i], W_[i]), inputs="x N L, W L"
    ),
    "bias tanh": graph(
        formula("y n<N j<M", "", sp.tanh(x0 + x1), X[n, j], B[j]), inputs="x N M, b M"
    ),
    "relu": graph(formula("y n<N", "", positive(x0), X[n]), inputs="x N"),
    "mean": graph(
        formula("y", "n<N", sp.Mul(x0, 1 / dim_symbol("N")), X[n]), inputs="x N"
    ),
    "outer": graph(formula("y i<N j<M", "", x0 * x1, X[i], W_[j]), inputs="x N, W M"),
    "transpose": graph(formula("y i<N j<M", "", x0, X[j, i]), inputs="x M N"),
    "diagonal": graph(formula("y i<N", "", x0 * x1, X[i, i], B[i]), inputs="x N N, b N"),
    "broadcast": graph(formula("y i<N j<M", "", x0 + 0 * x0 * j, X[i]), inputs="x N, z M"),
    "conv": graph(
        formula("y n<N o<M h<5", "c<L r<3", x0 * x1, X[n, c, h + r], K[o, c, r]), inputs="x N L 7, K M L 3"
    ),
    "padded conv": graph(
        formula("y n<N o<M h<H", "c<L r<3", x0 * x1, T("x", 0)[n, c, h + r - 1], K[o, c, r]),
        inputs="x N L H, K M L 3",
    ),
    "strided conv": graph(
        formula("y n<N h<3", "r<3", x0 * x1, T("x", 0)[n, 2 * h + r - 1], K[r]), inputs="x N 6, K 3"
    ),
    "dilated": graph(
        formula("y h<3", "r<2", x0 * sp.exp(x1), X[h + 2 * r], K[r]), inputs="x 5, K 2"
    ),
    "strided slice": graph(formula("y h<3", "", sp.sin(x0), X[2 * h]), inputs="x 6"),
    "upsample": graph(
        formula("y p<6", "", x0**2, X[quotient(p, I(2))], where=(sp.Eq(remainder(p, I(2)), 0),)), inputs="x 3"
    ),
    "reversed": graph(formula("y i<5", "", x0 * x1, X[4 - i], X[i]), inputs="x 5"),
    "flatten": graph(
        formula("y n<N k<6", "", sp.sin(x0), X[n, quotient(k, I(3)), remainder(k, I(3))]), inputs="x N 2 3"
    ),
    "flatten three": graph(
        formula(
            "y k<12", "", x0**2, X[quotient(k, I(6)), remainder(quotient(k, I(3)), I(2)), remainder(k, I(3))]
        ),
        inputs="x 2 2 3",
    ),
    "flatten dims": graph(
        formula("y n<N k<D", "", x0**2, X[n, quotient(k, dim_symbol("M")), remainder(k, dim_symbol("M"))]),
        inputs="x N L M",
        dims=(Dim("D", definition=dim_symbol("L") * dim_symbol("M")),),
    ),
    "unflatten": graph(formula("y i<2 j<3", "", x0**2, X[3 * i + j]), inputs="x 6"),
    "split heads": graph(
        formula("y n<N i<2 j<3", "", x0 * x1, X[n, 3 * i + j], B[i]), inputs="x N 6, b 2"
    ),
    "repeat": graph(formula("y k<6", "", x0 * x1, X[quotient(k, I(2))], B[k]), inputs="x 3, b 6"),
    "tile": graph(formula("y k<6", "", x0 * x1, X[remainder(k, I(3))], B[k]), inputs="x 3, b 6"),
    "embedding": graph(
        formula("y n<N j<M", "", x1 + 0 * int0, T("token")[n], X[int0, j]), inputs="x 4 M, token N : 4"
    ),
    "pick": graph(
        formula("y n<N", "", sp.exp(x1), T("label")[n], Z[n, int0]), inputs="z N 4, label N : 4"
    ),
    "segment sum": graph(
        formula("y v<4 j<M".replace("v", "p"), "e<N", x1, T("target")[e], X[e, j], where=(sp.Eq(int0, p),)),
        inputs="x N M, target N : 4",
    ),
    "graph message": graph(
        formula(
            "y p<4", "e<N", x2 * x3, T("target")[e], T("source")[e], X[int1], W_[e], where=(sp.Eq(int0, p),)
        ),
        inputs="x 4, W N, target N : 4, source N : 4",
    ),
    "causal": graph(
        formula("y t<N", "s<N", x0 * x1, X[t], W_[s], where=(sp.Le(s, t, evaluate=False),)), inputs="x N, W N"
    ),
    "shifted": graph(formula("y t<N", "", x0 - x1, X[t], T("x", 0)[t - 1]), inputs="x N"),
    "choice": graph(
        formula("y n<N", "", Select(x0 > 0, sp.log(x0), x1), X[n], W_[n]), inputs="x N, W N"
    ),
    "position": graph(formula("y n<N j<M", "", x0 * (j + 1) / 2, X[n, j]), inputs="x N M"),
    "product": graph(formula("y n<N", "i<3", x0 * x1 + x0, X[n, i], W_[i], reduce=Reduce.PROD), inputs="x N 3, W 3"),
    "product of two": graph(
        formula("y", "i<N j<M", x0 + x1, X[i], W_[j], reduce=Reduce.PROD), inputs="x N, W M"
    ),
    "trilinear": graph(
        formula("y n<N o<M", "i<L j<L", x0 * x1 * x2, X[n, i], Z[n, j], W_[i, j, o]), inputs="x N L, z N L, W L L M"
    ),
    "three same": graph(formula("y", "i<N", x0**3 * x1, X[i], X[0 * i]), inputs="x N"),
}  # fmt: skip


def shapes(g: Graph, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {x.name: tuple(sizes[z.name] if z.is_Symbol else int(z) for z in x.shape) for x in g.inputs}


def draw_values(g: Graph, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Values for the inputs: normal numbers, and indices below their bound."""
    rng = np.random.default_rng(seed)
    values = {}
    for x in g.inputs:
        shape = shapes(g, sizes)[x.name]
        if x.dtype is DType.FLOAT:
            values[x.name] = rng.normal(size=shape)
        else:
            bound = sizes[x.bound.name] if x.bound.is_Symbol else int(x.bound)
            values[x.name] = rng.integers(0, max(bound, 1), size=shape)
    return values


def dims_of(g: Graph) -> tuple[str, ...]:
    """The dims that the inputs' shapes bind."""
    return tuple(z.name for z in g.dims if z.definition is None)
