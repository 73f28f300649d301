"""The losses that count: PyTorch, eager, in float64."""

from __future__ import annotations

from typing import Any

import torch

from tests.benchmarks import peers_torch
from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.rows import Row


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step in float64."""
    return peers_torch.start(row, data, threads, torch.float64)
