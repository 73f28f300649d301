"""The command that times a model's step, kernel by kernel, beside the machine's ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lazy_loader
import numpy as np

from chainrule import build
from chainrule.api.model import Model, Step
from chainrule.cli import output
from chainrule.cli.asked import arguments, source
from chainrule.cli.models import write
from chainrule.errors import ChainruleError, nearest
from chainrule.executable import Executable, Precision, derived_sizes, evaluate
from chainrule.runtime.ceilings import ceilings
from chainrule.runtime.cuda.present import Absent
from chainrule.runtime.profile import Profile, Timed, profile
from chainrule.runtime.step import Runner
from chainrule.source import Source

if TYPE_CHECKING:
    from chainrule.runtime.cuda import profile as gpu
else:
    gpu = lazy_loader.load("chainrule.runtime.cuda.profile", suppress_warning=True)

USUAL = 64
"""The size of a dim that nobody names."""


@dataclass(frozen=True)
class Asked:
    """A model with its `settings`, the `sizes` of its dims, and how it is compiled and run."""

    model: str
    settings: Sequence[str]
    sizes: Sequence[str]
    optimizer: str | None
    dtype: Literal["float32", "float64"]
    threads: int | None
    checkpoints: int | Literal["sqrt"] | None = None
    memory: str | None = None
    target: Literal["cpu", "cuda"] | None = None
    precision: Precision | None = None


def bench_model(asked: Asked, top: int, out: Path | None, json: bool) -> None:
    """Measure, and show a table or JSON; draw the program with its figures in `out`."""
    read = source(asked.model, asked.settings)
    step, sizes = step_of(asked, read)
    found, ceiling, device = measured(step, drawn(step.runner.executable, sizes))
    rows = [figures(launch, found, ceiling) for launch in found.launches]
    saved = []
    if out is not None:
        notes = [note(row) for row in rows]
        picture = build.picture(read, step.options, "program", notes=notes)
        saved.append(str(write(out, "program.svg", picture)))
    whole = {
        "model": asked.model, "device": device, "sizes": dict(sizes), "threads": found.threads,
        "step_us": found.median / 1e3, "step_best_us": found.best / 1e3,
        "flops": sum(launch.flops for launch in found.launches),
        "arena_bytes": found.arena, "kept_bytes": found.kept, "scratch_bytes": found.scratch, "ceilings": ceiling,
    }  # fmt: skip
    if json:
        output.json_line({**whole, "kernels": rows, **({"saved": saved} if out is not None else {})})
    else:
        show(asked.model, whole, rows, top)
        print("\n".join(f"saved {path}" for path in saved), end="\n" if saved else "")


def measured(step: Step, inputs: Mapping[str, Any]) -> tuple[Profile, dict[str, float], str]:
    """The step's time, launch by launch, and the ceilings and the name of what each launch runs on."""
    runner = step.runner
    if isinstance(runner, Runner):
        return profile(runner, inputs), ceilings(1), "one core"
    if isinstance(runner, Absent):
        runner.run(inputs)  # says what there is not
    return gpu.profile(runner, inputs), gpu.ceilings(runner.device), runner.device.name


def step_of(asked: Asked, read: Source) -> tuple[Step, dict[str, int]]:
    """The training step that is asked for, and the size of every dim; a budget of memory is one for these sizes."""
    model, optimizer = Model(read), asked.optimizer or "sgd"
    common: dict[str, Any] = {"dtype": asked.dtype, "threads": asked.threads, "checkpoints": asked.checkpoints}
    common |= {"target": asked.target, "precision": asked.precision}
    step = model.compile(optimizer, **common)
    executable = step.runner.executable
    sizes = sizes_of(executable, asked.sizes)
    if asked.memory is not None:
        free = {dim.name: sizes[dim.name] for dim in executable.dims if dim.numerator is None}
        step = model.compile(optimizer, memory=asked.memory, sizes=free, **common)
    return step, sizes


