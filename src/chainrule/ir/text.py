"""How a formula and an access read: the notation of the language, also in errors, pictures and kernels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import sympy as sp

from chainrule.ir.expression import ATOM, IF, OR, PRODUCT, TRAINING, expression_text, is_slot, slot
from chainrule.ir.formula import Access, DType, Formula, free_symbols
from chainrule.ir.rename import amend


def names_of(f: Formula) -> dict[sp.Basic, str]:
    """What each symbol of `f` prints as: pretty index names (made unique), and reads for slots."""
    names: dict[sp.Basic, str] = {TRAINING: "training"}
    # an index may not be taken for a dim, or for a tensor of rank 0
    taken = {s.name for s in free_symbols((f.body, *f.where, *(i for read in f.reads for i in read.indices)))}
    taken |= {read.tensor for read in f.reads if not read.indices}
    for index in f.indices:
        name, k = index.name, 2
        while name in taken:
            name, k = f"{index.name}{k}", k + 1
        taken.add(name)
        names[index.symbol] = name
    for k, read in enumerate(f.reads):  # an access comes after those that its indices need
        names[slot(k)] = names[slot(k, DType.INT.sort)] = access_text(read, names)
    return names


def _converted(f: Formula, names: Mapping[sp.Basic, str], parts: tuple[sp.Basic, ...]) -> Mapping[sp.Basic, str]:
    """`names`, with ``float(label[n])`` for an integer read where `parts` also hold reals: the two do not mix."""
    symbols = free_symbols(parts)
    if not any(is_slot(s) and not s.is_integer for s in symbols):
        return names
    whole = [s for s in symbols if is_slot(s) and s.is_integer]
    return {**names, **{s: f"float({names[s]})" for s in whole}}


def access_text(access: Access, names: Mapping[sp.Basic, str]) -> str:
    """``x[n, i + 1; 0]``; a rank-0 tensor prints as its name."""
    inside = ", ".join(expression_text(i, names) for i in access.indices)
    outside = "" if access.outside is None else f"; {expression_text(access.outside, names)}"
    return f"{access.tensor}[{inside}{outside}]" if access.indices else access.tensor


def law_text(f: Formula, names: Mapping[sp.Basic, str] | None = None) -> str:
    """The right side of `f`, its reduction and conditions included: ``sum[i] x[n, i] * W[i, o]``.

    names: `names_of(f)`, where they are known.
    """
    names = names_of(f) if names is None else names
    where = " and ".join(expression_text(c, _converted(f, names, (c,)), OR + 1) for c in f.where)
    body = _converted(f, names, (f.body,))
    if f.dtype is DType.FLOAT:  # integers alone make no float either
        body = {s: f"float({t})" if is_slot(s) and s.is_integer else t for s, t in names.items()}
    if not f.over:
        return expression_text(f.body, body, IF) + (f" where {where}" if where else "")
    over = ", ".join(f"{names[r.symbol]} < {expression_text(r.extent, {})}" for r in f.over)
    return f"{f.reduce.value}[{over}{f' where {where}' if where else ''}] {expression_text(f.body, body, PRODUCT)}"


def formula_text(f: Formula) -> str:
    """`f` as a statement of the language: what the printer writes and the parser reads.

    Every index shows its range, so that the text alone gives the formula back.
    """
    names = names_of(f)
    axes = ", ".join(f"{names[a.symbol]} < {expression_text(a.extent, {})}" for a in f.axes)
    kind = ""
    if f.dtype is not DType.FLOAT:
        kind = f" : {f.dtype.value}"
        if f.bound is not None:
            kind = f" : index {expression_text(f.bound, {}, ATOM)}"
    left = f"{f.out}[{axes}]" if f.axes else f.out
    return f"{'stop ' if f.stop else ''}{left}{kind} = {law_text(f, names)}"


def equation_text(f: Formula) -> str:
    """`f` as a person writes it, without ranges: for pictures, comments and traces."""
    indices = tuple(index.name for index in f.indices)
    if any(not read.indices and read.tensor in indices for read in f.reads):  # an index gives way to such a name
        return _equation_text(f)
    numbers = {name: f"_{k}" for k, name in enumerate(dict.fromkeys((*f.tensors, f.out)))}
    reads = tuple(Access(numbers[read.tensor], read.indices, read.outside) for read in f.reads)
    text = _equation_pattern(amend(f, out=numbers[f.out], reads=reads), indices)
    names = tuple(numbers)
    return _NUMBER.sub(lambda found: names[int(found[1])], text)


_NUMBER = re.compile(r"(?<![\w.])_(\d+)(?![\w.])")  # no user's name starts with an underscore


@lru_cache(maxsize=4096)  # equal layers read the same, but for the names of tensors
def _equation_pattern(f: Formula, indices: tuple[str, ...]) -> str:
    """indices: what `f` calls its indices, which equality leaves out."""
    return _equation_text(f)


def _equation_text(f: Formula) -> str:
    names = names_of(f)
    left = f"{f.out}[{', '.join(names[a.symbol] for a in f.axes)}]" if f.axes else f.out
    if not f.over:
        return f"{left} = {law_text(f, names)}"
    over = ", ".join(names[r.symbol] for r in f.over)
    where = " and ".join(expression_text(c, names, OR + 1) for c in f.where)
    within = f"{over}{f' where {where}' if where else ''}"
    return f"{left} = {f.reduce.value}[{within}] {expression_text(f.body, names, PRODUCT)}"
