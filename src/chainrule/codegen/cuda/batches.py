"""Equal kernels that do not depend on each other, launched at the same time.

    sum b0; update W0; update b0; sum b1; update W1; update b1     ->     sum × 2; update × 4

To launch a kernel takes a microsecond, and a small one leaves most of the machine idle. So launches of the same kernel
become one where none must come before another: updates of parameters always, others where one does not fill the
machine. Gradients then wait for each other, as in other frameworks: no more may be kept than the parameters take beside
what is kept without batches, and under a budget no more than that. A batch that would take more is halved until it does
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import sympy as sp

from chainrule.codegen.cuda.device import FILLED, HELD
from chainrule.codegen.cuda.objects import Job
from chainrule.codegen.cuda.order import Group, Touched, ancestors, independent, most_kept, needed, ordered, together
from chainrule.codegen.cuda.sets import of_each
from chainrule.codegen.kernel import Element, KernelSource, element_of
from chainrule.codegen.layout import blocks
from chainrule.codegen.names import Names
from chainrule.codegen.objects import ITEM
from chainrule.ir.expression import dim_symbol
from chainrule.ir.machine import GPU
from chainrule.ir.program import Kernel, Program, Statement, leaves

LITTLE = 1 << 24
"""Bytes that nobody misses, whatever a step keeps without them."""


@dataclass(frozen=True)
class Batch:
    """Kernels that one launch does, with the source of each, which are equal; `job` is what is compiled."""

    kernels: tuple[Kernel, ...]
    sources: tuple[KernelSource, ...]
    job: Job

    @property
    def name(self) -> str:
        names = [kernel.name for kernel in self.kernels]
        return names[0] if len(names) == 1 else f"{common(names)} × {len(names)}"


def common(names: Sequence[str]) -> str:
    """What the names of kernels begin with, in whole words; else what they end with; else the first."""
    words = [name.split(".") for name in names]
    head = _equal(words)
    tail = _equal([each[::-1] for each in words])[::-1]
    return ".".join(head or tail or words[0])


def _equal(words: Sequence[Sequence[str]]) -> list[str]:
    """The first words, as far as they are those of all."""
    return [ws[0] for ws in takewhile(lambda ws: len(set(ws)) == 1, zip(*words, strict=False))]


def batches(
    program: Program,
    sources: Sequence[KernelSource],
    element: Element,
    sizes: Mapping[str, int] | None = None,
    memory: int | None = None,
) -> list[Batch]:
    """The launches of a program whose kernels have these sources, in an order that may run.

    sizes: of free dims, what to arrange for. memory: bytes that may be kept between launches at these sizes; the old
    order keeps to it.
    """
    values = known_sizes(program, sizes or {})
    launches = launches_of(program, sources, element, values)
    allowed = max(memory or 0, launches.most(launches.alone))
    if memory is None:
        params = (buffer.shape for buffer in program.buffers if buffer.space == "param")
        more = ITEM[element] * sum(_value(sp.Mul(*shape), values) for shape in params)
        allowed = max(LITTLE, allowed + more)
    names, made = Names({source.job.entry for source in sources}), dict[int, Job]()
    found = []
    for group in arranged(launches, allowed):
        kernels, job = tuple(program.kernels[k] for k in group), sources[group[0]].job
        if len(group) > 1 and id(job) not in made:
            made[id(job)] = of_each(job, names.fresh(f"{common([kernel.name for kernel in kernels])}_of_each"))
        found.append(Batch(kernels, tuple(sources[k] for k in group), made[id(job)] if len(group) > 1 else job))
    return found


def known_sizes(program: Program, sizes: Mapping[str, int]) -> dict[sp.Basic, sp.Expr]:
    """A size for every dim: what is asked for, else a typical one."""
    found: dict[sp.Basic, sp.Expr] = {}
    for dim in program.dims:
        if dim.definition is None:
            least, most = dim.minimum, GPU.typical if dim.maximum is None else dim.maximum
            value = sp.Integer(sizes.get(dim.name, max(least, min(GPU.typical, most))))
        else:
            value = dim.definition.xreplace(found)
        found[dim_symbol(dim.name)] = value
    return found


def _value(e: sp.Expr, sizes: Mapping[sp.Basic, sp.Expr]) -> int:
    return int(e.xreplace(sizes))


@dataclass(frozen=True)
class Launches:
    """What is to be arranged: of each launch what it touches, and which others may be one with it.

    alike: by launch what all of a batch have in common; None: nothing gains by being one with it. bytes: of what lies
    in the arena. outputs: what lives to the end.
    """

    touched: tuple[Touched, ...]
    alike: tuple[object, ...]
    updates: frozenset[int]
    bytes: Mapping[str, int]
    outputs: frozenset[str]

    @property
    def alone(self) -> list[Group]:
        """Each by itself, in their order."""
        return [(k,) for k in range(len(self.touched))]

    def most(self, order: Sequence[Group]) -> int:
        """The bytes that are kept between launches, at most."""
        return most_kept(order, self.touched, self.bytes, self.outputs)

    def classes(self) -> Iterator[Group]:
        """Launches that had better be one: updates first, then where most are."""
        found: dict[object, list[int]] = {}
        for k, kind in enumerate(self.alike):
            if kind is not None:
                found.setdefault(kind, []).append(k)
        yield from sorted(map(tuple, found.values()), key=lambda ks: (ks[0] not in self.updates, -len(ks), ks))


def launches_of(
    program: Program, sources: Sequence[KernelSource], element: Element, sizes: Mapping[sp.Basic, sp.Expr]
) -> Launches:
    """The launches of kernels with these sources. Those that fill the machine gain nothing, but maps that update
    parameters, which nothing waits for; those that keep something in memory of their blocks' own cannot share it."""
    touched: list[Touched] = [
        (frozenset(s.buffers[k] for k in s.reads), frozenset(s.buffers[k] for k in s.writes)) for s in sources
    ]
    stores = {b.name for b in program.buffers if b.space in ("param", "state")}
    maps = (k for k, kernel in enumerate(program.kernels) if is_map(kernel))
    updates = frozenset(k for k in maps if touched[k][1] & stores)
    alike: list[object] = []
    for k, (kernel, source) in enumerate(zip(program.kernels, sources, strict=True)):
        gains = k in updates or not fills(kernel, source, sizes)
        alike.append((id(source.job), k in updates) if gains and source.region == 0 else None)
    arena = (b for b in program.buffers if b.space == "arena")
    return Launches(
        touched=tuple(touched),
        alike=tuple(alike),
        updates=updates,
        bytes={b.name: ITEM[element_of(b.dtype, element)] * _value(sp.Mul(*b.shape), sizes) for b in arena},
        outputs=frozenset(buffer for _, buffer in program.outputs),
    )


