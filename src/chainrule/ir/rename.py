"""Formulas under other tensor names: the canonical form by which equal ones are found, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from chainrule.ir.formula import Formula, Origin

NOWHERE = Origin()


def rename(f: Formula, names: Mapping[str, str]) -> Formula:
    """`f` with its tensors, `out` among them, called by `names`; those not in it keep theirs."""
    if not any(names.get(t, t) != t for t in (f.out, *f.tensors)):
        return f
    reads = tuple(replace(r, tensor=names.get(r.tensor, r.tensor)) for r in f.reads)
    return replace(f, out=names.get(f.out, f.out), reads=reads)


def canonical(f: Formula) -> tuple[Formula, dict[str, str]]:
    """`f` with its tensors named by position, and the names that bring the real ones back.

    Equal layers have equal canonical formulas, so that each shape of formula is derived once.
    """
    places = {name: f"_{k}" for k, name in enumerate(dict.fromkeys((*f.tensors, f.out)))}
    return replace(rename(f, places), origin=NOWHERE), {place: name for name, place in places.items()}


def fresh_name(name: str, taken: Iterable[str]) -> str:
    """`name`, or where it is taken, `name2`, `name3`, …"""
    k, candidate = 2, name
    while candidate in taken:
        candidate, k = f"{name}{k}", k + 1
    return candidate
