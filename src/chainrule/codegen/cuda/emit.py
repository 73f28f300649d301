"""From a program to an executable for the GPU: source, PTX and cubin for each distinct kernel, launches, lifetimes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from msgspec import structs

from chainrule import executable as ex
from chainrule.codegen.cpu import bound
from chainrule.codegen.cuda.batches import Batch, batches
from chainrule.codegen.cuda.factors import with_factors
from chainrule.codegen.cuda.flat import LENGTH, flattened
from chainrule.codegen.cuda.kernel import kernel_source
from chainrule.codegen.cuda.library import library_product
from chainrule.codegen.cuda.objects import NAMES, Compiled, Job, compile_kernels, symbol_of
from chainrule.codegen.equal import Form, form_of
from chainrule.codegen.kept import KeptModules
from chainrule.codegen.kernel import STEP, Element, KernelSource
from chainrule.codegen.layout import executable_of
from chainrule.codegen.names import Names
from chainrule.ir.expression import dim_symbol
from chainrule.ir.program import Kernel, Program, accesses, alternatives, leaves


def emit(
    program: Program,
    *,
    element: Element,
    arch: str,
    precision: ex.Precision = "float32",
    kept: KeptModules | None = None,
    sizes: Mapping[str, int] | None = None,
    memory: int | None = None,
) -> tuple[ex.Executable, dict[str, bytes], dict[str, str]]:
    """The executable of `program` for GPUs of an architecture, such as ``"sm_90"``; its objects by SHA-256, the PTX of
    each kernel and its cubin; and the kernels' sources by their names.

    precision: what the factors of products may be rounded to. kept: kernels that were compiled before. sizes, memory:
    of free dims, and the bytes that may be kept between launches then. Neither GPU nor driver is needed.
    """
    program, launches = launched(program, element, precision, arch, sizes, memory)
    symbols = [symbol_of(batch.job, arch) for batch in launches]
    distinct = {symbol: batch.job for symbol, batch in zip(symbols, launches, strict=True)}
    made = _compiled(distinct, arch, kept or KeptModules())
    places = {symbol: k for k, symbol in enumerate(distinct)}
    which = [places[s] for s, batch in zip(symbols, launches, strict=True) for _ in batch.kernels]
    sources = [source for batch in launches for source in batch.sources]
    names = [(batch.name, len(batch.kernels)) for batch in launches]
    executable = executable_of(program, sources, which, element, f"cuda {arch}", names)
    kernels = tuple(ex.Kernel(c.symbol, _digest(c.cubin), ptx=_digest(c.ptx)) for c in made)
    objects = {_digest(data): data for c in made for data in (c.ptx, c.cubin)}
    texts = {batch.name: batch.job.source for batch in launches}
    return structs.replace(executable, kernels=kernels), objects, texts


def _compiled(distinct: Mapping[str, Job], arch: str, kept: KeptModules) -> list[Compiled]:
    """Each kernel from what is kept, else compiled."""
    found: dict[str, Compiled] = {}
    for symbol in distinct:
        known = kept.find(symbol)
        if known is not None and known[0] == symbol:
            _, cubin, ptx = known
            found[symbol] = Compiled(symbol, ptx, cubin)
    missing = {symbol: job for symbol, job in distinct.items() if symbol not in found}
    for new in compile_kernels(list(missing.values()), arch):
        found[new.symbol] = new
        kept.keep(new.symbol, new.symbol, new.cubin, new.ptx)
    return [found[symbol] for symbol in distinct]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def launched(
    program: Program,
    element: Element,
    precision: ex.Precision = "float32",
    arch: str = "sm_90",
    sizes: Mapping[str, int] | None = None,
    memory: int | None = None,
) -> tuple[Program, list[Batch]]:
    """The launches of a program, those of equal kernels one where they may be; the program with its kernels in their
    order."""
    program, written = printed(program, element, precision, arch)
    found = batches(program, written, element, sizes, memory)
    return replace(program, kernels=tuple(kernel for batch in found for kernel in batch.kernels)), found


def printed(
    program: Program, element: Element, precision: ex.Precision = "float32", arch: str = "sm_90"
) -> tuple[Program, list[KernelSource]]:
    """The kernels' sources, those of equal kernels printed once; the program with what counts its steps."""
    plain = {kernel.name: kernel for kernel in program.kernels}  # numbers that stand still are no reads yet
    program, counting = counted(with_factors(program))
    names = Names({"kernel", "scratch", *NAMES})
    dims = frozenset(dim_symbol(dim.name) for dim in program.dims)
    buffers = {b.name: b for b in program.buffers}
    first: dict[object, tuple[Form, KernelSource]] = {}
    written = []
    for kernel in program.kernels:
        counts = kernel.name in counting
        flat = None if counts else flattened(kernel, buffers)
        if flat is None:
            form, within = form_of(kernel, buffers, dims), program
        else:
            form, within = form_of(flat.kernel, {**buffers, **flat.views}, dims | {LENGTH}), flat.within(program)
        found = first.get((form.key, counts))
        if found is None:
            kernel = kernel if flat is None else flat.kernel
            found = form, kernel_source(kernel, within, names.fresh(kernel.name), element, precision, arch, counts)
            first[form.key, counts] = found
        source = bound(*found, form)
        multiply = library_product(plain[kernel.name], buffers) if kernel.name in plain else None
        if multiply is not None:
            source = replace(source, multiply=replace(multiply, precision=precision))
        written.append(source if flat is None else flat.measured(source))
    return program, written


def counted(program: Program) -> tuple[Program, frozenset[str]]:
    """`program`, where its draws or its factors ask for the step's number, with the names of the kernels that count
    it: the first that runs, if it has one block, else one of its own before that."""
    clocked = {b.name for b in program.buffers if b.space == "random" or (b.space == "scalar" and b.name == STEP)}
    read = {a.tensor for k in program.kernels for leaf in leaves(k.body) for a in accesses(leaf)[0]}
    if not program.training or not clocked & read:
        return program, frozenset()
    kernels: list[Kernel] = []
    names = []
    for group in alternatives(program.kernels):
        if group[0].block is not None:
            kernels.append(Kernel("count_step", (), when=group[0].when, unless=group[0].unless))
            names.append("count_step")
        else:
            names.append(group[0].name)
        kernels += group
    return replace(program, kernels=tuple(kernels)), frozenset(names)
