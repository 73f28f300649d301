"""Programs run kernel by kernel, as plain Python or compiled, without the run side: for the laws of generated code."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from chainrule import executable as ex
from chainrule.codegen.cpu import emit, sources
from chainrule.codegen.layout import executable_of
from chainrule.codegen.objects import Array, plain
from chainrule.codegen.target import host
from chainrule.ir.graph import Graph
from chainrule.ir.program import Program

Values = dict[str, np.ndarray[Any, Any]]
TYPES = {"float32": np.float32, "float64": np.float64, "int64": np.int64, "bool": np.bool_}


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """An array that starts on 64 bytes, full of NaN or large numbers: what is not written shows."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.full(size + 128, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    found = raw[start : start + size].view(dtype)
    return found.reshape(shape)


def memory(
    executable: ex.Executable, sizes: Mapping[str, int], values: Mapping[str, Any], seed: int, step: int
) -> Values:
    """Every buffer of an executable, those of `values` filled."""
    buffers: Values = {}
    for b in executable.buffers:
        array = aligned(tuple(ex.evaluate(p, sizes) for p in b.shape), TYPES[b.element])
        if b.data is not None:
            array[...] = np.frombuffer(b.data, array.dtype).reshape(array.shape)
        if b.space == "clock":
            array[:] = seed, step
        buffers[b.name] = array
    for s in (*executable.states, *executable.scalars):
        buffers[executable.buffers[s.buffer].name][...] = s.value if isinstance(s, ex.State) else s.default
    for name, value in values.items():
        if name in buffers:
            buffers[name][...] = value
    return buffers


def run_plain(
    program: Program, sizes: Mapping[str, int], values: Mapping[str, Any], element: Any, step: int = 1
) -> Values:
    """What every buffer holds after the kernels ran as plain Python."""
    return _run(program, sizes, values, element, step, compiled=False)


def run_compiled(
    program: Program, sizes: Mapping[str, int], values: Mapping[str, Any], element: Any, step: int = 1
) -> Values:
    """What every buffer holds after the compiled kernels ran."""
    return _run(program, sizes, values, element, step, compiled=True)


def _run(
    program: Program, free: Mapping[str, int], values: Mapping[str, Any], element: Any, step: int, compiled: bool
) -> Values:
    written = list(sources(program, element=element).values())
    objects: dict[str, bytes] = {}
    if compiled:
        executable, objects, _ = _emitted(program, element)
    else:
        executable = executable_of(program, written, [0] * len(written), element, "plain Python")
    sizes = ex.derived_sizes(executable.dims, free)
    buffers = memory(executable, sizes, values, 0, step)
    for launch, source in zip(executable.launches, written, strict=True):
        arrays = [buffers[executable.buffers[b].name] for b in launch.buffers]
        numbers = [ex.evaluate(p, sizes) for p in launch.sizes]
        extent = ex.evaluate(launch.extent, sizes)
        if compiled:
            kernel = executable.kernels[launch.kernel]
            function = _loaded(kernel.symbol, objects[kernel.object])
            table = np.array([*(a.ctypes.data for a in arrays), *numbers], np.int64)
            scratch = aligned((ex.evaluate(launch.scratch, sizes) + 64,), np.uint8)
            # in several calls, as threads would share it
            middle = extent // 2
            for lo, hi in ((0, middle), (middle, extent)):
                function(table.ctypes.data, scratch.ctypes.data, lo, hi)
        else:
            named = dict(zip(_size_names(source.job), numbers, strict=True))
            own = [
                aligned(tuple(named[n] if isinstance(n, str) else n for n in p.shape), TYPES[p.element])
                for p in source.job.parameters
                if isinstance(p, Array) and p.scratch
            ]
            with np.errstate(all="ignore"):
                plain(source.text, source.job.entry)(*arrays, *own, *numbers, 0, extent)
    return buffers


def _size_names(job: Any) -> list[str]:
    head = next(line for line in job.source.splitlines() if line.startswith("def "))
    names = head[head.index("(") + 1 : head.rindex(")")].split(", ")
    return [n for n, p in zip(names, job.parameters, strict=False) if not isinstance(p, Array)]


_programs: dict[tuple[int, Any], Any] = {}


def _emitted(program: Program, element: Any) -> Any:
    key = (id(program), element)
    if key not in _programs:
        _programs[key] = program, emit(program, element=element)
    return _programs[key][1]


_kept: list[Any] = []


@cache
def _loaded(symbol: str, code: bytes) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = host()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=target.cpu, features=target.features, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _kept.append(engine)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(engine.get_function_address(symbol))


def drawn(graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs and params for `graph`: normal floats, integers below their bound."""
    rng = np.random.default_rng(seed)
    found = {}
    for t in (*graph.inputs, *(p.tensor for p in graph.params), *(s.tensor for s in graph.states)):
        shape = tuple(sizes[e.name] if e.is_Symbol else int(e) for e in t.shape)
        if t.dtype.value == "float":
            found[t.name] = rng.standard_normal(shape)
        else:
            bound = 2 if t.bound is None else sizes[t.bound.name] if t.bound.is_Symbol else int(t.bound)
            found[t.name] = rng.integers(0, max(bound, 1), shape)
    return found
