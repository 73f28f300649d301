"""PyTorch, eager: fused addmm, autograd.grad, one foreach update (faster than backward and optim.SGD)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.rows import RATE, Row


def loss_of(params: list[torch.Tensor], x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the perceptron."""
    h = x
    for k in range(0, 4, 2):
        h = torch.relu(torch.addmm(params[k + 1], h, params[k]))
    return F.cross_entropy(torch.addmm(params[5], h, params[4]), label)


def tensors(data: dict[str, Any]) -> tuple[list[torch.Tensor], Calls]:
    """Parameters in order, and the batches."""
    params = [torch.from_numpy(data[f"{letter}{k}"].copy()) for k in range(3) for letter in "Wb"]
    batches = zip(data["x"], data["label"], strict=True)
    return params, [((torch.from_numpy(x), torch.from_numpy(label)), {}) for x, label in batches]


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step, eagerly."""
    torch.set_num_threads(threads)
    params, calls = tensors(data)
    for param in params:
        param.requires_grad_()

    def step(x: torch.Tensor, label: torch.Tensor) -> float:
        loss = loss_of(params, x, label)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            torch._foreach_add_(params, grads, alpha=-RATE)
        return loss.item()

    return step, calls
