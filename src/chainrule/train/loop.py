"""The training loop: epochs over shuffled batches, the rate on its schedule, the test samples judged after each.

The loop knows a compiled model by the few things of `Step` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.train.checkpoint import Checkpoint, Epoch, Record
from chainrule.train.measures import Predict, judged, redrawn
from chainrule.train.recipe import Recipe, factor
from chainrule.train.samples import Arrays, Data, part, samples, shuffled

Array = NDArray[Any]


class Step(Protocol):
    """A compiled training step.

    A call with a batch does forward, backward and update, and returns the loss before it. `params`, `states`:
    reading copies, assigning writes; the states are the model's and the optimizer's. `scalars`: run-time numbers,
    such as the rate. `steps`: how many steps have been done, which optimizers and draws count by.
    """

    steps: int

    @property
    def params(self) -> MutableMapping[str, Array]: ...

    @property
    def states(self) -> MutableMapping[str, Array]: ...

    @property
    def scalars(self) -> MutableMapping[str, float]: ...

    def __call__(self, **batch: Array) -> Any: ...

    def run(self, steps: int, scalars: Mapping[str, Sequence[float]], /, **batches: Array) -> Any:
        """`steps` steps in one call: a slice of each array, and a value of each of `scalars`, a step. All losses."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `steps` are done, in `epoch` (from 1) of `epochs`; the latest loss, the curve."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    curve: tuple[Epoch, ...]


Watch = Callable[[Progress], None]

PATIENCE = 0.1
"""Seconds between two reports within an epoch; steps of one call take less."""


def ignore(progress: Progress) -> None:
    """Nobody watches."""


Bring = Callable[[Arrays, Array | None], tuple[Arrays, Array | None]]
"""Where the samples of an epoch, in some order (None: as they are), are taken from, and in which order from there."""


def where_they_are(arrays: Arrays, order: Array | None) -> tuple[Arrays, Array | None]:
    """Each batch is picked when it is wanted."""
    return arrays, order


