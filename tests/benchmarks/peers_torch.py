"""PyTorch, eager: fused operations, autograd.grad, one foreach update (faster than backward and optim.SGD)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.benchmarks import networks, ops_torch
from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import DECAY, Row, params_of

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "log": torch.log,
}


def tensors(
    row: Row, data: dict[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[dict[str, torch.Tensor], Calls]:
    """Parameters by name, and the batches."""

    def convert(value: Any) -> torch.Tensor:
        made = torch.from_numpy(value.copy()).to(device)
        return made.to(dtype) if made.is_floating_point() else made

    return {name: convert(value) for name, value in params_of(data).items()}, calls_of(row, data, convert)


def loss_of(row: Row) -> Callable[..., torch.Tensor]:
    """``loss(params, **batch)``."""
    return partial(getattr(networks, row.loss), ops_torch)


def start(
    row: Row, data: dict[str, Any], threads: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Step, Calls]:
    """One step, eagerly."""
    torch.set_num_threads(threads)
    params, calls = tensors(row, data, dtype, device)
    if row.forward:
        function = FUNCTIONS[row.loss]
        return torch.no_grad()(lambda x: function(x)[0].item()), calls
    loss_at, leaves = loss_of(row), list(params.values())
    for leaf in leaves:
        leaf.requires_grad_()
    kinds = {"adam": torch.optim.Adam, "adamw": partial(torch.optim.AdamW, weight_decay=DECAY)}
    adam = kinds[row.optimizer](leaves, lr=row.rate, fused=True) if row.optimizer in kinds else None

    def step(**batch: torch.Tensor) -> float:
        loss = loss_at(params, **batch)
        grads = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            if adam is None:
                torch._foreach_add_(leaves, grads, alpha=-row.rate)
            else:
                for leaf, grad in zip(leaves, grads, strict=True):
                    leaf.grad = grad
                adam.step()
        return loss.item()

    return step, calls