def is_map(kernel: Kernel) -> bool:
    return all(isinstance(leaf, Statement) and leaf.reduce is None for leaf in leaves(kernel.body))


def fills(kernel: Kernel, source: KernelSource, sizes: Mapping[sp.Basic, sp.Expr]) -> bool:
    """Whether a launch fills the machine by itself; a product does with a tile for each multiprocessor."""
    extent = _value(blocks(kernel) if source.grid is None else source.grid, sizes)
    return extent >= FILLED if source.multiply is not None else extent * source.threads >= HELD


def arranged(launches: Launches, allowed: int) -> list[Group]:
    """An order that may run, in which launches that are alike are one where that keeps no more than `allowed` bytes."""
    before = needed(launches.touched)
    earlier, groups, order = ancestors(before), list[Group](), launches.alone

    def put(group: Group) -> None:
        """All of `group` as one, else each half of it."""
        nonlocal earlier, order
        if len(group) < 2:
            return
        found = ordered(before, [*groups, group])
        if launches.most(found) > allowed:
            half = len(group) // 2
            put(group[:half])
            put(group[half:])
        else:
            groups.append(group)
            earlier, order = together(group, earlier), found

    for left in launches.classes():
        while left:
            group = independent(left, earlier)
            put(group)
            left = tuple(k for k in left if k not in group)
    return order
