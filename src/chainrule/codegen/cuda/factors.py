"""What stands still in a whole step, ``rate / (1 - b1^step)`` or ``1 / batch``, computed once, by one thread.

On a CPU a kernel computes it on its top, in float64 (`codegen.hoist`). On a GPU every thread would, and float64 is slow
there: so a first kernel stores such numbers, rounded once, and the others read them. Where a step is one kernel of one
block, its first thread stores them in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.codegen.hoist import taken_out
from chainrule.ir.expression import dim_symbol, expression_text, is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Program, Space, Statement, alternatives


@dataclass
class Factors:
    """The numbers that were found: each a statement, by its expression over tensors and dims.

    alone: one kernel has them in its scratch, as arrays, for one thread computes what all read.
    """

    dims: frozenset[sp.Symbol]
    scalars: frozenset[str]
    alone: bool
    found: dict[sp.Basic, Statement] = field(default_factory=dict)

    def of(self, s: Statement) -> Statement:
        """`s` with what stands still read instead of computed."""
        tensors = {
            slot(k): sp.Symbol(f"{read.tensor} ", real=True)
            for k, read in enumerate(s.reads)
            if read.tensor in self.scalars and not read.indices
        }
        reads = list(s.reads)

        def is_still(e: sp.Basic) -> bool:
            return all(symbol in tensors or symbol in self.dims for symbol in e.free_symbols)

        def name(e: sp.Expr) -> sp.Basic:
            read = self.number(e.xreplace(tensors), e, s)
            if read not in reads:
                reads.append(read)
            return slot(reads.index(read))

        value = taken_out(s.value, is_still, name)
        return replace(s, value=value, reads=tuple(reads)) if value != s.value else s

    def number(self, key: sp.Basic, e: sp.Expr, s: Statement) -> Access:
        """Where the number `e` of `s` is kept."""
        if key not in self.found:
            used = sorted((x for x in e.free_symbols if is_slot(x)), key=slot_number)
            names = {old: slot(k) for k, old in enumerate(used)}
            reads = tuple(s.reads[slot_number(x)] for x in used)
            name = f"_own_factor{len(self.found)}" if self.alone else f"_factor{len(self.found)}"
            target = Access(name, (sp.S.Zero,) if self.alone else ())
            text = f"factor = {expression_text(key, {x: x.name.strip() for x in key.free_symbols})}"
            self.found[key] = Statement(target, e.xreplace(names), reads, origin=s.origin, text=text)
        return self.found[key].target

    def inside(self, node: Leaf) -> Leaf:
        match node:
            case Loop():
                return replace(node, body=tuple(map(self.inside, node.body)))
            case Statement():
                return self.of(node)
            case Product():
                return node


def with_factors(program: Program) -> Program:
    """`program` with a first kernel for what stands still, where there is anything."""
    scalars = frozenset(b.name for b in program.buffers if b.space == "scalar")
    dims = frozenset(dim_symbol(dim.name) for dim in program.dims)
    kernels: list[Kernel] = []
    buffers: list[Buffer] = []
    for group in alternatives(program.kernels):
        alone = len(group) == 1 and group[0].block is None
        factors = Factors(dims, scalars, alone)
        changed = [replace(k, body=tuple(map(factors.inside, k.body))) for k in group]
        first = tuple(factors.found.values())
        shape = (sp.S.One,) if alone else ()
        space: Space = "scratch" if alone else "arena"
        own = [Buffer(s.target.tensor, shape, DType.FLOAT, space, stands_for="factor") for s in first]
        if alone:
            kernels.append(replace(changed[0], body=(*first, *changed[0].body), locals=(*changed[0].locals, *own)))
            continue
        if first:
            kernels.append(Kernel("factors", first, when=group[0].when, unless=group[0].unless))
        kernels += changed
        buffers += own
    return replace(program, kernels=tuple(kernels), buffers=(*program.buffers, *buffers))
