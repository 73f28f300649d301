"""The whole pipeline, in order, on one screen: text -> graph -> derived -> optimized -> program -> executable."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import sympy as sp
from msgspec import structs

from chainrule import codegen, lang
from chainrule.choices import COST_MODEL, Choices
from chainrule.codegen import cuda
from chainrule.derive import backward, expand_gradient
from chainrule.errors import ChainruleError, SourceError, nearest
from chainrule.executable import Executable
from chainrule.ir import cost
from chainrule.ir.expression import expression_text
from chainrule.ir.formula import DType, Formula
from chainrule.ir.graph import Graph, Node
from chainrule.ir.machine import CPU, GPU
from chainrule.ir.program import Program
from chainrule.ir.trace import Step
from chainrule.ir.validate import validate
from chainrule.optimize import (
    checkpoint,
    contract,
    cse,
    drop_dead,
    drop_unread_inputs,
    eliminate,
    expand_reductions,
    inline,
    output_form,
    prefix,
    settle,
    simplify,
    specialize,
    stabilize,
)
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source, texts

MODULE = 50_000
"""Objects, about, of which a module of LLVM is made before it is text."""

Pass = Callable[[Graph], Graph]
Watch = Callable[[Pass, Graph, Graph], None]


def ignore(step: Pass, before: Graph, after: Graph) -> None:
    """Watch nothing."""


def expand_gradients(graph: Graph) -> Graph:
    """Replace every ``gradient`` by formulas; each is simplified before the next one derives it."""
    while (expanded := expand_gradient(graph)) is not graph:
        graph = eliminate(expanded)
    return graph


# what must come before derivation: a stable form's gradient is stable, and a max derives as a gather
PREPARE: tuple[Pass, ...] = (drop_dead, stabilize, prefix, expand_reductions, expand_gradients)

IMPROVE: tuple[Pass, ...] = (
    eliminate,
    simplify,
    output_form,
    cse,
    inline,
    simplify,
    contract,
    cse,
    settle,
    drop_dead,
    drop_unread_inputs,
)


def run(graph: Graph, passes: Sequence[Pass], watch: Watch = ignore) -> Graph:
    """`graph` through `passes` in order; validated, and shown to `watch`, after each."""
    for step in passes:
        before, graph = graph, step(graph)
        validate(graph, before)
        watch(step, before, graph)
    return graph


@dataclass(frozen=True)
class Compiled:
    """Every stage's result, for those who look: pictures, explanations, checks."""

    written: Graph  # as elaborated
    derived: Graph  # forward, backward and updates, as derived
    graph: Graph  # the same after optimization
    gradients: Mapping[str, str]  # what each tensor's gradient is called
    trace: tuple[Step, ...]


def elaborate(source: Source) -> Graph:
    """The graph that `source` describes, found once for all programs of a model. Raises SourceError at its line."""
    return _elaborated(source, repr(source.arguments), tuple(texts(source).items()))


@lru_cache(maxsize=16)
def _elaborated(source: Source, arguments: str, read: tuple[tuple[str, str], ...]) -> Graph:
    """arguments: as text, for 1, 1.0 and True are equal. read: all texts as they are now, which may have changed."""
    try:
        graph = lang.load_source(source)
    except SourceError as error:
        raise source.relocated(error) from None
    return replace(graph, nodes=tuple(_relocated(node, source) for node in graph.nodes)) if source.places else graph


def _relocated(node: Node, source: Source) -> Node:
    span = node.origin.span
    return node if span is None else replace(node, origin=replace(node.origin, span=source.place(span)))


