"""Where a kernel's statements compose a function of one real, it is computed by one function of its own (`direct`).

    s = log1p(exp(x[n]))                        y[n] = y_of_x(x[n])
    y[n] = x[n] * tanh(s)                ->     g[n] = w[n] * g_of_x(x[n])
    g[n] = w[n] * (tanh(s) + ...)

Laws are looked for across the local variables of a loop's body, and factors that are no part of them are taken out:
that g is w times a function of x alone is tried on numbers. What stands in the body is weighed as a whole, since an
exp that several laws share is computed once: functions are left out again as long as that makes it cheaper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import sympy as sp

from chainrule.codegen.behaviour import X
from chainrule.codegen.direct import GAIN, Direct, direct
from chainrule.codegen.names import Names, plain
from chainrule.codegen.shared import pruned
from chainrule.codegen.weights import Generated, distinct, is_plain
from chainrule.ir.expression import expression_text, is_slot, slot, slot_number
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Statement, accesses, leaves
from chainrule.ir.value import value

LEAST = 20.0
"""The cost from which a composition is looked at."""

FEW = 1024
"""Elements below which none is."""

POINTS = ((0.37, 1.9, -0.61), (-1.3, 0.83, 2.7), (2.2, -1.1, 0.45))
"""Where it is tried whether an expression is a product: values of u, and of the factors, in turn."""

MOVING, STILL, REAL = "_a", "_s", slot(0)

Decide = Callable[[sp.Expr], "type[Generated] | None"]


class Made(NamedTuple):
    """A function of a kernel: its text, and what it calls."""

    source: str
    calls: set[str]


@dataclass
class Composer:
    """One kernel whose compositions are looked for, and the functions made."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    names: Names
    functions: list[Made] = field(default_factory=list)
    made: dict[sp.Expr, type[Generated]] = field(default_factory=dict)

    def body(self, nodes: tuple[Leaf, ...], count: int | None) -> tuple[Leaf, ...]:
        """`nodes` rewritten. count: how often they run, if that is known; 0: in no loop."""
        inner = tuple(replace(n, body=self.body(n.body, _times(count, n))) if isinstance(n, Loop) else n for n in nodes)
        return inner if count is not None and count < FEW else self.statements(inner, nodes)

    def statements(self, nodes: tuple[Leaf, ...], before: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
        """`nodes` rewritten, which were `before` in the kernel."""
        steps = [n for n in nodes if isinstance(n, Statement)]
        if not any(map(_is_costly, {f for s in steps for f in s.value.atoms(sp.Function, sp.Pow)})):
            return nodes
        variables = {s.target.tensor for s in steps if s.reduce is None and not s.where} & self.once
        body = Body(nodes, variables, {*(self.reads - reads_of(before))}, self.local)
        found: dict[sp.Expr, Direct] = {}
        where: dict[sp.Expr, int] = {}
        for k, e in body.values.items():
            for law, d in laws_of(e):
                found[law], where[law] = d, where.get(law, k)
        chosen = cheapest(body, found)
        for law in found:
            if law in chosen and law not in self.made:
                self.made[law] = self.function(law, found[law], body, where[law])
        return body.rewritten(lambda law: self.made[law] if law in chosen else None) if chosen else nodes

    @cached_property
    def reads(self) -> Counter[str]:
        return reads_of(self.kernel.body)

    @cached_property
    def once(self) -> set[str]:
        """The local variables, and rows of them, that one statement sets."""
        writes = Counter(accesses(leaf)[1].tensor for leaf in leaves(self.kernel.body))
        return {name for name in self.local if writes[name] == 1}

    @cached_property
    def local(self) -> frozenset[str]:
        return frozenset(b.name for b in self.buffers.values() if b.space == "scratch")

    def function(self, law: sp.Expr, d: Direct, body: Body, k: int) -> type[Generated]:
        step = body.nodes[k]
        assert isinstance(step, Statement)
        of = self.buffers[step.target.tensor]
        name = self.names.fresh(f"{of.stands_for or of.name}_direct", never_had=True)
        self.functions.append(Made(d.source(name, plain(expression_text(law, {X: "u"}), 160)), d.calls))
        return type(name, (Generated,), {"cost": d.cost})


def composed(kernel: Kernel, buffers: Mapping[str, Buffer], names: Names) -> tuple[Kernel, list[Made]]:
    """`kernel` with direct functions where they win, and these."""
    composer = Composer(kernel, buffers, names)
    body = composer.body(kernel.body, 0 if kernel.block is None else None)
    return (replace(kernel, body=body), composer.functions) if composer.functions else (kernel, [])


def _times(count: int | None, loop: Loop) -> int | None:
    length = loop.range.stop - loop.range.start
    return None if count is None or not length.is_Integer else max(count, 1) * int(length)


# The statements of one loop's body, as expressions over what they read.


@dataclass
class Body:
    """The steps of a loop. variables: those that they alone set; elsewhere: what is read by other steps; local: what
    lives in the kernel alone.

    values: of each plain statement, by its place, over one symbol for each read; variables are put in, but sums of
    several reads stay what they are called. valid: by the statement's place, the variables whose values still hold.
    """

    nodes: tuple[Leaf, ...]
    variables: set[str]
    elsewhere: set[str] = field(default_factory=set)
    local: frozenset[str] = frozenset()
    values: dict[int, sp.Expr] = field(default_factory=dict)
    valid: dict[int, set[Access]] = field(default_factory=dict)
    known: dict[Access, sp.Expr] = field(default_factory=dict)  # the variables' values
    places: dict[Access, sp.Symbol] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reads: dict[Access, set[str]] = {}  # what each variable's value is made of, as long as it holds
        for k, node in enumerate(self.nodes):
            self.valid[k] = {*reads}
            written = {accesses(leaf)[1].tensor for leaf in leaves((node,))}
            if isinstance(node, Statement) and _is_simple(node):
                self.values[k] = e = node.value.xreplace(self.meanings(node, self.valid[k]))
                if node.target.tensor in self.variables and _is_law(e):
                    self.known[node.target] = e
                    reads[node.target] = {a.tensor for a, s in self.places.items() if s in e.free_symbols}
            reads = {variable: of for variable, of in reads.items() if not of & written}

    def meanings(self, s: Statement, valid: set[Access]) -> dict[sp.Basic, sp.Basic]:
        """What the slots of a statement stand for."""
        slots = [symbol for symbol in s.value.free_symbols if is_slot(symbol)]
        read = {symbol: s.reads[slot_number(symbol)] for symbol in slots}
        return {s: self.known[a] if a in valid else self.symbol(a, s) for s, a in read.items()}

    def symbol(self, read: Access, of: sp.Symbol) -> sp.Symbol:
        """The symbol of a read. What stands still in the whole kernel is no argument: its functions are `hoisted`."""
        if read not in self.places:
            kind = MOVING if read.indices or read.tensor in self.local else STILL
            self.places[read] = sp.Symbol(f"{kind}{len(self.places):04}", **of.assumptions0)
        return self.places[read]

    def rewritten(self, decide: Decide) -> tuple[Leaf, ...]:
        """The nodes with the functions decided on, without the variables that nobody needs any more."""
        result = list(self.nodes)
        for k, e in self.values.items():
            after, step = rewrite(e, decide), self.nodes[k]
            assert isinstance(step, Statement)
            held = [(self.known[a], a) for a in self.valid[k] if self.known[a].args and a in step.reads]
            held += [(rewrite(of, decide), a) for of, a in held]
            theirs = {f.func for of, _ in held for f in of.atoms(Generated)}
            if {f.func for f in after.atoms(Generated)} - theirs:  # else it reads the variables as before
                names = {of: self.symbol(a, REAL) for of, a in held}
                result[k] = self.statement(step, after.xreplace(names))
        return self.live(result)

    def statement(self, step: Statement, e: sp.Expr) -> Statement:
        """`step` with the value `e`."""
        reads, names = list(step.reads), dict[sp.Basic, sp.Basic]()
        for access, symbol in self.places.items():
            if symbol in e.free_symbols:
                if access not in reads:
                    reads.append(access)
                names[symbol] = slot(reads.index(access), DType.INT.sort if symbol.is_integer else DType.FLOAT.sort)
        return pruned(replace(step, value=e.xreplace(names), reads=tuple(reads)))

    def live(self, nodes: Sequence[Leaf]) -> tuple[Leaf, ...]:
        """`nodes` without the steps to variables that are not read."""
        unread = self.variables - self.elsewhere - {*reads_of(nodes)}
        kept = tuple(n for n in nodes if not (isinstance(n, Statement) and n.target.tensor in unread))
        return kept if len(kept) == len(nodes) else self.live(kept)


def reads_of(nodes: Sequence[Leaf]) -> Counter[str]:
    """How many reads of each tensor there are."""
    return Counter(a.tensor for leaf in leaves(tuple(nodes)) for a in accesses(leaf)[0])


def _is_law(e: sp.Expr) -> bool:
    return len(e.free_symbols) < 2 or any(map(_is_costly, e.atoms(sp.Function)))


def _is_simple(s: Statement) -> bool:
    """Whether no value decides what it reads, or where it stores."""
    plainly = s.companion is None and s.place is None and isinstance(s.value, sp.Expr)
    return plainly and not any(a.slots for a in (*s.reads, s.target))


def cheapest(body: Body, found: Mapping[sp.Expr, Direct]) -> set[sp.Expr]:
    """The laws whose functions make the body cheapest: of all of them, those left out that are better composed."""
    classes = {law: type("f", (Generated,), {"cost": d.cost}) for law, d in found.items()}

    def cost(laws: set[sp.Expr]) -> float:
        nodes = body.rewritten(lambda law: classes[law] if law in laws else None)
        after = Body(nodes, body.variables, body.elsewhere, body.local)
        own = sum(found[law].cost for law in laws)
        return distinct(after.values.values()) + own * (1 / GAIN - 1)

    chosen, least = set(found), cost(set(found)) if found else 0.0
    while chosen:
        law = min(chosen, key=lambda law: (cost(chosen - {law}), str(law)))
        if (less := cost(chosen - {law})) > least:
            break
        chosen, least = chosen - {law}, less
    return chosen if chosen and least < cost(set()) else set()


# Laws within an expression.


def laws_of(e: sp.Expr) -> list[tuple[sp.Expr, Direct]]:
    """The largest compositions of one real in `e` that have a function of their own, over X."""
    found: list[tuple[sp.Expr, Direct]] = []

    def note(law: sp.Expr) -> type[Generated] | None:
        d = direct(law)
        if d is None:
            return None
        found.append((law, d))
        return Generated

    rewrite(e, note)
    return found


def rewrite(e: sp.Expr, decide: Decide) -> sp.Expr:
    """`e` with the functions that `decide` gives for its laws."""
    if not isinstance(e, sp.Expr) or distinct((e,)) < LEAST:
        return e
    arguments = arguments_of(e)
    for u in arguments:
        if (whole := _as_product(e, u, decide)) is not None:
            return whole
    if isinstance(e, sp.Add | sp.Mul):
        for u in arguments:
            symbols = u.free_symbols
            moving = [a for a in e.args if a.free_symbols & symbols]
            if len(moving) < len(e.args):
                part = e.func(*moving)
                if (after := _as_product(part, u, decide)) is not None:
                    return e.func(after, *(rewrite(a, decide) for a in e.args if a not in moving))
    args = [rewrite(a, decide) for a in e.args]
    return e if all(a is b for a, b in zip(args, e.args, strict=True)) else e.func(*args)


def _as_product(e: sp.Expr, u: sp.Expr, decide: Decide) -> sp.Expr | None:
    """``rest · f(u)`` for an `e` that is such a product, with the function that is decided on for f."""
    split = _split(e, u)
    if split is None:
        return None
    rest, law = split
    if distinct((law,)) < LEAST or not is_composed(law):
        return None
    function = decide(law)
    return None if function is None else rest * function(u)


@lru_cache(maxsize=4096)
def _split(e: sp.Expr, u: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """(rest, law) with e = rest · law(u), if it is one."""
    over = e.xreplace({u: X, -u: -X})
    others = sorted(over.free_symbols - {X}, key=lambda s: s.name)
    if X not in over.free_symbols or not others:
        return (sp.S.One, over) if X in over.free_symbols else None
    if not all(s.is_real and not s.is_integer for s in others) or over.free_symbols & u.free_symbols - {u}:
        return None
    law = over.xreplace(dict.fromkeys(others, sp.S.One))
    if X not in law.free_symbols:
        return None
    for k, (at, *_) in enumerate(POINTS):
        factors = {s: POINTS[k][1 + j % 2] * (1 + 0.1 * j) for j, s in enumerate(others)}
        product = np.prod(list(factors.values())) * value(law, {X: np.float64(at)})
        if not np.isclose(
            value(over, {X: np.float64(at), **{s: np.float64(v) for s, v in factors.items()}}), product, rtol=1e-9
        ):
            return None
    return sp.Mul(*others), law


def is_composed(law: sp.Expr) -> bool:
    """Whether it is more than one function of the closed set, of a multiple of X."""
    if law.has(Generated):
        return False
    costly = [p for p in sp.preorder_traversal(law) if _is_costly(p)]
    return len(costly) > 1 or (len(costly) == 1 and not isinstance(law, sp.Function))


def arguments_of(e: sp.Expr) -> list[sp.Expr]:
    """What the innermost costly functions of `e` are taken of, but for a factor: symbols, and sums of several."""
    found: dict[sp.Expr, None] = {}
    for f in sorted(filter(_is_costly, e.atoms(sp.Function)), key=sp.default_sort_key):
        for of in _pieces(f.args[0]):
            symbols = of.free_symbols
            u = next(iter(symbols)) if len(symbols) == 1 else of.as_independent(*symbols, as_Add=False)[1]
            if any(s.name.startswith(MOVING) and s.is_real and not s.is_integer for s in symbols):
                found[u] = None
    return list(found)


def _pieces(e: sp.Basic) -> Iterator[sp.Expr]:
    """`e`, or where it makes choices, what they are made of; nothing where it calls a costly function."""
    if isinstance(e, sp.Expr) and not e.has(sp.Function):
        yield e
    elif isinstance(e, sp.Expr) and not _is_costly(e):
        for a in e.args:
            yield from _pieces(a)


def _is_costly(p: sp.Basic) -> bool:
    if isinstance(p, sp.Pow):
        return not (p.exp.is_Integer and p.exp > 0) and bool(p.free_symbols)
    return isinstance(p, sp.Function) and not is_plain(p) and not isinstance(p, Generated)
