"""From a program to an executable for the CPU: readable source for each kernel, objects for each distinct one.

`sources` prints; `emit` compiles what was printed and lays the executable out. Kernels whose sources differ only in
names share one object.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import sympy as sp
from msgspec import structs

from chainrule import executable as ex
from chainrule.choices import COST_MODEL, Choices
from chainrule.codegen import functions, gamma, vector
from chainrule.codegen.collapse import collapsed
from chainrule.codegen.compose import Made, composed
from chainrule.codegen.contraction import Epilogue, write_product
from chainrule.codegen.cpu_writer import CpuWriter
from chainrule.codegen.epilogue import arranged, is_alone
from chainrule.codegen.equal import Form, form_of
from chainrule.codegen.kept import Kept
from chainrule.codegen.kernel import (
    DEEPEST,
    Element,
    KernelSource,
    docstring,
    height,
    nest_of,
    parameters_of,
)
from chainrule.codegen.layout import executable_of
from chainrule.codegen.names import Names
from chainrule.codegen.objects import NAMES as LIBRARY
from chainrule.codegen.objects import Compiled, Job, assembly, symbol_of, undefined_symbols
from chainrule.codegen.shared import shared
from chainrule.codegen.statement import write_statement
from chainrule.codegen.strips import stripped
from chainrule.codegen.target import Target, host
from chainrule.codegen.workers import Crew, Worker
from chainrule.errors import ChainruleError
from chainrule.ir.expression import dim_symbol
from chainrule.ir.program import Kernel, Leaf, Loop, Product, Program, Statement, accesses, leaves


def emit(
    program: Program,
    *,
    element: Element,
    target: Target | None = None,
    kept: Kept | None = None,
    choices: Choices = COST_MODEL,
    started: Sequence[Worker] = (),
    accurate: bool = False,
) -> tuple[ex.Executable, dict[str, bytes], dict[str, str]]:
    """The executable of `program` for `target` (None: this CPU), its objects by SHA-256, and the kernels' sources.

    The source of a kernel that equals an earlier one is that one's. choices: of products, as they were measured.
    started: processes that can compile. accurate: what is composed stays so (`composed`).
    """
    target, kept = target or host(), kept or Kept()
    jobs: dict[str, Job] = {}
    named: dict[Job, str] = {}
    known: dict[str, Compiled] = {}
    written: list[KernelSource] = []
    with Crew(target, started) as crew:  # others compile the first kernels while the last are printed
        for source in each_printed(program, element, target, choices, accurate):
            written.append(source)
            if source.job in named:
                continue
            symbol = named[source.job] = symbol_of(source.job, target)
            if symbol not in jobs and (code := kept.find(symbol)) is not None:
                known[symbol] = Compiled(symbol, code, undefined_symbols(code))
            elif symbol not in jobs:
                crew.give(symbol, source.job)
            jobs.setdefault(symbol, source.job)
        places = {symbol: k for k, symbol in enumerate(jobs)}
        which = [places[named[source.job]] for source in written]
        executable = executable_of(program, written, which, element, str(target))
        made = crew.finish()
    for symbol, new in made.items():
        kept.keep(symbol, new.code)
    compiled = [known.get(symbol) or made[symbol] for symbol in jobs]
    kernels = tuple(_kernel(c) for c in compiled)
    products = {case.key: choice for source in written for case, choice in source.products}
    products |= dict(program.convolutions)
    tuned = {key: choice for key, choice in products.items() if choices.get(key) == choice}
    executable = structs.replace(executable, kernels=kernels, products=tuple(sorted(products)), tuned=tuned)
    objects = {k.object: c.code for k, c in zip(kernels, compiled, strict=True)}
    return executable, objects, {kernel.name: s.text for kernel, s in zip(program.kernels, written, strict=True)}


def _kernel(compiled: Compiled) -> ex.Kernel:
    return ex.Kernel(compiled.symbol, hashlib.sha256(compiled.code).hexdigest(), compiled.externals)


def sources(
    program: Program, *, element: Element, target: Target | None = None, accurate: bool = False
) -> dict[str, KernelSource]:
    """Each kernel of `program` as source, by its name."""
    target = target or host()
    names = Names({"lo", "hi", "kernel", *LIBRARY})
    _named_once(program)
    return {
        k.name: kernel_source(k, program, names.fresh(k.name), element, target, accurate=accurate)
        for k in program.kernels
    }


def printed(
    program: Program, element: Element, target: Target, choices: Choices = COST_MODEL, accurate: bool = False
) -> list[KernelSource]:
    """A source for each kernel of `program`; kernels that differ in names alone share the first one's text."""
    return list(each_printed(program, element, target, choices, accurate))


def each_printed(
    program: Program, element: Element, target: Target, choices: Choices = COST_MODEL, accurate: bool = False
) -> Iterator[KernelSource]:
    """The same, one after the other."""
    names = Names({"lo", "hi", "kernel", *LIBRARY})
    _named_once(program)
    buffers, dims = {b.name: b for b in program.buffers}, _dims(program)
    first: dict[object, tuple[Form, KernelSource]] = {}
    for kernel in program.kernels:
        form = form_of(kernel, buffers, dims)
        found = first.get(form.key)
        if found is None:
            entry = names.fresh(kernel.name)
            found = form, kernel_source(kernel, program, entry, element, target, choices, accurate)
            first[form.key] = found
        yield bound(*found, form)


