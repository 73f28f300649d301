"""A statement as source: its reads, its conditions, the steps to its value, and how it is stored.

Reads beyond the bounds: one with `outside` asks whether it is inside, unless the loops show it. One that only some
branch of a choice needs may be evaluated on either, so it is guarded too, and 0 where it would be outside.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

from chainrule.codegen.expressions import LARGEST, Symbol, condition, integer, kind_of, real
from chainrule.codegen.hoist import hoisted
from chainrule.codegen.kernel import STEP, Writer
from chainrule.codegen.names import plain
from chainrule.codegen.plan import always_read, plan
from chainrule.errors import ChainruleError
from chainrule.ir.expression import Select, is_slot, slot
from chainrule.ir.formula import Access, DType, Origin, Reduce
from chainrule.ir.program import Buffer, Statement

STEPS = ("u", "v", "w", "p", "q", "r", "s", "t")  # the names of steps, in this order


def write_statement(statement: Statement, w: Writer) -> None:
    """``target = value`` or ``target = reduce(target, value)``, under its conditions."""
    comment = comment_of(statement.origin)
    value, slots = hoisted(statement, w)
    always = always_read(value, statement.reads, (*statement.where, *statement.target.indices))
    for k, read in enumerate(statement.reads):
        stands = _read(read, k in always, slots, w)
        slots |= {slot(k, dtype.sort): stands for dtype in (DType.FLOAT, DType.INT)}
    heads = _conditions(statement, slots, w)
    for head in heads:
        w.line(f"if {head}:")
        w.depth += 1
    steps = plan(value)
    for k, (symbol, e) in enumerate(steps.named):
        name = w.names.fresh(STEPS[k % len(STEPS)])
        scope = w.scope(slots)
        moves = frozenset(s for s in w.open if any(s == f or s in scope.known(f).moves for f in e.free_symbols))
        kind = kind_of(e, scope)
        printed = {"real": real, "integer": integer, "condition": condition}[kind](e, scope)
        slots[symbol] = Symbol(name, kind, moves)
        w.line(f"{name} = {printed.text}")
    _store(statement, steps.value, slots, comment, w)
    for symbol, _ in steps.named:
        if slots[symbol].kind == "real":  # Numba wants a name to keep its type
            w.names.release(slots[symbol].text)
    w.depth -= len(heads)
    w.written.add(statement.target.tensor)
    if statement.reduce is not None:
        w.read.add(statement.target.tensor)


def comment_of(origin: Origin) -> str:
    """Where a statement comes from: the model's line, or the rule that derived it and from what."""
    if origin.rule:
        return plain(f"{origin.rule} of {origin.formula}" if origin.formula else origin.rule, 80)
    return plain(str(origin.span), 80) if origin.span else ""


