"""A mapped tree as source: strides over members, parts of sums, and a barrier wherever one thread needs another's work.

Between barriers a team keeps what it has read and written; a node that reads what was written, or writes what was
touched, waits first. In a loop, all that its body touches counts as touched when a turn begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.codegen.cuda.device import WARP
from chainrule.codegen.cuda.groups import group_of, is_exact, narrowed, write_group
from chainrule.codegen.cuda.indices import opened, split
from chainrule.codegen.cuda.product import write_tiles
from chainrule.codegen.cuda.team import Carried, Deal, Kept, Mapped, Spread, Team, Tiled, Turns, touched
from chainrule.codegen.cuda.writer import CudaWriter, register
from chainrule.codegen.statement import as_stored, write_statement
from chainrule.errors import ChainruleError
from chainrule.ir.formula import Reduce, identity_of
from chainrule.ir.program import Range, Statement

JOINS = {Reduce.SUM: "sum", Reduce.PROD: "prod", Reduce.MAX: "max", Reduce.MIN: "min"}


@dataclass
class Since:
    """What a team has touched since its last barrier."""

    team: Team
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)

    def meet(self, node: Mapped, w: CudaWriter) -> None:
        """A barrier before `node`, where it needs one."""
        reads, writes = shared_of(node, self.team, w)
        if (reads | writes) & self.writes or writes & self.reads:
            self.barrier(w)
        self.add(reads, writes)

    def barrier(self, w: CudaWriter) -> None:
        if self.team is Team.THREAD:
            return
        w.line(f"{w.call('sync_warp' if self.team is Team.WARP else 'sync')}()")
        self.clear()

    def clear(self) -> None:
        self.reads, self.writes = set(), set()

    def add(self, reads: Iterable[str], writes: Iterable[str]) -> None:
        self.reads |= set(reads)
        self.writes |= set(writes)


def shared_of(node: Mapped, team: Team, w: CudaWriter) -> tuple[set[str], set[str]]:
    """What `node` touches that several threads of the team may see: no variable, and nothing of a smaller team's."""
    reads, writes = touched(node)

    def seen(name: str) -> bool:
        if w.is_variable(name) or w.buffer(name).space == "random":
            return False
        return w.arrays.get(name, Team.GRID) >= team

    return {n for n in reads if seen(n)}, {n for n in writes if seen(n)}


def write_nodes(nodes: Sequence[Mapped], team: Team, w: CudaWriter, since: Since) -> None:
    """The nodes of a mapped tree, in order, by a team."""
    for node in nodes:
        match node:
            case Statement():
                since.meet(node, w)
                write_alike(node, team, w)
            case Turns():
                write_turns(node, team, w, since)
            case Spread():
                since.meet(node, w)
                write_spread(node, w)
                if team is Team.BLOCK and (node.kept or (node.carried and w.warps > 1)):
                    since.clear()  # its sum was a barrier
                    since.add((), {k.target.tensor for k in node.kept})
            case Tiled():
                since.meet(node, w)
                write_tiles(node, w)
    if not nodes:
        w.line("pass")


def write_alike(statement: Statement, team: Team, w: CudaWriter) -> None:
    """A statement that every thread of the team computes, and one stores."""
    if team is Team.THREAD or w.is_variable(statement.target.tensor):
        write_statement(statement, w)
        return
    who = "lane" if team is Team.WARP else "thread"
    with w.inside(f"if {w.call(who)}() == 0:"):
        first, known = len(w.lines), dict(w.hoisted)
        write_statement(statement, w)
        own = [named for key, named in w.hoisted.items() if key not in known]  # in float64, by this thread alone
        w.lines[first:first] = ["    " * w.depth + f"{name} = {value}" for name, value in own]
        w.hoisted = known


