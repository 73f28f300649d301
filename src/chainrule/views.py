"""What a model looks like inside: pictures, tables, explanations, generated source. The compiler's other faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec import json

from chainrule import codegen, render
from chainrule.check import Report, check_gradients
from chainrule.codegen import cuda
from chainrule.codegen.target import Level, host
from chainrule.compiler import PREPARE, derive, program, run
from chainrule.errors import ChainruleError, SourceError, nearest
from chainrule.executable import encode
from chainrule.ir.formula import DType, Formula
from chainrule.ir.graph import Graph, Init, Tensor
from chainrule.ir.primitive import Primitive
from chainrule.ir.program import Program
from chainrule.ir.tables import edge_list, node_table
from chainrule.ir.text import equation_text
from chainrule.options import Options
from chainrule.reference import evaluate, shape_of, sizes_of
from chainrule.runtime.cache import Compiled
from chainrule.source import Source

Array = np.ndarray[Any, Any]

EXTENT = 4  # of the first dim in a check; the next ones are larger, so that no two axes are taken for each other


def picture(
    source: Source,
    options: Options,
    kind: str,
    format: render.Format | Literal["dot"] = "svg",
    depth: int | None = None,
    notes: Sequence[str] = (),
) -> bytes:
    """The graph that runs, or its program, drawn; formulas that became one kernel are framed together.

    kind: forward, backward, both (mirrored) or program. format: svg, pdf, png or dot (the text that Graphviz reads).
    depth: of layers that are collapsed. notes: what to say of each kernel of the program, or of each launch on a GPU.
    Raises ChainruleError where there is no such kind or format, or no Graphviz.
    """
    compiled = derive(source, options)
    kernels = program(compiled, options)
    frames = render.frames(kernels)

    def drawn() -> str:
        ordered, said = in_order(kernels, options, notes)
        return render.program_picture(ordered, compiled.graph.tensors, said)

    drawings = {
        "forward": lambda: render.forward_picture(compiled.graph, frames, depth),
        "backward": lambda: render.backward_picture(compiled.graph, frames, depth),
        "both": lambda: render.both_picture(compiled.graph, depth),
        "program": drawn,
    }
    if kind not in drawings:
        raise ChainruleError(f"there is no picture {kind!r}: {nearest(kind, drawings)}")
    text = drawings[kind]()
    return text.encode() if format == "dot" else render.draw(text, format)


def in_order(scheduled: Program, options: Options, notes: Sequence[str]) -> tuple[Program, Sequence[str]]:
    """The program as it is launched, and what is to be said of each kernel: of all that one launch does the same."""
    if options.arch is None:
        return scheduled, notes
    arranged, launches = cuda.launched(
        scheduled, options.dtype, options.precision, options.arch, dict(options.sizes), options.memory
    )
    return arranged, [note for note, batch in zip(notes, launches, strict=False) for _ in batch.kernels]


def tables(source: Source, options: Options) -> dict[str, list[Any]]:
    """The rows of the node table and of the edge list."""
    graph = derive(source, options).graph
    return {"nodes": list(node_table(graph)), "edges": list(edge_list(graph))}


def explain(source: Source, options: Options) -> str:
    """How each formula came about, as Markdown."""
    compiled = derive(source, options)
    return render.explain(compiled.graph, compiled.trace)


def steps(source: Source, options: Options) -> list[dict[str, Any]]:
    """The trace of the derivation: each step's rule, what the rule does, and the formulas before and after it."""
    return [
        {
            "rule": step.rule,
            "means": render.RULES.get(step.rule, ""),
            "before": [equation_text(f) for f in step.before],
            "after": [equation_text(f) for f in step.after],
            "formulas": list(dict.fromkeys(f.out for f in (*step.before, *step.after))),
        }
        for step in derive(source, options).trace
    ]


def sources(source: Source, options: Options, cpu: Level | None = None) -> dict[str, str]:
    """The generated source of each kernel, as files that also run as plain Python, by file name.

    cpu: one to print for instead of this machine's; each kernel's assembly then stands beside its source.
    """
    target = None if cpu is None else host(cpu)
    written = codegen.sources(
        program(derive(source, options), options), element=options.dtype, target=target, accurate=options.accurate
    )
    return codegen.saved(written, target)


