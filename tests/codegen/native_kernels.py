"""Run a compiled kernel, and the same source as plain Python, on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import scipy_openblas32

from chainrule.codegen.objects import Array, Compiled, Job, Size, canonical, compile_object, plain, scratch_bytes
from chainrule.codegen.target import Target, host


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on 64 bytes, as every buffer of a program does."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@cache
def bind_openblas() -> None:
    (path,) = Path(scipy_openblas32.get_lib_dir()).glob("*openblas*.so*")
    library = ctypes.CDLL(str(path))
    library.scipy_openblas_set_num_threads(1)
    for name in ("scipy_cblas_sgemm", "scipy_cblas_dgemm"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


@cache
def loaded(compiled: Compiled):
    """The kernel's address as a C function; llvmlite alone loads it."""
    if any("cblas" in name for name in compiled.externals):
        bind_openblas()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function = kind(engine.get_function_address(compiled.symbol))
    function.engine = engine
    return function


@cache
def compiled_for(job: Job, target: Target) -> Compiled:
    return compile_object(job, target)


def run(job: Job, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int], lo: int, hi: int, target=None) -> dict:
    """The arrays after the compiled kernel has run over [lo, hi); those given are left alone."""
    function = loaded(compiled_for(job, target or host()))
    names = canonical(job)[1]
    described = list(zip(names, job.parameters, strict=False))
    copies = {n: aligned(arrays[n]) for n, p in described if isinstance(p, Array) and not p.scratch}
    values = [copies[n].ctypes.data for n in copies] + [sizes[n] for n, p in described if isinstance(p, Size)]
    table = np.array(values, np.int64)
    scratch = aligned(np.full(scratch_bytes(job.parameters, dict(sizes)) + 64, 255, np.uint8))  # full of NaN
    function(table.ctypes.data, scratch.ctypes.data, lo, hi)
    return copies


def run_plain(job: Job, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int], lo: int, hi: int) -> dict:
    """The same by CPython."""
    copies, given = {}, []
    for name, parameter in zip(canonical(job)[1], job.parameters, strict=False):
        if isinstance(parameter, Size):
            given.append(sizes[name])
        elif parameter.scratch:
            shape = tuple(sizes[n] if isinstance(n, str) else n for n in parameter.shape)
            given.append(np.full(shape, 99, parameter.element))
        else:
            copies[name] = arrays[name].copy()
            given.append(copies[name])
    plain(job.source, job.entry)(*given, lo, hi)
    return copies
