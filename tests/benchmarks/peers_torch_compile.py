"""PyTorch, compiled: forward, backward and update are one graph (`torch.func` traces through the gradient)."""

from __future__ import annotations

from typing import Any

import torch

from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.peers_torch import loss_of, tensors
from tests.benchmarks.rows import RATE, Row


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step, as one compiled graph."""
    torch.set_num_threads(threads)
    params, calls = tensors(data)
    gradient = torch.func.grad_and_value(loss_of)

    @torch.compile(fullgraph=True)
    def update(params: list[torch.Tensor], x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        grads, loss = gradient(params, x, label)
        for param, grad in zip(params, grads, strict=True):
            param.sub_(grad, alpha=RATE)
        return loss

    def step(x: torch.Tensor, label: torch.Tensor) -> float:
        with torch.no_grad():
            return update(params, x, label).item()

    return step, calls
