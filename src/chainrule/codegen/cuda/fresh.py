"""A place that is cleared before it is summed into is stored once: ``X[i] = 0 … X[i] += s`` becomes ``X[i] = s``.

The clear is a nest of its own, so it costs a barrier and two ways to memory. It goes where a following node of the same
team adds one total to each of its places, and nothing touches them between. As with all identities of IEEE sums,
0 + s is s, but for s = -0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from chainrule.codegen.cuda.team import Kept, Mapped, Spread, Turns, touched
from chainrule.codegen.cuda.turns import Tree
from chainrule.ir.formula import Access, Reduce, identity_of
from chainrule.ir.program import Range, Statement


def stored_once(nodes: Sequence[Mapped], tree: Tree) -> tuple[Mapped, ...]:
    """Nodes that follow each other, without clears that what follows makes idle."""
    found = [replace(n, body=stored_once(n.body, tree)) if isinstance(n, Turns | Spread) else n for n in nodes]
    for k, node in enumerate(found):
        if not isinstance(node, Spread) or node.carried or node.kept:
            continue
        left: list[Mapped] = []
        for s in node.body:
            at = _next(found, k, s, node, tree) if isinstance(s, Statement) else None
            if at is None:
                left.append(s)
            else:
                found[at[0]] = at[1]
        found[k] = replace(node, body=tuple(left))
    return tuple(n for n in found if not isinstance(n, Spread) or n.body)


def _next(nodes: Sequence[Mapped], k: int, clear: Statement, around: Spread, tree: Tree) -> tuple[int, Spread] | None:
    """The place of the node after the k-th that touches what `clear` clears, and that node storing instead of adding;
    None where it does anything else."""
    name = clear.target.tensor
    if clear.reads or clear.reduce is not None or clear.where or sum(name in _names(s) for s in around.body) > 1:
        return None
    following = ((at, n) for at, n in enumerate(nodes) if at > k and name in _names(n))
    at, node = next(following, (0, None))
    if not isinstance(node, Spread) or node.team is not around.team:
        return None

    def fits(target: Access, reduce: Reduce | None, ranges: Sequence[Range]) -> bool:
        if target.tensor != name or reduce is None or reduce is Reduce.ARGMAX:
            return False
        starts = clear.value == identity_of(reduce, tree.dtype(name))
        return starts and _same_places(clear.target, around.ranges, target, ranges)

    match [*(s for s in node.body if name in _names(s)), *(c for c in node.kept if c.target.tensor == name)]:
        case [Statement() as s] if not s.where and all(read.tensor != name for read in s.reads):
            if fits(s.target, s.reduce, node.ranges):
                return at, replace(node, body=tuple(replace(s, reduce=None) if n is s else n for n in node.body))
        case [Kept() as c] if fits(c.target, c.reduce, c.ranges):
            return at, replace(node, kept=tuple(replace(c, fresh=True) if n is c else n for n in node.kept))
        case _:
            pass
    return None


def _names(node: Mapped) -> set[str]:
    reads, writes = touched(node)
    kept = {k.target.tensor for k in node.kept} if isinstance(node, Spread) else set()
    return reads | writes | kept


def _same_places(a: Access, own: Sequence[Range], b: Access, other: Sequence[Range]) -> bool:
    """Whether two nests touch the same places, each once: every index is one of the nest's own, over the same span, or
    an expression of what lies around both."""
    mine, theirs = ({r.symbol: r for r in ranges} for ranges in (own, other))
    met: set[sp.Basic] = set()
    for i, j in zip(a.indices, b.indices, strict=True):
        if i in mine and j in theirs:
            if (mine[i].start, mine[i].stop) != (theirs[j].start, theirs[j].stop) or {i, j} & met:
                return False
            met |= {i, j}
        elif i != j or i.free_symbols & (mine.keys() | theirs.keys()):
            return False
    return met == mine.keys() | theirs.keys()
