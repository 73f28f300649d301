"""The last step of planning: drafts over the list of tasks that kernels are made of."""

from __future__ import annotations

from chainrule.schedule.drafts import Draft, Plan
from chainrule.schedule.kernels import Planner
from chainrule.schedule.links import links_of, reordered
from chainrule.schedule.product import Contraction
from chainrule.schedule.task import Task


def finished(planner: Planner) -> Plan:
    """The drafts over the final list of tasks, in which a partial result and its sum stand for their task."""
    tasks: list[Task] = []
    drafts = [Draft(draft.index, blocks=draft.blocks, rows=draft.rows) for draft in planner.drafts]
    summed: dict[int, list[int]] = {}
    for t, at in planner.sums.items():
        summed.setdefault(at, []).append(t)
    contractions: dict[int, Contraction] = {}
    for at, (old, new) in enumerate(zip(planner.drafts, drafts, strict=True)):
        for t in sorted((*old.tasks, *summed.get(at, ()))):
            k = len(tasks)
            new.tasks.append(k)
            if t in planner.parts and at == planner.sums[t]:
                tasks.append(planner.parts[t][1])
                if new.index is not None:
                    new.opened[k] = new.index.symbol
                continue
            tasks.append(planner.parts[t][0] if t in planner.parts else planner.links.tasks[t])
            if t in planner.contractions:
                contractions[k] = planner.contractions[t]
                new.product = k if t == old.product else new.product
            if t in old.opened:
                new.opened[k] = old.opened[t]
    links = (
        links_of(tasks)
        if planner.parts
        else reordered(planner.links, [t for draft in planner.drafts for t in sorted(draft.tasks)])
    )
    return Plan(links, contractions, drafts, planner.tensors)
