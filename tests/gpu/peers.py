"""The peers on a GPU: those of `tests.benchmarks`, with their tensors there; each has a process of its own.

Who is asked for float32 computes in float32: TF32 is off where it is some library's default.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import numpy as np

from chainrule import build
from tests.benchmarks import peers_chainrule
from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import Row, batches_of, params_of

PEERS = {
    "torch": "torch",
    "torch.compile": "torch",
    "torch.compile reduce-overhead": "torch",
    "jax": "jax",
    "chainrule": "chainrule",
}
"""Which package each needs."""

VARIABLE = "CHAINRULE_TESTS_GPU"
"""Tells a process its peer and its precision."""


COMPILER = "CHAINRULE_TESTS_COMPILER"
"""Tells a process which version of numba-cuda compiled the programs in its cache, whichever it has itself."""


def believe() -> None:
    """Take programs from the cache that another machine's compiler made."""
    version = os.environ.get(COMPILER)
    if version is not None:
        build._gpu_compiler = lambda: version
        build._gpu_versions.cache_clear()


def installed() -> tuple[str, ...]:
    """The peers that can run here."""
    return tuple(name for name, package in PEERS.items() if importlib.util.find_spec(package) is not None)


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step of the peer that the environment names."""
    peer, precision = os.environ[VARIABLE].split("/")
    if peer == "jax":
        jax = importlib.import_module("jax")
        names = {"float32": "float32", "tf32": "tensorfloat32"}
        jax.config.update("jax_default_matmul_precision", names[precision])
        return importlib.import_module("tests.benchmarks.peers_jax").start(row, data, threads)
    if peer == "chainrule":
        return on_gpu(row, data, precision)
    torch = importlib.import_module("torch")
    torch.set_float32_matmul_precision({"float32": "highest", "tf32": "high"}[precision])
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if peer in ("torch", "reference"):
        dtype = torch.float64 if peer == "reference" else torch.float32
        return importlib.import_module("tests.benchmarks.peers_torch").start(row, data, threads, dtype, "cuda")
    mode = "reduce-overhead" if peer.endswith("reduce-overhead") else None
    return importlib.import_module("tests.benchmarks.peers_torch_compile").start(row, data, threads, "cuda", mode)


def compiled(row: Row, precision: str, arch: str | None = None) -> Any:
    """Chainrule's step of a row; without a GPU it is only compiled."""
    model = peers_chainrule.model_of(row)
    return model.compile(row.optimizer, rate=row.rate, target="cuda", precision=precision, arch=arch)


def on_gpu(row: Row, data: dict[str, Any], precision: str) -> tuple[Step, Calls]:
    """Chainrule's, with its inputs on the device, as the others have theirs."""
    believe()
    step = compiled(row, precision)
    step.params.update(params_of(data))
    if row.inner > 1:
        return step.run, [((row.inner,), dict(step.nearer(batches_of(data))))]
    calls = calls_of(row, data, np.asarray)
    return step, [(given, dict(step.nearer(batch))) for given, batch in calls]
