"""The CPU that kernels are compiled for: its name, its features, the vectors and registers that it offers.

Imports llvmlite only, so that a warm process can name its target without numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import llvmlite.binding as llvm

Level = Literal["native", "avx2", "sse2"]


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM knows it; `bits` of a vector register, of which there are `registers`.

    fma: whether a fused multiply-add is one instruction.
    """

    cpu: str
    features: str
    bits: int
    registers: int
    fma: bool

    def lanes(self, element: str) -> int:
        """How many elements one vector register holds: 16 of float32 with AVX-512, 8 with AVX2."""
        return self.bits // (64 if element in ("float64", "int64") else 32)

    @property
    def scales(self) -> bool:
        """Whether a multiplication by 2^i, rounded once, is an instruction: vscalefps of AVX-512."""
        return self.bits == 512

    def __str__(self) -> str:
        return f"{self.cpu} {self.bits} bits {self.features}"


def host(level: Level = "native") -> Target:
    """The CPU that we run on, or what every CPU of a level has: ``avx2`` (Haswell on), ``sse2`` (all x86-64)."""
    if level == "avx2":
        return Target("haswell", "", bits=256, registers=16, fma=True)
    if level == "sse2":
        return Target("x86-64", "", bits=128, registers=16, fma=False)
    features = dict(llvm.get_host_cpu_features())
    name = llvm.get_host_cpu_name()
    if features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq"):
        # LLVM prefers 256 bits on server CPUs whose clock fell with 512 in 2017; later ones lose half their peak.
        return Target(name, f"{_text(features)},-prefer-256-bit", bits=512, registers=32, fma=True)
    if features.get("avx"):
        return Target(name, _text(features), bits=256, registers=16, fma=bool(features.get("fma")))
    # 64-bit ARM: 32 NEON registers and always a fused multiply-add; else the floor of x86-64.
    neon = bool(features.get("neon"))
    return Target(name, _text(features), bits=128, registers=32 if neon else 16, fma=neon)


def _text(features: dict[str, bool]) -> str:
    return ",".join(("+" if present else "-") + name for name, present in sorted(features.items()))
