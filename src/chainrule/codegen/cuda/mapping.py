"""Which threads run which turns of a kernel's loops: a loop tree becomes a tree of teams.

A team is a grid, a block, a warp, or one thread. A loop whose turns do not depend on each other is spread over the
members of the team that meets it; each member is a smaller team, which runs what is inside:

    map(node, team):
        one statement: every thread computes it alike; one of them stores it
        a nest over statements alone: its independent loops are spread, flattened, over the threads; the loops that
            reduce run inside, or, where few places are left, are spread over lanes whose parts are added in a tree
        a loop over rows of work: a row each for a thread, a warp or a block, whichever its length fills
        a loop whose turns follow each other: the whole team runs its turns one after the other

Nothing here prints. The mapped tree says who does what; `teams.py` writes it down and puts barriers between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import sympy as sp

from chainrule.codegen.cuda.dealt import registers, row_of
from chainrule.codegen.cuda.device import (
    DEALT,
    KEPT,
    MOST_THREADS,
    PRIVATE,
    SHARED_BYTES,
    THREAD_ROW,
    THREADS,
    WARP,
    WARP_ROW,
    WIDEST,
)
from chainrule.codegen.cuda.fresh import stored_once
from chainrule.codegen.cuda.scatter import by_owners
from chainrule.codegen.cuda.team import Carried, Kept, Mapped, Plan, Spread, Team, Tiled, Turns
from chainrule.codegen.cuda.tiles import tile, tile_in_block
from chainrule.codegen.cuda.turns import Tree, carried_by, count, places_of, retargeted
from chainrule.codegen.kernel import nest_of
from chainrule.executable import Precision
from chainrule.ir.expression import is_slot, slot
from chainrule.ir.formula import Access, DType, Reduce, identity_of
from chainrule.ir.program import (
    Buffer,
    Kernel,
    Leaf,
    Loop,
    Product,
    Range,
    Statement,
    accesses,
    gathered,
    leaves,
    renamed,
)


def mapped(
    kernel: Kernel,
    buffers: Mapping[str, Buffer],
    factors: Precision = "float32",
    sizes: Mapping[sp.Symbol, sp.Integer] | None = None,
) -> Plan:
    """`kernel` for a grid: the whole of it if its blocks may be divided otherwise, else block by block.

    factors: what a tile rounds those of its product to. sizes: of dims, what a grid is planned for.
    """
    tree = Tree(kernel, buffers, factors)
    whole = None if kernel.block is None else unblocked(kernel)
    if whole is not None:
        tree = Tree(whole, buffers, factors, sizes or {})
        found = (len(whole.body) > 1 and by_owners(whole, tree)) or as_one(whole, tree)
        if found is not None:
            threads = found.threads if isinstance(found, Tiled) else THREADS
            return Plan((found,), whole, threads, arrays_of((found,), tree), tuple(tree.added))
        tree = Tree(kernel, buffers, factors)
    around, inside = turns_around(kernel, tree)
    body = stored_once(map_body(inside, Team.BLOCK, tree), tree)
    widest = max((width(m, tree) for m in body), default=1)
    most = THREADS if kernel.block is not None else MOST_THREADS
    threads = min(most, max(WARP, 1 << max(widest - 1, 0).bit_length()))
    return Plan(body, None, threads, arrays_of(body, tree), tuple(tree.added), around)


def turns_around(kernel: Kernel, tree: Tree) -> tuple[tuple[Range, ...], tuple[Leaf, ...]]:
    """The loops around all of a kernel with products whose turns do not depend on each other, nor on the block: each
    block of the grid has one turn of them, for products fill it. And what is inside."""
    block, around, body = kernel.block, list[Range](), kernel.body
    if block is None or not any(isinstance(leaf, Product) for leaf in leaves(body)):
        return (), body
    moving = {block.first, block.last}
    while len(body) == 1 and isinstance(loop := body[0], Loop):
        r = loop.range
        if (r.start.free_symbols | r.stop.free_symbols) & moving or carried_by(loop, tree) != ():
            break
        around.append(r)
        moving.add(r.symbol)
        body = loop.body
    return tuple(around), body


def unblocked(kernel: Kernel) -> Kernel | None:
    """`kernel` over whole extents, if nothing in it counts blocks or is as long as one."""
    block = kernel.block
    assert block is not None
    if any(b.shape for b in kernel.locals):
        return None
    names = {block.first: sp.S.Zero, block.last: block.extent}
    body = tuple(renamed(n, names) for n in kernel.body)
    symbols = {s for leaf in leaves(body) for s in free_symbols(leaf)}
    return None if {block.number, block.first} & symbols else replace(kernel, body=body, block=None)


def free_symbols(leaf: Statement | Product) -> set[sp.Basic]:
    reads, target = accesses(leaf)
    found = {s for a in (*reads, target) for i in a.indices for s in i.free_symbols}
    if isinstance(leaf, Statement):
        return found.union(leaf.value.free_symbols, *(c.free_symbols for c in leaf.where))
    return found.union(leaf.scale.free_symbols)


def as_one(kernel: Kernel, tree: Tree) -> Spread | Tiled | None:
    """All of a kernel as one nest over the grid; None where that cannot be: blocks do not wait for each other."""
    found: list[Mapped] = []
    for node in kernel.body:
        spread = spread_over_grid(node, tree)
        if spread is None:
            return None
        found.append(spread)
    left = stored_once(found, tree)
    (one,) = left if len(left) == 1 else (None,)
    return one if isinstance(one, Spread | Tiled) else None


def spread_over_grid(node: Leaf, tree: Tree) -> Spread | Tiled | None:
    """The loops of a kernel that is one nest, over all threads of the grid; None where that cannot be."""
    if isinstance(node, Product):
        return tile(node, node.batch, (), tree) or product_nest(node, node.batch, (), Team.GRID, tree)
    if isinstance(node, Statement) or node.until is not None:
        return None
    nest = nest_of(node)
    if all(isinstance(n, Statement) for n in nest[-1].body):
        return statements_nest(nest, Team.GRID, tree)
    rows: list[Loop] = []
    for loop in nest:
        if carried_by(loop, tree) != ():
            break
        rows.append(loop)
    if not rows:
        return None
    body = rows[-1].body
    ended = ended_product(body)
    if ended is not None:
        p, batch = gathered(ended[0], tuple(loop.range for loop in rows))
        return tile(p, batch, ended[1], tree) or product_nest(p, batch, ended[1], Team.GRID, tree)
    members = members_for(body, tree, Team.GRID)
    return Spread(tuple(loop.range for loop in rows), Team.GRID, members, map_body(body, members, tree))


def ended_product(body: Sequence[Leaf]) -> tuple[Product, tuple[Statement, ...]] | None:
    """A product, and the statements that make something of its sums, place by place, where that is all."""
    then = tuple(n for n in body[1:] if isinstance(n, Statement))
    return (body[0], then) if body and isinstance(body[0], Product) and len(then) == len(body) - 1 else None


def map_body(body: Sequence[Leaf], team: Team, tree: Tree) -> tuple[Mapped, ...]:
    return tuple(m for node in body for m in map_node(node, team, tree))


def map_node(node: Leaf, team: Team, tree: Tree) -> Iterator[Mapped]:
    match node:
        case Statement():
            yield node
        case Product():
            found = tile_in_block(node, tree) if team is Team.BLOCK else None
            yield found or product_nest(node, node.batch, (), team, tree)
        case Loop():
            yield from map_loop(node, team, tree)


def map_loop(loop: Loop, team: Team, tree: Tree) -> Iterator[Mapped]:
    """A loop for a team: spread where its turns allow it."""
    if team is Team.THREAD or loop.until is not None:
        yield Turns(loop, map_body(loop.body, team, tree))
        return
    nest, found = nest_of(loop), None
    if all(isinstance(n, Statement) for n in nest[-1].body):
        found = statements_nest(nest, team, tree)
    ended = ended_product(nest[-1].body)
    if found is None and ended is not None and all(carried_by(n, tree) == () for n in nest):
        p, batch = gathered(ended[0], tuple(n.range for n in nest))
        found = product_nest(p, batch, ended[1], team, tree)
    found = found or rows_of_work(nest, team, tree)
    if found is not None:
        yield found
    else:
        yield from follow(loop, team, tree)


def follow(loop: Loop, team: Team, tree: Tree) -> Iterator[Mapped]:
    """A loop whose turns follow each other. A row that all of them add to is an array of the team's own meanwhile."""
    before: list[Leaf] = []
    after: list[Leaf] = []
    body = loop.body
    for c in carried_by(loop, tree) or ():
        name, row = c.target.tensor, places_of(c, body, tree)
        if (
            tree.is_variable(name)
            or row is None
            or not registers(row_of(body, name), WARP if team is Team.WARP else THREADS)
        ):
            continue
        (r,) = row
        dtype = tree.dtype(name)
        own = Access(tree.local(name, dtype, (r.stop,)), (r.symbol,))
        body = tuple(retargeted(node, c.target, own) for node in body)
        before.append(Loop(r, (Statement(own, identity_of(c.reduce, dtype)),)))
        after.append(Loop(r, (Statement(c.target, slot(0, dtype.sort), (own,), reduce=c.reduce),)))
    yield from map_body(before, team, tree)
    yield Turns(replace(loop, body=body), map_body(body, team, tree))
    yield from map_body(after, team, tree)


