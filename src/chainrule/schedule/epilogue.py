"""Which maps end a product's kernel: where a product has a kernel of its own, its sums are in registers.

    z[n, o] = sum[i] x[n, i] * W[i, o]                 for n, o:
    y[n, o] = z[n, o] + b[o]                   ->          z = sum[i] x[n, i] * W[i, o]
    h[n, o] = if y[n, o] <= 0 then 0 else y[n, o]          y = z + b[o];  h[n, o] = if y <= 0 then 0 else y

A map may if it has the product's places and needs what the kernel computes at its own place alone. It should where a
library does it with the product, where no library can do the product, or where the product is so small that a launch
and the traffic of its result count for more than the library's rate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy as sp

from chainrule.ir.formula import Access, DType
from chainrule.ir.graph import Tensor
from chainrule.ir.matrices import multiplied
from chainrule.ir.program import Product, Range, Statement
from chainrule.schedule.cost import bytes_of
from chainrule.schedule.drafts import Draft
from chainrule.schedule.links import Links
from chainrule.schedule.product import Contraction
from chainrule.schedule.task import Task
from chainrule.schedule.tree import Group, joining

if TYPE_CHECKING:
    from chainrule.schedule.kernels import Planner

CHAIN = 4
"""Maps ahead that are looked at for what a library does at once: an activation may be several."""

Names = Mapping[sp.Symbol, sp.Symbol]
"""Which axis of the product each axis of a map is."""


@dataclass(frozen=True)
class ProductKernel:
    """A product's kernel to be: the product, then maps."""

    tasks: tuple[int, ...]
    links: Links
    contraction: Contraction
    tensors: Mapping[str, Tensor]

    @property
    def product(self) -> Task:
        return self.links.tasks[self.tasks[0]]

    def names(self, more: Sequence[int]) -> dict[int, Names] | None:
        """The axes of its tasks and of `more`; None where one of them is no map over the product's places."""
        found: dict[int, Names] = {self.tasks[0]: {a.symbol: a.symbol for a in self.product.axes}}
        for t in (*self.tasks[1:], *more):
            names = self._aligned(t, found)
            if names is None:
                return None
            found[t] = names
        return found

    def _aligned(self, t: int, found: Mapping[int, Names]) -> Names | None:
        task, before = self.links.tasks[t], self.links.before[t]
        made = {self.links.tasks[p].out for p in found}
        if task.over or task.scattered or task.circles or made.isdisjoint(read.tensor for read in task.reads):
            return None  # what only waits for the product, to be computed again, needs nothing of it
        names: dict[sp.Symbol, sp.Symbol] = {}
        for p in (p for p in found if p in before):
            if {a for a, _ in before[p]} != found[p].keys():
                return None  # somewhere it needs another place
            for a, own in before[p]:
                if names.setdefault(own, found[p][a]) != found[p][a]:
                    return None
        extents = {axis.symbol: axis.extent for axis in self.product.axes}
        same = {axis.symbol for axis in task.axes} == names.keys() and set(names.values()) == extents.keys()
        return names if same and all(task.extents[a] == extents[p] for a, p in names.items()) else None

    def has_library(self, more: Sequence[int] = ()) -> bool:
        """Whether a library can do the product with its maps and `more`. (A draw among what they read is found later,
        and costs the library.)"""
        found = self.names(more)
        if found is None:
            return False
        tasks, c = self.links.tasks, self.contraction
        hidden = {tasks[t].out for t in found if self._is_hidden(t, found)}
        touched = {name for t in found for name in (tasks[t].out, *(read.tensor for read in tasks[t].reads))}
        shapes = {
            name: self.tensors[name].shape for name in touched - hidden if self.tensors[name].dtype is DType.FLOAT
        }
        rows, columns, inner, batch = (
            tuple(Range(i.symbol, sp.S.Zero, i.extent) for i in group)
            for group in (c.rows, c.columns, c.inner, c.batch)
        )
        product = Product(
            Access(self.product.out, self.product.target), c.left, c.right, rows, columns, inner, batch, c.scale
        )
        then = [_statement(tasks[t], names) for t, names in list(found.items())[1:]]
        return multiplied(product, (), then, shapes) is not None

    def _is_hidden(self, t: int, inside: Collection[int]) -> bool:
        """Whether nobody but `inside` sees what `t` makes."""
        task = self.links.tasks[t]
        readers = self.links.readers.get(task.out, ())
        return bool(readers) and task.store is None and all(r in inside for r in readers)

    def will_have_library(self, t: int) -> bool:
        """Whether a library can do it with `t`, or with what maps make of that and nobody else reads."""
        more = [t]
        while not self.has_library(more):
            following = {r for k in (*self.tasks, *more) for r in self.links.readers.get(self.links.tasks[k].out, ())}
            ahead = sorted(following.difference(self.tasks, more))
            if len(more) == CHAIN or not ahead:
                return False
            more.append(ahead[0])
        return True


