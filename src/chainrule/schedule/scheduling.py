"""The scheduler, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import sympy as sp

from chainrule.choices import COST_MODEL, Choice, Choices
from chainrule.errors import ChainruleError
from chainrule.ir.expression import dim_symbol, quotient
from chainrule.ir.formula import DType
from chainrule.ir.graph import Dim, Graph
from chainrule.ir.machine import BLOCK, CPU, Machine
from chainrule.ir.primitive import Primitive
from chainrule.ir.program import Block, Buffer, Kernel, Program, accesses, leaves
from chainrule.schedule.bands import banded
from chainrule.schedule.cost import Sizes, bytes_of, cost_of, flops_of
from chainrule.schedule.drafts import Draft, Plan
from chainrule.schedule.emit import body_of
from chainrule.schedule.ending import end_early
from chainrule.schedule.equal import Form, form_of, kernel_name, renamed
from chainrule.schedule.finished import finished
from chainrule.schedule.in_place import in_place
from chainrule.schedule.kernels import Planner, planner_of
from chainrule.schedule.layout import lay_out
from chainrule.schedule.liveness import Liveness, lean
from chainrule.schedule.masks import masked
from chainrule.schedule.one_block import either, is_small
from chainrule.schedule.overlay import overlaid
from chainrule.schedule.rematerialize import PRICE, rematerialize
from chainrule.schedule.tree import Ground, Item, build
from chainrule.schedule.work import Work, in_order, outputs_of, work_of

ROUNDS = 3
"""So often at most something is found that had better be computed again."""

LITTLE = 1 << 24
"""Bytes below which everything is kept, and in its own place: they stay in the last cache, and nobody misses them."""

PRICES = tuple(PRICE * 4**k for k in range(8))
"""Of a byte that is kept; at the last one, all is computed again that can be."""

HALVINGS = 5
"""So often what is computed again for a budget is halved, to find how little of it is enough."""

CLOCK = "_clock"
"""The buffer of (seed, step), which draws are keyed by."""

Planned = tuple[Work, Planner]


def schedule(
    graph: Graph,
    *,
    training: bool,
    sizes: Mapping[str, int] | None = None,
    accurate: bool = False,
    memory: int | None = None,
    item: int = 4,
    choices: Choices = COST_MODEL,
    machine: Machine = CPU,
) -> Program:
    """The kernels that compute `graph`'s outputs and updates, in order, and the buffers between them.

    sizes: of dims, what to schedule for; the program is right for every other size as well. accurate: nothing is
    computed in a way that rounds more than the formulas do. memory: bytes that may be kept between kernels at these
    sizes, with floats of `item` bytes; raises ChainruleError if they cannot suffice. choices: of convolutions.
    machine: what runs the kernels.
    """
    typical = Sizes(graph, sizes, machine)
    plain = accurate or not machine.tiles  # Winograd's transforms are for register tiles
    graph, chosen = lay_out(graph, typical, accurate=plain, item=item, choices=choices)
    program = scheduled(graph, typical, machine, training=training, memory=memory, item=item, chosen=chosen)
    if machine.tiles:
        little = LITTLE if memory is None else int(memory * bytes_of(DType.FLOAT) / item)
        return in_place(program, typical, little)
    small = Sizes(graph, sizes, BLOCK)
    if memory is not None or not is_small(program, small, machine):
        return program
    alone = scheduled(graph, small, BLOCK, training=training, item=item, chosen=chosen)
    return either(program, alone, small, machine)


def scheduled(
    graph: Graph,
    sizes: Sizes,
    machine: Machine,
    *,
    training: bool,
    memory: int | None = None,
    item: int,
    chosen: Mapping[str, Choice],
) -> Program:
    """`schedule` of a graph that is laid out."""
    work = work_of(graph, sizes)
    if machine.blocks > 1:
        work = banded(work, sizes, machine, item)
    work, planner = planned(work, sizes, memory, item, machine)
    plan = finished(planner)
    stored = {task.out: task.store for task in plan.links.tasks if task.store is not None}
    kernels, counts = kernels_of(planner, plan, work, sizes, stored)
    outputs = tuple((name, stored.get(of, of)) for name, of in work.outputs)
    for dim in counts:
        sizes.define(dim)
    program = Program(
        name=graph.name,
        training=training,
        dims=(*graph.dims, *counts),
        buffers=buffers_of(graph, plan, kernels, outputs),
        kernels=kernels,
        outputs=outputs,
        inits=tuple((p.tensor.name, p.init) for p in graph.params),
        values=(
            *((s.tensor.name, s.value) for s in graph.states),
            *((s.name, s.default) for s in graph.scalars),
        ),
        bounds=tuple((t.name, t.bound) for t in graph.inputs if t.bound is not None),
        convolutions=tuple(chosen.items()),
        sizes=tuple((str(dim), size) for dim, size in sizes.known.items()),
    )
    return end_early(program)


def planned(work: Work, sizes: Sizes, memory: int | None = None, item: int = 4, machine: Machine = CPU) -> Planned:
    """The tasks in kernels; what is cheaper computed again than kept is computed again, and little is kept for long.

    memory: bytes that may be kept between kernels, with floats of `item` bytes. A byte's price rises until they do.
    """
    outputs = outputs_of(work)
    planner = lean(planner_of(work.tasks, work.tensors, sizes, machine), outputs)
    best = work, planner
    if memory is None:
        return cheapest(*best, sizes, PRICE, LITTLE)
    scale = item / bytes_of(DType.FLOAT)  # the cost model counts floats as float32
    budget = int(memory / scale)
    for price in PRICES:
        best = cheapest(*best, sizes, price, budget)
        if Liveness(best[1], outputs).most <= budget:
            return sparing((work, planner), best, sizes, price, budget)
    least = int(Liveness(best[1], outputs).most * scale)
    raise ChainruleError(
        f"a step keeps {least:,} bytes between kernels at {sizes}, with all computed again that can be; "
        f"the budget is {memory:,}\n  Way out: a larger budget, or a smaller batch"
    )


def sparing(all_saved: Planned, best: Planned, sizes: Sizes, price: float, budget: int) -> Planned:
    """Of what `best` computes again to meet the budget, the later half saved if half is enough, and so on.

    A price alone has all layers of a kind computed again or none, since each costs the same.
    """
    outs = [task.out for task in all_saved[0].tasks]
    few, enough = 0, len(outs)  # so many tasks from the first on may be computed again
    for _ in range(HALVINGS):
        middle = (few + enough) // 2
        found = cheapest(*all_saved, sizes, price, budget, frozenset(outs[middle:]))
        if Liveness(found[1], outputs_of(found[0])).most <= budget:
            best, enough = found, middle
        else:
            few = middle
    return best


def cheapest(
    work: Work, planner: Planner, sizes: Sizes, price: float, little: int, saved: Set[str] = frozenset()
) -> Planned:
    """The tasks in kernels, when a byte that is kept has this price; up to `little` bytes have none.

    Each round looks at the kernel during which most is kept, and the next at where that is then.
    """
    outputs = outputs_of(work)
    for _ in range(ROUNDS):
        if Liveness(planner, outputs).most <= little:
            break
        again = rematerialize(work, planner, price, saved)
        if again is work:
            break
        again = replace(again, tasks=tuple(in_order(again.tasks)))
        other = lean(planner_of(again.tasks, again.tensors, sizes, planner.machine), outputs)
        if Liveness(other, outputs).most >= Liveness(planner, outputs).most:
            break
        work, planner = again, other
    return work, planner


def needed_of(plan: Plan, work: Work) -> dict[int, set[str]]:
    """For each draft the tensors that others read, or that are outputs."""
    home = {t: at for at, draft in enumerate(plan.drafts) for t in draft.tasks}
    outputs = outputs_of(work)
    needed: dict[int, set[str]] = {at: set() for at in range(len(plan.drafts))}
    for t, task in enumerate(plan.links.tasks):
        away = any(home[reader] != home[t] for reader in plan.links.readers.get(task.out, ()))
        carried = bool(task.circles) and task.circles[0].carried
        if away or carried or task.out in outputs:
            needed[home[t]].add(task.out)
    return needed


def kernels_of(
    planner: Planner, plan: Plan, work: Work, sizes: Sizes, stored: Mapping[str, str]
) -> tuple[tuple[Kernel, ...], list[Dim]]:
    """The kernels, those of equal form built once; and their numbers of blocks, where partial results have as many."""
    needed = needed_of(plan, work)
    taken = set(plan.tensors)
    masks = masked(plan.links.tasks, plan.contractions, outputs_of(work))
    kernels: list[Kernel] = []
    counts: list[Dim] = []
    made: dict[object, tuple[Kernel, Form]] = {}
    for at, draft in enumerate(plan.drafts):
        if not draft.tasks:
            continue
        divided = draft.index is not None and planner.machine.blocks > 1
        size = planner.block_size(planner.drafts[at]) if divided else 0
        if draft.blocks is not None and draft.index is not None:
            blocks = quotient(draft.index.extent + size - 1, sp.Integer(size))
            counts.append(Dim(draft.blocks.name, definition=blocks))
        form = form_of(draft, size, plan, needed[at], stored, masks)
        equal = made.get(form.key)
        if equal is None:
            kernel = kernel_of(draft, size, plan, sizes, needed[at], stored, taken, masks)
            if form.key is not None:
                made[form.key] = kernel, form
        else:
            kernel = renamed(*equal, form, taken)
        kernels.append(kernel)
    return tuple(kernels), counts


def kernel_of(
    draft: Draft,
    size: int,
    plan: Plan,
    sizes: Sizes,
    needed: set[str],
    stored: Mapping[str, str],
    taken: set[str],
    masks: Mapping[int, tuple[sp.Basic, ...]],
) -> Kernel:
    links = plan.links
    tasks = [links.tasks[t] for t in draft.tasks]
    contractions = {t: plan.contractions[t] for t in draft.tasks if t in plan.contractions}
    placed = frozenset(draft.tasks[:1] if draft.product is not None and len(draft.tasks) > 1 else ())
    ground = Ground(links, contractions, dict(draft.opened), sizes, masks, frozenset(needed), placed=placed)
    tree = build([Item(t, links.tasks[t].free) for t in draft.tasks], ground)
    block = None
    if draft.index is not None and size:
        block = Block(
            dim_symbol("_block"), dim_symbol("_first"), dim_symbol("_last"),
            draft.index.extent, size, draft.index.name,
        )  # fmt: skip
    body, local = body_of(tree, needed, stored, taken, ground, block)
    if draft.rows:
        body, local = overlaid(body, local)
    cost = sp.Add(*(cost_of(links.tasks[t], product=t in contractions) for t in draft.tasks))
    work = sp.expand(sp.Add(*map(flops_of, tasks)))
    names = tuple(task.out for task in tasks)
    return Kernel(kernel_name(names), body, local, block, cost, work, names)


def buffers_of(
    graph: Graph, plan: Plan, kernels: Sequence[Kernel], outputs: tuple[tuple[str, str], ...]
) -> tuple[Buffer, ...]:
    """Everything that the kernels touch outside their scratch, and all that the graph was given."""
    given = [
        *(Buffer(t.name, t.shape, t.dtype, "input", stands_for=t.name) for t in graph.inputs),
        *(Buffer(p.tensor.name, p.tensor.shape, p.tensor.dtype, "param") for p in graph.params),
        *(Buffer(s.tensor.name, s.tensor.shape, s.tensor.dtype, "state") for s in graph.states),
        *(Buffer(s.name, (), DType.FLOAT, "scalar") for s in graph.scalars),
    ]
    draws = [n for n in graph.nodes if isinstance(n, Primitive)]
    given += [Buffer(n.out, n.shape, n.dtype, "random", n.key, n.out) for n in draws]
    if draws:
        given.append(Buffer(CLOCK, (sp.Integer(2),), DType.INT, "clock"))
    known = {buffer.name for buffer in given}
    made: dict[str, Buffer] = {}
    for kernel in kernels:
        local = {buffer.name for buffer in kernel.locals}
        for leaf in leaves(kernel.body):
            reads, target = accesses(leaf)
            for name in (target.tensor, *(read.tensor for read in reads)):
                if name not in known and name not in local and name not in made:
                    tensor = plan.tensors[name]
                    made[name] = Buffer(name, tensor.shape, tensor.dtype, "arena", stands_for=name)
    for _, name in outputs:
        if name not in known and name not in made:
            raise ValueError(f"output {name} is computed by no kernel")
    return (*given, *made.values())