def gpu_files(source: Source, options: Options, made: Compiled) -> dict[str, str | bytes]:
    """A GPU's program as files: executable.json, and of each kernel its source, its PTX and its machine code.

    made: the program, as compiled. Launches of equal kernels share the files of the first.
    """
    scheduled, sizes, arch = program(derive(source, options), options), dict(options.sizes), options.arch or "sm_90"
    _, launches = cuda.launched(scheduled, options.dtype, options.precision, arch, sizes, options.memory)
    files: dict[str, str | bytes] = {"executable.json": json.format(encode(made.executable), indent=2)}
    kernels = dict[int, str]()
    for launch, batch in zip(made.executable.launches, launches, strict=True):
        if launch.kernel not in kernels:
            name = kernels[launch.kernel] = batch.job.entry
            kernel = made.executable.kernels[launch.kernel]
            files |= {f"{name}.py": batch.job.source, f"{name}.ptx": made.objects[kernel.ptx]}
            files[f"{name}.cubin"] = made.objects[kernel.object]
    return files


def check(source: Source, options: Options, *, directions: int = 8, elements: int = 8, seed: int = 0) -> Report:
    """Each gradient that `options` ask for against central differences of the model as it was written, in float64.

    Parameters and inputs are drawn by their laws, dtypes and bounds, from `seed`.
    """
    compiled = derive(source, options)
    written = compiled.written
    if any(isinstance(node, Primitive) and node.kind == "gradient" for node in written.nodes):
        written = run(written, PREPARE)  # the reference has no gradients of its own
    values = point(written, options.loss, seed)
    with np.errstate(all="ignore"):
        found = evaluate(written, values, seed=seed)
    if not np.isfinite(found[options.loss]):
        raise _no_number(written, options.loss, found)
    return check_gradients(
        written, compiled.graph, compiled.gradients, options.loss, values,
        directions=directions, elements=elements, seed=seed,
    )  # fmt: skip


def _no_number(graph: Graph, loss: str, found: Mapping[str, Any]) -> ChainruleError:
    """What to say where the loss is NaN or infinite, so that no difference of it means anything."""
    wrong = [n for n in graph.nodes if isinstance(n, Formula) and not np.all(np.isfinite(found[n.out]))]
    problem = f"{loss} is {found[loss]:g} at the points tried, so its differences say nothing"
    way_out = "guard it, as in: if n > 0 then a / n else 0"
    # minus infinity may be meant: it is a mask's
    first = next((n for n in wrong if not np.all(found[n.out] < np.inf)), wrong[0])
    fact = f"{first.out} is the first tensor that is not finite"
    if first.origin.span is None:
        return ChainruleError(f"{problem}\n  {fact}\n  Way out: {way_out}")
    return SourceError(first.origin.span, problem, (fact,), way_out)


def point(graph: Graph, loss: str, seed: int) -> dict[str, Array]:
    """Values for inputs and parameters where the loss is a number: floats are normal, else between 0 and 1."""
    sizes = _sizes(graph)
    values: dict[str, Array] = {}
    for positive in (False, True):
        rng = np.random.default_rng(seed)
        values = {t.name: _input(t, sizes, rng, positive) for t in graph.inputs}
        values |= {p.tensor.name: _param(p.init, shape_of(p.tensor.shape, sizes), rng) for p in graph.params}
        with np.errstate(all="ignore"):
            if np.isfinite(evaluate(graph, values, seed=seed)[loss]):
                break
    return values


def _sizes(graph: Graph) -> dict[str, int]:
    free = [dim for dim in graph.dims if dim.definition is None]
    chosen: dict[str, int] = {}
    for k, dim in enumerate(free):
        most = EXTENT + k if dim.maximum is None else dim.maximum
        chosen[dim.name] = min(max(EXTENT + k, dim.minimum), most)
    shapes = {t.name: tuple(chosen.get(str(e), 0) for e in t.shape) for t in graph.inputs}
    return {**chosen, **sizes_of(graph, shapes)}


def _input(tensor: Tensor, sizes: Mapping[str, int], rng: np.random.Generator, positive: bool) -> Array:
    shape = shape_of(tensor.shape, sizes)
    match tensor.dtype:
        case DType.FLOAT:
            return rng.uniform(size=shape) if positive else rng.normal(size=shape)
        case DType.INT:
            bound = 10 if tensor.bound is None else shape_of((tensor.bound,), sizes)[0]
            return rng.integers(0, bound, shape)
        case DType.BOOL:
            return rng.integers(0, 2, shape).astype(bool)


def _param(init: Init, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Of the size that the law has; what would start at one value for all starts a little off it."""
    numbers = init.numbers
    match init.law:
        case "uniform":
            return np.asarray(rng.uniform(numbers[0], numbers[1], shape))
        case "normal":
            return np.asarray(rng.normal(numbers[0], numbers[1], shape))
        case "constant":
            return np.asarray(rng.normal(numbers[0], 0.1, shape))
        case _:
            return np.asarray(rng.normal(0, numbers[0] / max(numbers[1], 1) ** 0.5, shape))