def rows_of_work(nest: Sequence[Loop], team: Team, tree: Tree) -> Spread | None:
    """A nest whose turns are rows of work: a row for each smaller team that it fills, with parts of what all add to.
    None where rows follow each other, or one fills the whole team."""
    for arrays in (True, False):
        rows: list[Loop] = []
        carried: list[Carried] = []
        for n in nest:
            kind = carried_by(n, tree)
            if kind is None or not all(arrays or tree.is_variable(c.target.tensor) for c in kind):
                break
            met = [*carried, *(c for c in kind if c not in carried)]
            moving = {n.range.symbol, *(row.range.symbol for row in rows)}
            if any(moving & e.free_symbols for c in met for e in c.target.indices):
                break  # its places move from row to row: no row has all of them as its part
            rows.append(n)
            carried = met
        ranges = tuple(n.range for n in rows)
        if not rows or all(isinstance(n, Statement) for n in rows[-1].body):
            continue
        body = rows[-1].body
        scalars = tuple(c for c in carried if tree.is_variable(c.target.tensor))
        places = [places_of(c, body, tree) for c in carried if c not in scalars]
        if any(p is None for p in places):
            continue
        apart = [c.target.tensor for c in carried if c not in scalars]
        elements = sum(tree.points(p) for p in places if p is not None)
        members = members_for(body, tree, team, apart)
        if members is Team.THREAD and elements > PRIVATE:
            members = Team.WARP
        held = elements <= KEPT or all(registers(row_of(body, name)) for name in apart)
        if members >= team or (members is Team.WARP and (tree.points(ranges) < 2 or not held)):
            continue
        if team is Team.WARP and elements:
            continue
        kept = []
        for c, p in zip((c for c in carried if c not in scalars), places, strict=True):
            assert p is not None
            dtype = tree.buffers[c.target.tensor].dtype
            private = tree.local(c.target.tensor, dtype, tuple(r.stop for r in p))
            own = Access(private, tuple(r.symbol for r in p))
            body = tuple(retargeted(node, c.target, own) for node in body)
            kept.append(Kept(c.target, c.reduce, private, p))
        return Spread(ranges, team, members, map_body(body, members, tree), scalars, tuple(kept))
    return None


