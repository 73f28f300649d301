"""The same steps here and in PyTorch: same weights, data, draws, optimizer; the losses of both, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import torch

from chainrule.cli.training import fitting
from chainrule.train.samples import samples
from tests.references import training, weights


@dataclass(frozen=True)
class Agreement:
    """Losses of both, and the stores after the last step as pairs (name, here, there)."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    stores: tuple[tuple[str, Any, Any], ...]

    @property
    def losses_apart(self) -> float:
        """The greatest relative difference of two losses of one step."""
        return max(abs(a - b) / abs(b) for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def stores_apart(self) -> float:
        """The greatest difference within a parameter or running statistic, relative to its greatest element."""
        return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for _, a, b in self.stores)


def compared(
    name: str, steps: int = 50, quick: bool = True, arguments: Mapping[str, Any] | None = None, limit: int | None = None
) -> Agreement:
    """Train the model of a recipe and its twin side by side in float64, for the first `steps` steps of its course.

    quick: as --quick has it. arguments: of the model, beside those of the recipe. limit: so many samples at most.
    """
    how, given, model = training.prepared(name, quick, arguments, limit)
    how = msgspec.structs.replace(how, epochs=-(-steps // training.steps_an_epoch(how, given)))
    step = model.compile(how.optimizer, dtype="float64", seed=how.seed, **how.settings)
    given = fitting(given, step)
    twin = weights.twin(name, how.set, torch.float64)
    weights.begin(name, twin, {**step.params, **step.states})
    run = training.begun(twin, how, torch.float64)
    ours, theirs = [], []
    for k, (_, rate, batch) in enumerate(islice(training.course(how, given), steps), 1):
        step.scalars["rate"] = rate
        ours.append(float(step(**batch)))
        theirs.append(run.step(batch, rate, **weights.draws(name, twin, samples(batch), how.seed, k, torch.float64)))
    held, state = {**step.params, **step.states}, twin.state_dict()
    pairs = ((pair.ours, pair.of(held[pair.ours]), state[pair.theirs].numpy()) for pair in weights.PAIRS[name](twin))
    return Agreement(tuple(ours), tuple(theirs), tuple(pairs))