def train(
    step: Step,
    predict: Predict,
    data: Data,
    recipe: Recipe,
    curve: tuple[Epoch, ...] = (),
    after_epoch: Callable[[tuple[Epoch, ...]], None] = lambda curve: None,
    watch: Watch = ignore,
    bring: Bring = where_they_are,
) -> tuple[Epoch, ...]:
    """Train until `recipe.epochs` epochs are done, and return the curve.

    curve: of the epochs done before; a resumed run goes on as if it had never stopped, for the order of the samples
    and the rate depend on the epoch alone. after_epoch: for checkpoints. watch: told of progress about ten times a
    second. bring: nearer to the step, where that is on a GPU. Raises ChainruleError if the loss is no longer finite.
    """
    per_epoch = 1 if data.whole else -(-samples(data.train) // recipe.batch)
    steps = per_epoch * recipe.epochs
    base = step.scalars.get("rate") if recipe.rate is None else recipe.rate
    told = time.monotonic()
    for epoch in range(len(curve), recipe.epochs):
        losses: list[tuple[float, int]] = []
        near, order = bring(data.train, None if data.whole else shuffled(data.train, recipe.seed, epoch))

        def rate(k: int, before: int = epoch * per_epoch) -> float | None:
            return None if base is None else base * factor(recipe.schedule, before + k, steps)

        for found in stretches(step, near, order, data.cut(recipe.batch), rate):
            losses += found
            if time.monotonic() - told > PATIENCE:
                told = time.monotonic()
                done = epoch * per_epoch + len(losses)
                watch(Progress(epoch + 1, recipe.epochs, done, steps, losses[-1][0], curve))
        curve = (*curve, judge(step, predict, data, recipe, epoch + 1, weighted(losses)))
        after_epoch(curve)
        watch(Progress(epoch + 1, recipe.epochs, (epoch + 1) * per_epoch, steps, losses[-1][0], curve))
    return curve


def stretches(
    step: Step, arrays: Arrays, order: Array | None, size: int | None, rate: Callable[[int], float | None]
) -> Iterator[list[tuple[float, int]]]:
    """Do an epoch's steps, over batches as `samples.batches` cuts them, as many in one call as take less than PATIENCE
    at the pace of the last ones; of each call the losses, with the samples of each. rate: of each step."""
    total = samples(arrays)
    cut = total if size is None else size
    k, most = 0, 1
    while k * cut < total:
        count = max(min(most, total // cut - k), 1)  # the last batch may be a smaller one: it comes alone
        rates = [each for each in map(rate, range(k, k + count)) if each is not None]
        start = time.monotonic()
        batch = arrays if size is None else part(arrays, order, k * cut, (k + count) * cut)
        if count > 1:
            batch = {name: array.reshape((count, cut, *array.shape[1:])) for name, array in batch.items()}
            found = step.run(count, {"rate": rates} if rates else {}, **batch).tolist()
        else:
            step.scalars.update({"rate": rates[0]} if rates else {})
            found = [float(step(**batch))]
        yield [(loss, min(cut, total - (k + n) * cut)) for n, loss in enumerate(found)]
        k += count
        most = max(1, min(4 * most, int(count * PATIENCE / 2 / max(time.monotonic() - start, 1e-9))))


def judge(step: Step, predict: Predict, data: Data, recipe: Recipe, epoch: int, train_loss: float) -> Epoch:
    """The curve's next point."""
    if not math.isfinite(train_loss):
        way_out = "a lower rate, a warmup in the schedule, or data scaled to about 1"
        raise ChainruleError(f"the loss became {train_loss} in epoch {epoch}\n  Way out: {way_out}")
    due = epoch % recipe.every == 0 or epoch == recipe.epochs
    values: dict[str, float] = {}
    if due and samples(data.test):
        values = redrawn(step, recipe.draws, lambda: judged(predict, data, recipe))
    return Epoch(epoch, train_loss, values.get("loss"), values.get(recipe.metric or "loss"))


def verdict(recipe: Recipe, curve: Sequence[Epoch]) -> dict[str, Any]:
    """What a run came to, as every recipe reports it: metric, value, goal, reached, and the last losses."""
    last = curve[-1] if curve else Epoch(0, math.nan)
    metric = recipe.metric or "loss"
    return {
        "epochs": last.epoch,
        "train_loss": last.train_loss,
        "test_loss": last.test_loss,
        f"test_{metric}": last.value,
        "metric": metric,
        "value": last.value,
        "goal": recipe.goal,
        "reached": recipe.reached(math.nan if last.value is None else last.value),
    }


def weighted(values: Sequence[tuple[float, int]]) -> float:
    """The mean of values, each with its weight."""
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def checkpoint_of(step: Step, record: Record, curve: tuple[Epoch, ...]) -> Checkpoint:
    """The run of `record` as it stands, its tensors copied."""
    now = msgspec.structs.replace(record, steps=step.steps, curve=curve)
    return Checkpoint(now, dict(step.params), dict(step.states))


def restore(step: Step, checkpoint: Checkpoint) -> None:
    """Put `checkpoint` into `step`. ChainruleError if its tensors are not the step's, which then stays as it was."""
    pairs = (
        ("parameters", step.params, checkpoint.parameters),
        ("states", step.states, checkpoint.states),
    )
    for kind, mine, theirs in pairs:
        if mine.keys() != theirs.keys():
            missing, foreign = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
            facts = f"missing: {', '.join(missing) or 'none'}\n  unknown: {', '.join(foreign) or 'none'}"
            way_out = "give the model, its arguments and the optimizer that the run was made with"
            raise ChainruleError(f"the checkpoint's {kind} are not this model's\n  {facts}\n  Way out: {way_out}")
    for _, mine, theirs in pairs:
        for name, array in theirs.items():
            mine[name] = array
    step.steps = checkpoint.record.steps
