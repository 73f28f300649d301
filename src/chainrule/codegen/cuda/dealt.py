"""Rows in registers: an array that each thread touches only at the turns that are its own needs no memory.

    for k in range(512): c[k] = x[n, k] - mean        lane l has k = 4 l + 128 turn + e: its c are 16 registers,
    for k in range(512): v += c[k]^2                  c[4 turn + e], and nobody waits for anybody

Turns are dealt so where a row is a whole number of the team's widest accesses, or of single ones: each thread then has
as many, and loops over them unroll.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from chainrule.codegen.cuda.device import ACCESS, DEALT, WARP
from chainrule.codegen.cuda.team import Deal, Mapped, Plan, Spread, Team, Tiled, Turns, touched
from chainrule.codegen.cuda.turns import touches
from chainrule.ir.formula import DType, Reduce
from chainrule.ir.program import Buffer, Leaf, Loop, Statement, leaves


def row_of(body: Sequence[Leaf], tensor: str) -> int:
    """How long the loops of `body` are that touch `tensor`, if each of its places there is of one turn of one of them,
    all are equally long and have nothing but statements; else 0."""
    lengths: set[int] = set()
    for node in body:
        if not any(a.tensor == tensor for leaf in leaves((node,)) for a in touches(leaf)):
            continue
        if not isinstance(node, Loop) or not all(isinstance(s, Statement) for s in node.body):
            return 0
        r = node.range
        own = [a for s in leaves(node.body) for a in touches(s) if a.tensor == tensor]
        once = all([i for i in a.indices if i.has(r.symbol)] == [r.symbol] and a.outside is None for a in own)
        if not once or node.until is not None or r.start != 0 or not r.stop.is_Integer:
            return 0
        lengths.add(int(r.stop))
    return lengths.pop() if len(lengths) == 1 else 0


def registers(length: int, threads: int = WARP) -> int:
    """How many registers of each thread hold a row; 0 where it does not divide."""
    return length // threads if length % threads == 0 else 0


def dealt(plan: Plan, buffers: Mapping[str, Buffer], item: int) -> Plan:
    """`plan` with what may be in registers there, as long as there is room. item: of elements, in bytes."""
    around: dict[str, list[Spread]] = {}
    memory: set[str] = set()
    for name, spread in _uses(plan.body, None):
        if spread is None or not _is_turn(name, spread, plan.arrays.get(name), buffers):
            memory.add(name)
        else:
            around.setdefault(name, []).append(spread)
    found: dict[str, Deal] = {}
    widths: dict[tuple[Team, int], int] = {}  # one for all that loops of a length share
    left = DEALT * 4
    for name, spreads in around.items():
        buffer, team = buffers[name], plan.arrays[name]
        threads = WARP if team is Team.WARP else plan.threads
        length = int(buffer.shape[0])
        each = registers(length, threads)
        if name in memory or not each or each * item > left:
            continue
        left -= each * item
        wide = ACCESS // item
        if each % wide or not all(_is_plain(s) for s in spreads):
            wide = 1
        widths[team, length] = min(widths.get((team, length), wide), wide)
        found[name] = Deal(threads, length, wide)
    found = {name: replace(deal, width=widths[plan.arrays[name], deal.length]) for name, deal in found.items()}
    if not found:
        return plan
    arrays = {**plan.arrays, **dict.fromkeys(found, Team.THREAD)}
    return replace(plan, body=tuple(_marked(n, found) for n in plan.body), arrays=arrays, dealt=found)


def _uses(nodes: Sequence[Mapped], around: Spread | None) -> Iterator[tuple[str, Spread | None]]:
    """Each tensor that a node touches, with the spread of statements around; None: there is none, or it is touched by
    others too."""
    for node in nodes:
        match node:
            case Statement():
                yield from ((a.tensor, around) for a in touches(node))
            case Turns():
                if node.loop.until is not None:
                    yield node.loop.until.tensor, None
                yield from _uses(node.body, None)
            case Spread():
                alone = all(isinstance(child, Statement) for child in node.body)
                yield from _uses(node.body, node if alone else None)
                yield from ((k.target.tensor, None) for k in node.kept)
            case Tiled():
                yield from ((name, None) for names in touched(node) for name in names)


def _is_turn(name: str, spread: Spread, team: Team | None, buffers: Mapping[str, Buffer]) -> bool:
    """Whether a spread of a team that owns an array of scratch touches it at the place of each turn only."""
    if team not in (Team.WARP, Team.BLOCK) or team is not spread.team or len(spread.ranges) != 1:
        return False
    (r,), buffer = spread.ranges, buffers[name]
    if buffer.dtype is not DType.FLOAT or (r.start, r.stop) != (0, *buffer.shape) or not r.stop.is_Integer:
        return False
    own = [a for s in spread.body if isinstance(s, Statement) for a in touches(s) if a.tensor == name]
    return spread.members is Team.THREAD and all(a.indices == (r.symbol,) and a.outside is None for a in own)


def _is_plain(spread: Spread) -> bool:
    """Whether neighbours may come together: see `groups`."""
    return not any(isinstance(s, Statement) and (s.where or s.reduce is Reduce.ARGMAX) for s in spread.body)


def _marked(node: Mapped, found: Mapping[str, Deal]) -> Mapped:
    """`node` whose spreads deal their turns where they touch what is dealt."""
    match node:
        case Turns():
            return replace(node, body=tuple(_marked(n, found) for n in node.body))
        case Spread():
            own = (found.get(a.tensor) for s in node.body if isinstance(s, Statement) for a in touches(s))
            deal = next((d for d in own if d is not None), None)
            return replace(node, body=tuple(_marked(n, found) for n in node.body), deal=deal)
        case _:
            return node
