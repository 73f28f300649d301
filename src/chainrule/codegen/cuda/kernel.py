"""A kernel of a program as source for the GPU, with what a launch of it needs."""

from __future__ import annotations

from collections.abc import Set

import sympy as sp

from chainrule.codegen.cuda.dealt import dealt
from chainrule.codegen.cuda.fragments import LEAST
from chainrule.codegen.cuda.groups import group_of, is_exact, turns_of
from chainrule.codegen.cuda.indices import indices, places
from chainrule.codegen.cuda.mapping import mapped
from chainrule.codegen.cuda.objects import NAMES, Job, Pointer, Size
from chainrule.codegen.cuda.product import panel_bytes, tiles_of, write_tile
from chainrule.codegen.cuda.team import Plan, Spread, Team, Tiled, tiles_in
from chainrule.codegen.cuda.teams import Since, write_nodes
from chainrule.codegen.cuda.writer import CudaWriter
from chainrule.codegen.kernel import CLOCK, Element, KernelSource, docstring, parameters_of
from chainrule.codegen.layout import blocks
from chainrule.codegen.names import Names
from chainrule.codegen.native import ITEM, Array
from chainrule.executable import Precision
from chainrule.ir.expression import dim_symbol, quotient
from chainrule.ir.program import Kernel, Product, Program, accesses, leaves

COUNTS = "clock[1] = clock[1] + 1"


def kernel_source(
    kernel: Kernel,
    program: Program,
    entry: str,
    element: Element,
    precision: Precision = "float32",
    arch: str = "sm_90",
    counts: bool = False,
) -> KernelSource:
    """`kernel` as a Python function named `entry`. precision: what a product's factors may be rounded to. counts: it
    counts the step in the clock, on the device, so that a graph of launches replays unchanged."""
    buffers = {b.name: b for b in (*program.buffers, *kernel.locals)}
    dims = frozenset(dim_symbol(dim.name) for dim in program.dims)
    planned = {dim_symbol(name): sp.Integer(size) for name, size in program.sizes}
    plan, grid = mapped(kernel, buffers, factors_of(element, precision, arch), planned), blocks(kernel)
    if plan.whole is not None:
        kernel = plan.whole
    buffers |= {b.name: b for b in plan.added}
    plan = dealt(plan, buffers, ITEM[element])
    stores = frozenset(accesses(leaf)[1].tensor for leaf in leaves(kernel.body))
    names = Names({"scratch", "kernel", *NAMES})
    names.fresh(entry)
    w = CudaWriter(
        kernel, buffers, dims, element, names, stores=stores, arrays=plan.arrays, threads=plan.threads,
        dealt=plan.dealt, counts=counts, alone=plan.whole is None and kernel.block is None,
    )  # fmt: skip
    w.shared = panel_bytes(tiles_in(plan.body), element)
    w.bounds = {dim_symbol(dim.name): dim.maximum for dim in program.dims if dim.maximum is not None}
    _write(kernel, plan, w)
    if counts:
        _count(w)
    if plan.whole is not None:
        grid = grid_of(plan, w)
    elif plan.around:
        grid *= w.over_dims(places(plan.around))
    declared = w.declarations()
    given, _, called, arrays = parameters_of(w)
    pointers: list[Pointer | Size] = [Pointer(array.element) for array in arrays if isinstance(array, Array)]
    parameters = (*pointers, *(Size() for _ in called[len(given) :]), Size())  # the last: the scratch region's address
    computing = [leaf for leaf in leaves(kernel.body) if isinstance(leaf, Product) or leaf.reads or leaf.reduce]
    head = f"def {entry}({', '.join([*called, 'scratch'])}):"
    top = [f"    {line}" for line in (*declared, *(f"{name} = {value}" for name, value in w.hoisted.values()))]
    texts = [leaf.text for leaf in computing or leaves(kernel.body)]
    equations = docstring([*texts, COUNTS] if counts else texts)
    text = "\n".join([*imports(w.used), head, *equations, *top, *w.lines]) + "\n"
    return KernelSource(
        text=text,
        job=Job(text, entry, parameters, plan.threads, w.blocks),
        buffers=tuple(given),
        sizes=tuple(w.sizes),
        draws=tuple(w.draws),
        scratch=(),
        reads=tuple(k for k, name in enumerate(given) if name in w.read),
        writes=tuple(k for k, name in enumerate(given) if name in w.written),
        grid=grid,
        threads=plan.threads,
        region=w.region,
    )


def factors_of(element: Element, precision: Precision, arch: str) -> Precision:
    """What tiles round their factors to: nothing is rounded where an architecture has no tensor cores for it."""
    has = int(arch.removeprefix("sm_").rstrip("af")) >= LEAST
    return precision if has and element == "float32" else "float32"


def imports(used: Set[str]) -> list[str]:
    """What saved source needs: each name from the module that has it."""
    names = sorted(used & NAMES.keys())
    modules = dict.fromkeys(NAMES[name].__module__ for name in names if hasattr(NAMES[name], "__module__"))
    lines = [
        f"from {module} import {', '.join(n for n in names if getattr(NAMES[n], '__module__', '') == module)}"
        for module in sorted(modules)
    ]
    return [*lines, "", ""] if lines else []


def _write(kernel: Kernel, plan: Plan, w: CudaWriter) -> None:
    """A block of the kernel's range, where it has one that is kept; else all of it."""
    block = kernel.block
    if block is not None:
        number, lines = w.open_block(block, "block_number")
        count = w.size(blocks(kernel)) if plan.around else ""
        here = f"{w.call('modulo')}({w.call('block')}(), {count})" if count else f"{w.call('block')}()"
        for line in (f"{number} = {here}", *lines):
            w.line(line)
        with indices(plan.around, f"{w.call('divide')}({w.call('block')}(), {count})" if count else "", w):
            write_nodes(plan.body, Team.BLOCK, w, Since(Team.BLOCK))
        return
    team = Team.BLOCK if plan.whole is None else Team.GRID
    if plan.whole is not None and isinstance(plan.body[0], Tiled):
        write_tile(plan.body[0], w)
    else:
        write_nodes(plan.body, team, w, Since(team))


def _count(w: CudaWriter) -> None:
    """Count the step, once all have read which one it is."""
    clock = w.clock()
    w.line(f"{w.call('sync')}()")
    with w.inside(f"if {w.call('thread')}() == 0:"):
        w.line(COUNTS.replace("clock", clock))
    w.written.add(CLOCK)


def grid_of(plan: Plan, w: CudaWriter) -> sp.Expr:
    """So many blocks that each member has one turn."""
    (spread,) = plan.body
    if isinstance(spread, Tiled):
        return sp.Mul(*tiles_of(spread))
    assert isinstance(spread, Spread)
    count, last = group_of(spread, w), spread.ranges[-1] if spread.ranges else None
    if last is not None and count > 1 and not is_exact(last, count):
        turns = turns_of(last, count)
    else:
        turns = sp.Mul(*(w.over_dims(sp.expand(r.stop - r.start)) for r in spread.ranges)) / count
    each = {Team.THREAD: plan.threads, Team.WARP: w.warps, Team.BLOCK: 1}[spread.members]
    return turns if each == 1 else quotient(turns + each - 1, sp.Integer(each))
