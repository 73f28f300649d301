"""Training by a recipe, in PyTorch: data, batches, schedule, optimizer and judgement are those of `chainrule train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from chainrule.api.model import Model, load
from chainrule.train import data, measures, recipe
from chainrule.train.loop import weighted
from chainrule.train.samples import Arrays, Data, batches, first, samples, shuffled

GRAPHS = Path(__file__).parents[2] / "graphs"


def prepared(
    name: str, quick: bool = False, arguments: Mapping[str, Any] | None = None, limit: int | None = None
) -> tuple[recipe.Recipe, Data, Model]:
    """A recipe, as --quick or with other `arguments` of the model if asked; its data, at most `limit`; its model."""
    how = recipe.read(GRAPHS / f"{name}.toml")
    how = recipe.shortened(how) if quick else how
    how = msgspec.structs.replace(how, set={**how.set, **(arguments or {})}, limit=limit or how.limit)
    found = data.load(how.data or "", how.label, data.Ask(window=how.window))
    return how, first(found, how.limit), load(GRAPHS / f"{name}.graph", **how.set)


def steps_an_epoch(how: recipe.Recipe, given: Data) -> int:
    return 1 if given.whole else -(-samples(given.train) // how.batch)


def optimizer(how: recipe.Recipe, module: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's optimizer of that name, with its settings."""
    given, rate = how.settings, how.rate or 0.0
    parameters = [p for p in module.parameters() if p.requires_grad]
    decay = given.get("decay", 0.01 if how.optimizer == "adamw" else 0.0)
    match how.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, rate, weight_decay=decay)
        case "momentum" | "nesterov" as kind:
            beta = given.get("beta", 0.9)
            return torch.optim.SGD(parameters, rate, beta, weight_decay=decay, nesterov=kind == "nesterov")
        case "adam" | "adamw" as kind:
            make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
            betas = given.get("b1", 0.9), given.get("b2", 0.999)
            return make(parameters, rate, betas, given.get("eps", 1e-8), decay)
        case other:
            raise ValueError(f"no twin of the optimizer {other}")


def clip(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale all gradients to the norm `most` where it is larger: clip_grad_norm_ without its 1e-6 beside the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    torch._foreach_mul_(gradients, (most / norm).clamp(max=1.0))


@dataclass(eq=False)
class Trained:
    """A twin in training."""

    module: nn.Module
    how: recipe.Recipe
    dtype: torch.dtype
    optimizer: torch.optim.Optimizer

    def step(self, batch: Arrays, rate: float, **draws: Any) -> float:
        """Forward, backward, update; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        loss = self.module(**self.tensors(batch), **draws)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if "clip" in self.how.settings:
            clip(list(self.module.parameters()), self.how.settings["clip"])
        self.optimizer.step()
        return float(loss.detach())

    def predict(self, *, outputs: Sequence[str], **batch: Any) -> Mapping[str, Any]:
        """The named outputs in eval mode: what `chainrule.train.measures` asks a model for."""
        self.module.eval()
        with torch.no_grad():
            found = self.module(**self.tensors(batch))
        return {name: found[name].numpy() for name in outputs}

    def tensors(self, batch: Arrays) -> dict[str, torch.Tensor]:
        """A batch as the module takes it."""
        taken = self.module.forward.__code__.co_varnames
        given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items() if name in taken}
        return {name: t.to(self.dtype) if t.is_floating_point() else t.long() for name, t in given.items()}


def begun(module: nn.Module, how: recipe.Recipe, dtype: torch.dtype) -> Trained:
    return Trained(module, how, dtype, optimizer(how, module))


def course(how: recipe.Recipe, given: Data) -> Iterator[tuple[int, float, Arrays]]:
    """Every step of a run: its epoch, its rate, its batch."""
    each, done = steps_an_epoch(how, given), 0
    for epoch in range(how.epochs):
        order = shuffled(given.train, how.seed, epoch)
        for batch in batches(given.train, given.cut(how.batch), order):
            yield epoch, (how.rate or 0.0) * recipe.factor(how.schedule, done, each * how.epochs), batch
            done += 1


Watch = Callable[[int, float], None]


def train(run: Trained, given: Data, watch: Watch = lambda epoch, loss: None) -> dict[str, Any]:
    """The whole recipe; the last epoch's training loss, and what the test samples say."""
    losses: list[tuple[float, int]] = []
    now = 0
    for epoch, rate, batch in course(run.how, given):
        if epoch != now:
            watch(now + 1, weighted(losses))
            now, losses = epoch, []
        losses.append((run.step(batch, rate), 1 if given.whole else samples(batch)))
    metric = run.how.metric or "loss"
    counted = SimpleNamespace(steps=0)  # PyTorch draws anew without it
    found = measures.redrawn(counted, run.how.draws, lambda: measures.judged(run.predict, given, run.how))
    value = found[metric]
    return {
        "metric": metric,
        "value": value if math.isfinite(value) else None,
        "goal": run.how.goal,
        "epochs": run.how.epochs,
        "train_loss": weighted(losses),
        "test_loss": found["loss"],
    }
