"""From the start of a process to its first finished step, beside ``import numpy``; and ``chainrule --help``.

Every program is what a user would write. They run in turn, many times, and the medians are compared; caches are
warm, for one run of each goes before.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import peers

ROOT = Path(__file__).parents[2]
WIDTHS = "64, 128, 10"

CHAINRULE = """
import numpy as np
import chainrule as cr
step = cr.load("graphs/mlp.graph").compile(optimizer="sgd", rate=0.01)
print(float(step(x=np.zeros((32, 64), np.float32), label=np.zeros(32, np.int64))))
"""
TORCH = """
import torch
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
loss = torch.nn.functional.cross_entropy(net(torch.zeros(32, 64)), torch.zeros(32, dtype=torch.long))
loss.backward()
optimizer.step()
print(loss.item())
"""
JAX = """
import jax, jax.numpy as jnp
def loss(p, x, label):
    z = jax.nn.relu(x @ p[0] + p[1]) @ p[2] + p[3]
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, label[:, None], axis=1)[:, 0])
@jax.jit
def step(p, x, label):
    value, g = jax.value_and_grad(loss)(p, x, label)
    return [a - 0.01 * b for a, b in zip(p, g)], value
import numpy as np
p = [np.ones(s, np.float32) for s in ((64, 128), (128,), (128, 10), (10,))]
print(float(step(p, np.zeros((32, 64), np.float32), np.zeros(32, np.int32))[1]))
"""


def commands() -> dict[str, list[str]]:
    """What is timed, by name."""
    python = [sys.executable, "-c"]
    script = Path(sys.executable).with_name("chainrule")
    programs = {
        "import numpy": [*python, "import numpy"],
        "chainrule --help": [str(script), "--help"],
        "chainrule first step": [*python, CHAINRULE],
        "torch first step": [*python, TORCH],
        "jax first step": [*python, JAX],
    }
    return {
        name: command
        for name, command in programs.items()
        if name == "import numpy" or peers.interpreter(peers.named(name.split()[0]))
    }


def measure_startup(threads: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each command, and its ratio to ``import numpy``; ``error`` where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | peers.environment(threads, Path(folder))
        times: dict[str, list[float]] = {}
        results: dict[str, Any] = {}
        for name, command in commands().items():
            error = run(command, environment)[1]
            if error:
                results[name] = {"error": error}
            else:
                times[name] = []
        for _ in range(repeats):
            for name in times:
                times[name].append(run(commands()[name], environment)[0])
    base = statistics.median(times["import numpy"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        results[name] = {"seconds": median, "times_import_numpy": median / base}
    return results


def run(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of one process, and its last line of error if it failed."""
    began = time.perf_counter()
    try:
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    except OSError as failure:
        return 0.0, str(failure)
    lines = ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode}"]
    return time.perf_counter() - began, lines[-1] if ran.returncode else ""
