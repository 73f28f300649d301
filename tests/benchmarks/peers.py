"""The peers, each a module with ``start(row, data, threads) -> (step, calls)``, run in a process of its own.

`step` is called as ``step(*args, **kwargs)`` with each of `calls` in turn, whose arrays are already in the peer's
own form, and returns the loss as a Python float (or, of a row with inner steps, all losses as an array).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
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
    Peer("pytensor", "pytensor", "peers_pytensor"),
    Peer("tensorgrad", "tensorgrad", "peers_tensorgrad"),
    Peer("chainrule", "chainrule", "peers_chainrule"),
)
REFERENCE = Peer("reference", "torch", "peers_reference")


def named(name: str) -> Peer:
    """The peer of that name."""
    return next(peer for peer in (*PEERS, REFERENCE) if peer.name == name)


@cache
def interpreter(peer: Peer) -> str | None:
    """The Python that has the peer's package: this one, else the one that CHAINRULE_PEERS_PYTHON names, or None.

    PyTensor and tensorgrad ask for older Numba and networkx than Chainrule, and so for an environment of their own.
    """
    if importlib.util.find_spec(peer.package) is not None:
        return sys.executable
    other = os.environ.get("CHAINRULE_PEERS_PYTHON")
    if not other:
        return None
    script = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer.package!r}) is None)"
    return other if subprocess.run([other, "-c", script], check=False).returncode == 0 else None


def version_of(peer: Peer) -> str | None:
    """The version of the peer's package in its own environment."""
    if (python := interpreter(peer)) is None:
        return None
    script = f"from importlib.metadata import version; print(version({peer.package!r}))"
    return subprocess.run([python, "-c", script], check=False, capture_output=True, text=True).stdout.strip() or None


def environment(threads: int, folder: Path) -> dict[str, str]:
    """The variables that hold every library to `threads` threads and to a cache of its own under `folder`."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "NPROC": str(threads),
        "PJRT_NPROC": str(threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "PYTENSOR_FLAGS": f"cxx=,floatX=float32,base_compiledir={folder / 'pytensor'}",
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "CHAINRULE_CACHE": str(folder / "chainrule"),
        "XDG_CACHE_HOME": str(folder / "xdg"),
    }


def calls_of(row: Any, data: Mapping[str, Any], convert: Callable[[Any], Any]) -> Calls:
    """Each step's inputs in the peer's own form; as many as are compared, also where they are always the same."""
    batches = {name[2:]: value for name, value in data.items() if name.startswith("x/")}
    made = [{name: convert(value[k]) for name, value in batches.items()} for k in range(row.steps)]
    return [((), made[k % len(made)]) for k in range(max(row.steps, COMPARED))]
