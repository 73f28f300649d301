"""Programs run kernel by kernel on the PTX interpreter, without the run side: for the laws of generated code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chainrule import executable as ex
from chainrule.codegen.cuda.emit import emit
from chainrule.ir.program import Program
from chainrule.runtime.cuda.tables import tables_of
from tests.codegen.running import Values, memory
from tests.cuda.device import Interpreter

ARCH = "sm_90"

_emitted: dict[tuple[int, Any, Any], Any] = {}
_kept: list[Program] = []


def emitted(program: Program, element: Any, precision: Any = "float32") -> Any:
    """Its executable, objects and sources, made once."""
    key = (id(program), element, precision)
    if key not in _emitted:
        _kept.append(program)
        _emitted[key] = emit(program, element=element, arch=ARCH, precision=precision)
    return _emitted[key]


def run_on_gpu(
    program: Program,
    free: Mapping[str, int],
    values: Mapping[str, Any],
    element: Any,
    step: int = 1,
    precision: Any = "float32",
) -> Values:
    """What every buffer holds after the kernels ran on the interpreter, each buffer in an allocation of its own."""
    executable, objects, _ = emitted(program, element, precision)
    sizes = ex.derived_sizes(executable.dims, free)
    counted = executable.training and executable.clock is not None  # by a kernel
    buffers = memory(executable, sizes, values, 0, step - int(counted))
    device = Interpreter(1 << 28)
    places = []
    for b in executable.buffers:
        array = buffers[b.name]
        places.append(device.allocate(max(array.nbytes, 1)))
        if array.nbytes:
            device.write(places[-1], np.ascontiguousarray(array).reshape(-1))
    for launch in ex.launches_at(executable, sizes):
        kernel = executable.kernels[launch.kernel]
        grid = ex.evaluate(launch.extent, sizes)
        if grid == 0:
            continue
        region = device.allocate(max(grid * ex.evaluate(launch.scratch, sizes), 1))
        held = [places[b] for b in launch.buffers]
        words = [*held, *(ex.evaluate(p, sizes) for p in launch.sizes), region]
        if launch.sets:
            tables = tables_of(launch, held, sizes)
            words = [*(device.allocate(table.nbytes) for table in tables), region]
            for place, table in zip(words, tables, strict=False):
                device.write(place, table)
        function = device.load(objects[kernel.object], objects[kernel.ptx], kernel.symbol)
        device.launch(function, grid, launch.threads, words)
    for b, place in zip(executable.buffers, places, strict=True):
        if buffers[b.name].nbytes:
            found = np.empty(buffers[b.name].shape, buffers[b.name].dtype)
            device.read(place, found)
            buffers[b.name] = found
    return buffers