def members_for(body: Sequence[Leaf], tree: Tree, team: Team, apart: Sequence[str] = ()) -> Team:
    """The team whose size a row of work fills: a thread, a warp, or a block. apart: tensors that each member adds to an
    array of its own for."""
    inner = max((work(node, tree) for node in body), default=1)
    arrays = private_arrays(body, tree)
    if inner <= THREAD_ROW and all(n.is_Integer and n <= PRIVATE for n in arrays.values()):
        return Team.THREAD
    warps = (THREADS if tree.kernel.block is not None or team is Team.GRID else MOST_THREADS) // WARP
    rows = {name: registers(row_of(body, name)) for name in (*arrays, *apart)}
    shared = [n for name, n in arrays.items() if not rows[name]]
    fits = all(n.is_Integer for n in shared) and sum(map(int, shared)) * WIDEST * warps <= SHARED_BYTES
    if inner <= WARP_ROW and fits and sum(rows.values()) <= DEALT:
        return Team.WARP
    return Team.BLOCK


def private_arrays(body: Sequence[Leaf], tree: Tree) -> dict[str, sp.Expr]:
    """Elements of each scratch array that only `body` touches."""
    own = (name for name, times in count(body).items() if name in tree.buffers and tree.is_own(name, times))
    return {name: sp.Mul(*tree.buffers[name].shape) for name in own if tree.buffers[name].shape}


