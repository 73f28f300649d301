"""Random small graphs: formulas over a few axes of equal and of unequal sizes, so that wrong joins are possible."""

from __future__ import annotations

import sympy as sp
from hypothesis import strategies as st

from chainrule.ir.expression import Select, dim_symbol
from chainrule.ir.formula import Access
from chainrule.ir.graph import Dim, Graph, Update
from tests.schedule.graphs import A, B, Builder

N, M = dim_symbol("n"), dim_symbol("m")
BODIES = (A * B, A + B, Select(A > B, A, B / 2), A - 2 * B, A * B / 3)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to 9 formulas over axes of sizes n, n, m and 2; the rank-2 tensors are read straight and transposed."""
    g = Builder(a=N, b=N, c=M, d=2, e=M)
    letters = "abcde"
    known: list[tuple[str, str]] = []
    for k in range(draw(st.integers(1, 2))):
        shape = draw(st.sampled_from(("ab", "ac", "a", "cd", "abc")))
        g.input(f"x{k}", shape)
        known.append((f"x{k}", shape))
    g.param("w", "ac")
    known.append(("w", "ac"))
    for k in range(draw(st.integers(1, 9))):
        indices = draw(st.permutations(letters).map(lambda p: "".join(p)[:3]))
        chosen = [draw(st.sampled_from(known)) for _ in range(2)]
        reads = [read(draw, g, name, shape, indices) for name, shape in chosen]
        used = (
            "".join(c for c in indices if any(g.index(c) in i.free_symbols for r in reads for i in r.indices))
            or indices[:1]
        )
        cut = draw(st.integers(0, len(used)))
        axes, over = used[:cut], used[cut:]
        where: tuple[sp.Basic, ...] = ()
        if len(used) > 1 and draw(st.integers(0, 4)) == 0:
            where = (sp.Ge(g.index(used[0]), g.index(used[1])),)
        g.formula(f"t{k} {axes}", reads, draw(st.sampled_from(BODIES)), over=over, where=where)
        known.append((f"t{k}", axes))
    same = [name for name, shape in known if name[0] == "t" and tuple(map(str, g.shape(shape))) == ("n", "m")]
    if same:
        g.updates.append(Update("w", draw(st.sampled_from(same))))
    made = [name for name, _ in known if name[0] == "t"]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return g.graph("random", outputs, (Dim("n"), Dim("m")))


def read(draw: st.DrawFn, g: Builder, name: str, shape: str, indices: str) -> Access:
    """One of the formula's indices of the right size on each axis, at times shifted and guarded, else a constant."""
    places: list[sp.Expr] = []
    guarded = False
    for c in shape:
        fitting = [g.index(i) for i in indices if g.extents[i] == g.extents[c]]
        if fitting:
            shift = draw(st.sampled_from((0, 0, 0, 0, -1, 1)))
            guarded |= shift != 0
            places.append(draw(st.sampled_from(fitting)) + shift)
        else:
            guarded = True
            places.append(sp.Integer(draw(st.integers(0, 1))))
    return Access(name, tuple(places), sp.Integer(draw(st.integers(0, 1))) if guarded else None)
