"""Solve the equations of a sum for its indices, so that what was defined by them is computed without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import sympy as sp

from chainrule.ir.affine import Facts, affine, bounds_of, divided, is_true, tidy, weight
from chainrule.ir.expression import index_symbol, is_slot, quotient, remainder, slot, slot_number
from chainrule.ir.formula import Access, DType, Extent, Formula, Index, Law, Reduce
from chainrule.ir.graph import Dim, Graph, Kind, Tensor
from chainrule.ir.rename import canonical, form_of, instance, show_names
from chainrule.optimize.rewrite import map_formulas


def eliminate(graph: Graph) -> Graph:
    """Remove the summed indices that equations determine; the value stays what it was.

    x_bar[p, q] = sum[n, i, j where n == p and i == q] W[i, j] * y_bar[n, j]
        ->  x_bar[p, q] = sum[j] W[q, j] * y_bar[p, j]
    """

    def change(f: Formula) -> Formula:
        if not f.where or f.reduce is not Reduce.SUM:
            return f
        solved = _eliminated(
            f.law, tuple([graph.tensors[name].kind for name in f.tensors if name != f.out]), graph.dims
        )
        if solved is None:
            return f
        indices = {i.symbol: i.name for i in f.indices}
        over = [indices.get(index_symbol(r.name), "t") for r in solved.over]
        return instance(solved, canonical(f)[1], [a.name for a in f.axes], over, f.origin)

    return map_formulas(graph, change)


@lru_cache(maxsize=4096)
def _eliminated(law: Law, kinds: tuple[Kind, ...], dims: tuple[Dim, ...]) -> Formula | None:
    """What `eliminated` makes of the form of a law; its summed indices are called by their symbols. None: the same."""
    form = form_of(law)
    others = (name for name in form.tensors if name != form.out)
    tensors = {name: Tensor(name, *kind) for name, kind in zip(others, kinds, strict=True)}
    marked = show_names(form, tuple(a.name for a in form.axes), tuple(r.symbol.name for r in form.over))
    solved = eliminated(marked, tensors, dims)
    return None if solved == form else solved


def eliminated(f: Formula, tensors: Mapping[str, Tensor], dims: tuple[Dim, ...] = ()) -> Formula:
    """The sum `f` without the indices that its equations determine.

    An equation is solved for an index of coefficient ±1, or of another with a condition of divisibility, the longest
    first; c·i + j == p with j < c gives both; e // c == p and e % c == q give e == p·c + q. What the index's range
    then asks for stays as a condition, or becomes a guard of the read that has these bounds. An equation with a slot
    that depends on the index, as in ``token[b] == p`` for b, stays: a scatter.

    tensors: what `f` reads, for bounds and guards.
    """
    system = _System.of(f, tensors, dims)
    while system.step():
        pass
    return system.formula()


@dataclass
class _System:
    """A formula in pieces: equations d == 0, other conditions, and what solving has asked of the ranges."""

    f: Formula
    tensors: Mapping[str, Tensor]
    dims: tuple[Dim, ...]
    over: list[Index]
    body: sp.Expr
    reads: list[Access]
    equations: list[tuple[sp.Expr, sp.Expr]]
    conditions: list[sp.Basic]
    asked: list[tuple[sp.Expr, Extent, frozenset[int]]] = field(default_factory=list)  # 0 <= e < extent, for reads

    @staticmethod
    def of(f: Formula, tensors: Mapping[str, Tensor], dims: tuple[Dim, ...]) -> _System:
        # equations between conditions of a choice, or of floats, are no equations of indices
        integer = [c for c in f.where if isinstance(c, sp.Eq) and all(_is_integer(side) for side in c.args)]
        others = [c for c in f.where if c not in integer]
        sides = [(c.lhs, c.rhs) for c in integer]
        # where α(o) == p, a read at α(o) is a read at p; of an axis that p may leave only α says that it is inside
        axes = {a.symbol: a.extent for a in f.axes}
        same = {a: p for a, p in sides if p in axes and not a.is_Symbol}

        def at(read: Access) -> Access:
            tensor = tensors.get(read.tensor)
            if tensor is None:
                return read
            moved = ((same.get(i, i), n) for i, n in zip(read.indices, tensor.shape, strict=True))
            return replace(
                read,
                indices=tuple(m if axes.get(m) == n else i for i, (m, n) in zip(read.indices, moved, strict=True)),
            )

        reads = [at(r) for r in f.reads]
        return _System(f, tensors, dims, list(f.over), f.body, reads, sides, others)

    @property
    def facts(self) -> Facts:
        extents = {i.symbol: i.extent for i in (*self.f.axes, *self.over)}
        return Facts(extents, bounds_of(self.reads, self.tensors), self.dims)

    def step(self) -> bool:
        """Use one equation; False: none is of use any more."""
        return self._same() or self._join_radix() or self._split_radix() or self._solve() or self._open_radix()

    def _same(self) -> bool:
        """All the plain equations at once: i == p."""
        found: dict[sp.Symbol, sp.Symbol] = {}
        over, left = {r.symbol: r for r in self.over}, []
        for a, b in self.equations:
            v, e = (a, b) if a in over else (b, a)
            if v in over and v not in found and e.is_Symbol and e not in found and e not in over and not is_slot(e):
                found[v] = e
            else:
                left.append((a, b))
        if not found:
            return False
        self.equations = left
        self._put(found)
        return True

    def _solve(self) -> bool:
        """The best equation and index: the one that takes away most work."""
        best: tuple[float, int, Index] | None = None
        for k, (a, b) in enumerate(self.equations):
            form = affine(sp.expand(a - b))
            if form is None:
                continue
            for r in self.over:
                c = form.coefficients.get(r.symbol)
                if c is None or self._holds(form.without(r.symbol).expression(), r.symbol):
                    continue
                if not c.is_Integer:
                    continue
                # a condition of divisibility wastes c - 1 of c iterations of the rest
                gain = weight([r.extent]) / (1 if abs(c) == 1 else float(abs(c)))
                if best is None or gain > best[0]:
                    best = (gain, k, r)
        if best is None:
            return False
        _, k, r = best
        a, b = self.equations.pop(k)
        form = affine(sp.expand(a - b))
        assert form is not None
        c = int(form.coefficients[r.symbol])
        target = sp.expand(form.without(r.symbol).expression() * (-1 if c > 0 else 1))
        if abs(c) != 1:
            self.conditions.append(sp.Eq(remainder(target, sp.Integer(abs(c))), 0))
        self._put({r.symbol: quotient(target, sp.Integer(abs(c)))})
        return True

    def _holds(self, e: sp.Expr, v: sp.Symbol) -> bool:
        """`e` depends on v: in a // or %, or through a slot whose read does."""
        waiting, seen = [e], set()
        while waiting:
            for s in waiting.pop().free_symbols:
                if s == v:
                    return True
                if is_slot(s) and s not in seen:
                    seen.add(s)
                    waiting.extend(self.reads[slot_number(s)].indices)
        return False

    def _split_radix(self) -> bool:
        """c·u + j == w with 0 <= j < c says u == w // c and j == w % c."""
        for k, (a, b) in enumerate(self.equations):
            form = affine(sp.expand(a - b))
            if form is None:
                continue
            for r in self.over:
                sign = form.coefficients.get(r.symbol)
                if sign not in (1, -1):
                    continue
                found = self._radix_of(form.expression() * sign, r)
                if found is None:
                    continue
                c, u, w = found
                self.equations.pop(k)
                self.equations.append((u, quotient(w, c)))
                self._put({r.symbol: remainder(w, c)})
                return True
        return False

    def _radix_of(self, e: sp.Expr, r: Index) -> tuple[sp.Expr, sp.Expr, sp.Expr] | None:
        """(c, u, w) for an `e` that is c·u + r - w, where u holds the other summed indices, and w none."""
        form = affine(sp.expand(e))
        assert form is not None
        summed = [i.symbol for i in self.over if i is not r]
        inside = {a: c for a, c in form.coefficients.items() if any(self._holds(a, i) for i in summed)}
        outside = sp.Add(*(c * a for a, c in form.coefficients.items() if a not in inside and a != r.symbol), form.rest)
        if not inside or any(self._holds(outside, i.symbol) for i in self.over):
            return None
        c = min(inside.values(), key=lambda c: (len(c.free_symbols), abs(int(c)) if c.is_Integer else 0))
        if (c.is_Integer and c <= 1) or not self.facts.is_below(r.symbol, c):
            return None
        parts = [(a, divided(x, c)) for a, x in inside.items()]
        whole = [x * a for a, x in parts if x is not None]
        return (c, sp.Add(*whole), sp.expand(-outside)) if len(whole) == len(parts) else None

    def _join_radix(self) -> bool:
        """e // c == p and e % c == q say e == p·c + q, with 0 <= q < c; p may hold more indices."""
        for j, (a, b) in enumerate(self.equations):
            for rem, q in ((a, b), (b, a)):
                if not isinstance(rem, remainder) or not any(self._holds(rem, i.symbol) for i in self.over):
                    continue
                e, c = rem.args
                # (a // b) // c is written a // (b c)
                inner, step = e.args if isinstance(e, quotient) else (e, sp.S.One)
                wanted = quotient(inner, sp.expand(step * c))
                for k, (x, y) in enumerate(self.equations):
                    p = _solved(x, y, wanted) if k != j else None
                    if p is not None:
                        for i in sorted((j, k), reverse=True):
                            self.equations.pop(i)
                        self.equations.append((e, sp.expand(p * c + q)))
                        self._ask(q, c)
                        return True
        return False

    def _open_radix(self) -> bool:
        """r // c == p alone says r == p·c + t, and r % c == q alone says r == t·c + q, with a new index t."""
        for k, (a, b) in enumerate(self.equations):
            for node, p in ((a, b), (b, a)):
                if not isinstance(node, quotient | remainder):
                    continue
                r = next((i for i in self.over if i.symbol == node.args[0]), None)
                c = node.args[1]
                if r is None or self._holds(p, r.symbol):
                    continue
                if isinstance(node, quotient) and not (c.is_Integer or c.is_Symbol):
                    continue
                if isinstance(node, remainder) and not (c.is_Integer and r.extent.is_Integer):
                    continue
                self._open(k, r, node, p)
                return True
        return False

    def _open(self, k: int, r: Index, node: sp.Expr, p: sp.Expr) -> None:
        c = node.args[1]
        symbol = index_symbol(f"_t{r.symbol.name[1:]}")
        self.equations.pop(k)
        if isinstance(node, quotient):
            self.over.append(Index(symbol, c, r.name))
            self._put({r.symbol: sp.expand(p * c + symbol)})
        else:
            self.over.append(Index(symbol, sp.Integer(-(-int(r.extent) // int(c))), r.name))
            self._ask(p, c)
            self._put({r.symbol: sp.expand(symbol * c + p)})

    def _ask(self, e: sp.Expr, extent: Extent, reads: frozenset[int] = frozenset()) -> None:
        self.asked.append((e, extent, reads))

    def _put(self, values: Mapping[sp.Symbol, sp.Expr]) -> None:
        """Replace summed indices by what they are; their ranges are now asked for."""
        gone = [r for r in self.over if r.symbol in values]
        for r in gone:
            touched = frozenset(
                k for k, read in enumerate(self.reads) if any(r.symbol in i.free_symbols for i in read.indices)
            )
            self._ask(r.symbol, r.extent, touched)
        self.over = [r for r in self.over if r.symbol not in values]
        facts = self.facts

        def put(e: sp.Basic) -> sp.Basic:
            return tidy(e.xreplace(values), facts)

        self.body = self.body.xreplace(values)
        self.reads = [replace(r, indices=tuple(put(i) for i in r.indices)) for r in self.reads]
        self.equations = [(put(a), put(b)) for a, b in self.equations]
        self.conditions = [put(c) for c in self.conditions]
        self.asked = [(put(e), extent, reads) for e, extent, reads in self.asked]

    def formula(self) -> Formula:
        """The pieces as a formula again: what was asked of ranges is proved, guarded or kept as a condition."""
        facts = self.facts
        where = [c for c in self.conditions if not is_true(c, facts)]
        for e, extent, touched in self.asked:
            needed = []
            if not facts.is_nonnegative(e):
                needed.append(sp.Ge(e, 0))
            if not facts.is_below(e, extent):
                needed.append(sp.Lt(e, extent))
            if needed and not self._guard(e, extent, touched):
                where.extend(needed)
        where.extend(eq for eq in map(self._written, self.equations) if not is_true(eq, facts))
        done = (tuple(self.over), tuple(self.reads), self.body, tuple(where))
        if done == (self.f.over, self.f.reads, self.f.body, self.f.where):
            return self.f
        return replace(self.f, over=done[0], reads=done[1], body=done[2], where=done[3])

    def _guard(self, e: sp.Expr, extent: Extent, touched: frozenset[int]) -> bool:
        """Let reads give 0 where e is outside [0, extent), if that makes the term 0 as the condition would."""
        bound = {
            k for k in touched
            if self.reads[k].outside in (None, sp.S.Zero)
            and any(i == e and n == extent for i, n in zip(self.reads[k].indices, self._shape(k), strict=False))
        }  # fmt: skip
        loose = {k for k in touched if k not in bound and self.reads[k].outside is None}
        floats = {k for k in bound if self.tensors[self.reads[k].tensor].dtype is DType.FLOAT}
        if not bound or loose or floats != bound:
            return False
        if not any(self.body.xreplace({slot(k): sp.S.Zero}) == 0 for k in bound):
            return False
        if self.body.xreplace({slot(k): sp.S.Zero for k in bound}) != 0:  # 0 / 0, say
            return False
        for k in bound:
            self.reads[k] = replace(self.reads[k], outside=sp.S.Zero)
        return True

    def _shape(self, k: int) -> tuple[Extent, ...]:
        tensor = self.tensors.get(self.reads[k].tensor)
        return tensor.shape if tensor is not None else ()

    def _written(self, sides: tuple[sp.Expr, sp.Expr]) -> sp.Basic:
        """An equation that stays, with an axis alone on its right where it has one: where a scatter writes."""
        a, b = sides
        form = affine(sp.expand(a - b))
        axes = [x.symbol for x in self.f.axes]
        if b in axes or form is None:
            return sp.Eq(a, b, evaluate=False)
        for p in axes:
            c = form.coefficients.get(p)
            if c in (1, -1) and not self._holds(form.without(p).expression(), p):
                return sp.Eq(sp.expand(-c * form.without(p).expression()), p, evaluate=False)
        return sp.Eq(a, b, evaluate=False)


def _solved(a: sp.Expr, b: sp.Expr, atom: sp.Expr) -> sp.Expr | None:
    """What a == b says that `atom` is, where it stands there once, with coefficient ±1."""
    form = affine(sp.expand(a - b))
    sign = None if form is None else form.coefficients.get(atom)
    if form is None or sign not in (1, -1):
        return None
    return sp.expand(-sign * form.without(atom).expression())


def _is_integer(e: sp.Expr) -> bool:
    return bool(e.is_integer)
