"""The few nodes that are no formula, as data. Keep this list short.

``uniform``: independent draws from the uniform law on (0, 1), a tensor without storage: a read computes it from a
counter. Other laws are formulas over it (``library/random.graph``). No gradient flows through it.
``gradient``: of reads[0], of rank 0, with respect to reads[1]; `derive.expand_gradient` puts its formulas in place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from chainrule.ir.formula import DType, Extent, Origin

Kind = Literal["uniform", "gradient"]


@dataclass(frozen=True)
class Primitive:
    """``out[shape] = kind(reads)``. `key`: what a draw's counter is keyed by; passes may rename `out`, never it."""

    kind: Kind
    out: str
    shape: tuple[Extent, ...]
    reads: tuple[str, ...] = ()
    key: str = ""
    dtype: DType = DType.FLOAT
    bound: Extent | None = None
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.reads


def hash_of(key: str) -> int:
    """The 64 bits by which a draw's counter is keyed (`philox.uniforms` takes them for its node)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
