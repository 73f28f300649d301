"""PyTorch, compiled: forward, backward and update are one graph (`torch.func` traces through the gradient)."""

from __future__ import annotations

from typing import Any

import torch

from tests.benchmarks.peers import Calls, Step
from tests.benchmarks.peers_torch import FUNCTIONS, loss_of, tensors
from tests.benchmarks.rows import DECAY, Row

Tensors = dict[str, torch.Tensor]


def start(
    row: Row, data: dict[str, Any], threads: int, device: str = "cpu", mode: str | None = None
) -> tuple[Step, Calls]:
    """One step, as one compiled graph. mode: of torch.compile; what it may record as a CUDA graph stays where it is."""
    torch.set_num_threads(threads)
    params, calls = tensors(row, data, device=device)
    if row.forward:
        function = torch.compile(FUNCTIONS[row.loss], fullgraph=True)
        return torch.no_grad()(lambda x: function(x)[0].item()), calls
    loss_at = loss_of(row)
    gradient = torch.func.grad_and_value(lambda params, batch: loss_at(params, **batch))
    moments = [{name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2)]
    count = torch.zeros((), device=device)
    for tensor in (*params.values(), *(m for moment in moments for m in moment.values()), count):
        torch._dynamo.mark_static_address(tensor)

    def descend(params: Tensors, grads: Tensors) -> None:
        for name, param in params.items():
            param.sub_(grads[name], alpha=row.rate)

    def adam(params: Tensors, grads: Tensors) -> None:
        count.add_(1)
        for name, param in params.items():
            m, v = (moment[name] for moment in moments)
            m.lerp_(grads[name], 0.1)
            v.lerp_(grads[name] * grads[name], 0.001)
            if row.optimizer == "adamw":
                param.mul_(1 - row.rate * DECAY)
            param.sub_(row.rate * (m / (1 - 0.9**count)) / (torch.sqrt(v / (1 - 0.999**count)) + 1e-8))

    def update(params: Tensors, batch: Tensors) -> torch.Tensor:
        grads, loss = gradient(params, batch)
        (descend if row.optimizer == "sgd" else adam)(params, grads)
        return loss

    compiled = torch.compile(update, fullgraph=True, mode=mode)

    def step(**batch: torch.Tensor) -> float:
        with torch.no_grad():
            return compiled(params, batch).item()

    return step, calls
