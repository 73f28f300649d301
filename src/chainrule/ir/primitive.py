"""The few nodes that are no formula, as data. Keep this list short.

``uniform``: independent draws from the uniform law on (0, 1), a tensor without storage: a read computes it from a
counter. Other laws are formulas over it (``library/random.graph``). No gradient flows through it.
``fixed_point``: the z with z = reads[0], where the formulas of reads[0] read z itself: a circle of the graph. It is
iterated from `start`, at most `steps` times, until max|Δ| ≤ within · (1 + max|z|). Its rule: the cotangent u of z is a
fixed point too, u = z_bar + Jᵀu, which is what reverse mode around the circle says (`derive.backward`); before it
runs, `optimize.settle` writes the iteration as a recurrence along its steps.
``gradient``: of reads[0], of rank 0, with respect to reads[1]; `derive.expand_gradient` puts its formulas in place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from chainrule.ir.formula import DType, Extent, Origin

Kind = Literal["uniform", "gradient", "fixed_point"]


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
    start: float = 0.0
    within: float = 0.0
    steps: int = 0
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.reads


def hash_of(key: str) -> int:
    """The 64 bits by which a draw's counter is keyed (`philox.uniforms` takes them for its node)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
