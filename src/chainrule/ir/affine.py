"""Index algebra: affine expressions over integer atoms, what ranges prove about them, and // and % made simple.

An index expression is Σ c·a + rest, over atoms a: index symbols, integer slots, quotients and remainders. The c and the
rest are polynomials in the dims. A range is proved by its bounds: each atom is replaced by its least or greatest value,
and what is left, a polynomial in sizes that are at least 1, must have no negative coefficient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy as sp

from chainrule.ir.expression import is_slot, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Extent, Index
from chainrule.ir.graph import Dim, Tensor


def is_index(symbol: sp.Basic) -> bool:
    """A loop variable in canonical form: no dim of a user's starts with an underscore."""
    return isinstance(symbol, sp.Symbol) and symbol.name[0] == "_" and not is_slot(symbol)


def is_atom(e: sp.Basic) -> bool:
    return isinstance(e, quotient | remainder) or is_index(e) or is_slot(e)


@dataclass(frozen=True)
class Affine:
    """``Σ coefficients[a] * a + rest``."""

    coefficients: Mapping[sp.Expr, sp.Expr]
    rest: sp.Expr

    def expression(self) -> sp.Expr:
        return sp.Add(*(c * a for a, c in self.coefficients.items()), self.rest)

    def without(self, atom: sp.Expr) -> Affine:
        return Affine({a: c for a, c in self.coefficients.items() if a != atom}, self.rest)


def affine(e: sp.Expr) -> Affine | None:
    """`e` over its atoms; None where an atom is multiplied by another, or stands in what is no // or %."""
    if e.is_Integer or (e.is_Symbol and not is_atom(e)):
        return Affine({}, e)
    if is_atom(e):
        return Affine({e: sp.S.One}, sp.S.Zero)
    if isinstance(e, sp.Add):
        terms = [affine(a) for a in e.args]
        if any(t is None for t in terms):
            return None
        found: dict[sp.Expr, sp.Expr] = {}
        for t in terms:
            assert t is not None
            for a, c in t.coefficients.items():
                found[a] = found.get(a, sp.S.Zero) + c
        rest = sp.Add(*(t.rest for t in terms if t is not None))
        return Affine({a: c for a, c in found.items() if c != 0}, rest)
    if isinstance(e, sp.Mul):
        return _product(e)
    return None if _atoms(e) else Affine({}, e)


def _product(e: sp.Mul) -> Affine | None:
    """A product of at most one factor that holds atoms."""
    moving = [f for f in e.args if _atoms(f)]
    if not moving:
        return Affine({}, sp.expand(e))
    inner = affine(moving[0]) if len(moving) == 1 else None
    if inner is None:
        return None
    factor = sp.Mul(*(f for f in e.args if f is not moving[0]))
    scaled = {a: sp.expand(c * factor) for a, c in inner.coefficients.items()}
    return Affine(scaled, sp.expand(inner.rest * factor))


def _atoms(e: sp.Basic) -> bool:
    return any(is_index(s) or is_slot(s) for s in e.free_symbols)


def divided(e: sp.Expr, by: sp.Expr) -> sp.Expr | None:
    """The polynomial e / by, where it is one."""
    if by == 1 or e == 0:
        return e
    found = sp.expand(e / by)
    ok = all(
        f.is_Integer or f.is_Symbol or (isinstance(f, sp.Pow) and f.exp.is_Integer and f.exp > 0)
        for term in sp.Add.make_args(found)
        for f in sp.Mul.make_args(term)
    )
    return found if ok else None


