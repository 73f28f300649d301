"""Formulas under other names: the canonical form by which equal ones are found, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from chainrule.ir.formula import Access, Formula, Index, Origin

NOWHERE = Origin()
_FIELDS = tuple(field.name for field in fields(Formula))


def amend(f: Formula, **changes: Any) -> Formula:
    """`f` with fields changed that its canonical form does not depend on: out, dtype, stop, origin, pretty names.

    This is `dataclasses.replace` without normalising again, which is most of what a copy costs.
    """
    copy = object.__new__(Formula)
    own = f.__dict__
    copy.__dict__.update({name: own[name] for name in _FIELDS}, **changes)
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


def canonical(f: Formula) -> tuple[Formula, dict[str, str]]:
    """`f` with its tensors named by position, and the names that bring the real ones back.

    Equal layers have equal canonical formulas, so that each shape of formula is derived once.
    """
    places = {name: f"_{k}" for k, name in enumerate(dict.fromkeys((*f.tensors, f.out)))}
    return amend(rename(f, places), origin=NOWHERE), {place: name for name, place in places.items()}


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
