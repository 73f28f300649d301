"""Equal kernels, found before their loops are built: drafts whose tasks differ in the names of tensors alone.

A deep network has hundreds of them. To build one kernel's tree and leaves takes ten times as long as to rename them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from chainrule.ir.formula import Access
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Statement
from chainrule.schedule.drafts import Draft, Plan
from chainrule.schedule.task import Task, fresh


@dataclass(frozen=True)
class Form:
    """What two drafts must have in common to be one kernel. tensors: those of this one, in order of appearance.

    key: all of it, hashable, the tensors by number; None where a draft is like no other.
    """

    key: Any
    tasks: tuple[Task, ...]
    tensors: tuple[str, ...]


def form_of(draft: Draft, size: int, plan: Plan, needed: set[str], stored: Mapping[str, str], masks: Any) -> Form:
    """The form of `draft`: its tasks with what they open, hide and store; and which of their results others read."""
    tasks = tuple(plan.links.tasks[t] for t in draft.tasks)
    numbers: dict[str, int] = {}

    def number(tensor: str) -> tuple[int, int]:
        """Of the tensor, and of the buffer that holds it."""
        own = numbers.setdefault(tensor, len(numbers))
        return own, numbers.setdefault(stored.get(tensor, tensor), len(numbers))

    index = None if draft.index is None else (draft.index.extent, draft.index.name)
    words: list[Any] = [size, index]
    for t, task in zip(draft.tasks, tasks, strict=True):
        words += [task.law, draft.opened.get(t), masks.get(t), number(task.out), task.out in needed]
        words += [number(read.tensor) for read in task.reads]
        words.append(None if task.after is None else (number(task.after[0]), task.after[1]))
    key = None if any(task.circles for task in tasks) else tuple(words)  # a recurrence's loop has a number of its own
    return Form(key, tasks, tuple(numbers))


def renamed(kernel: Kernel, of: Form, to: Form, taken: set[str]) -> Kernel:
    """The kernel of the draft `to`, as that of `of`, which is equal, with its tensors called by their names.

    taken: names of buffers in use; those of the new kernel's locals are added.
    """
    names = dict(zip(of.tensors, to.tensors, strict=True))
    for buffer in kernel.locals:
        if buffer.name not in names:  # an accumulator, called after its task
            stem = max((name for name in of.tensors if buffer.name.startswith(name)), key=len)
            name = fresh(names[stem] + buffer.name[len(stem) :], taken)
            taken.add(name)
            names[buffer.name] = name
    tasks = {before.text: after for before, after in zip(of.tasks, to.tasks, strict=True)}
    outs = tuple(task.out for task in to.tasks)
    return replace(
        kernel,
        name=kernel_name(outs),
        body=tuple(_leaf(node, names, tasks) for node in kernel.body),
        locals=tuple(_local(buffer, names) for buffer in kernel.locals),
        formulas=outs,
    )


def kernel_name(outs: Sequence[str]) -> str:
    """What a kernel that computes `outs` is called."""
    return outs[0] if len(outs) == 1 else f"{outs[0]}_to_{outs[-1]}"


def _local(buffer: Buffer, names: Mapping[str, str]) -> Buffer:
    stands_for = names.get(buffer.stands_for, buffer.stands_for)
    return Buffer(names[buffer.name], buffer.shape, buffer.dtype, buffer.space, buffer.key, stands_for)


def _leaf(node: Leaf, names: Mapping[str, str], tasks: Mapping[str, Task]) -> Leaf:
    def access(a: Access) -> Access:
        return Access(names[a.tensor], a.indices, a.outside)

    match node:
        case Loop():
            until = None if node.until is None else access(node.until)
            return Loop(node.range, tuple(_leaf(inner, names, tasks) for inner in node.body), until)
        case Statement():
            task = tasks[node.text]
            companion = None if node.companion is None else names[node.companion]
            reads = tuple(map(access, node.reads))
            return Statement(
                access(node.target), node.value, reads, node.where, node.reduce, companion, node.place,
                task.formula.origin, task.text,
            )  # fmt: skip
        case Product():
            task = tasks[node.text]
            return Product(
                access(node.target), access(node.left), access(node.right), node.rows, node.columns, node.inner,
                node.batch, node.scale, node.accumulate, node.where, task.formula.origin, task.text,
            )  # fmt: skip
        case _:
            assert_never(node)