def work(node: Leaf, tree: Tree) -> int:
    """Places that threads could share in a node, about."""
    match node:
        case Statement():
            return 1
        case Product():
            return tree.points((*node.batch, *node.rows, *node.columns, *node.inner))
        case Loop():
            inner = max((work(child, tree) for child in node.body), default=1)
            return inner * tree.extent(node.range) if carried_by(node, tree) is not None else inner


def width(node: Mapped, tree: Tree) -> int:
    """How many threads a mapped node of a block can use."""
    match node:
        case Statement():
            return 1
        case Tiled():
            return node.threads
        case Turns():
            return max((width(child, tree) for child in node.body), default=1)
        case Spread():
            inner = {Team.THREAD: 1, Team.WARP: WARP, Team.BLOCK: 1, Team.GRID: 1}[node.members]
            return tree.points(node.ranges) * inner


def statements_nest(nest: Sequence[Loop], team: Team, tree: Tree) -> Spread | None:
    """A perfect nest over statements: what is independent outside, flattened; inside, in their order, what is not.

    Interchanged so, each place still adds its terms in the written order. None where no loop is independent.
    """
    kinds = [carried_by(loop, tree, nest) for loop in nest]
    statements = tuple(n for n in nest[-1].body if isinstance(n, Statement))
    free = tuple(loop.range for loop, kind in zip(nest, kinds, strict=True) if kind == ())
    inside = tuple(loop.range for loop, kind in zip(nest, kinds, strict=True) if kind != ())
    if not inside:
        return Spread(free, team, Team.THREAD, statements)
    ordered = any(kind is None for kind in kinds)
    if not free:
        carried = tuple(dict.fromkeys(c for kind in kinds for c in kind or ()))
        scalars = not ordered and all(tree.is_variable(c.target.tensor) for c in carried)
        return Spread(inside, team, Team.THREAD, statements, carried) if scalars and team < Team.GRID else None
    return places(free, inside, accumulated(statements, inside, tree), team, tree, ordered)


def accumulated(
    statements: Sequence[Statement], inside: Sequence[Range], tree: Tree
) -> tuple[tuple[Statement, ...], tuple[Statement, ...], tuple[Statement, ...]]:
    """Reductions into places that stand still `inside`, through local variables: how these start, what is added,
    what is stored at the end."""
    begun, turned, stored = [], [], []
    moving = {r.symbol for r in inside}
    for s in statements:
        at = {symbol for e in s.target.indices for symbol in e.free_symbols}
        others = [a.tensor for o in statements for a in (*o.reads, *(() if o is s else (o.target,)))]
        still = not moving & at and not any(map(is_slot, at)) and s.target.tensor not in others
        if not still or s.reduce in (None, Reduce.ARGMAX) or tree.is_variable(s.target.tensor):
            turned.append(s)
            continue
        assert s.reduce is not None
        dtype = tree.dtype(s.target.tensor)
        total = Access(tree.local(s.target.tensor, dtype), ())
        begun.append(Statement(total, identity_of(s.reduce, dtype), origin=s.origin, text=s.text))
        turned.append(replace(s, target=total))
        value = slot(0, dtype.sort)
        stored.append(Statement(s.target, value, (total,), reduce=s.reduce, origin=s.origin, text=s.text))
    return tuple(begun), tuple(turned), tuple(stored)


