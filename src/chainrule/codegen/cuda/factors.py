"""What stands still in a whole step, ``rate / (1 - b1^step)`` or ``1 / batch``, computed once, by one thread.

On a CPU a kernel computes it on its top, in float64 (`codegen.hoist`). On a GPU every thread would, and float64 is slow
there: so a first kernel stores such numbers, rounded once, and the others read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import sympy as sp

from chainrule.codegen.hoist import taken_out
from chainrule.ir.expression import dim_symbol, expression_text, is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Product, Program, Statement


@dataclass
class Factors:
    """The numbers that were found: each a statement, by its expression over tensors and dims."""

    dims: frozenset[sp.Symbol]
    scalars: frozenset[str]
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
            target = Access(f"_factor{len(self.found)}", ())
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
    factors = Factors(frozenset(dim_symbol(dim.name) for dim in program.dims), scalars)
    kernels = tuple(replace(k, body=tuple(map(factors.inside, k.body))) for k in program.kernels)
    if not factors.found:
        return program
    first = Kernel("factors", tuple(factors.found.values()))
    kept = (Buffer(s.target.tensor, (), DType.FLOAT, "arena", stands_for="factor") for s in factors.found.values())
    return replace(program, kernels=(first, *kernels), buffers=(*program.buffers, *kept))
