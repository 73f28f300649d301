"""What a model is judged by: the mean of an output over samples, or a figure that is made from such outputs.

rmse        √ mean            of an output that is a mean squared error
bits        mean / ln 2       of a cross-entropy in nats: bits a symbol
psnr        −10 log₁₀ mean    of a mean squared error of values in 0 … 1: decibels
neighbour   the share of test samples whose nearest training sample, by an output [batch, width], has their label
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.train.recipe import Recipe
from chainrule.train.samples import Arrays, Data, batches, samples

Array = NDArray[Any]


class Predict(Protocol):
    """The model in eval mode under the step's parameters: the named outputs of a batch."""

    def __call__(self, *, outputs: Sequence[str], **batch: Array) -> Mapping[str, Array]: ...


class Clock(Protocol):
    """What draws are counted by."""

    steps: int


OF_A_MEAN: Mapping[str, Callable[[float], float]] = {
    "rmse": lambda mean: math.sqrt(mean),
    "bits": lambda mean: mean / math.log(2),
    "psnr": lambda mean: -10 * math.log10(mean) if mean > 0 else math.inf,
}


def judged(predict: Predict, data: Data, recipe: Recipe) -> dict[str, float]:
    """The loss and the recipe's metric on the test samples."""
    metric = recipe.metric or "loss"
    if metric == "neighbour":
        found = evaluate(predict, data, data.test, ("loss",))
        return found | {metric: neighbour(predict, data, recipe.of)}
    if metric in OF_A_MEAN:
        found = evaluate(predict, data, data.test, ("loss", recipe.of))
        return {"loss": found["loss"], metric: OF_A_MEAN[metric](found[recipe.of])}
    return evaluate(predict, data, data.test, ("loss", metric))


def redrawn(clock: Clock, times: int, judge: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The mean of so many judgements, each with the draws of another step; the clock stays as it is."""
    now, found = clock.steps, []
    for k in range(times):
        clock.steps = now + k
        found.append(judge())
    clock.steps = now
    return {name: sum(each[name] for each in found) / times for name in found[0]}


def evaluate(
    predict: Predict, data: Data, arrays: Arrays, outputs: Sequence[str], batch: int = 256
) -> dict[str, float]:
    """The mean of each of `outputs`, all of rank 0, over the samples: batches count by their samples."""
    names = tuple(dict.fromkeys(outputs))
    sums, count = dict.fromkeys(names, 0.0), 0
    for part in batches(arrays, data.cut(batch)):
        found = predict(outputs=names, **part)
        weight = 1 if data.whole else samples(part)
        count += weight
        for name in names:
            value = np.asarray(found[name])
            if value.ndim:
                problem = f"the metric '{name}' has the shape {list(value.shape)}, and a metric is one number"
                raise ChainruleError(f"{problem}\n  Way out: output a mean of it, as in: output {name} = mean(…)")
            sums[name] += float(value) * weight
    return {name: total / count for name, total in sums.items()}


def rows(predict: Predict, data: Data, arrays: Arrays, output: str, batch: int = 256) -> Array:
    """An output whose axis 0 counts the samples, of all of them."""
    parts = [np.asarray(predict(outputs=(output,), **part)[output]) for part in batches(arrays, data.cut(batch))]
    if any(part.ndim == 0 for part in parts):
        raise ChainruleError(f"'{output}' is one number\n  Way out: of = the name of an output whose axis 0 is batch")
    return np.concatenate(parts)


def neighbour(predict: Predict, data: Data, output: str) -> float:
    """1-NN accuracy in the embedding that `output` is."""
    known, asked = (rows(predict, data, arrays, output).astype(np.float64) for arrays in (data.train, data.test))
    distance = np.sum(known**2, 1)[None, :] - 2 * asked @ known.T
    nearest = data.train["label"][np.argmin(distance, axis=1)]
    return float(np.mean(nearest == data.test["label"]))