def places(
    free: tuple[Range, ...],
    reducing: tuple[Range, ...],
    steps: tuple[tuple[Statement, ...], tuple[Statement, ...], tuple[Statement, ...]],
    team: Team,
    tree: Tree,
    ordered: bool = False,
) -> Spread:
    """A reduction for each place: a thread's where places fill the team; else a warp's or a block's together."""
    begun, turned, stored = steps
    members = Team.THREAD
    wanted = {Team.GRID: 8 * THREADS, Team.BLOCK: THREADS // 2, Team.WARP: WARP // 2, Team.THREAD: 0}[team]
    apart = not ordered and len(begun) == len(turned)
    if tree.points(free) < wanted and tree.points(reducing) > THREAD_ROW and apart and team > Team.WARP:
        members = Team.WARP if tree.points(reducing) <= WARP_ROW or team is Team.BLOCK else Team.BLOCK
    if members is Team.THREAD:
        inner: tuple[Mapped, ...] = turned
        for r in reversed(reducing):
            inner = (Turns(Loop(r, turned), inner),)
        return Spread(free, team, members, (*begun, *inner, *stored))
    carried = tuple(Carried(s.target, s.reduce, s.companion) for s in turned if s.reduce is not None)
    shares = Spread(reducing, members, Team.THREAD, turned, carried)
    return Spread(free, team, members, (*begun, shares, *stored))


def product_nest(p: Product, batch: tuple[Range, ...], then: tuple[Statement, ...], team: Team, tree: Tree) -> Spread:
    """A product as a nest: places by batch, rows and columns, each with its sum and what that becomes."""
    dtype = DType.FLOAT
    total = Access(tree.local(p.target.tensor, dtype), ())
    begun = Statement(total, sp.S.Zero, origin=p.origin, text=p.text)
    value = slot(0, dtype.sort) * slot(1, dtype.sort)
    same = p.left == p.right
    value = slot(0, dtype.sort) ** 2 if same else value
    turned = Statement(
        total, value, (p.left,) if same else (p.left, p.right), reduce=Reduce.SUM, origin=p.origin, text=p.text
    )
    reduce = Reduce.SUM if p.accumulate else None
    stored = Statement(p.target, p.scale * slot(0, dtype.sort), (total,), reduce=reduce, origin=p.origin, text=p.text)
    free = (*batch, *p.rows, *p.columns)
    return places(free, p.inner, ((begun,), (turned,), (stored, *then)), team, tree)


def arrays_of(body: Sequence[Mapped], tree: Tree) -> dict[str, Team]:
    """The team that each array of scratch belongs to: the members of the innermost spread around all its uses."""
    found: dict[str, tuple[int, ...]] = {}
    teams: dict[int, Team] = {}
    own: dict[str, Team] = {}
    numbers = iter(range(1_000_000))

    def meet(a: Access, path: tuple[int, ...]) -> None:
        buffer = tree.known(a.tensor)
        if buffer is not None and buffer.space == "scratch" and buffer.shape:
            found[a.tensor] = common(found.get(a.tensor, path), path)

    def walk(nodes: Sequence[Mapped], path: tuple[int, ...]) -> None:
        for node in nodes:
            match node:
                case Statement():
                    reads, target = accesses(node)
                    for a in (*reads, target):
                        meet(a, path)
                case Tiled():
                    reads, target = accesses(node.product)
                    for a in (*reads, target):
                        buffer = tree.known(a.tensor)
                        if buffer is not None and buffer.space == "scratch":
                            found[a.tensor] = common(found.get(a.tensor, path), path)
                case Turns():
                    walk(node.body, path)
                case Spread():
                    number = next(numbers)
                    teams[number] = node.members
                    own.update({k.private: node.members for k in node.kept})
                    for k in node.kept:
                        meet(k.target, path)
                    walk(node.body, (*path, number))

    walk(body, ())
    return {name: teams[path[-1]] if path else Team.BLOCK for name, path in found.items()} | own


def common(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    k = 0
    while k < min(len(a), len(b)) and a[k] == b[k]:
        k += 1
    return a[:k]