def _statement(task: Task, names: Names) -> Statement:
    target = Access(task.out, task.target).renamed(names)
    where = tuple(c.xreplace(dict(names)) for c in task.where)
    return Statement(target, task.body.xreplace(dict(names)), tuple(r.renamed(names) for r in task.reads), where)


def end_product(t: int, at: int, planner: Planner) -> bool:
    """Into the kernel of draft `at` if that is a product, which `t` is a map over the places of, and that pays."""
    draft = planner.drafts[at] if planner.drafts else None
    if draft is None or draft.product is None:
        return False
    kernel = ProductKernel(tuple(draft.tasks), planner.links, planner.contractions[draft.product], planner.tensors)
    found = kernel.names((t,))
    if found is None or not pays(t, found[t], kernel, planner):
        return False
    divided = draft.opened[draft.product]
    planner.add(t, at, next(own for own, p in found[t].items() if p == divided))
    return True


def pays(t: int, names: Names, kernel: ProductKernel, planner: Planner) -> bool:
    """Whether map `t`, whose axes are called so, is better done where the product is."""
    ours = not kernel.has_library()
    if not ours and kernel.will_have_library(t):
        return True
    rates, product, sizes, task = planner.machine.rates, kernel.product, planner.sizes, planner.links.tasks[t]
    assert rates is not None
    item, points = bytes_of(product.formula.dtype), sizes.points(product.formula.shape)
    if has_company(t, planner):  # it would read the map's result from memory, and what else it holds want a launch more
        saved = item * points / rates.bytes - rates.launch_ns
    else:  # flat updates of all parameters share their launches
        saved = 2 * item * points / rates.bytes + (0.0 if t in planner.updates else rates.launch_ns)
    flops = 2 * points * sizes.points(i.extent for i in product.over)
    lost = 0.0 if ours else flops / rates.flops - flops / rates.library_flops
    strided = _strided(task, names, kernel.contraction.columns[-1].symbol)
    return saved > lost + strided * (rates.sector - item) * points / rates.bytes


def has_company(t: int, planner: Planner) -> bool:
    """Whether a reduction of what `t` makes would share the kernel of `t`, were that none of a product."""
    links, options = planner.links, planner.options(t)
    if not options:
        return False
    index = max(options, key=lambda i: (planner.gain(t, i), -options.index(i)))
    draft = Draft(index, {t: index.symbol}, [t])
    group = Group(index, False, draft.opened)
    for r in links.readers.get(links.tasks[t].out, ()):
        task = links.tasks[r]
        if not task.over or r in planner.contractions:
            continue
        over = joining(r, task.over, group, planner.ground)
        if joining(r, task.axes, group, planner.ground) or (over and planner.partial_pays(r, over, draft)):
            return True
    return False


def _strided(task: Task, names: Names, last: sp.Symbol) -> int:
    """How many accesses of a map neighbouring threads, which have neighbouring columns, make to places apart."""
    own = next(a for a, p in names.items() if p == last)
    accesses = [indices for indices in (*(read.indices for read in task.reads), task.target) if indices]
    return sum(own not in at[-1].free_symbols and any(own in i.free_symbols for i in at) for at in accesses)
