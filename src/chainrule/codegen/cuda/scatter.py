"""A sum into computed places, ``table[token[n], j] += e[n, j]``, by the places' owners.

Two terms may go to one place, and a sum by atomics would depend on which is first. So each place has an owner, a thread
for each of the other axes, which looks at all terms in their order and adds those that are its own:

    for owner, j (a thread each):
        for p = owner, owner + owners, ...: table[p, j] = 0
        for n: if token[n] % owners == owner: table[token[n], j] += e[n, j]

Looking costs little beside adding, for all threads of an owner read the same token, and most of them it is not for.
"""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from chainrule.codegen.cuda.device import OWNER_THREADS, OWNERS
from chainrule.codegen.cuda.team import Mapped, Spread, Team, Turns
from chainrule.codegen.cuda.turns import Tree, carried_by
from chainrule.codegen.kernel import nest_of
from chainrule.ir.expression import index_symbol, is_slot, quotient, remainder
from chainrule.ir.program import Kernel, Leaf, Loop, Range, Statement

OWNER = index_symbol("_owner")
TURN = index_symbol("_owned")


def by_owners(kernel: Kernel, tree: Tree) -> Spread | None:
    """A kernel that clears a tensor and adds to computed places of it, by owners; None for any other."""
    if len(kernel.body) != 2:
        return None
    (cleared, clear), (around, add) = (_nest(node) for node in kernel.body)
    if clear is None or add is None or clear.target.tensor != add.target.tensor or clear.reads or clear.reduce:
        return None
    axes = [k for k, e in enumerate(add.target.indices) if any(map(is_slot, e.free_symbols))]
    if add.reduce is None or add.companion is not None or len(axes) != 1:
        return None
    (axis,) = axes
    free = [loop for loop in around if carried_by(loop, tree, around) == ()]
    names = dict(zip(clear.target.indices, add.target.indices, strict=True))
    place = clear.target.indices[axis]
    ranges = {loop.range.symbol: loop.range for loop in cleared}
    if {names[s] for s in names if s != place} != {loop.range.symbol for loop in free} or ranges.keys() != names.keys():
        return None
    spread = tuple(loop.range for loop in free)
    extent = ranges[place].stop
    many = owners(extent, tree.points(spread))
    owner = Range(OWNER, sp.S.Zero, sp.Integer(many), "owner")
    mine = OWNER + many * TURN
    turn = Range(TURN, sp.S.Zero, quotient(extent + many - 1, sp.Integer(many)), "turn")
    own = tuple(mine if s == place else names[s] for s in clear.target.indices)
    start = replace(clear, target=replace(clear.target, indices=own), where=(sp.Lt(mine, extent),))
    term = replace(add, where=(*add.where, sp.Eq(remainder(add.target.indices[axis], sp.Integer(many)), OWNER)))
    inside: tuple[Mapped, ...] = (term,)
    for loop in reversed([n for n in around if n not in free]):
        inside = (Turns(Loop(loop.range, (term,)), inside),)
    body = (Turns(Loop(turn, (start,)), (start,)), *inside)
    return Spread((owner, *spread), Team.GRID, Team.THREAD, body)


def owners(places: sp.Expr, beside: int) -> int:
    """How many owners there are, a power of two: no more than places."""
    wanted = max(OWNERS, OWNER_THREADS // max(beside, 1))
    if places.is_Integer:
        wanted = min(wanted, max(int(places), 1))
    return 1 << (wanted - 1).bit_length()


def _nest(node: Leaf) -> tuple[list[Loop], Statement | None]:
    """The loops of a perfect nest over one statement."""
    if not isinstance(node, Loop):
        return [], None
    nest = nest_of(node)
    body = nest[-1].body
    plain = (
        len(body) == 1 and isinstance(body[0], Statement) and all(n.until is None and n.range.start == 0 for n in nest)
    )
    return nest, body[0] if plain and isinstance(body[0], Statement) else None