def sizes_of(executable: Executable, settings: Sequence[str]) -> dict[str, int]:
    """The size of every dim: what `settings` say, else its greatest up to `USUAL`."""
    free = {dim.name: dim for dim in executable.dims if dim.numerator is None}
    asked = arguments(settings)
    for name, size in asked.items():
        if name not in free:
            known = nearest(name, free) if free else "this program has no dims"
            raise ChainruleError(f"{executable.name} has no dim {name!r}: {known}\n  Way out: name one of its dims")
        most = free[name].maximum
        if (
            isinstance(size, bool)
            or size != int(size)
            or size < free[name].minimum
            or (most is not None and size > most)
        ):
            bounds = f"{free[name].minimum} or more" if most is None else f"{free[name].minimum} to {most}"
            raise ChainruleError(f"--size {name}={size}: {name} is {bounds}\n  Way out: a whole number in that range")
    usual = {name: max(dim.minimum, min(USUAL, dim.maximum or USUAL)) for name, dim in free.items()}
    return derived_sizes(executable.dims, usual | {name: int(size) for name, size in asked.items()})


def drawn(executable: Executable, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Inputs of these sizes: floats in 0 … 1, integers within their bounds, always the same."""
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for item in executable.inputs:
        buffer = executable.buffers[item.buffer]
        shape = tuple(evaluate(extent, sizes) for extent in buffer.shape)
        if buffer.element in ("float32", "float64"):
            found[item.name] = generator.random(shape).astype(buffer.element)
        else:
            bound = 2 if item.bound is None else max(evaluate(item.bound, sizes), 1)
            found[item.name] = generator.integers(0, bound, shape).astype(buffer.element)
    return found


def figures(launch: Timed, whole: Profile, ceiling: Mapping[str, float]) -> dict[str, Any]:
    """A kernel's row. Time is of one core or the GPU; the ceiling is the product rate or the memory's, what binds."""
    ns = max(launch.median, 1.0)
    least = max(launch.flops / ceiling["gflops"], launch.bytes / ceiling["gb_per_s"])
    return {
        "kernel": launch.name,
        "us": launch.median / 1e3,
        "percent_of_step": 100 * launch.median / max(sum(other.median for other in whole.launches), 1.0),
        "gflops": launch.flops / ns,
        "gb_per_s": launch.bytes / ns,
        "percent_of_ceiling": 100 * least / ns,
        "flops": launch.flops,
        "bytes": launch.bytes,
        "blocks": launch.blocks,
        "threads": launch.threads,
    }


def note(row: Mapping[str, Any]) -> str:
    """A kernel's figures in a line."""
    return f"{row['us']:.4g} µs · {row['gflops']:.3g} GFLOP/s · {row['gb_per_s']:.3g} GB/s"


def show(model: str, whole: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], top: int) -> None:
    """The kernels that take longest, in the order in which they run, and the step."""
    longest = sorted(range(len(rows)), key=lambda k: -rows[k]["us"])[:top]
    names = {"us": "µs", "percent_of_step": "% of step", "gflops": "GFLOP/s", "gb_per_s": "GB/s"}
    names |= {"percent_of_ceiling": "% of ceiling"}
    cells = [[rows[k]["kernel"], *(f"{rows[k][key]:.4g}" for key in names), rows[k]["blocks"]] for k in sorted(longest)]
    output.grid(f"{model}: each kernel alone on {whole['device']}", ["kernel", *names.values(), "blocks"], cells)
    if len(rows) > top:
        rest = sum(row["us"] for k, row in enumerate(rows) if k not in longest)
        print(f"… and {len(rows) - top} more kernels: {rest:.4g} µs (--top shows more)")
    sizes = ", ".join(f"{name} {size}" for name, size in whole["sizes"].items() if not name.startswith("_"))
    ceiling = whole["ceilings"]
    rate, arena = whole["flops"] / 1e3 / whole["step_us"], f"{whole['arena_bytes'] / 1e6:.3g} MB"
    print(f"a step: {whole['step_us']:.4g} µs, {rate:.3g} GFLOP/s; threads {whole['threads']}, {sizes}; arena {arena}")
    print(f"{whole['device']}: {ceiling['gflops']:.3g} GFLOP/s of products, {ceiling['gb_per_s']:.3g} GB/s of copies")