def _conditions(statement: Statement, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> list[str]:
    """The conditions as nested ones: those that read nothing come first, since they may prove a read's bounds."""
    parts: list[sp.Basic] = []
    for c in statement.where:
        parts += c.args if isinstance(c, sp.And) else (c,)
    free = [c for c in parts if not any(map(is_slot, c.free_symbols))]
    reading = [c for c in parts if c not in free]
    return [w.holds(some, slots) for some in (free, reading) if some]


def _read(access: Access, always: bool, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> Symbol:
    """What a read stands for in the source."""
    buffer = w.buffer(access.tensor)
    scope = w.scope(slots)
    free = {f for i in access.indices for f in i.free_symbols}
    moves = frozenset(s for s in w.open if any(s == f or s in scope.known(f).moves for f in free))
    if buffer.space == "random":
        return Symbol(_draw(buffer, access, slots, w), "real", moves)
    if buffer.space == "scalar" and buffer.name == STEP:
        return Symbol(f"{w.call(w.element)}({w.step()})", "real")
    w.read.add(access.tensor)
    text = w.place(access, slots)
    kind = {DType.FLOAT: "real", DType.INT: "integer", DType.BOOL: "condition"}[buffer.dtype]
    inside = bounds(access, buffer, slots, w) if access.outside is not None or not always else ""
    if inside:
        outside = sp.S.Zero if access.outside is None else access.outside
        other = as_stored(outside, buffer.dtype, slots, w)
        text = f"({text} if {inside} else {other})"
    return Symbol(text, kind, moves)  # type: ignore[arg-type]


def bounds(access: Access, buffer: Buffer, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> str:
    """The condition that the access is inside its buffer, as far as the loops do not show it."""
    if len(access.indices) < len(buffer.shape):
        return ""  # a flat position, in a loop over all elements
    conditions: list[sp.Basic] = []
    for index, extent in zip(access.indices, buffer.shape, strict=True):
        above, below = w.is_inside(index, extent, buffer)
        if not above:
            conditions.append(sp.Ge(index, 0, evaluate=False))
        if not below:
            conditions.append(sp.Lt(index, w.over_dims(extent), evaluate=False))
    return w.holds(conditions, slots) if conditions else ""


def _draw(buffer: Buffer, access: Access, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> str:
    """A uniform draw, made where it is read: a function of seed, key, step and the element's flat position."""
    flat: sp.Expr = sp.S.Zero
    for index, extent in zip(access.indices, buffer.shape, strict=True):
        flat = flat * extent + index
    clock = w.clock()
    draw = f"{w.call('uniform')}({clock}[0], {w.key(buffer)}, {w.step()}, {w.integer(flat, slots)}, 0)"
    return f"{w.call(w.element)}({draw})"


def as_stored(e: sp.Basic, dtype: DType, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> str:
    """`e` as an element of a tensor of `dtype`."""
    scope = w.scope(slots)
    match dtype:
        case DType.FLOAT:
            return real(e, scope).text
        case DType.INT:
            if e in (sp.oo, sp.S.NegativeInfinity):  # where a max or min over integers starts
                return str(LARGEST if e is sp.oo else -LARGEST - 1)
            return integer(e, scope).text
        case DType.BOOL:
            return condition(_truth(e, slots, w), scope).text


def _truth(e: sp.Basic, slots: Mapping[sp.Symbol, Symbol], w: Writer) -> sp.Basic:
    """0 and 1 as a truth value."""
    if isinstance(e, Select) and e.args[1:] == (sp.S.One, sp.S.Zero):
        return e.args[0]
    if isinstance(e, Select) and e.args[1:] == (sp.S.Zero, sp.S.One):
        return sp.Not(e.args[0])
    if kind_of(e, w.scope(slots)) == "condition":
        return e
    if e.is_number:
        return sp.true if e > 0 else sp.false
    return sp.Ne(e, 0)


def _store(statement: Statement, value: sp.Basic, slots: Mapping[sp.Symbol, Symbol], comment: str, w: Writer) -> None:
    dtype = w.buffer(statement.target.tensor).dtype
    target = w.place(statement.target, slots)
    if statement.reduce is Reduce.ARGMAX:
        _argmax(statement, target, real(value, w.scope(slots)).text, slots, comment, w)
        return
    new = as_stored(value, dtype, slots, w)
    if statement.reduce is None:
        w.line(f"{target} = {new}", comment)
    elif dtype is DType.BOOL:
        joined = {Reduce.MIN: "&", Reduce.PROD: "&"}.get(statement.reduce, "|")
        w.line(f"{target} = {target} {joined} {new if new.isidentifier() else f'({new})'}", comment)
    elif dtype is DType.INT:
        w.line(_reduced_integer(statement.reduce, target, new, w), comment)
    else:
        w.line(_reduced(statement, target, new, w), comment)


def _reduced(statement: Statement, target: str, new: str, w: Writer) -> str:
    """A reduction of floats. In a local variable, terms may be added lane by lane: `accumulate` permits it."""
    match statement.reduce:
        case Reduce.SUM if w.is_variable(statement.target.tensor):
            return f"{target} = {w.call('accumulate')}({target}, {new})"
        case Reduce.SUM:
            return f"{target} += {new}"
        case Reduce.PROD:
            return f"{target} *= {new}"
        case Reduce.MAX:
            return f"{target} = {w.call('maximum')}({target}, {new})"
        case Reduce.MIN:
            return f"{target} = {w.call('minimum')}({target}, {new})"
        case _:
            raise ChainruleError(f"{statement.reduce} is no reduction to one float")


def _reduced_integer(reduce: Reduce, target: str, new: str, w: Writer) -> str:
    match reduce:
        case Reduce.SUM:
            return f"{target} += {new}"
        case Reduce.PROD:
            return f"{target} *= {new}"
        case Reduce.MAX:
            return f"{target} = {w.call('maximum')}({target}, {new})"
        case Reduce.MIN:
            return f"{target} = {w.call('minimum')}({target}, {new})"
        case Reduce.ARGMAX:
            raise ChainruleError("argmax stores a place, not the value compared")


def _argmax(
    statement: Statement, target: str, value: str, slots: Mapping[sp.Symbol, Symbol], comment: str, w: Writer
) -> None:
    """The first place of the greatest value, or of the first NaN.

    Places come in increasing order, and the target starts beyond the last: ``place < target`` tells the first of
    them, so that of nothing but -inf the first is found.
    """
    if statement.companion is None or statement.place is None:
        raise ChainruleError(f"the argmax into {statement.target.tensor} lacks its companion or its place")
    greatest = w.place(Access(statement.companion, statement.target.indices), slots)
    seen, here = w.names.fresh("value"), w.names.fresh("place")
    w.line(f"{seen} = {value}")
    w.line(f"{here} = {w.integer(statement.place, slots)}")
    newer = f"({seen} > {greatest}) | ({here} < {target}) | (({seen} != {seen}) & ({greatest} == {greatest}))"
    with w.inside(f"if {newer}:"):
        w.line(f"{greatest} = {seen}")
        w.line(f"{target} = {here}", comment)
    w.read.add(statement.companion)
    w.written.add(statement.companion)
