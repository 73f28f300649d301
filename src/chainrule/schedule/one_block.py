"""Small networks: a whole step as one kernel of one block, whose parts follow each other with barriers.

    a, b, c    ->    a; b; c    where launches cost more than a grid saves, else    a, b, c

A launch that does nothing takes longer than most parts of such a step. How large the batch may be is known when inputs
are: so both are compiled, and a polynomial in the dims says which of them is launched.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import replace

import sympy as sp

from chainrule.ir.expression import index_symbol
from chainrule.ir.machine import Machine
from chainrule.ir.program import (
    Buffer,
    Kernel,
    Leaf,
    Loop,
    Product,
    Program,
    Statement,
    accesses,
    leaves,
    mapped,
    ranges,
    renamed,
)
from chainrule.schedule.cost import PRODUCT_NS, Sizes
from chainrule.schedule.equal import kernel_name
from chainrule.schedule.task import fresh

PRODUCTS, OTHERS = sp.Rational(3, 4), sp.Rational(1, 6)
"""What products and all else cost on one multiprocessor, beside one core of a CPU, whose nanoseconds the cost model
counts. 128 multiply-adds in a cycle of 0.6 ns, of which loads from shared memory (32 words a cycle) leave a third:
0.012 ns each. Some four instructions for an operation of a map, 128 in a cycle: 0.02 ns."""

PARTS = 64
"""So many kernels become parts of one, at most: each instruction is read once, from far away, and compiled."""


def is_small(program: Program, sizes: Sizes, machine: Machine) -> bool:
    """Whether `program` may be quicker as one kernel of one block at these sizes."""
    if not machine.kernel_ns or len(program.kernels) < 2 or len(program.kernels) > PARTS:
        return False
    for dim in program.dims:
        if dim.definition is not None:
            sizes.define(dim)
    most = len(program.kernels) * (machine.kernel_ns - machine.part_ns)  # a grid's loops say what their blocks do alone
    return float(OTHERS) * sizes.of(sp.Add(*(kernel.cost for kernel in program.kernels))) < most


def gain(grid: Program, alone: Program, machine: Machine) -> sp.Expr:
    """Nanoseconds that `alone`, as parts of one kernel of one block, saves; over the dims.

    What a grid's kernels take beside their launches is little, where this matters.
    """
    launches = len(grid.kernels) * sp.Rational(machine.kernel_ns)
    parts = len(alone.kernels) * sp.Rational(machine.part_ns)
    saved = sp.expand(launches - parts - sp.Add(*map(work, alone.kernels)))
    return saved.xreplace({r: sp.Integer(round(r)) for r in saved.atoms(sp.Rational)})


def work(kernel: Kernel) -> sp.Expr:
    """Nanoseconds of a kernel's work on one multiprocessor, over the dims."""
    return OTHERS * kernel.cost + (PRODUCTS - OTHERS) * PRODUCT_NS * multiplications(kernel.body)


def multiplications(body: Sequence[Leaf]) -> sp.Expr:
    """Of all products in a tree."""
    total: sp.Expr = sp.S.Zero
    for node in body:
        match node:
            case Loop():
                total += (node.range.stop - node.range.start) * multiplications(node.body)
            case Product():
                total += sp.Mul(*(r.stop - r.start for r in ranges((node,))))
            case Statement():
                pass
    return total


def either(grid: Program, alone: Program, sizes: Sizes, machine: Machine) -> Program:
    """`grid` or, where that is quicker, `alone` as one kernel: as the sizes are, unless they are known now, or `sizes`,
    which are small, are too large for it."""
    saved = gain(grid, alone, machine)
    if sizes.of(saved) <= 0:
        return grid
    if saved.is_number:
        results = {of for _, of in alone.outputs}
        lasting = tuple(b for b in alone.buffers if b.space != "arena" or b.name in results)
        return replace(alone, kernels=(together(alone, lasting),), buffers=lasting)
    whole, known = together(alone, grid.buffers), {dim.name for dim in grid.dims}
    others = tuple(replace(kernel, unless=saved) for kernel in grid.kernels)
    return replace(
        grid,
        dims=(*grid.dims, *(dim for dim in alone.dims if dim.name not in known)),
        kernels=(replace(whole, when=saved), *others),
    )


