"""Recipes: how a model is trained, as TOML beside its text (graphs/mlp.toml), read strictly.

    data = "digits"
    optimizer = "adamw"
    rate = 0.01
    epochs = 30

A key that no recipe has and a value of the wrong type are errors with their line: a misspelt setting that is silently
left out costs a training run.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from chainrule.errors import SourceError, Span, nearest
from chainrule.executable import Precision

Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rate moves, as a factor of `rate`: up from 0 over `warmup` of all steps, then down to `end`.

    The kind "step" stays, and is multiplied by `factor` at each part of the steps in `at`.
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    warmup: Fraction = 0.0
    end: Fraction = 0.0
    at: tuple[Fraction, ...] = (0.5, 0.75)
    factor: Fraction = 0.1


class Draw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that a trained model fills (`train.drawn`): pictures of `outputs`, a diffusion, or a text.

    count: of pictures. steps: of a diffusion, or symbols of a text that begins with `start`. width: of x, and low and
    high: the values that are black and white, of a diffusion.
    """

    kind: Literal["pictures", "diffusion", "text"]
    outputs: tuple[str, ...]
    count: Positive = 10
    steps: Positive = 400
    start: str = ""
    width: Positive = 64
    low: float = 0.0
    high: float = 1.0


class Quick(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What --quick changes, to see in seconds that all of a run works: it is too short to reach a goal."""

    epochs: Positive = 1
    limit: Positive = 64
    window: Positive | None = None
    steps: Positive = 3  # symbols of a text
    set: dict[str, bool | int | float] = {}


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides a training run, beside the model and the machine.

    model: its file, seen from the recipe's (None: the one of the recipe's name). window: so many steps of a series,
    characters of a text, pixels of a side. limit: so many samples at most, of each part. settings: numbers of the
    optimizer other than its rate. checkpoints: keep the state of recurrences every so many steps, "sqrt" of how many
    there are, and compute the rest again (None: keep all). memory: what a step of a batch may keep between its kernels,
    as in "64MB" (None: what is fastest). target: where the step runs, and precision: what its products may be rounded
    to on a GPU. set: arguments of the model. every: so many epochs between
    two judgements. draws: so many judgements, each with other noise, whose mean counts, for models that draw. seeds: so
    many runs, seed, seed + 1 …, whose mean counts. metric: an output of the model on the test samples, or a measure
    (`train.measures`) made from the output `of`; None: its accuracy if it has one, else its loss. The goal is reached
    at `goal` or on the `better` side of it, which for losses is below. samples: files that the trained model fills.
    """

    model: str | None = None
    data: str | None = None
    label: str = "label"
    window: Positive | None = None
    limit: Positive | None = None
    optimizer: str = "adam"
    rate: Annotated[float, msgspec.Meta(ge=0)] | None = None  # None: the optimizer's own
    settings: dict[str, float] = {}
    checkpoints: Positive | Literal["sqrt"] | None = None
    memory: str | None = None
    target: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "float32"
    schedule: Schedule = Schedule()
    set: dict[str, bool | int | float] = {}
    batch: Positive = 32
    epochs: Annotated[int, msgspec.Meta(ge=0)] = 20
    every: Positive = 1
    draws: Positive = 1
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    seeds: Positive = 1
    metric: str | None = None
    of: str = "loss"
    goal: float | None = None
    better: Literal["higher", "lower"] | None = None
    samples: dict[str, Draw] = {}
    quick: Quick = Quick()

    def reached(self, value: float) -> bool | None:
        """Whether `value` of the metric reaches the goal; None where there is none, and False for NaN."""
        if self.goal is None:
            return None
        better = self.better or ("lower" if self.metric in LOWER else "higher")
        return value >= self.goal if better == "higher" else value <= self.goal


LOWER = ("loss", "rmse", "bits")
"""Metrics that are better when they are lower, where the recipe says nothing else."""


def shortened(recipe: Recipe) -> Recipe:
    """`recipe` as --quick runs it."""
    quick = recipe.quick
    samples = {
        name: msgspec.structs.replace(draw, steps=min(draw.steps, quick.steps)) if draw.kind == "text" else draw
        for name, draw in recipe.samples.items()
    }
    return msgspec.structs.replace(
        recipe,
        epochs=min(recipe.epochs, quick.epochs),
        limit=min(recipe.limit or quick.limit, quick.limit),
        window=quick.window or recipe.window,
        seeds=min(recipe.seeds, 2),
        set={**recipe.set, **quick.set},
        samples=samples,
    )


def settled(recipe: Recipe, outputs: Collection[str]) -> Recipe:
    """`recipe` with the metric that it leaves open chosen from a model's outputs."""
    if recipe.metric is not None:
        return recipe
    return msgspec.structs.replace(recipe, metric="accuracy" if "accuracy" in outputs else "loss")


def beside(model: Path) -> Recipe:
    """The recipe in the file of the model's name that ends in .toml; the plain one if there is no such file."""
    path = model.with_suffix(".toml")
    return read(path) if path.is_file() else Recipe()


def read(path: Path) -> Recipe:
    """The recipe in the file at `path`. Raises SourceError."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, file: str = "recipe.toml") -> Recipe:
    """The recipe that `text` describes; `file` is for the errors. Raises SourceError."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise SourceError(broken(text, file, str(problem)), f"no TOML: {problem}", way_out=EXAMPLE) from None
    check_keys(table, Recipe, text, file)
    for name, kind in (("schedule", Schedule), ("quick", Quick)):
        if isinstance(table.get(name), dict):
            check_keys(table[name], kind, text, file)
    if isinstance(table.get("samples"), dict):
        for draw in table["samples"].values():
            if isinstance(draw, dict):
                check_keys(draw, Draw, text, file)
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as problem:
        what, _, place = str(problem).partition(" - at `$.")
        key = re.findall(r"\w+", place)[-1]
        expected = what.replace("`", "").replace(", got ", ", found ")
        problem_text = f"{key}: {expected[:1].lower()}{expected[1:]}"
        raise SourceError(span_of(text, file, key), problem_text, way_out=CHOICES.get(key, EXAMPLE)) from None


EXAMPLE = 'write keys as in: rate = 0.01, epochs = 30, data = "digits", goal = 0.97'
CHOICES = {
    "kind": "choose one of 'constant', 'linear', 'cosine', 'step'; of samples 'pictures', 'diffusion', 'text'",
    "better": "choose 'higher' or 'lower'",
    "checkpoints": 'choose a number of steps, or "sqrt"',
    "target": "choose 'cpu' or 'cuda'",
    "precision": "choose 'float32', 'tf32' or 'bf16'",
}


def check_keys(table: dict[str, Any], kind: type[msgspec.Struct], text: str, file: str) -> None:
    """Every key is one of the struct's fields."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            problem = f"a {kind.__name__.lower()} has no key '{key}'"
            raise SourceError(span_of(text, file, key), problem, way_out=nearest(key, known))


def span_of(text: str, file: str, key: str) -> Span:
    """Where `key` is written: as a key, else as a table's name, else the file's first line."""
    for pattern in (rf"^\s*[\"']?({re.escape(key)})[\"']?\s*=", rf"^\s*\[({re.escape(key)})\]", rf"({re.escape(key)})"):
        for k, line in enumerate(text.splitlines(), 1):
            if found := re.search(pattern, line):
                return Span(file, k, found.start(1) + 1, len(key), line)
    return Span(file, 1)


def broken(text: str, file: str, problem: str) -> Span:
    """Where tomllib stopped."""
    found = re.search(r"at line (\d+), column (\d+)", problem)
    lines = text.splitlines() or [""]
    line, column = (int(found[1]), int(found[2])) if found else (len(lines), 1)
    line = min(line, len(lines))
    return Span(file, line, column, 1, lines[line - 1])


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the rate is multiplied by in `step` (from 0) of `steps`.

    With w = warmup · steps and t = (step − w) / (steps − w):
    step < w: (step + 1) / w;  linear: 1 − (1 − end) t;  cosine: end + (1 − end) (1 + cos πt) / 2;
    step: factor ^ (how many of `at` lie at or before step / steps).
    """
    warm = schedule.warmup * steps
    if step < warm:
        return min(1.0, (step + 1) / warm)
    t = (step - warm) / max(steps - warm, 1)
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - schedule.end) * t
        case "cosine":
            return schedule.end + (1 - schedule.end) * (1 + math.cos(math.pi * t)) / 2
        case "step":
            return schedule.factor ** sum(step >= at * steps for at in schedule.at)
