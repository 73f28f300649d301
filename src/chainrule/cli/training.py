"""Commands that train and judge: a recipe, data and a model become a run in a folder."""

from __future__ import annotations

import json as json_text
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from chainrule import build
from chainrule.api.model import Model, Step, load
from chainrule.cli import output
from chainrule.cli.asked import arguments
from chainrule.errors import ChainruleError
from chainrule.executable import Precision
from chainrule.options import Options
from chainrule.runtime.cuda import present
from chainrule.source import Source
from chainrule.train import checkpoint, data, drawn, loop, measures, plot, recipe
from chainrule.train.checkpoint import Checkpoint, Epoch, Record
from chainrule.train.recipe import Recipe
from chainrule.train.samples import Array, Arrays, Data, first, take

DType = Literal["float32", "float64"]

OK, NO, STOPPED = 0, 1, 130
OURS = {"loss", "outputs", "dtype", "target", "threads", "seed", "accurate", "checkpoints", "memory", "sizes"}
OURS |= {"arch", "precision"}
"""What `Model.compile` takes beside the optimizer's arguments."""

EVERY = 1.0
"""Seconds between two checkpoints: small models finish dozens of epochs a second, and a sync takes milliseconds."""


@dataclass(eq=False)
class Run:
    """A training run: where it is kept, what it does, its last whole epoch, and when that was last written."""

    folder: Path
    record: Record
    data: Data
    step: Step
    last: Checkpoint
    written: float = field(default_factory=time.monotonic)

    def after_epoch(self, curve: tuple[Epoch, ...]) -> None:
        """Remember the run as it stands; write it if the last writing is a while ago."""
        self.last = loop.checkpoint_of(self.step, self.record, curve)
        if time.monotonic() - self.written > EVERY:
            self.save()

    def save(self) -> None:
        """Write the last whole epoch."""
        checkpoint.save(self.folder, self.last)
        self.written = time.monotonic()


@dataclass(frozen=True)
class Asked:
    """What the command line says: a model or a recipe, `changes` of the recipe, arguments of the model, and places."""

    what: str
    changes: Mapping[str, Any]
    settings: Sequence[str] = ()
    quick: bool = False
    out: Path | None = None
    folder: Path | None = None
    threads: int | None = None
    dtype: DType = "float32"


def begin(asked: Asked, json: bool) -> int:
    """Train a model by the recipe beside it, or by a recipe, with changes. Returns the exit code."""
    started = time.perf_counter()
    model_path, written = found_recipe(asked.what)
    other = asked.changes.get("optimizer", written.optimizer) != written.optimizer
    how = recipe.shortened(written) if asked.quick else written
    changed: dict[str, Any] = {"settings": {}} if other else {}
    how = msgspec.structs.replace(how, **changed, **asked.changes, set={**how.set, **arguments(asked.settings)})
    if how.target == "cuda":
        present.device()  # without one nothing else is worth the time
    samples = data_of(how, asked.what, asked.folder)
    model = load(model_path, **how.set).to(how.target, precision=how.precision)
    if how.metric is None:
        how = recipe.settled(how, outputs_of(model, asked.dtype))
    out = asked.out or fresh(Path(asked.what.partition(":")[0]).stem)
    if how.seeds == 1:
        run = opened(model, model_path, how, samples, out, asked)
        return answered(train(run, started, json), asked.quick, json)
    each = []
    for seed in range(how.seed, how.seed + how.seeds):
        one = msgspec.structs.replace(how, seed=seed, seeds=1)
        each.append(train(opened(model, model_path, one, samples, out / f"seed-{seed}", asked), started, json))
        if each[-1]["stopped"]:
            return answered(each[-1], asked.quick, json)
    together = together_of(how, each, out)
    checkpoint.write(out / "result.json", json_text.dumps(output.plain(together), indent=2).encode())
    return answered(together, asked.quick, json)


def found_recipe(what: str) -> tuple[str, Recipe]:
    """The path of a model and its recipe, given either; FILE.graph:NAME has the recipe of FILE."""
    path = Path(re.sub(r":[A-Za-z_]\w*$", "", what))
    if path.suffix != ".toml":
        return what, recipe.beside(path)
    if not path.is_file():
        raise ChainruleError(f"there is no file {what}\n  Way out: check the path; recipes stand beside their models")
    how = recipe.read(path)
    return str(path.parent / how.model) if how.model else str(path.with_suffix(".graph")), how


