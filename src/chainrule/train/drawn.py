"""What a trained model makes, as files beside its figures: pictures as PNG, text as it is.

pictures    outputs (or inputs) of the first test samples, one under the other; an output without axes but the
            samples' is one picture
diffusion   x ← output(x, t) for t = steps − 1 … 0, from standard normal noise
text        one symbol after another: the last of an output that draws what follows each token
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.train import measures, png
from chainrule.train.measures import Predict
from chainrule.train.recipe import Draw, Recipe
from chainrule.train.samples import Data

Array = NDArray[Any]


class Clock(measures.Clock, Protocol):
    """What draws are counted by, and the model under it."""

    @property
    def predict(self) -> Predict: ...


def files(step: Clock, data: Data, recipe: Recipe) -> dict[str, bytes]:
    """The files that a recipe asks for, by name."""
    found = {}
    for name, draw in recipe.samples.items():
        match draw.kind:
            case "pictures":
                found[f"{name}.png"] = png.encode(pictures(step.predict, data, draw))
            case "diffusion":
                found[f"{name}.png"] = png.encode(diffusion(step, draw, recipe.seed))
            case "text":
                found[f"{name}.txt"] = text(step, data, draw, recipe.window).encode()
    return found


def pictures(predict: Predict, data: Data, draw: Draw) -> Array:
    """Rows of pictures: for each of the outputs those of the first samples, or one picture made of all samples."""
    one = {name: array[: draw.count] for name, array in data.test.items()}
    lines = [one[name] if name in one else np.asarray(predict(outputs=(name,), **one)[name]) for name in draw.outputs]
    if any(line.ndim == 1 for line in lines):
        lines = [measures.rows(predict, data, data.test, name) for name in draw.outputs]
        return png.grid(np.stack([square(line) for line in lines]), len(lines), scale=1)
    columns = min(len(lines[0]), max(10, math.isqrt(len(lines[0])))) if len(lines) == 1 else len(lines[0])
    return png.grid(np.stack([square(row) for line in lines for row in line[: len(lines[0])]]), columns)


def square(row: Array) -> Array:
    """Pixels in a row as a square picture."""
    side = math.isqrt(row.size)
    if side * side != row.size:
        raise ChainruleError(
            f"{row.size} pixels are no square picture\n  Way out: draw an output of side * side pixels"
        )
    return row.reshape(side, side)


def diffusion(step: Clock, draw: Draw, seed: int) -> Array:
    """`count` pictures from noise, in so many steps backwards; each step has draws of its own."""
    before, output = step.steps, draw.outputs[0]
    x = np.random.default_rng(seed).standard_normal((draw.count, draw.width)).astype(np.float32)
    try:
        for t in range(draw.steps - 1, -1, -1):
            step.steps = before + t
            x = np.asarray(step.predict(outputs=(output,), x=x, t=np.full(draw.count, t))[output])
    finally:
        step.steps = before
    shown = np.stack([square(row) for row in (x - draw.low) / (draw.high - draw.low)])
    return png.grid(shown, max(1, math.isqrt(draw.count)))


def text(step: Clock, data: Data, draw: Draw, window: int | None) -> str:
    """`start` and `steps` symbols after it, each drawn from the `window` symbols before."""
    numbers = {symbol: k for k, symbol in enumerate(data.classes)}
    if foreign := sorted(set(draw.start) - set(numbers)):
        raise ChainruleError(f"{data.name} has no symbol {foreign[0]!r}\n  Way out: another start in [samples]")
    tokens = [numbers[symbol] for symbol in draw.start] or [0]
    before, output = step.steps, draw.outputs[0]
    try:
        for k in range(draw.steps):
            step.steps = before + k
            seen = np.array([tokens[-(window or 128) :]])
            tokens.append(int(np.asarray(step.predict(outputs=(output,), token=seen)[output])[0, -1]))
    finally:
        step.steps = before
    return "".join(data.classes[k] for k in tokens) + "\n"