def bound(of: Form, source: KernelSource, form: Form) -> KernelSource:
    """The source of one kernel, for an equal one's buffers and dims."""
    if of is form:
        return source
    buffers, dims = of.to(form)
    return replace(
        source,
        buffers=tuple(buffers.get(name, name) for name in source.buffers),  # the clock is always the clock
        sizes=tuple(e.xreplace(dims) for e in source.sizes),
        draws=tuple(buffers[name] for name in source.draws),
        scratch=tuple((element, tuple(e.xreplace(dims) for e in shape)) for element, shape in source.scratch),
        grid=None if source.grid is None else source.grid.xreplace(dims),
        region=source.region.xreplace(dims),
    )


def _named_once(program: Program) -> None:
    for name, times in Counter(kernel.name for kernel in program.kernels).items():
        if times > 1:
            raise ChainruleError(f"program {program.name} has two kernels named {name}")


def _dims(program: Program) -> frozenset[sp.Symbol]:
    return frozenset(dim_symbol(dim.name) for dim in program.dims)


def kernel_source(
    kernel: Kernel,
    program: Program,
    entry: str,
    element: Element,
    target: Target,
    choices: Choices = COST_MODEL,
    accurate: bool = False,
) -> KernelSource:
    """`kernel` as a Python function named `entry`."""
    buffers = {b.name: b for b in (*program.buffers, *kernel.locals)}
    dims = _dims(program)
    steps = list(leaves(kernel.body))
    texts = [s.text for s in steps if isinstance(s, Product) or s.reads or s.reduce]  # where a sum starts tells nothing
    texts = texts or [s.text for s in steps]
    names, direct = Names({"lo", "hi", "kernel", *LIBRARY}), list[Made]()
    names.fresh(entry)
    if element == "float32" and target.fma and not accurate:
        kernel, direct = composed(kernel, buffers, names)
    kernel = shared(kernel, buffers, dims)
    buffers |= {b.name: b for b in kernel.locals}
    kernel, whole = stripped(kernel, buffers, target.lanes(element))
    buffers |= {b.name: b for b in kernel.locals}
    stores = frozenset(accesses(leaf)[1].tensor for leaf in leaves(kernel.body))
    w = CpuWriter(kernel, buffers, dims, element, names, stores=stores, whole=whole, target=target, choices=choices)
    _write_blocks(kernel, w)
    given, own, called, parameters = parameters_of(w)
    head = f"def {entry}({', '.join([*called, 'lo', 'hi'])}):"
    top = [f"    {name} = {value}" for name, value in w.hoisted.values()]
    w.used |= {name for made in direct for name in made.calls}
    above = [line for made in direct for line in (*made.source.splitlines(), "", "")]
    text = "\n".join([*imports(w), *above, head, *docstring(texts), *top, *w.lines]) + "\n"
    return KernelSource(
        text=text,
        job=Job(text, entry, parameters),
        buffers=tuple(given),
        sizes=tuple(w.sizes),
        draws=tuple(w.draws),
        products=tuple(w.products.values()),
        scratch=tuple((w.views[n][1].element, tuple(w.over_dims(e) for e in w.buffers[n].shape)) for n in own),
        reads=tuple(k for k, name in enumerate(given) if name in w.read),
        writes=tuple(k for k, name in enumerate(given) if name in w.written),
    )


def imports(w: CpuWriter) -> list[str]:
    """What saved source needs to run as plain Python."""
    lines = []
    for module in (functions, gamma, vector):
        if names := sorted(w.used & set(module.__all__)):
            lines.append(f"from {module.__name__} import {', '.join(names)}")
    return [*lines, "", ""] if lines else []


def _write_blocks(kernel: Kernel, w: CpuWriter) -> None:
    """The top loop counts the blocks of its range: block b covers [b size, min(b size + size, extent))."""
    block = kernel.block
    if block is None:
        with w.inside("if lo < hi:"):
            write_leaves(kernel.body, w)
        return
    number, lines = w.open_block(block)
    with w.inside(f"for {number} in range(lo, hi):"):
        for line in lines:
            w.line(line)
        write_leaves(kernel.body, w)


def write_leaves(body: tuple[Leaf, ...], w: CpuWriter) -> None:
    """The nodes of a tree, in order."""
    for node, nest in arranged(body):
        match node:
            case Loop():
                _write_loop(node, w)
            case Statement():
                write_statement(node, w)
            case Product():
                after = None if nest is None else Epilogue(nest, is_alone(node, nest, w.kernel.body), write_leaves)
                if not write_product(node, w, after) and nest is not None:
                    _write_loop(nest, w)
            case _:
                assert_never(node)
    if not body:
        w.line("pass")


def _write_loop(loop: Loop, w: CpuWriter) -> None:
    if loop.until is not None:
        w.read.add(loop.until.tensor)
        with w.loop(loop.range), w.inside(f"if not {w.place(loop.until, {})} > 0:"):  # to look on costs nothing
            write_leaves(loop.body, w)
        return
    nest = nest_of(loop)
    if (whole := collapsed(nest, w)) is not None:
        loop, nest = whole, [whole]
    if len(w.open) + height(loop) > DEEPEST and len(nest) > 1:
        with w.collapsed([n.range for n in nest]):
            write_leaves(nest[-1].body, w)
        return
    if len(w.open) >= DEEPEST:
        raise ChainruleError(
            f"kernel {w.kernel.name} nests more than {DEEPEST} loops\n  Way out: reduce over fewer indices at a time"
        )
    with w.loop(loop.range):
        write_leaves(loop.body, w)


def saved(written: Mapping[str, KernelSource], target: Target | None = None) -> dict[str, str]:
    """The files that `--out` writes: each kernel's source under a name of its own, and its assembly for `target`."""
    files = {f"{source.job.entry}.py": source.text for source in written.values()}
    if target is None:
        return files
    return files | {f"{source.job.entry}.s": assembly(source.job, target) for source in written.values()}
