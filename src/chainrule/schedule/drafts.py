"""Kernels to be: the tasks of each, and what its blocks divide."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy as sp

from chainrule.ir.formula import Index
from chainrule.ir.graph import Tensor
from chainrule.schedule.links import Links
from chainrule.schedule.product import Contraction
from chainrule.schedule.tree import LANES


def even(extent: int, size: int) -> int:
    """About `size` in whole vectors, such that an even number of blocks is about equally full: two cores share them."""
    count = max(extent // size, 1)
    count += count % 2 if count > 1 else 0
    return -(-extent // (count * LANES)) * LANES


@dataclass
class Draft:
    """A kernel to be. index: what its blocks divide; None: it runs once, on one thread. product: the task whose kernel
    it is, where a product has one of its own; all others then are maps over its places."""

    index: Index | None
    opened: dict[int, sp.Symbol] = field(default_factory=dict)
    tasks: list[int] = field(default_factory=list)
    blocks: sp.Symbol | None = None  # how many there are, once a partial result needs to know
    rows: int = 0  # of each block, where these are rows of a matrix; 0: what the work says
    closed: bool = False  # it takes no more: what would still fit makes equal stretches of a network unequal
    product: int | None = None


@dataclass
class Plan:
    """All tasks, with those that partial results have added, and the drafts that hold them, in order."""

    links: Links
    contractions: dict[int, Contraction]
    drafts: list[Draft]
    tensors: dict[str, Tensor]
