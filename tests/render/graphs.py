"""Joint graphs made by hand: a perceptron of any depth with its backward pass and plain SGD, as `derive` makes them."""

import sympy as sp

from chainrule.errors import Span
from chainrule.ir.expression import Select, dim_symbol, index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Origin
from chainrule.ir.graph import Dim, Graph, Init, Param, Scalar, Tensor, Update

N = dim_symbol("batch")
n, i, o = (index_symbol(name) for name in ("n", "i", "o"))
ROWS = Index(n, N, "n")


def _forward(k: int, x: str, width: int, out: int) -> list[Formula]:
    inner, columns = Index(i, sp.Integer(width), "i"), Index(o, sp.Integer(out), "o")
    layer, line = f"h.{k}.linear", Span("mlp.graph", 4 + k)
    z = Formula(
        f"z{k}", (ROWS, columns), (inner,), slot(0) * slot(1),
        (Access(x, (n, i)), Access(f"h.{k}.linear.W", (i, o))), origin=Origin(span=line, layer=layer),
    )  # fmt: skip
    s = Formula(
        f"s{k}", (ROWS, columns), (), slot(0) + slot(1),
        (Access(f"z{k}", (n, o)), Access(f"h.{k}.linear.b", (o,))), origin=Origin(span=line, layer=layer),
    )  # fmt: skip
    h = Formula(
        f"h{k}", (ROWS, columns), (), Select(slot(0) <= 0, sp.S.Zero, slot(0)), (Access(f"s{k}", (n, o)),),
        origin=Origin(span=line, layer=f"h.{k}.relu"),
    )  # fmt: skip
    return [z, s, h]


def _backward(k: int, x: str, width: int, out: int) -> list[Formula]:
    inner, columns = Index(i, sp.Integer(width), "i"), Index(o, sp.Integer(out), "o")

    def origin(of: str) -> Origin:
        return Origin(formula=of, rule="vjp", layer=f"h.{k}.relu" if of[0] == "h" else f"h.{k}.linear")

    s_bar = Formula(
        f"s{k}_bar", (ROWS, columns), (), Select(slot(0) > 0, slot(1), sp.S.Zero),
        (Access(f"h{k}", (n, o)), Access(f"h{k}_bar", (n, o))), origin=origin(f"h{k}"),
    )  # fmt: skip
    W_bar = Formula(
        f"h.{k}.linear.W_bar", (inner, columns), (ROWS,), slot(0) * slot(1),
        (Access(x, (n, i)), Access(f"s{k}_bar", (n, o))), origin=origin(f"z{k}"),
    )  # fmt: skip
    b_bar = Formula(
        f"h.{k}.linear.b_bar",
        (columns,),
        (ROWS,),
        slot(0),
        (Access(f"s{k}_bar", (n, o)),),
        origin=origin(f"s{k}"),
    )
    x_bar = Formula(
        f"{x}_bar", (ROWS, inner), (columns,), slot(0) * slot(1),
        (Access(f"s{k}_bar", (n, o)), Access(f"h.{k}.linear.W", (i, o))), origin=origin(f"z{k}"),
    )  # fmt: skip
    return [s_bar, W_bar, b_bar, *([x_bar] if k else [])]


def _update(name: str, shape: tuple[int, ...]) -> Formula:
    axes = tuple(Index(index_symbol(f"a{d}"), sp.Integer(size), f"a{d}") for d, size in enumerate(shape))
    places = tuple(axis.symbol for axis in axes)
    return Formula(
        f"{name}_next", axes, (), slot(0) - slot(1) * slot(2),
        (Access(name, places), Access("rate", ()), Access(f"{name}_bar", places)),
        origin=Origin(span=Span("library/optimizers.graph", 12)),
    )  # fmt: skip


def mlp(depth: int = 2, width: int = 16, updates: bool = True) -> Graph:
    """``h = relu(h W + b)``, `depth` times, and ``loss = sum h^2``, with both passes and the updates."""
    nodes: list[Formula] = []
    back: list[list[Formula]] = []
    params: list[Param] = []
    names = ["x", *(f"h{k}" for k in range(depth))]
    for k in range(depth):
        nodes += _forward(k, names[k], width, width)
        back.append(_backward(k, names[k], width, width))
        size = sp.Integer(width)
        params.append(Param(Tensor(f"h.{k}.linear.W", (size, size)), Init("uniform", (-1.0, 1.0))))
        params.append(Param(Tensor(f"h.{k}.linear.b", (size,)), Init("constant", (0.0,))))
    columns, last = Index(o, sp.Integer(width), "o"), f"h{depth - 1}"
    nodes.append(Formula("loss", (), (ROWS, columns), slot(0) ** 2, (Access(last, (n, o)),)))
    seed = Formula("loss_bar", (), (), sp.S.One, origin=Origin(formula="loss", rule="seed"))
    first = Formula(
        f"{last}_bar", (ROWS, columns), (), 2 * slot(0) * slot(1), (Access(last, (n, o)), Access("loss_bar", ())),
        origin=Origin(formula="loss", rule="vjp"),
    )  # fmt: skip
    nodes += [seed, first, *(f for fs in reversed(back) for f in fs)]
    if updates:
        nodes += [_update(p.tensor.name, tuple(map(int, p.tensor.shape))) for p in params]
    stores = [p.tensor.name for p in params]
    return Graph(
        "mlp",
        dims=(Dim("batch"),),
        inputs=(Tensor("x", (N, sp.Integer(width))),),
        params=tuple(params),
        scalars=(Scalar("rate", 0.1),),
        nodes=tuple(nodes),
        updates=tuple(Update(s, f"{s}_next") for s in stores) if updates else (),
        outputs=("loss",),
    )