def together(program: Program, buffers: Sequence[Buffer]) -> Kernel:
    """All kernels of `program`, which have no blocks, as parts of one: what they pass to each other is its scratch.

    buffers: those around the kernel, whose names are taken.
    """
    results = {of for _, of in program.outputs}
    passed = [b for b in program.buffers if b.space == "arena" and b.name not in results]
    locals_ = [*(b for kernel in program.kernels for b in kernel.locals), *passed]
    taken, called = {b.name for b in buffers}, dict[str, str]()
    for b in locals_:
        called[b.name] = fresh(b.name, taken)
        taken.add(called[b.name])
    body: list[Leaf] = []
    count = 0
    for kernel in program.kernels:
        symbols: dict[sp.Basic, sp.Basic] = {}
        for r in ranges(kernel.body):
            symbols.setdefault(r.symbol, index_symbol(f"_l{count + len(symbols):02}"))
        count += len(symbols)
        body += (in_buffers(renamed(node, symbols), called) for node in kernel.body)
    formulas = tuple(name for kernel in program.kernels for name in kernel.formulas)
    scratch = [replace(b, name=called[b.name], space="scratch") for b in locals_]
    variables = {b.name for b in scratch if not b.shape}
    body, depths = by_depth(body, variables)
    again = reused([b for b in scratch if b.name in {called[p.name] for p in passed}], body, depths)
    return Kernel(
        name=kernel_name(formulas),
        body=tuple(in_buffers(node, again) for node in body),
        locals=tuple(b for b in scratch if b.name not in again),
        cost=sp.Add(*(kernel.cost for kernel in program.kernels)),
        flops=sp.expand(sp.Add(*(kernel.flops for kernel in program.kernels))),
        formulas=formulas,
    )


def by_depth(body: Sequence[Leaf], variables: Set[str]) -> tuple[list[Leaf], list[int]]:
    """The parts in an order that few barriers divide, and of each how many stand before it.

    A part waits for those that wrote what it touches, or touched what it writes. variables: what each thread has for
    itself, for which nobody waits.
    """
    depths: list[int] = []
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for node in body:
        reads, writes = touched(node)
        depth = 0
        for name in reads | writes:
            apart = 0 if name in variables else 1
            depth = max(depth, written.get(name, -apart) + apart)
            if name in writes:
                depth = max(depth, read.get(name, -apart) + apart)
        depths.append(depth)
        read |= {name: max(depth, read.get(name, 0)) for name in reads}
        written |= dict.fromkeys(writes, depth)
    order = sorted(range(len(body)), key=lambda k: depths[k])
    return [body[k] for k in order], [depths[k] for k in order]


def touched(node: Leaf) -> tuple[set[str], set[str]]:
    """The buffers that a part reads, and those that it writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    for leaf in leaves((node,)):
        read, target = accesses(leaf)
        reads |= {access.tensor for access in read}
        writes |= {target.tensor, *([leaf.companion] if isinstance(leaf, Statement) and leaf.companion else ())}
    return reads | untils(node), writes


def untils(node: Leaf) -> set[str]:
    """What tells loops in `node` to end."""
    if not isinstance(node, Loop):
        return set()
    own = set() if node.until is None else {node.until.tensor}
    return own.union(*map(untils, node.body))


def reused(arrays: Sequence[Buffer], body: Sequence[Leaf], depths: Sequence[int]) -> dict[str, str]:
    """For each array that may lie where another of its shape lay, which nothing reads any more, the other's name.

    What has a size when inputs have: what is known to be small need not be smaller.
    """
    lives: dict[str, tuple[int, int]] = {}
    for node, depth in zip(body, depths, strict=True):
        for name in set().union(*touched(node)):
            lives[name] = lives.get(name, (depth, depth))[0], depth
    found: dict[str, str] = {}
    free: dict[Hashable, dict[str, int]] = {}  # of each kind the names, and until when they are in use
    grown = [b for b in arrays if b.name in lives and any(e.free_symbols for e in b.shape)]
    for b in sorted(grown, key=lambda b: lives[b.name]):
        first, last = lives[b.name]
        kind = free.setdefault((b.shape, b.dtype), {})
        name = next((name for name, until in kind.items() if until < first), b.name)
        kind[name] = last
        if name != b.name:
            found[b.name] = name
    return found


def in_buffers(node: Leaf, called: Mapping[str, str]) -> Leaf:
    """`node` with its buffers under other names."""

    def with_companion(node: Leaf) -> Leaf:
        match node:
            case Loop():
                return replace(node, body=tuple(map(with_companion, node.body)))
            case Statement(companion=str(name)):
                return replace(node, companion=called.get(name, name))
            case _:
                return node

    return with_companion(mapped(node, lambda a: replace(a, tensor=called.get(a.tensor, a.tensor))))
