"""Loops over rows too short to fill vectors are cut into strips, and vectors run along the rows.

    for n:                                  for strip:
        m = -inf                                for n in the strip: m[n] = -inf
        for k: m = max(m, x[n, k])    ->        for k: for n in the strip: m[n] = max(m[n], x[n, k])
        y[n] = log(m)                           for n in the strip: y[n] = log(m[n])

What is computed once a row costs as much as a vector would, and a row of ten elements fills no vector. A strip has
as many rows as a vector has lanes; what each row keeps for itself gets an axis for them. Each row meets the same
steps in the same order. Sums over rows are kept lane by lane and added up at the end, in an order that depends on
nothing but the target. What is left over at the end is done row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.codegen.weights import calls, weight
from chainrule.ir.expression import is_slot, quotient, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.program import Block, Buffer, Kernel, Leaf, Loop, Product, Range, Statement, accesses, leaves

LESS = 0.75
"""Strips are worth their code where they take at most this part of the instructions."""

STRIDED = 1.25
"""Instructions for an element that does not lie beside that of the next row, gathered or scattered."""

FOLD = 10
"""Instructions for a reduction across the lanes of a vector."""


@dataclass
class Cutter:
    """One kernel on its way into strips. whole: what the loops over a strip's rows were parts of."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    lanes: int
    locals: list[Buffer] = field(default_factory=list)
    whole: dict[sp.Symbol, Range] = field(default_factory=dict)

    def body(self, nodes: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
        """`nodes` with strips wherever they pay, outermost first."""
        found: list[Leaf] = []
        for node in nodes:
            if not isinstance(node, Loop):
                found.append(node)
                continue
            roles = roles_of(node, self.kernel, self.buffers)
            if roles is not None and pays(node, roles, self.lanes):
                found += self.cut(node, roles)
            else:
                found.append(replace(node, body=self.body(node.body)))
        return tuple(found)

    def cut(self, loop: Loop, roles: Roles) -> list[Leaf]:
        """The loop in strips, between where their sums start and where they are added; then the rows left over."""
        r, number = loop.range, len(self.whole)
        strip, lane = (sp.Symbol(f"_{name}{number:02}", integer=True, nonnegative=True) for name in ("strip", "lane"))
        self.whole[r.symbol] = r
        count = quotient(sp.expand(r.stop - r.start), sp.Integer(self.lanes))
        first = sp.expand(r.start + self.lanes * strip)
        rows = Range(r.symbol, first, sp.expand(first + self.lanes), r.pretty)
        body = grouped(loop.body, rows)
        kept = [name for name in sorted(roles.private) if not self.is_variable(name, body)]
        wide = {name: self.widened(name, self.buffers[name].shape) for name in kept}
        wide |= {name: self.widened(name, [axis.stop for axis in axes]) for name, axes in roles.sums.items()}
        inside = tuple(placed(node, sp.expand(r.symbol - first), wide) for node in body)
        lanes = Range(lane, sp.S.Zero, sp.Integer(self.lanes), "lane")
        before: list[Leaf] = []
        after: list[Leaf] = []
        for name, axes in roles.sums.items():
            place = Access(wide[name].name, (*(axis.symbol for axis in axes), lane))
            before += nested((*axes, lanes), (Statement(place, sp.S.Zero),))
            after += nested(axes, self.added(name, roles.targets[name], place, lanes))
        rest = Loop(replace(r, start=sp.expand(r.start + self.lanes * count)), loop.body)
        left = [] if fills(r, self.kernel.block, self.lanes) else [rest]
        return [*before, Loop(Range(strip, sp.S.Zero, count, "strip"), inside), *after, *left]

    def is_variable(self, name: str, body: Sequence[Leaf]) -> bool:
        """Whether one loop over the strip's rows is all that needs a number: it is one after the other's."""
        return not self.buffers[name].shape and sum(name in touched(group) for group in innermost(body)) == 1

    def widened(self, name: str, shape: Sequence[sp.Expr]) -> Buffer:
        """A buffer for what `name` holds, of this shape and an axis for the rows of a strip."""
        of = self.buffers[name]
        made = Buffer(self.fresh(f"{name}_rows"), (*shape, sp.Integer(self.lanes)), of.dtype, "scratch", "", shown(of))
        self.locals.append(made)
        return made

    def added(self, name: str, target: Access, place: Access, lanes: Range) -> tuple[Leaf, ...]:
        """The lanes' sums into their target: by a variable, which vectors may add as a tree."""
        buffer = self.buffers[name]
        add = Statement(target, slot(0, buffer.dtype.sort), (place,), reduce=Reduce.SUM)
        if buffer.space == "scratch" and not buffer.shape:
            return (Loop(lanes, (add,)),)
        total = Buffer(self.fresh(f"{name}_total"), (), buffer.dtype, "scratch", "", shown(buffer))
        self.locals.append(total)
        here = Access(total.name, ())
        return (
            Statement(here, sp.S.Zero),
            Loop(lanes, (replace(add, target=here),)),
            replace(add, reads=(here,)),
        )

    def fresh(self, name: str) -> str:
        taken = {*self.buffers, *(b.name for b in self.locals)}
        return next(n for k in range(len(taken) + 1) if (n := name if not k else f"{name}{k}") not in taken)


@dataclass(frozen=True)
class Roles:
    """What a loop's tensors are to its rows. private: scratch that each row fills anew. sums: over rows, by the inner
    loops that they keep; targets: where they go."""

    private: frozenset[str]
    sums: Mapping[str, tuple[Range, ...]]
    targets: Mapping[str, Access]


def stripped(kernel: Kernel, buffers: Mapping[str, Buffer], lanes: int) -> tuple[Kernel, Mapping[sp.Symbol, Range]]:
    """`kernel` with strips of `lanes` rows where they pay; and, for proofs of bounds, what their rows are part of."""
    cutter = Cutter(kernel, buffers, lanes)
    body = cutter.body(kernel.body)
    return replace(kernel, body=body, locals=(*kernel.locals, *cutter.locals)), cutter.whole


def shown(buffer: Buffer) -> str:
    return buffer.stands_for or buffer.name


def nested(ranges: Sequence[Range], body: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
    for r in reversed(ranges):
        body = (Loop(r, body),)
    return body


def fills(r: Range, block: Block | None, lanes: int) -> bool:
    """Whether every row is one of a whole strip."""
    if block is not None and (r.start, r.stop) == (block.first, block.last):
        return bool(block.extent.is_Integer and block.extent % block.size == 0 and block.size % lanes == 0)
    count = sp.expand(r.stop - r.start)
    return bool(count.is_Integer and count % lanes == 0)


def grouped(body: Sequence[Leaf], rows: Range) -> tuple[Leaf, ...]:
    """`body` with loops over a strip's rows innermost: one around as many steps as vectors may take together."""
    found: list[Leaf] = []
    group: list[Leaf] = []
    for node in body:
        if isinstance(node, Loop) or not fit([*group, node]):
            found += [Loop(rows, tuple(group))] if group else []
            group = []
        if isinstance(node, Loop):
            found.append(replace(node, body=grouped(node.body, rows)))
        else:
            group.append(node)
    return (*found, Loop(rows, tuple(group))) if group else tuple(found)


def fit(steps: Sequence[Leaf]) -> bool:
    """Whether each tensor that some step writes is touched at one place alone, so that a vector does no harm."""
    places: dict[str, set[tuple[sp.Expr, ...]]] = {}
    written = set()
    for step in leaves(tuple(steps)):
        reads, target = accesses(step)
        written.add(target.tensor)
        for access in (*reads, target):
            places.setdefault(access.tensor, set()).add(access.indices)
    return all(len(places[name]) == 1 for name in written)


def innermost(body: Sequence[Leaf]) -> Iterator[Loop]:
    for node in body:
        if isinstance(node, Loop) and all(isinstance(child, Statement) for child in node.body):
            yield node
        elif isinstance(node, Loop):
            yield from innermost(node.body)


def placed(node: Leaf, lane: sp.Expr, wide: Mapping[str, Buffer]) -> Leaf:
    """`node` with what rows keep at their place in buffers of their own; `lane` is that of the row."""
    if isinstance(node, Loop):
        return replace(node, body=tuple(placed(child, lane, wide) for child in node.body))
    assert isinstance(node, Statement)

    def moved(access: Access) -> Access:
        if access.tensor not in wide:
            return access
        buffer = wide[access.tensor]
        kept = access.indices[len(access.indices) + 1 - len(buffer.shape) :]
        return Access(buffer.name, (*kept, lane))

    return replace(node, target=moved(node.target), reads=tuple(map(moved, node.reads)))


def inner_ranges(body: Sequence[Leaf]) -> Iterator[Range]:
    for node in body:
        if isinstance(node, Loop):
            yield node.range
            yield from inner_ranges(node.body)


def roles_of(loop: Loop, kernel: Kernel, buffers: Mapping[str, Buffer]) -> Roles | None:
    """What the loop's tensors are, where rows do not depend on each other; None where they may."""
    row, inner = loop.range.symbol, list(inner_ranges(loop.body))
    steps = list(leaves(loop.body))
    if loop.until is not None or not inner or any(not (r.start == 0 and r.stop.is_Integer) for r in inner):
        return None
    if any(isinstance(s, Product) or s.companion is not None or s.where or s.place is not None for s in steps):
        return None
    if any(access.outside is not None for s in steps for access in accesses(s)[0]):
        return None
    used = {tensor for s in steps for tensor in touched(s)}
    own = {id(s) for s in steps}
    outside = {t for s in leaves(kernel.body) if id(s) not in own for t in touched(s)}
    private, sums, targets = set(), {}, {}
    written = {accesses(s)[1].tensor for s in steps}
    for name in sorted(written & used):
        found = [a for s in steps for a in (*accesses(s)[0], accesses(s)[1]) if a.tensor == name]
        still = not any(row in i.free_symbols for a in found for i in a.indices)
        if still and buffers[name].space == "scratch" and name not in outside and starts_anew(name, steps):
            private.add(name)
        elif still and (axes := summed(name, steps, inner, buffers[name])) is not None:
            sums[name], targets[name] = axes
        elif not keeps_to_its_row(found, row, inner):
            return None
    return Roles(frozenset(private), sums, targets)


def touched(node: Leaf) -> set[str]:
    return {access.tensor for step in leaves((node,)) for access in (*accesses(step)[0], accesses(step)[1])}


def starts_anew(name: str, steps: Sequence[Statement | Product]) -> bool:
    """Whether the first of `steps` that touches the buffer overwrites it."""
    first = next(s for s in steps if name in touched(s))
    reads, target = accesses(first)
    return target.tensor == name and all(read.tensor != name for read in reads)


def summed(
    name: str, steps: Sequence[Statement | Product], inner: Sequence[Range], buffer: Buffer
) -> tuple[tuple[Range, ...], Access] | None:
    """The inner loops whose indices say where sums into `name` go, and that place, if nothing else is done with it."""
    own = [s for s in steps if name in touched(s)]
    ranges = {r.symbol: r for r in inner}
    for s in own:
        if not isinstance(s, Statement) or s.reduce is not Reduce.SUM or any(r.tensor == name for r in s.reads):
            return None
    places = {accesses(s)[1].indices for s in own}
    if len(places) != 1 or buffer.dtype is DType.BOOL:
        return None
    (indices,) = places
    axes = tuple(ranges[i] for i in indices if i in ranges)
    fixed = [i for i in indices if i not in ranges]
    # the place on the widened buffer is the last indices: those of the inner loops
    if indices[len(fixed) :] != tuple(a.symbol for a in axes) or any(i.free_symbols & ranges.keys() for i in fixed):
        return None
    return axes, accesses(own[0])[1]


def keeps_to_its_row(found: Sequence[Access], row: sp.Symbol, inner: Sequence[Range]) -> bool:
    """Whether some index of all accesses is the row, counted from wherever, so that rows do not meet."""
    if len({len(a.indices) for a in found}) != 1:
        return False
    moving = {row, *(r.symbol for r in inner)}
    for here in zip(*(a.indices for a in found), strict=True):
        offset = sp.expand(here[0] - row).free_symbols
        if all(i == here[0] for i in here) and not offset & moving and not any(map(is_slot, offset)):
            return True
    return False


def pays(loop: Loop, roles: Roles, lanes: int) -> bool:
    """Whether strips take fewer instructions a row than vectors along each row and what is computed once."""
    if not any(isinstance(node, Statement) for node in loop.body):
        return False  # nothing is computed once a row
    whole, cut = costs(loop.body, loop.range.symbol, roles, lanes, (1.0, 1.0))
    return cut <= LESS * whole


def costs(
    body: Sequence[Leaf], row: sp.Symbol, roles: Roles, lanes: int, times: tuple[float, float]
) -> tuple[float, float]:
    """Instructions a row: as it stands, and in strips. times: how often `body` runs, counted in each way."""
    whole = cut = 0.0
    for node in body:
        if isinstance(node, Loop):
            count = float(node.range.stop)
            last = not any(isinstance(child, Loop) for child in node.body)
            vectors = count // lanes + count % lanes / 2 if last else count
            each = costs(node.body, row, roles, lanes, (times[0] * vectors, times[1] * count))
            whole, cut = whole + each[0], cut + each[1]
            folds = sum(isinstance(child, Statement) and child.reduce is not None for child in node.body)
            whole += times[1] * FOLD * folds if last else 0
        elif isinstance(node, Statement):
            own = {*roles.private, *roles.sums}
            far = [a for a in (*node.reads, node.target) if a.tensor not in own and is_far(a, row)]
            work = weight(node.value) + len(node.reads) / 2 + 1
            whole += times[0] * work
            cut += times[1] * ((work if calls(node.value) else work / lanes) + STRIDED * len(far))
    return whole, cut


def is_far(access: Access, row: sp.Symbol) -> bool:
    """Whether the next row's element lies elsewhere than beside this one's."""
    moves = any(row in i.free_symbols or any(map(is_slot, i.free_symbols)) for i in access.indices)
    return moves and row in sp.expand(access.indices[-1] - row).free_symbols