def write_turns(turns: Turns, team: Team, w: CudaWriter, since: Since) -> None:
    reads, writes = shared_of(turns, team, w)
    since.add(reads, writes)
    loop = turns.loop
    with w.loop(loop.range):
        if loop.until is not None:
            w.read.add(loop.until.tensor)
            since.meet(turns, w)
            with w.inside(f"if not {w.place(loop.until, {})} > 0:"):
                write_nodes(turns.body, team, w, since)
        else:
            write_nodes(turns.body, team, w, since)
    since.add(reads, writes)


def write_spread(spread: Spread, w: CudaWriter) -> None:
    parts = [begin_part(c, w) for c in spread.carried]
    before = {name: w.variables[name] for part in parts for name in part}
    for part in parts:
        w.variables.update(part)
    for k in spread.kept:
        clear(k, spread, w)
    since = Since(spread.members)
    for node in spread.body:  # turns differ in all places but those of the member's own arrays
        touches = shared_of(node, spread.members, w)
        since.add(*({n for n in names if w.arrays.get(n) is spread.members} for names in touches))
    if spread.deal is not None:
        write_dealt(spread, spread.deal, w)
    elif (count := group_of(spread, w)) > 1 and not is_exact(spread.ranges[-1], count):
        write_row(spread, count, w)
    elif count > 1:
        with members(replace(spread, ranges=narrowed(spread, count)), w):
            last = spread.ranges[-1]
            w.line(f"{w.symbols[last.symbol].text} *= {count}")
            w.ranges[last.symbol] = last
            write_group([s for s in spread.body if isinstance(s, Statement)], last, count, w)
    else:
        with members(spread, w):
            write_nodes(spread.body, spread.members, w, since)
    w.variables.update(before)
    for c, part in zip(spread.carried, parts, strict=True):
        join(c, part, spread, w)
    for k in spread.kept:
        join_array(k, spread, w)


def write_dealt(spread: Spread, deal: Deal, w: CudaWriter) -> None:
    """A row whose turns are dealt: the numbers of a thread's turns are those of its registers."""
    statements = [s for s in spread.body if isinstance(s, Statement)]
    first, _ = stride(spread, w)
    turn = w.names.fresh("turn")
    with opened(spread.ranges, w) as (name,), w.inside(f"for {turn} in range({deal.rounds}):"):
        begin = first if deal.width == 1 else f"{first} * {deal.width}"
        w.line(f"{name} = {begin} + {deal.threads * deal.width} * {turn}")
        w.turn = turn, 0
        if deal.width > 1:
            write_group(statements, spread.ranges[0], deal.width, w)
        else:
            for s in statements:
                write_statement(s, w)
    w.names.release(turn)


def write_row(spread: Spread, count: int, w: CudaWriter) -> None:
    """A row of any length: groups of neighbours, then each element that is left over."""
    statements = [s for s in spread.body if isinstance(s, Statement)]
    first, step = stride(spread, w)
    length = w.integer(spread.ranges[0].stop)
    groups, turn = w.names.fresh("groups", never_had=True), w.names.fresh("turn")
    w.line(f"{groups} = {length} // {count}")
    turns = f"{length} - {count - 1} * {groups}"
    with opened(spread.ranges, w) as (name,), w.inside(f"for {turn} in range({first}, {turns}, {step}):"):
        with w.inside(f"if {turn} < {groups}:"):
            w.line(f"{name} = {turn} * {count}")
            write_group(statements, spread.ranges[0], count, w)
        with w.inside("else:"):
            w.line(f"{name} = {turn} + {count - 1} * {groups}")
            for s in statements:
                write_statement(s, w)
    w.names.release(turn)


