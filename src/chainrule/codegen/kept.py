"""Kernels that were compiled before, for whichever model: how an emitter asks for them, and hands over new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class KeptModules:
    """Modules for a GPU, by a name that says all that decides their code but versions: (symbol, cubin, PTX)."""

    find: Callable[[str], tuple[str, bytes, bytes] | None] = lambda name: None
    keep: Callable[[str, str, bytes, bytes], None] = lambda name, symbol, cubin, ptx: None


@dataclass(frozen=True)
class Kept:
    """Objects for the CPU, by the symbol that they export; and modules for a GPU."""

    find: Callable[[str], bytes | None] = lambda symbol: None
    keep: Callable[[str, bytes], None] = lambda symbol, code: None
    modules: KeptModules = KeptModules()