@dataclass(frozen=True)
class Facts:
    """What is known: the extents of index symbols, bounds of integer slots, the dims and their definitions."""

    extents: Mapping[sp.Expr, Extent]
    bounds: Mapping[sp.Expr, Extent] = field(default_factory=dict)
    dims: tuple[Dim, ...] = ()

    def is_nonnegative(self, e: sp.Expr) -> bool:
        """e >= 0 wherever all the indices are in their ranges; False: not proved."""
        low = self.low(e)
        return low is not None and self._holds(low)

    def is_below(self, e: sp.Expr, extent: Extent) -> bool:
        return self.is_nonnegative(extent - 1 - e)

    def low(self, e: sp.Expr) -> sp.Expr | None:
        """A lower bound of `e` in dims alone."""
        form = affine(e)
        if form is None:
            return None
        form = self._together(form)
        total = [form.rest]
        for atom, c in form.coefficients.items():
            sign = self._sign(c)
            bound = None if sign == 0 else self.least(atom) if sign > 0 else self.greatest(atom)
            if bound is None:
                return None
            total.append(c * bound)
        return sp.expand(sp.Add(*total))

    def _together(self, form: Affine) -> Affine:
        """q·(a // q) + a % q is a, which the bounds of the two alone would not show."""
        for atom, c in form.coefficients.items():
            if isinstance(atom, remainder):
                a, q = atom.args
                other = form.coefficients.get(quotient(a, q))
                if other is not None and sp.expand(other - c * q) == 0:
                    rest = form.without(atom).without(quotient(a, q)).expression()
                    joined = affine(sp.expand(rest + c * a))
                    return form if joined is None else self._together(joined)
        return form

    def _sign(self, c: sp.Expr) -> int:
        if c.is_Integer:
            return 1 if c > 0 else -1
        return 1 if self._holds(sp.expand(c)) else -1 if self._holds(sp.expand(-c)) else 0

    def least(self, atom: sp.Expr) -> sp.Expr | None:
        if atom in self.extents or atom in self.bounds or isinstance(atom, remainder):
            return sp.S.Zero
        if isinstance(atom, quotient):
            low = self.low(atom.args[0])
            if low is not None and self._holds(low):
                return sp.S.Zero
            if low is not None and low.is_Integer and atom.args[1].is_Integer and atom.args[1] > 0:
                return sp.Integer(int(low) // int(atom.args[1]))
        return None

    def greatest(self, atom: sp.Expr) -> sp.Expr | None:
        if atom in self.extents:
            return self.extents[atom] - 1
        if atom in self.bounds:
            return self.bounds[atom] - 1
        if isinstance(atom, remainder):
            return atom.args[1] - 1
        if isinstance(atom, quotient):
            a, q = atom.args
            low = self.low(-a)
            if low is None:
                return None
            if low.is_Integer and q.is_Integer and q > 0:
                return sp.Integer(int(-low) // int(q))
            whole = divided(sp.expand(1 - low), q)  # a <= q·B - 1 says a // q <= B - 1
            return None if whole is None else whole - 1
        return None

    def _holds(self, polynomial: sp.Expr) -> bool:
        """polynomial >= 0 for all sizes that can be."""
        if polynomial.is_Integer:
            return bool(polynomial >= 0)
        found = sp.expand(self._defined(polynomial))
        ones = {e for e in self.extents.values() if e.is_Symbol}  # an index in its range: the range is not empty
        shifted = {s: s + max(int(s in ones), self._minimum(s)) for s in found.free_symbols if not found.is_Integer}
        return all(term.as_coeff_Mul()[0] >= 0 for term in sp.Add.make_args(sp.expand(found.xreplace(shifted))))

    def _minimum(self, s: sp.Symbol) -> int:
        return next((d.minimum for d in self.dims if d.name == s.name), 0)

    def _defined(self, e: sp.Expr) -> sp.Expr:
        """Derived dims by their definitions; a floor by the inequality that its sign in `e` asks for."""
        for dim in reversed(self.dims):
            if dim.definition is None or not any(s.name == dim.name for s in e.free_symbols):
                continue
            symbol = next(s for s in e.free_symbols if s.name == dim.name)
            floors = [part for part in sp.preorder_traversal(dim.definition) if isinstance(part, quotient)]
            if not floors:
                e = sp.expand(e.xreplace({symbol: dim.definition}))
            elif len(floors) == 1 and (slope := sp.expand(e).coeff(symbol, 1)).is_Rational:
                a, q = floors[0].args
                # a // q <= a / q, and a // q >= (a - q + 1) / q
                bound = a / q if slope < 0 else (a - q + 1) / q
                e = sp.expand(e.xreplace({symbol: dim.definition.xreplace({floors[0]: bound})}))
        return e


def bounds_of(reads: Iterable[Access], tensors: Mapping[str, Tensor]) -> dict[sp.Expr, Extent]:
    """0 <= slot < bound, for the slots of integer tensors whose values have a bound."""
    found: dict[sp.Expr, Extent] = {}
    for k, read in enumerate(reads):
        bound = tensors[read.tensor].bound if read.tensor in tensors else None
        # what stands outside has the bound too, but for a dim, which may be 0
        if bound is not None and (read.outside is None or (bound.is_Integer and 0 <= read.outside < bound)):
            found[slot(k, DType.INT.sort)] = bound
    return found


def may_be_empty(over: Iterable[Index], where: tuple[sp.Basic, ...], dims: tuple[Dim, ...]) -> bool:
    """Whether a reduction may count nothing: it has conditions, or an index that may have no value."""
    facts = Facts({}, {}, dims)
    return bool(where) or not all(facts.is_nonnegative(r.extent - 1) for r in over)


def tidy(e: sp.Basic, facts: Facts) -> sp.Basic:
    """`e` with // and % worked out as far as ranges allow: (3 i + j) // 3 is i where j < 3."""
    if not e.args or not e.has(quotient, remainder):
        return e
    args = tuple(tidy(a, facts) for a in e.args)
    if isinstance(e, quotient | remainder):
        return _radix(type(e), args[0], args[1], facts)
    return e if args == e.args else e.func(*args)


def _radix(kind: type, a: sp.Expr, q: sp.Expr, facts: Facts) -> sp.Expr:
    if kind is quotient and isinstance(a, quotient):
        return _radix(quotient, a.args[0], sp.expand(a.args[1] * q), facts)
    whole, rest = split(a, q)
    small = facts.is_nonnegative(rest) and facts.is_below(rest, q)
    if kind is quotient:
        return whole if small else whole + quotient(rest, q)
    return rest if small else remainder(rest, q)


def split(a: sp.Expr, q: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """(A, B) with a = q·A + B, and in A all the terms that q divides."""
    form = affine(a)
    if form is None:
        return sp.S.Zero, a
    whole, rest = [], []
    parts = [(c, atom) for atom, c in form.coefficients.items()]
    parts += [(term, sp.S.One) for term in sp.Add.make_args(form.rest)]
    for c, atom in parts:
        over = divided(c, q)
        if over is None and c.is_Integer and q.is_Integer and atom == 1:
            whole.append(sp.Integer(int(c) // int(q)))
            rest.append(sp.Integer(int(c) % int(q)))
        elif over is None:
            rest.append(c * atom)
        else:
            whole.append(over * atom)
    return sp.Add(*whole), sp.Add(*rest)


def is_true(c: sp.Basic, facts: Facts) -> bool:
    """The condition holds at every point; False: not proved."""
    if any(is_slot(s) and not s.is_integer for s in c.free_symbols):
        return False  # a float may be NaN, which is not even equal to itself
    match c:
        case sp.Ge():
            return facts.is_nonnegative(sp.expand(c.lhs - c.rhs))
        case sp.Gt():
            return facts.is_nonnegative(sp.expand(c.lhs - c.rhs - 1))
        case sp.Le():
            return facts.is_nonnegative(sp.expand(c.rhs - c.lhs))
        case sp.Lt():
            return facts.is_nonnegative(sp.expand(c.rhs - c.lhs - 1))
        case sp.Eq():
            return bool(sp.expand(c.lhs - c.rhs) == 0)
        case _:
            return c is sp.true


def weight(extents: Iterable[Extent]) -> float:
    """How much work a loop over these extents is, a dim of unknown size being taken for 1000."""
    total = 1.0
    for extent in extents:
        total *= float(extent) if extent.is_Integer else 1000.0
    return total
