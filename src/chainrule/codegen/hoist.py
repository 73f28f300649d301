"""What stands still in a whole kernel, ``1 - b1^step`` or ``sqrt(2/pi)``, computed once on its top, in float64.

LLVM moves arithmetic out of loops by itself, but no call of libm's pow, which may set errno; and a number that all
elements share is worth its exact value, rounded once: 1 - 0.999^step has lost four digits in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy as sp
from sympy.logic.boolalg import Boolean

from chainrule.codegen.expressions import Scope, Symbol, kind_of, real
from chainrule.codegen.kernel import STEP, Writer
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Statement


def hoisted(statement: Statement, w: Writer) -> tuple[sp.Basic, dict[sp.Symbol, Symbol]]:
    """The statement's value with names for what stands still in the kernel, and what they stand for."""
    still: dict[sp.Symbol, Symbol] = {}
    tensors: dict[sp.Basic, sp.Basic] = {}
    for k, read in enumerate(statement.reads):
        if _stands_still(read, w):
            s = slot(k)
            still[s], tensors[s] = _in_float64(read, w), sp.Symbol(f"{read.tensor} ", real=True)
    scope = Scope(w.with_dims(still), "float64", None, w.used)
    found: dict[sp.Symbol, Symbol] = {}

    def is_still(e: sp.Basic) -> bool:
        return all(s in still or s in w.dims for s in e.free_symbols)

    def name(e: sp.Expr) -> sp.Basic:
        key = e.xreplace(tensors)
        if key not in w.hoisted:
            called = w.names.fresh("factor", never_had=True)
            text = real(e, scope).text
            w.hoisted[key] = called, text if w.element == "float64" else f"{w.call(w.element)}({text})"
        symbol = sp.Symbol(f"_f{list(w.hoisted).index(key):04}", real=True)
        found[symbol] = Symbol(w.hoisted[key][0], "real")
        return symbol

    return taken_out(statement.value, is_still, lambda e: name(e) if kind_of(e, scope) == "real" else e), found


def taken_out(value: sp.Basic, is_still: Callable[[sp.Basic], bool], name: Callable[[sp.Expr], sp.Basic]) -> sp.Basic:
    """`value` with a name for each part that stands still and costs something, as large a part as can be."""

    def visit(e: sp.Basic) -> sp.Basic:
        if not e.args or (isinstance(e, Boolean) and is_still(e)):
            return e
        if is_still(e):
            return name(e) if _costs(e) else e
        if isinstance(e, sp.Add | sp.Mul):
            fixed = [a for a in e.args if is_still(a)]
            if any(map(_costs, fixed)) and (named := name(together := e.func(*fixed))) != together:
                return e.func(named, *(visit(a) for a in e.args if a not in fixed))
        args = [visit(a) for a in e.args]
        return e if all(a is b for a, b in zip(args, e.args, strict=True)) else e.func(*args)

    return visit(value)


def _costs(e: sp.Basic) -> bool:
    return bool(e.has(sp.Pow, sp.Function))


def _stands_still(read: Access, w: Writer) -> bool:
    """A number that no loop moves and this kernel does not write."""
    buffer = w.buffer(read.tensor)
    kept = buffer.space not in ("scratch", "random") and read.tensor not in w.stores
    return kept and not read.indices and buffer.dtype is DType.FLOAT


def _in_float64(read: Access, w: Writer) -> Symbol:
    """The number as a float64."""
    if w.buffer(read.tensor).space == "scalar" and read.tensor == STEP:
        return Symbol(f"{w.call('float64')}({w.step()})", "real")
    w.read.add(read.tensor)
    text = w.place(read, {})
    return Symbol(text if w.element == "float64" else f"{w.call('float64')}({text})", "real")
