"""What the `chainrule` command can be asked, with examples. The work is done in the modules beside this one.

Those are loaded when a command runs, and typer's panels stay off (they import rich, 70 to 100 ms), so that
`chainrule --help` answers in less than twice the time of importing NumPy.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, get_args

import lazy_loader
import typer

import chainrule
from chainrule.errors import ChainruleError, ChainruleWarning

if TYPE_CHECKING:
    from chainrule.api import place as places
    from chainrule.cli import bench as measured
    from chainrule.cli import models, training
    from chainrule.cli import tune as tuning
else:
    places = lazy_loader.load("chainrule.api.place", suppress_warning=True)
    measured = lazy_loader.load("chainrule.cli.bench", suppress_warning=True)
    models = lazy_loader.load("chainrule.cli.models", suppress_warning=True)
    training = lazy_loader.load("chainrule.cli.training", suppress_warning=True)
    tuning = lazy_loader.load("chainrule.cli.tune", suppress_warning=True)

OK, NO, BAD, STOPPED = 0, 1, 2, 130
"""Exit codes: done; the answer is no (a check failed, a goal was missed); bad usage or input; stopped by Ctrl-C."""

EXAMPLES = """\b
Examples:
  chainrule compile graphs/mlp.graph                      what it is, in formulas, kernels and FLOPs
  chainrule render graphs/mlp.graph --out pictures        both passes, drawn
  chainrule train graphs/mlp.graph --data digits          a trained network
  chainrule COMMAND --help                                more of each"""

EXITS = "Exit codes: 0 done, 1 a failed check or a missed goal, 2 bad usage or input, 130 stopped by Ctrl-C."

app = typer.Typer(
    name="chainrule",
    help=f"Write a network as mathematics, see its chain rule, train it with fused kernels.\n\n{EXAMPLES}\n\n{EXITS}",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Table = Literal["nodes", "edges"]
Picture = Literal["all", "forward", "backward", "both", "program"]
Format = Literal["svg", "png", "pdf", "dot"]
Float = Literal["float32", "float64"]
Cpu = Literal["native", "avx512", "avx2", "sse2", "neon", "apple"]
CacheAction = Literal["show", "clear"]

Target = Literal["cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]

MODEL = typer.Argument(metavar="MODEL", help="A model file, or FILE.graph:NAME.", show_default=False)
Model = Annotated[str, MODEL]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of the model; may be repeated.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, on standard output.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="At most so many; changes no bit of a result.", show_default="every core"),
]
Dtype = Annotated[Float, typer.Option("--dtype", help="The program's float.")]
Optimizer = Annotated[
    str | None, typer.Option(metavar="NAME", help="sgd, momentum, adam, adamw …; or one of the model's file.")
]
Size = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="DIM=N", help="The size of a dim, as in batch=256; may be repeated."),
]
Checkpoints = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="STEPS",
        help="Keep the state of recurrences every so many steps, and compute the rest again; 0: the root of how many "
        "there are.",
        show_default="keep all",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What a step may keep between its kernels, as in 64MB: within it more is computed again.",
        show_default="what is fastest",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="A built-in name (digits), an .npz (keys are input names), or a .csv."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where files of built-in data may be, beside packages.")
]
On = Annotated[Target | None, typer.Option("--target", help="Where it runs: the CPU, or an NVIDIA GPU.")]
Arch = Annotated[
    str | None,
    typer.Option(metavar="SM", help="The GPU's architecture, as in sm_90.", show_default="the one here, else sm_90"),
]
Rounded = Annotated[
    Precision | None,
    typer.Option(
        "--precision", help="What a GPU's products are rounded to; sums stay float32.", show_default="float32"
    ),
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="The .csv column that goes to the input `label`.")]


@app.callback(invoke_without_command=True)
def chainrule_command(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """The options before any command."""
    if version:
        print(f"chainrule {chainrule.__version__}")
        raise typer.Exit(OK)


@app.command("compile", short_help="Compile a training step and say what it is.")
def compile_command(
    model: Model,
    set: Set = None,
    optimizer: Optimizer = "sgd",
    dtype: Dtype = "float32",
    table: Annotated[Table | None, typer.Option(help="Show the graph's nodes or edges instead.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Save nodes, edges and generated sources.")] = None,
    cpu: Annotated[Cpu | None, typer.Option(help="Save sources and assembly for this one instead.")] = None,
    target: On = None,
    arch: Arch = None,
    precision: Rounded = None,
    json: Json = False,
) -> None:
    """Compile a training step and say what it is: formulas, kernels, parameters, FLOPs, bytes.

    \b
    Examples:
      chainrule compile graphs/mlp.graph
      chainrule compile graphs/mlp.graph --set hidden=256 --json
      chainrule compile graphs/mlp.graph --table edges
      chainrule compile graphs/mlp.graph --out build/mlp      # nodes.json, edges.json, kernels as Python
      chainrule compile graphs/mlp.graph --out build/arm --cpu neon      # and their assembly for 64-bit ARM
      chainrule compile graphs/mlp.graph --target cuda --out build/gpu   # and their PTX and cubins; needs no GPU
    """
    place = places.place(target or "cpu", arch, precision)
    models.compile_model(model, set or [], optimizer, dtype, table, out, cpu, place, json)


@app.command(short_help="Draw both passes and the kernels.")
def render(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")] = Path("."),
    picture: Annotated[Picture, typer.Option(help="What is drawn.")] = "all",
    format: Annotated[Format, typer.Option(help="As what; dot is the text that Graphviz reads.")] = "svg",
    set: Set = None,
    optimizer: Optimizer = "sgd",
    depth: Annotated[
        int | None,
        typer.Option(min=0, help="Collapse layers this deep; 0: never.", show_default="above 1,000 nodes"),
    ] = None,
    json: Json = False,
) -> None:
    """Draw the forward pass, the backward pass, both mirrored, and the kernels.

    \b
    Examples:
      chainrule render graphs/mlp.graph --out pictures
      chainrule render graphs/mlp.graph --picture both --format pdf
    """
    chosen = [name for name in get_args(Picture) if name != "all"] if picture == "all" else [picture]
    models.render_model(model, set or [], optimizer, chosen, format, depth, out, json)


@app.command()
def train(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model file, FILE.graph:NAME, or a recipe.", show_default=False),
    ] = None,
    data: Data = None,
    data_dir: DataDir = None,
    label: Label = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Passes over the data.", show_default="the recipe's")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    optimizer: Optimizer = None,
    lr: Annotated[float | None, typer.Option("--lr", "--rate", min=0, help="The learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of parameters, draws and the order of samples.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="So many runs, whose mean counts.")] = None,
    checkpoints: Checkpoints = None,
    memory: Memory = None,
    goal: Annotated[float | None, typer.Option(help="What the metric has to reach.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A run of seconds, to see that all of it works.")] = False,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run's folder; a run in it goes on.", show_default="runs/MODEL-1, -2 …"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run; only --epochs, --data may be given too.")
    ] = None,
    threads: Threads = None,
    dtype: Dtype = "float32",
    target: On = None,
    precision: Rounded = None,
    json: Json = False,
) -> None:
    """Train a model. What is not given comes from the recipe beside it (mlp.toml for mlp.graph), or given itself.

    The run's folder gets the parameters (safetensors), run.json, result.json and curve.svg. Ctrl-C keeps
    the last whole epoch; --resume goes on from there as if nothing had happened.

    \b
    Examples:
      chainrule train graphs/mlp.toml
      chainrule train graphs/mlp.graph --data digits --epochs 10 --optimizer adam --lr 1e-3 --set hidden=256
      chainrule train graphs/mlp.graph --data table.csv --label species --json
      chainrule train --resume runs/mlp-1 --epochs 60
      chainrule train graphs/gpt.toml --target cuda --precision bf16
    """
    given: dict[str, str | float | None] = {"data": data, "label": label, "epochs": epochs, "batch": batch}
    given |= {"optimizer": optimizer, "rate": lr, "seed": seed, "seeds": seeds, "goal": goal}
    given |= {"checkpoints": every(checkpoints), "memory": memory, "target": target, "precision": precision}
    changes = {name: value for name, value in given.items() if value is not None}
    if (model is None) == (resume is None):
        raise typer.BadParameter("give a MODEL to train, or --resume RUN to go on with one")
    if resume is not None:
        code = training.go_on(resume, changes, threads, json, data_dir)
    else:
        asked = training.Asked(str(model), changes, tuple(set or ()), quick, out, data_dir, threads, dtype)
        code = training.begin(asked, json)
    raise typer.Exit(code)


@app.command("eval", short_help="Judge a trained run on test data.")
def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that train wrote.")],
    data: Data = None,
    data_dir: DataDir = None,
    label: Label = None,
    threads: Threads = None,
    target: On = None,
    json: Json = False,
) -> None:
    """Judge a trained run on the test part of some data (default: what it was trained on).

    \b
    Examples:
      chainrule eval runs/mlp-1
      chainrule eval runs/mlp-1 --data other.npz --json
    """
    raise typer.Exit(training.judge(run, data, label, threads, json, data_dir, target))


@app.command()
def check(
    model: Model,
    set: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the point, the directions and the elements.")] = 0,
    json: Json = False,
) -> None:
    """Compare a model's gradients with finite differences.

    In 8 random directions and at 8 elements of each parameter, in float64, away from kinks.

    \b
    Examples:
      chainrule check graphs/mlp.graph
      chainrule check graphs/mlp.graph --set hidden=8 --json
    """
    raise typer.Exit(models.check_model(model, set or [], seed, json))


@app.command(short_help="Time a step, kernel by kernel.")
def bench(
    model: Model,
    set: Set = None,
    size: Size = None,
    optimizer: Optimizer = "sgd",
    checkpoints: Checkpoints = None,
    memory: Memory = None,
    threads: Threads = None,
    dtype: Dtype = "float32",
    target: On = None,
    precision: Rounded = None,
    top: Annotated[int, typer.Option(min=1, help="Show so many of the kernels that take longest.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the program there, each kernel with its figures.")
    ] = None,
    json: Json = False,
) -> None:
    """Time a training step and each of its kernels, on drawn inputs.

    Of each kernel: the time on one core (or the GPU), its share, GFLOP/s, GB/s of the arrays that it reads and writes,
    and how near it comes to the machine's ceiling, which is measured in the same run: its products or its memory, what
    binds first.

    \b
    Examples:
      chainrule bench graphs/mlp.graph --size batch=256
      chainrule bench graphs/lenet.graph --top 5
      chainrule bench graphs/gpt.graph --size batch=16 --size time=128 --json
      chainrule bench graphs/mlp.graph --out pictures           # program.svg with the figures
      chainrule bench graphs/gpt.graph --target cuda --precision tf32
    """
    how = measured.Asked(
        model, set or [], size or [], optimizer, dtype, threads, every(checkpoints), memory, target, precision
    )
    measured.bench_model(how, top, out, json)


@app.command(short_help="Choose how products are computed, by measuring.")
def tune(
    model: Model,
    set: Set = None,
    size: Size = None,
    optimizer: Optimizer = "sgd",
    checkpoints: Checkpoints = None,
    memory: Memory = None,
    threads: Threads = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Choose how each product of a training step is computed on this machine, by measuring.

    Tiles of other shapes, packed operands, OpenBLAS and plain loops take turns with what the cost model chose, in the
    kernels that they are in, on drawn inputs. What helped is kept for this CPU, beside the cache, and every program
    that is compiled from then on uses it, whichever model it is of; sizes that are known at run time only count as
    --size says. Sums may be added in another order, so results may differ in their last bits.

    \b
    Examples:
      chainrule tune graphs/mlp.graph --size batch=256
      chainrule tune graphs/gpt.graph --size batch=16 --size time=128 --json
    """
    how = measured.Asked(model, set or [], size or [], optimizer, dtype, threads, every(checkpoints), memory)
    tuning.tune_model(how, json)