@contextmanager
def members(spread: Spread, w: CudaWriter) -> Iterator[None]:
    """The loop over the turns of one member of a team."""
    first, step = stride(spread, w)
    ranges = spread.ranges
    if not first:
        with nested(ranges, w):
            yield
        return
    if not ranges:  # one turn, which is the first member's
        with w.inside(f"if {first} == 0:"):
            yield
        return
    if len(ranges) == 1:
        (r,) = ranges
        start, stop = w.integer(r.start), w.integer(r.stop)
        with opened(ranges, w) as (name,):
            begin = first if start == "0" else f"{start} + {first}"
            with w.inside(f"for {name} in range({begin}, {stop}, {step}):"):
                yield
        return
    lengths = [w.integer(sp.expand(r.stop - r.start)) for r in ranges]
    flat = w.names.fresh("flat")
    whole = " * ".join(text if text.isalnum() or text.isidentifier() else f"({text})" for text in lengths)
    with opened(ranges, w) as names, w.inside(f"for {flat} in range({first}, {whole}, {step}):"):
        split(flat, list(zip(names, ranges, lengths, strict=True)), w)
        yield
    w.names.release(flat)


@contextmanager
def nested(ranges: Sequence[Range], w: CudaWriter) -> Iterator[None]:
    if not ranges:
        yield
        return
    with w.loop(ranges[0]), nested(ranges[1:], w):
        yield


def stride(spread: Spread, w: CudaWriter) -> tuple[str, str]:
    """A member's first turn, and how far apart its turns are; a thread by itself has all of them."""
    number = {Team.THREAD: "thread", Team.WARP: "warp"}
    each = {Team.THREAD: w.threads, Team.WARP: w.warps, Team.BLOCK: 1}
    match spread.team, spread.members:
        case Team.GRID, Team.BLOCK:
            return f"{w.call('block')}()", f"{w.call('blocks')}()"
        case Team.GRID, who:
            n = each[who]
            return (
                f"{w.call('block')}() * {n} + {w.call(number[who])}()",
                f"{w.call('blocks')}() * {n}",
            )
        case Team.BLOCK, Team.THREAD | Team.WARP:
            return f"{w.call(number[spread.members])}()", str(each[spread.members])
        case Team.WARP, Team.THREAD:
            return f"{w.call('lane')}()", str(WARP)
        case Team.THREAD, _:
            return "", ""
        case _:
            raise ChainruleError(f"a {spread.team.name} cannot be divided into {spread.members.name}s")


# Sums whose parts several threads have.


Part = dict[str, str]
"""What each thread adds to: local names in place of the variables of the whole."""


def begin_part(c: Carried, w: CudaWriter) -> Part:
    name = c.target.tensor
    whole = w.variable(name)
    own = {name: w.names.fresh(f"{whole}_part", never_had=True)}
    if c.reduce is Reduce.ARGMAX:
        assert c.companion is not None
        greatest = w.variable(c.companion)
        own[c.companion] = w.names.fresh(f"{greatest}_part", never_had=True)
        w.line(f"{own[name]} = {whole}")
        w.line(f"{own[c.companion]} = {greatest}")
    else:
        w.line(f"{own[name]} = {start_of(c, w)}")
    return own


def start_of(c: Carried, w: CudaWriter) -> str:
    dtype = w.buffer(c.target.tensor).dtype
    return as_stored(identity_of(c.reduce, dtype), dtype, {}, w)


def join(c: Carried, part: Part, spread: Spread, w: CudaWriter) -> None:
    """The parts of all threads, joined in a fixed tree, into the whole."""
    whole, own = w.variable(c.target.tensor), part[c.target.tensor]
    if c.reduce is Reduce.ARGMAX:
        assert c.companion is not None
        greatest, mine = w.variable(c.companion), part[c.companion]
        w.line(f"{greatest} = {team_join('max', mine, spread, w, '')}")
        first = f"({mine} == {greatest}) | (({mine} != {mine}) & ({greatest} != {greatest}))"
        w.line(f"{own} = {own} if {first} else {whole}")
        w.line(f"{whole} = {team_join('min', own, spread, w, '')}")
        return
    all_parts = team_join(JOINS[c.reduce], own, spread, w, start_of(c, w))
    w.line(f"{whole} = {joined(c.reduce, whole, all_parts, w)}")


