"""Formulas under other names: the canonical form by which equal ones are found, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from chainrule.ir.expression import index_symbol
from chainrule.ir.formula import Access, Formula, Index, Law, Origin

NOWHERE = Origin()
_FIELDS = tuple(field.name for field in fields(Formula))
_OUTSIDE = frozenset({"out", "origin"})
"""Fields that are no part of a formula's law."""


def amend(f: Formula, **changes: Any) -> Formula:
    """`f` with fields changed that its canonical form does not depend on: out, dtype, stop, origin, pretty names.

    This is `dataclasses.replace` without normalising again, which is most of what a copy costs.
    """
    copy = object.__new__(Formula)
    own = f.__dict__
    copy.__dict__.update({name: own[name] for name in _FIELDS}, **changes)
    if "law" in own and changes.keys() <= _OUTSIDE and f.out not in f.tensors and copy.out not in f.tensors:
        copy.__dict__["law"] = own["law"]
    return copy


def rename(f: Formula, names: Mapping[str, str]) -> Formula:
    """`f` with its tensors, `out` among them, called by `names`; those not in it keep theirs."""
    if not any(names.get(t, t) != t for t in (f.out, *f.tensors)):
        return f
    reads = tuple(Access(names.get(r.tensor, r.tensor), r.indices, r.outside) for r in f.reads)
    out = names.get(f.out, f.out)
    if len({r.tensor for r in reads}) < len(set(f.tensors)):  # two tensors became one: their accesses may be equal
        return replace(f, out=out, reads=reads)
    return amend(f, out=out, reads=reads)


@lru_cache(maxsize=65536)
def form_of(law: Law) -> Formula:
    """The formula of a law whose tensors are named by their numbers, and then its own: ``_2[i] = _0[i] * _1[i]``."""
    reads = tuple(Access(f"_{number}", indices, outside) for number, indices, outside in law.reads)
    reduce, dtype, bound, stop, itself = law.kind
    return Formula(
        out=f"_{law.count if itself is None else itself}",
        axes=tuple(Index(index_symbol(f"_i{k:02}"), extent) for k, extent in enumerate(law.shape)),
        over=tuple(Index(index_symbol(f"_r{k:02}"), extent) for k, extent in enumerate(law.over)),
        body=law.body,
        reads=reads,
        where=law.where,
        reduce=reduce,
        dtype=dtype,
        bound=bound,
        stop=stop,
    )


def canonical(f: Formula) -> tuple[Formula, dict[str, str]]:
    """`f` with its tensors named by position, and the names that bring the real ones back.

    Equal layers have the same canonical formula, so that each law is derived once.
    """
    return form_of(f.law), {f"_{k}": name for k, name in enumerate(dict.fromkeys((*f.tensors, f.out)))}


def instance(
    form: Formula, names: Mapping[str, str], axes: Sequence[str], over: Sequence[str], origin: Origin
) -> Formula:
    """`form` with its tensors called by `names`, its indices by `axes` and `over`: one more formula of its law."""
    tensors, out = {t: names.get(t, t) for t in form.tensors}, names.get(form.out, form.out)
    if len({*tensors.values(), out}) < len({*tensors, form.out}):  # two tensors became one
        return amend(show_names(rename(form, names), axes, over), origin=origin)
    made = amend(
        form,
        out=out,
        axes=tuple([Index(a.symbol, a.extent, name) for a, name in zip(form.axes, axes, strict=True)]),
        over=tuple([Index(r.symbol, r.extent, name) for r, name in zip(form.over, over, strict=True)]),
        reads=tuple([Access(tensors[r.tensor], r.indices, r.outside) for r in form.reads]),
        origin=origin,
    )
    made.__dict__["law"] = form.law
    return made


def show_names(f: Formula, axes: Sequence[str], over: Sequence[str]) -> Formula:
    """`f` with other pretty names for its indices."""
    return amend(
        f,
        axes=tuple(Index(a.symbol, a.extent, name) for a, name in zip(f.axes, axes, strict=True)),
        over=tuple(Index(r.symbol, r.extent, name) for r, name in zip(f.over, over, strict=True)),
    )


def fresh_name(name: str, taken: Iterable[str]) -> str:
    """`name`, or where it is taken, `name2`, `name3`, …"""
    k, candidate = 2, name
    while candidate in taken:
        candidate, k = f"{name}{k}", k + 1
    return candidate