def opened(model: Model, path: str, how: Recipe, samples: Data, out: Path, asked: Asked) -> Run:
    """The run in the folder `out`, begun or gone on with."""
    record = Record(model.source.text, path, dict(how.set), how, how.seed, dtype=asked.dtype)
    if checkpoint.exists(out):
        last = checkpoint.load(out)
        if not same(last.record, record):
            way_out = "another folder, or the model and settings that the run was begun with"
            raise ChainruleError(f"{out} holds a run of something else\n  Way out: {way_out}")
        step = restored(last, asked.threads)
        return Run(out, record_of(last, how, step), fitting(samples, step), step, last)
    step = compiled(model, how, asked.dtype, asked.threads, how.seed)
    record = msgspec.structs.replace(record, tuned=tuned(step))
    return Run(out, record, fitting(samples, step), step, loop.checkpoint_of(step, record, ()))


def together_of(how: Recipe, each: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """What runs from several seeds came to: the mean of their values, with each and their standard deviation."""
    values = [math.nan if one["value"] is None else float(one["value"]) for one in each]
    value = statistics.fmean(values)
    found = {**each[-1], "seed": how.seed, "seeds": how.seeds, "run": str(out)}
    found |= {"value": value, "values": values, "deviation": statistics.stdev(values), "reached": how.reached(value)}
    for name in ("train_loss", "test_loss", "loss", f"test_{how.metric}"):
        found[name] = statistics.fmean(math.nan if one[name] is None else one[name] for one in each)
    found["train_seconds"] = round(sum(one["train_seconds"] for one in each), 3)
    return found


def answered(found: Mapping[str, Any], quick: bool, json: bool) -> int:
    """Report, and return the exit code: a quick run is too short to miss a goal."""
    report({**found, "quick": True} if quick else found, json)
    if found["stopped"]:
        return STOPPED
    return NO if found["reached"] is False and not quick else OK


def compiled(model: Model, how: Recipe, dtype: DType, threads: int | None, seed: int | None = None) -> Step:
    """The training step that a recipe asks for; its rate is a run-time number, and stays out of the program."""
    if foreign := sorted(set(how.settings) & OURS):
        raise ChainruleError(f"{foreign[0]} is no setting of an optimizer\n  Way out: leave it out of [settings]")
    settings: dict[str, Any] = dict(how.settings)
    common: dict[str, Any] = {"dtype": dtype, "threads": threads, "seed": seed, "checkpoints": how.checkpoints}
    common |= {"target": how.target, "precision": how.precision}
    step = model.compile(how.optimizer, **common, **settings)
    if how.memory is None:
        return step
    executable = step.runner.executable
    axes = (executable.buffers[item.buffer].shape[:1] for item in executable.inputs)
    sizes = {name: how.batch for shape in axes for axis in shape for _, names in axis for name in names}
    return model.compile(how.optimizer, memory=how.memory, sizes=sizes, **common, **settings)


def same(a: Record, b: Record) -> bool:
    """Whether `b` can go on with `a`: the same but for how long and what for."""
    ours, theirs = (msgspec.structs.replace(r.recipe, epochs=0, goal=None, samples={}) for r in (a, b))
    return (a.model, a.arguments, a.seed, a.dtype, ours) == (b.model, b.arguments, b.seed, b.dtype, theirs)


def record_of(last: Checkpoint, how: Recipe, step: Step) -> Record:
    return msgspec.structs.replace(last.record, recipe=how, tuned=tuned(step))


def tuned(step: Step) -> dict[str, str]:
    """What `chainrule tune` chose of the step's program."""
    return {product: str(choice) for product, choice in step.runner.executable.tuned.items()}


def go_on(
    folder: Path, changes: Mapping[str, Any], threads: int | None, json: bool, data_folder: Path | None = None
) -> int:
    """Go on with the run in `folder` as if it had never stopped; `changes` may be its epochs or data."""
    started = time.perf_counter()
    if foreign := sorted(set(changes) - {"epochs", "data", "label", "goal"}):
        raise ChainruleError(
            f"a run that goes on keeps its {foreign[0]}\n  Way out: --epochs and --goal may change; or train anew"
        )
    last = checkpoint.load(folder)
    how = msgspec.structs.replace(last.record.recipe, **changes)
    step = restored(last, threads)
    samples = fitting(data_of(how, str(folder), data_folder), step)
    return answered(train(Run(folder, record_of(last, how, step), samples, step, last), started, json), False, json)


def train(run: Run, started: float, json: bool) -> dict[str, Any]:
    """Train to the recipe's end, or to Ctrl-C; save, and return what it came to."""
    how, stopped = run.record.recipe, False
    begun = time.perf_counter()
    done = run.last.record.curve
    if done and not json:
        print(f"{run.folder} goes on after epoch {len(done)}", file=sys.stderr)
    try:
        with output.watching(json) as watch:
            loop.train(run.step, run.step.predict, run.data, how, done, run.after_epoch, watch, bring_to(run.step))
    except KeyboardInterrupt:
        stopped = True
    except ChainruleError:
        if run.last.record.curve:  # what fails at its first step leaves no run behind
            run.save()
        raise
    run.save()
    curve = run.last.record.curve
    found = loop.verdict(how, curve)
    found |= {"loss": found["train_loss"], "data": run.data.name, "model": run.record.file, "run": str(run.folder)}
    found |= {"optimizer": how.optimizer, "seed": run.record.seed, "threads": run.step.runner.threads}
    where = run.step.model.place
    if where.device is not None:
        found |= {"target": where.target, "precision": where.precision, "device": where.device.name}
    found |= {"tuned": run.record.tuned} if run.record.tuned else {}
    now = time.perf_counter()
    found |= {"train_seconds": round(now - begun, 3), "seconds": round(now - started, 3), "stopped": stopped}
    if how.samples and not stopped:
        for name, content in drawn.files(run.step, run.data, how).items():
            checkpoint.write(run.folder / name, content)
            found.setdefault("samples", []).append(str(run.folder / name))
    title = f"{Path(run.record.file).stem} on {run.data.name}"
    checkpoint.write(run.folder / "curve.svg", plot.curve_svg(title, curve, how).encode())
    checkpoint.write(run.folder / "result.json", json_text.dumps(output.plain(found), indent=2).encode())
    return found


def bring_to(step: Step) -> loop.Bring:
    """Whole epochs to the GPU, in their order, where `step` runs on one."""
    if step.model.place.device is None:
        return loop.where_they_are

    def bring(arrays: Arrays, order: Array | None) -> tuple[Arrays, None]:
        return step.nearer(arrays if order is None else take(arrays, order)), None

    return bring


def judge(
    folder: Path,
    data_name: str | None,
    label: str | None,
    threads: int | None,
    json: bool,
    data_folder: Path | None = None,
    target: Literal["cpu", "cuda"] | None = None,
) -> int:
    """Judge the run in `folder` on test samples. Returns the exit code. target: instead of where it was trained."""
    started = time.perf_counter()
    last = checkpoint.load(folder)
    if target is not None:
        last = replace(last, record=elsewhere(last.record, target))
    how, metric = last.record.recipe, last.record.recipe.metric or "loss"
    changes = {"data": data_name, "label": label}
    asked = msgspec.structs.replace(how, **{name: value for name, value in changes.items() if value is not None})
    step = restored(last, threads)
    samples = fitting(data_of(asked, str(folder), data_folder), step)
    if not data.samples(samples.test):
        raise ChainruleError(f"{samples.name} holds no test samples\n  Way out: name some arrays test/x, test/label …")
    values = measures.redrawn(step, how.draws, lambda: measures.judged(step.predict, samples, how))
    found = {"metric": metric, "value": values[metric], "goal": how.goal, "reached": how.reached(values[metric])}
    found |= {"test_loss": values["loss"], f"test_{metric}": values[metric], "loss": values["loss"]}
    found |= {"data": samples.name, "samples": data.samples(samples.test), "epochs": last.record.epoch}
    found |= {"model": last.record.file, "run": str(folder), "stopped": False}
    report(found | {"seconds": round(time.perf_counter() - started, 3)}, json)
    return NO if found["reached"] is False else OK


def elsewhere(record: Record, target: Literal["cpu", "cuda"]) -> Record:
    """The same run, on another target."""
    precision: Precision = record.recipe.precision if target == record.recipe.target else "float32"
    how = msgspec.structs.replace(record.recipe, target=target, precision=precision)
    return msgspec.structs.replace(record, recipe=how)


def data_of(how: Recipe, whose: str, folder: Path | None = None) -> Data:
    """The data that a recipe names."""
    if how.data is None:
        raise ChainruleError(
            f"nothing says what {whose} is trained on\n"
            "  Way out: --data digits, --data table.csv, --data arrays.npz; or data = … in the recipe beside it"
        )
    return first(data.load(how.data, how.label, data.Ask(folder, how.window)), how.limit)


def fitting(samples: Data, step: Step) -> Data:
    """`samples` with the arrays that the model takes: an autoencoder leaves the labels of a built-in set alone.

    Raises ChainruleError where an input has no array, or a file's array no input: a misspelt name is both.
    """
    program = step.runner.executable
    taken = [item.name for item in program.inputs] + list(program.unread)
    missing = [item.name for item in program.inputs if item.name not in samples.train]
    foreign = [name for name in samples.train if name not in taken]
    if not missing and not foreign:
        return samples
    if missing or samples.name not in data.BUILT_IN:
        problem = f"nothing is called {missing[0]!r}" if missing else f"no input is called {foreign[0]!r}"
        facts = (
            f"{samples.name} holds {', '.join(samples.train)}\n  {program.name} takes {', '.join(taken) or 'nothing'}"
        )
        raise ChainruleError(f"{problem}\n  {facts}\n  Way out: give the arrays and the inputs the same names")
    return replace(
        samples,
        train={name: array for name, array in samples.train.items() if name in taken},
        test={name: array for name, array in samples.test.items() if name in taken},
    )


def outputs_of(model: Model, dtype: DType) -> tuple[str, ...]:
    """The outputs that a model declares."""
    where = model.place
    asked = Options("predict", dtype=dtype, target=where.target, precision=where.precision)
    program = build.executable(model.source, asked).executable
    return tuple(found.name for found in program.outputs)


def fresh(name: str) -> Path:
    """The folder of a new run: the next of runs/NAME-1, -2 …"""
    paths = Path("runs").glob(f"{name}-*")
    taken = [int(found[1]) for path in paths if (found := re.search(r"-(\d{1,9})$", path.name))]
    return Path("runs") / f"{name}-{max(taken, default=0) + 1}"


def restored(last: Checkpoint, threads: int | None) -> Step:
    """The step of a run as it stood after its last whole epoch, compiled from the text that the run keeps."""
    record = last.record
    file, colon, name = record.file.rpartition(":")
    # as `read_source` has it: a drive letter is no file
    chosen = name if colon and len(file) > 1 and name.isidentifier() else None
    path = file if chosen else record.file
    given = tuple(sorted(record.arguments.items()))
    model = Model(Source(record.model, path, chosen, given, Path(path).parent))
    step = compiled(model, record.recipe, record.dtype, threads)
    loop.restore(step, last)
    return step


def report(found: Mapping[str, Any], json: bool) -> None:
    """What a run came to, as a JSON line or as a sentence."""
    if json:
        output.json_line(found)
        return
    value = "–" if found["value"] is None else f"{found['value']:.4g}"
    goal = "" if found["goal"] is None else f" (goal {found['goal']:g}: {'reached' if found['reached'] else 'missed'})"
    epochs = f"{found['epochs']} epoch{'' if found['epochs'] == 1 else 's'}"
    print(f"{Path(found['model']).stem} on {found['data']}: test {found['metric']} {value}{goal}", end="")
    print(f" after {epochs}, {found['seconds']:.1f} s")
    if found["stopped"]:
        print(f"stopped; go on with: chainrule train --resume {found['run']}")
    elif "train_seconds" in found:
        print(f"saved in {found['run']}: parameters, run.json, result.json, curve.svg")