def derive(source: Source, options: Options) -> Compiled:
    """The model's graph, made into what `options` ask for: a training step, gradients, or a prediction."""
    written = elaborate(source)
    trace: list[Step] = []

    def watch(step: Pass, before: Graph, after: Graph) -> None:
        trace.extend(changes(step.__name__, before, after))

    graph = specialize(written, training=options.training)
    wanted = tuple(_known(name, graph, written) for name in options.outputs)
    if not options.derives:
        graph = replace(graph, outputs=wanted or written.outputs)
        return Compiled(written, graph, run(graph, (*PREPARE, *_improve(options)), watch), {}, tuple(trace))
    loss = _loss(written, options.loss)
    graph = run(replace(graph, outputs=(loss, *(o for o in wanted if o != loss))), PREPARE, watch)
    of = tuple(_differentiable(name, graph, written) for name in options.wrt or [p.tensor.name for p in graph.params])
    derivation = backward(graph, loss, of)
    trace.extend(derivation.trace)
    graph = derivation.graph
    if options.optimizer is not None:
        graph = _with_updates(graph, derivation.gradients, source, options.optimizer, options)
    else:
        gradients = dict.fromkeys(derivation.gradients[name] for name in of)
        graph = replace(graph, updates=(), outputs=(*graph.outputs, *gradients))  # to look changes nothing
    validate(graph)
    return Compiled(written, graph, run(graph, _improve(options), watch), derivation.gradients, tuple(trace))


def _with_updates(
    graph: Graph, gradients: Mapping[str, str], source: Source, optimizer: str, options: Options
) -> Graph:
    """`graph` with the updates of an optimizer of the source's own, or of the library."""
    try:
        return lang.apply_optimizer(graph, gradients, optimizer, dict(options.arguments), lang.definitions(source))
    except SourceError as error:
        raise source.relocated(error) from None


def _improve(options: Options) -> tuple[Pass, ...]:
    steps = tuple(step for step in IMPROVE if not (options.accurate and step is output_form))
    every = options.checkpoints
    if every is None:
        return steps

    def divide(graph: Graph) -> Graph:
        return checkpoint(graph, every)

    return (*steps, divide, drop_dead)


def _loss(graph: Graph, name: str) -> str:
    if name not in graph.tensors:
        problem = f"model {graph.name} has no tensor {name!r} to minimise"
        raise ChainruleError(f"{problem}: {nearest(name, graph.tensors)}\n  Way out: define it: {name} = mean(…)")
    if graph.tensors[name].shape:
        shape = ", ".join(map(str, graph.tensors[name].shape))
        problem, way_out = f"{name} is [{shape}], and a loss is one number", "take its mean"
        made = graph.producers.get(name)
        if made is None or made.origin.span is None or made.origin.span.file.startswith("library/"):
            raise ChainruleError(f"{problem}\n  Way out: {way_out}")
        raise SourceError(made.origin.span, problem, (), way_out)
    return name


def _known(name: str, graph: Graph, written: Graph) -> str:
    if name in graph.tensors:
        return name
    params = {param.tensor.name for param in written.params}
    known = [tensor for tensor in written.tensors if "." not in tensor or tensor in params]  # no layer's inside
    raise ChainruleError(f"model {written.name} has no tensor {name!r}: {nearest(name, known)}")


def _differentiable(name: str, graph: Graph, written: Graph) -> str:
    dtype = graph.tensors[_known(name, graph, written)].dtype
    if dtype is not DType.FLOAT:
        raise ChainruleError(f"{name} is {dtype.value}: only float tensors have gradients\n  Way out: leave {name} out")
    return name


def changes(rule: str, before: Graph, after: Graph) -> list[Step]:
    """What a pass did, formula by formula: same name, another formula; or a name that came or went."""
    old, new = before.producers, after.producers
    if old == new:
        return []

    def formula(node: Node | None) -> tuple[Formula, ...]:
        return (node,) if isinstance(node, Formula) else ()

    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    return [Step(rule, formula(old.get(name)), formula(new.get(name))) for name in names]


