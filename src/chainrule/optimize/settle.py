"""Fixed points as recurrences along their steps: what runs is a loop, and no stage after this knows of circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.ir.expression import Select, index_symbol, slot
from chainrule.ir.formula import Access, Formula, Index, Origin, Reduce
from chainrule.ir.graph import Graph, Node
from chainrule.ir.primitive import Primitive
from chainrule.ir.rename import fresh_name

STEP = index_symbol("_s")


def settle(graph: Graph) -> Graph:
    """Write each fixed point as the recurrence that finds it; steps after the one that is near enough change nothing.

    fixed_point z[n] = z.next from 0 within 1e-5 steps 50
    z.next[n] = f(z[n])
        ->
    z_before[s < 50, n] = z_at[s - 1, n; 0]
    z.next_step[s < 50, n] = f(z_before[s, n])
    z_done[s < 50] = 1 if it was before, or max|z.next_step - z_before| <= 1e-5 * (1 + max|z.next_step|), else 0
    z_at[s < 50, n] = if z_done[s - 1; 0] > 0 then z_before[s, n] else z.next_step[s, n]
    z[n] = z_at[49, n]
    z.next[n] = f(z[n])
    """
    if not any(_is_fixed(node) for node in graph.nodes):
        return graph
    taken = set(graph.tensors)
    nodes: list[Node] = []
    for group in graph.components:
        z = next((node for node in group if _is_fixed(node)), None)
        if not isinstance(z, Primitive):
            nodes += group
            continue
        formulas = [node for node in group if isinstance(node, Formula)]
        nodes += _Iteration(z, formulas, taken).nodes()
        nodes += _acyclic(formulas, z.out)
    return replace(graph, nodes=tuple(nodes))


def _is_fixed(node: Node) -> bool:
    return isinstance(node, Primitive) and node.kind == "fixed_point"


def _acyclic(formulas: Sequence[Formula], z: str) -> list[Formula]:
    """The formulas of a circle, each after those that it reads, z being known."""
    left = {f.out: f for f in formulas}
    order: list[Formula] = []
    while left:
        ready = [f for f in left.values() if not any(t in left for t in f.tensors)]
        assert ready, f"{', '.join(left)} read each other beside {z}"
        order += ready
        for f in ready:
            del left[f.out]
    return order


@dataclass
class _Iteration:
    """The recurrence of one fixed point, whose circle `formulas` are."""

    z: Primitive
    formulas: Sequence[Formula]
    taken: set[str]
    names: dict[str, str] = field(default_factory=dict)  # of the circle's tensors, at each step

    def nodes(self) -> list[Formula]:
        z, steps = self.z, sp.Integer(self.z.steps)
        before, at, done = (self.name(f"{z.out}_{part}") for part in ("before", "at", "done"))
        self.names = {z.out: before} | {f.out: self.name(f"{f.out}_step") for f in self.formulas}
        step = Index(STEP, steps, "s")
        axes = tuple(Index(index_symbol(f"_i{k:02}"), n) for k, n in enumerate(z.shape))
        places = tuple(axis.symbol for axis in axes)
        known = Access(done, (STEP - 1,), sp.S.Zero)
        here, new = Access(before, (STEP, *places)), Access(self.names[z.reads[0]], (STEP, *places))
        made = [
            self.formula(before, (step, *axes), (Access(at, (STEP - 1, *places), _exact(z.start)),), slot(0)),
            *(self.lifted(f, step) for f in _acyclic(self.formulas, z.out)),
        ]
        change, size = self.name(f"{z.out}_change"), self.name(f"{z.out}_size")
        made += [
            self.largest(change, step, axes, (new, here), slot(0) - slot(1)),
            self.largest(size, step, axes, (new,), slot(0)),
        ]
        near = sp.Le(slot(1), _exact(z.within) * (1 + slot(2)))
        ended = Select(slot(0) > 0, sp.S.One, Select(near, sp.S.One, sp.S.Zero))
        made += [
            self.formula(done, (step,), (known, Access(change, (STEP,)), Access(size, (STEP,))), ended),
            self.formula(at, (step, *axes), (known, here, new), Select(slot(0) > 0, slot(1), slot(2))),
        ]
        last = Access(at, (steps - 1, *places))
        origin = replace(z.origin, rule=z.origin.rule or "settle", formula=z.origin.formula or z.out)
        return [*made, Formula(z.out, axes, (), slot(0), (last,), stop=True, origin=origin)]

    def name(self, wanted: str) -> str:
        name = fresh_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def formula(self, out: str, axes: tuple[Index, ...], reads: tuple[Access, ...], body: sp.Expr) -> Formula:
        return Formula(out, axes, (), body, reads, stop=True, origin=self.origin)

    def largest(
        self, out: str, step: Index, over: tuple[Index, ...], reads: tuple[Access, ...], value: sp.Expr
    ) -> Formula:
        """``out[s] = max |value|``; NaN goes through."""
        body = Select(value > 0, value, -value)
        reduce = Reduce.MAX if over else Reduce.SUM
        return Formula(out, (step,), over, body, reads, reduce=reduce, stop=True, origin=self.origin)

    def lifted(self, f: Formula, step: Index) -> Formula:
        """`f` at each step."""
        reads = tuple(
            replace(r, tensor=self.names[r.tensor], indices=(STEP, *r.indices)) if r.tensor in self.names else r
            for r in f.reads
        )
        origin = replace(f.origin, rule=f.origin.rule or "settle", formula=f.origin.formula or f.out)
        return replace(f, out=self.names[f.out], axes=(step, *f.axes), reads=reads, stop=True, origin=origin)

    @property
    def origin(self) -> Origin:
        z = self.z
        return replace(z.origin, rule=z.origin.rule or "settle", formula=z.origin.formula or z.out)


def _exact(value: float) -> sp.Expr:
    """The decimal that a float prints as."""
    return sp.Rational(repr(value))