@app.command(short_help="Show how the gradients were derived.")
def explain(
    model: Model,
    set: Set = None,
    of: Annotated[str | None, typer.Option(metavar="NAME", help="Only the steps that touch this formula.")] = None,
    json: Json = False,
) -> None:
    """Show how the gradients were derived: each rule, with the formulas before and after it.

    \b
    Examples:
      chainrule explain graphs/mlp.graph
      chainrule explain graphs/mlp.graph --of logits_bar
      chainrule explain graphs/mlp.graph --json
    """
    models.explain_model(model, set or [], of, json)


@app.command(short_help="Show or clear what was compiled.")
def cache(action: Annotated[CacheAction, typer.Argument(help="show or clear")] = "show", json: Json = False) -> None:
    """Say where compiled kernels are kept and how large that is, or remove them.

    It keeps itself under a limit (CHAINRULE_CACHE_LIMIT, 1 GB); CHAINRULE_CACHE puts it elsewhere.

    \b
    Examples:
      chainrule cache
      chainrule cache clear
    """
    models.manage_cache(action, json)


def every(checkpoints: int | None) -> int | Literal["sqrt"] | None:
    """How far apart --checkpoints are; 0 stands for the root of how many steps there are."""
    return "sqrt" if checkpoints == 0 else checkpoints


def main() -> NoReturn:
    """The entry point. Errors of ours are shown without a traceback, and with --json also as a JSON line."""
    warnings.formatwarning = _warning_text
    try:
        app()
    except ChainruleError as error:
        print(f"error: {error}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        sys.exit(BAD)
    sys.exit(OK)


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours in words; others, which are a programmer's business, with their place."""
    place = "" if issubclass(category, ChainruleWarning) else f"{filename}:{lineno}: "
    return f"warning: {place}{message}\n"
