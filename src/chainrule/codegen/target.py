"""The CPU that kernels are compiled for: its name, its features, the vectors and registers that it offers.

Imports llvmlite only, so that a warm process can name its target without numba.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

import llvmlite.binding as llvm

from chainrule.errors import ChainruleError, nearest

Level = Literal["native", "avx512", "avx2", "sse2", "neon", "apple"]

VARIABLE = "CHAINRULE_CPU"
"""Of the environment: the level that this process compiles for, where that is not all that its CPU has."""

NEEDS = {"avx512": ("avx512f", "avx512vl", "avx512dq"), "avx2": ("avx2", "fma"), "sse2": ("sse2",)}
"""What a CPU must have, by level, as LLVM calls it."""


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM knows it; `bits` of a vector register, of which there are `registers`.

    fma: whether a fused multiply-add is one instruction. widest: how many vectors a tile of a product spans at most.
    triple: of a machine that is not this one, as LLVM writes it.
    """

    cpu: str
    features: str
    bits: int
    registers: int
    fma: bool
    widest: int = 2
    triple: str = ""

    def lanes(self, element: str) -> int:
        """How many elements one vector register holds: of float32 16 with AVX-512, 8 with AVX2, 4 with NEON."""
        return self.bits // (64 if element in ("float64", "int64") else 32)

    def tallest(self, vectors: int) -> int:
        """The rows of a tile so wide that stays in registers, beside a row's vectors and the element times which."""
        return (self.registers - max(vectors, 2) - 1) // vectors

    @property
    def scales(self) -> bool:
        """Whether a multiplication by 2^i, rounded once, is an instruction: vscalefps of AVX-512."""
        return self.bits == 512

    def __str__(self) -> str:
        return " ".join(filter(None, (self.cpu, f"{self.bits} bits", self.features, self.triple)))


def host(level: Level | None = None) -> Target:
    """The CPU that we run on, or what every CPU of a level has; of none, the level that CHAINRULE_CPU says.

    ``avx512`` (Skylake servers on), ``avx2`` (Haswell on), ``sse2`` (all x86-64), ``neon`` (all 64-bit ARM, Linux),
    ``apple`` (the same, macOS). Raises ChainruleError where CHAINRULE_CPU says what this machine cannot run.
    """
    match level or _asked():
        case "avx512":
            return Target("skylake-avx512", "-prefer-256-bit", bits=512, registers=32, fma=True, widest=4)
        case "avx2":
            return Target("haswell", "", bits=256, registers=16, fma=True)
        case "sse2":
            return Target("x86-64", "", bits=128, registers=16, fma=False)
        case "neon":
            return _neon("generic", "+neon", "" if _is_arm() else "aarch64-unknown-linux-gnu")
        case "apple":
            return _neon("apple-m1", "", "" if _is_apple() else "arm64-apple-macosx")
        case _:
            return _native()


def _native() -> Target:
    """All that this machine has."""
    features, name = dict(llvm.get_host_cpu_features()), llvm.get_host_cpu_name()
    if _is_arm():  # what LLVM says of features differs from system to system; NEON is in all of them
        return _neon(name, _text(features), "")
    if all(features.get(feature) for feature in NEEDS["avx512"]):
        # LLVM prefers 256 bits on server CPUs whose clock fell with 512 in 2017; later ones lose half their peak.
        return Target(name, f"{_text(features)},-prefer-256-bit", bits=512, registers=32, fma=True, widest=4)
    if features.get("avx"):
        return Target(name, _text(features), bits=256, registers=16, fma=bool(features.get("fma")))
    return Target(name, _text(features), bits=128, registers=16, fma=False)


def _neon(cpu: str, features: str, triple: str) -> Target:
    """64-bit ARM. Three vectors, since 8 rows of two would leave half of the 32 registers and of four pipelines idle.

    Source: the tile of 8 × 12 of BLIS for ARMv8; a multiply-add by one lane of a register needs no broadcast.
    """
    return Target(cpu, features, bits=128, registers=32, fma=True, widest=3, triple=triple)


def _asked() -> Level:
    """What CHAINRULE_CPU says, if this machine can run it."""
    said = os.environ.get(VARIABLE) or "native"
    if said == "native":
        return "native"
    levels: dict[str, Level] = {name: name for name in get_args(Level)}
    if said not in levels:
        raise ChainruleError(f"{VARIABLE} is {said!r}: {nearest(said, levels)}\n  Way out: one of {', '.join(levels)}")
    features = llvm.get_host_cpu_features()
    arm = {"neon": _is_arm(), "apple": _is_apple()}
    if not arm.get(said, all(features.get(feature) for feature in NEEDS.get(said, ()))):
        problem = f"{VARIABLE} is {said!r}, and this machine ({llvm.get_host_cpu_name()}) cannot run that"
        raise ChainruleError(f"{problem}\n  Way out: leave it out, or name what every machine of yours has")
    return levels[said]


def _is_arm() -> bool:
    return bool(llvm.get_process_triple().startswith(("aarch64", "arm64")))


def _is_apple() -> bool:
    return _is_arm() and "apple" in llvm.get_process_triple()


def _text(features: dict[str, bool]) -> str:
    return ",".join(("+" if present else "-") + name for name, present in sorted(features.items()))
