"""From a kernel's generated source to its PTX and its cubin, on any machine: no GPU and no driver is needed.

`compile_kernel` is deterministic: source that differs only in names, comments and docstrings gives the same bytes
under the same symbol. Parameters are 8 bytes each, in the source's order: addresses, then sizes and the scratch
region's address as int64. Different pointers never overlap: a buffer that a kernel reads and writes is one parameter.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError

from chainrule.codegen.cuda import fragments, functions, intrinsics, reductions
from chainrule.codegen.cuda.module import module_of
from chainrule.codegen.cuda.toolkit import ToolError, cubin_of, ptx_of
from chainrule.codegen.native import Size
from chainrule.codegen.objects import CompileError, bare
from chainrule.codegen.view import ELEMENTS, View

__all__ = [
    "NAMES",
    "CompileError",
    "Compiled",
    "Job",
    "Pointer",
    "Size",
    "compile_kernel",
    "compile_kernels",
    "symbol_of",
]

FORMAT = 8  # part of every symbol: change it with anything here that changes the code of equal sources

NAMES: dict[str, Any] = {
    **{name: getattr(functions, name) for name in functions.__all__},
    **{name: getattr(intrinsics, name) for name in intrinsics.__all__},
    **{name: getattr(reductions, name) for name in reductions.__all__},
    **{name: getattr(fragments, name) for name in fragments.__all__},
    "min": functions.minimum,
    "max": functions.maximum,
    "abs": functions.absolute,
}
"""All that generated source can name."""


@dataclass(frozen=True)
class Pointer:
    """A kernel's parameter that is the address of elements, indexed flat."""

    element: Literal["float32", "float64", "int64", "bool"]


Parameter = Pointer | Size


@dataclass(frozen=True)
class Job:
    """A kernel to compile: ``def entry(<one parameter for each of `parameters`>)`` in `source`.

    threads: of a block, no more and no fewer. blocks: so many are to fit a multiprocessor, and registers are kept to
    that.
    """

    source: str
    entry: str
    parameters: tuple[Parameter, ...]
    threads: int = 256
    blocks: int = 1


@dataclass(frozen=True)
class Compiled:
    """A kernel's entry, its PTX as text, and its machine code."""

    symbol: str
    ptx: bytes
    cubin: bytes


def symbol_of(job: Job, arch: str) -> str:
    """The name of the kernel's entry: a hash of what its code depends on."""
    elements = [p.element if isinstance(p, Pointer) else "size" for p in job.parameters]
    of = repr((FORMAT, bare(job.source, job.entry)[0], elements, job.threads, job.blocks, arch))
    return "kernel_" + hashlib.sha256(of.encode()).hexdigest()[:24]


def compile_kernel(job: Job, arch: str) -> Compiled:
    """The code of a kernel for an architecture, such as ``"sm_90"``; the same source gives the same bytes."""
    symbol = symbol_of(job, arch)
    return _finished(job, symbol, llvm_of(job, symbol), arch)


def compile_kernels(jobs: Sequence[Job], arch: str) -> list[Compiled]:
    """The code of all `jobs`, in order; equal kernels are compiled once.

    NVIDIA's compilers take several threads at once, and most of the time.
    """
    distinct = {symbol_of(job, arch): job for job in jobs}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = {s: pool.submit(_finished, job, s, llvm_of(job, s), arch) for s, job in distinct.items()}
        found = {symbol: one.result() for symbol, one in waiting.items()}
    return [found[symbol_of(job, arch)] for job in jobs]


def llvm_of(job: Job, symbol: str) -> str:
    """The kernel as the text of an LLVM module."""
    text, names = bare(job.source, job.entry)
    if len(names) != len(job.parameters):
        raise CompileError(f"{job.entry} takes {names}, and {len(job.parameters)} are described\n{job.source}")
    try:
        with global_compiler_lock:
            (tree,) = ast.parse(text).body
            assert isinstance(tree, ast.FunctionDef)
            return module_of(tree, NAMES, tuple(map(_type, job.parameters)), symbol, job.threads, job.blocks)
    except (NumbaError, TypeError, ValueError) as error:
        raise CompileError(f"{error}\n{text}\n# written as\n{job.source}") from error


def _finished(job: Job, symbol: str, module: str, arch: str) -> Compiled:
    try:
        ptx = ptx_of(module, arch)
        return Compiled(symbol, ptx, cubin_of(ptx, arch))
    except ToolError as error:
        raise CompileError(f"{error}\n# written as\n{job.source}") from error


def _type(parameter: Parameter) -> types.Type:
    return types.int64 if isinstance(parameter, Size) else View(ELEMENTS[parameter.element], (None,))