def program(compiled: Compiled, options: Options, choices: Choices = COST_MODEL) -> Program:
    """The kernels of a derived graph. Raises ChainruleError for sizes of no dim, and a budget that cannot be kept.

    choices: of convolutions, as they were measured.
    """
    graph, sizes = compiled.graph, dict(options.sizes)
    free = {dim.name: dim for dim in graph.dims if dim.definition is None}
    for name, size in sizes.items():
        if name not in free:
            known = nearest(name, free) if free else "it has no dims"
            raise ChainruleError(f"{graph.name} has no dim {name!r}: {known}\n  Way out: name one of its dims")
        if size < free[name].minimum or size > (free[name].maximum or size):
            raise ChainruleError(f"{name} cannot be {size}\n  Way out: a size that its declaration allows")
    training, item = options.mode == "train", 8 if options.dtype == "float64" else 4
    accurate, memory = options.accurate, options.memory
    return schedule(
        graph, training=training, sizes=sizes, accurate=accurate, memory=memory, item=item, choices=choices,
        machine=CPU if options.arch is None else GPU,
    )  # fmt: skip


def compile_source(
    source: Source, options: Options, kept: codegen.Kept | None = None, choices: Choices = COST_MODEL
) -> tuple[Executable, dict[str, bytes]]:
    """The executable of `source`, and its object files by the SHA-256 of their bytes; kernels that are kept serve.

    choices: of products and convolutions, as they were measured.
    """
    with _uncollected():
        compiled = derive(source, options)
    if options.arch is not None:
        return emitted(compiled, program(compiled, options), options, kept, choices)
    with codegen.ready(len(compiled.graph.nodes)) as started:
        with _uncollected():
            scheduled = program(compiled, options, choices)
        with _seldom_collected():
            return emitted(compiled, scheduled, options, kept, choices, started)


def emitted(
    compiled: Compiled,
    scheduled: Program,
    options: Options,
    kept: codegen.Kept | None,
    choices: Choices,
    started: Sequence[codegen.Worker] = (),
) -> tuple[Executable, dict[str, bytes]]:
    """`compile_source` of what is derived and scheduled already."""
    if options.arch is None:
        made = codegen.emit(
            scheduled,
            element=options.dtype,
            kept=kept,
            choices=choices,
            started=started,
            accurate=options.accurate,
        )
    else:
        made = cuda.emit(
            scheduled,
            element=options.dtype,
            arch=options.arch,
            precision=options.precision,
            kept=(kept or codegen.Kept()).modules,
            sizes=dict(options.sizes),
            memory=options.memory,
        )
    executable, objects, _ = made
    gradients = {} if options.mode != "gradient" else dict(compiled.gradients)
    needed = {tensor.name for tensor in compiled.graph.inputs}
    unread = tuple(tensor.name for tensor in compiled.written.inputs if tensor.name not in needed)
    told = summary(compiled, executable)
    executable = structs.replace(executable, gradients=gradients, unread=unread, summary=told, memory=options.memory)
    return executable, objects


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: formulas are many and make none, and to walk them is an eighth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Modules of LLVM are cycles, to be found, but seldom, and without a look at all formulas each time."""
    frozen, thresholds = gc.get_freeze_count(), gc.get_threshold()
    if not frozen:  # else somebody froze what is his
        gc.freeze()
    gc.set_threshold(MODULE, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not frozen:
            gc.unfreeze()


def summary(compiled: Compiled, executable: Executable) -> dict[str, int | str]:
    """Figures for people. FLOPs: operations of all formulas; bytes: if each formula were a kernel of its own."""
    return {
        "formulas": sum(isinstance(node, Formula) for node in compiled.graph.nodes),
        "launches": len(executable.launches),
        "kernels": len(executable.kernels),
        "parameters": int(cost.parameters(compiled.graph)),
        "flops": _figure(cost.total_flops(compiled.graph)),
        "bytes": _figure(cost.total_traffic(compiled.graph)),
    }


def _figure(value: sp.Expr) -> int | str:
    """A number where no dim is in it, else the polynomial's text."""
    return int(value) if value.is_Integer else expression_text(value, {})
