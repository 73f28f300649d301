"""The peers, each a module with ``start(row, data, threads) -> (step, calls)``, run in a process of its own.

`step` is called as ``step(*args, **kwargs)`` with each of `calls` in turn, whose arrays are already in the peer's
own form, and returns the loss as a Python float (or, of a row with inner steps, all losses as an array).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import COMPARED

Step = Callable[..., Any]
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Peer:
    """package: what must be installed. module: who knows it. version_of: the package whose version is reported."""

    name: str
    package: str
    module: str


PEERS = (
    Peer("torch", "torch", "peers_torch"),
    Peer("torch.compile", "torch", "peers_torch_compile"),
    Peer("jax", "jax", "peers_jax"),
    Peer("chainrule", "chainrule", "peers_chainrule"),
)
REFERENCE = Peer("reference", "torch", "peers_reference")


def named(name: str) -> Peer:
    """The peer of that name."""
    return next(peer for peer in (*PEERS, REFERENCE) if peer.name == name)


def installed(peer: Peer) -> bool:
    """Whether its package can be imported here; nothing is imported."""
    return importlib.util.find_spec(peer.package) is not None


def environment(threads: int, cache: Path) -> dict[str, str]:
    """The variables that hold every library to `threads` threads and to a cache of its own under `cache`."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NPROC": str(threads),
        "PJRT_NPROC": str(threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CHAINRULE_CACHE": str(cache / "chainrule"),
        "XDG_CACHE_HOME": str(cache / "xdg"),
    }


def calls_of(row: Any, data: Mapping[str, Any], convert: Callable[[Any], Any]) -> Calls:
    """Each step's inputs in the peer's own form; as many as are compared, also where they are always the same."""
    batches = {name[2:]: value for name, value in data.items() if name.startswith("x/")}
    made = [{name: convert(value[k]) for name, value in batches.items()} for k in range(row.steps)]
    return [((), made[k % len(made)]) for k in range(max(row.steps, COMPARED))]