def team_join(what: str, part: str, spread: Spread, w: CudaWriter, identity_text: str) -> str:
    if spread.team is Team.WARP:
        return f"{w.call(f'warp_{what}')}({part})"
    if spread.members is Team.WARP and identity_text:  # all lanes of a warp have the same
        part = f"{part} if {w.call('lane')}() == 0 else {identity_text}"
    return f"{w.call(f'block_{what}')}({part}, {w.warps})"


def clear(k: Kept, spread: Spread, w: CudaWriter) -> None:
    """A member's own array, at the start."""
    name, first = w.scratch(k.private)
    count = math.prod(int(r.stop) for r in k.ranges)
    zero = start_of(Carried(k.target, k.reduce), w)
    at = w.names.fresh("place")
    deal = w.dealt.get(k.private)
    if spread.members is Team.THREAD or deal is not None:
        with w.inside(f"for {at} in range({count if deal is None else deal.rounds * deal.width}):"):
            w.line(f"{name}[{at}] = {zero}")
    else:
        with w.inside(f"for {at} in range({w.call('lane')}(), {count}, {WARP}):"):
            w.line(f"{name}[{first} + {at}] = {zero}")
        w.line(f"{w.call('sync_warp')}()")
    w.names.release(at)


def join_array(k: Kept, spread: Spread, w: CudaWriter) -> None:
    """All members' arrays, place by place in the members' order, into the target."""
    name, _ = w.scratch(k.private)
    count = math.prod(int(r.stop) for r in k.ranges)
    if (deal := w.dealt.get(k.private)) is not None:
        name = lay_out(name, deal, w)
    if not k.fresh:
        w.read.add(k.target.tensor)
    w.written.add(k.target.tensor)
    threads = spread.members is Team.THREAD
    w.line(f"{w.call('sync')}()")
    at, total = w.names.fresh("place"), w.names.fresh("total")
    spans = f"{count}" if threads else f"{w.call('thread')}(), {count}, {w.threads}"
    with opened(k.ranges, w) as names, w.inside(f"for {at} in range({spans}):"):
        if threads:
            w.line(f"{total} = {team_join(JOINS[k.reduce], f'{name}[{at}]', spread, w, '')}")
        else:
            member = w.names.fresh("member")
            w.line(f"{total} = {name}[{at}]")
            with w.inside(f"for {member} in range(1, {w.warps}):"):
                other = f"{name}[{member} * {count} + {at}]"
                w.line(f"{total} = {joined(k.reduce, total, other, w)}")
        if len(names) == 1:
            w.line(f"{names[0]} = {at}")
        else:
            split(at, [(n, r, str(int(r.stop))) for n, r in zip(names, k.ranges, strict=True)], w)
        target = w.place(k.target, {})
        new = f"{target} = {total if k.fresh else joined(k.reduce, target, total, w)}"
        if threads:
            with w.inside(f"if {w.call('thread')}() == 0:"):
                w.line(new)
        else:
            w.line(new)
    if not threads:
        w.line(f"{w.call('sync')}()")  # before a next turn clears the parts


def lay_out(name: str, deal: Deal, w: CudaWriter) -> str:
    """The rows that each warp has in registers, one after the other in memory."""
    rows, (turn, place) = w.staging(w.warps * deal.length), (w.names.fresh("turn"), w.names.fresh("place"))
    with w.inside(f"for {turn} in range({deal.rounds}):"):
        begin = f"{w.call('warp')}() * {deal.length} + {w.call('lane')}() * {deal.width}"
        w.line(f"{place} = {begin} + {deal.threads * deal.width} * {turn}")
        for k in range(deal.width):
            w.line(f"{rows}[{place}{f' + {k}' if k else ''}] = {name}[{register(deal, turn, k)}]")
    w.names.release(turn)
    w.names.release(place)
    return rows


def joined(reduce: Reduce, a: str, b: str, w: CudaWriter) -> str:
    match reduce:
        case Reduce.SUM:
            return f"{a} + {b}"
        case Reduce.PROD:
            return f"{a} * {b}"
        case _:
            return f"{w.call('maximum' if reduce is Reduce.MAX else 'minimum')}({a}, {b})"
