"""Compiled kernels under the real run side: its words, grids and places are what PTX expects of them."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import pytest

pytest.importorskip("numba.cuda")

from chainrule.codegen.cuda.objects import Job, Pointer, Size, compile_kernels
from chainrule.executable import Kernel
from chainrule.runtime.cuda.arrays import store_on
from chainrule.runtime.cuda.step import Runner
from chainrule.runtime.step import Runner as OnCpu
from chainrule.runtime.store import Store
from tests.cuda.device import Interpreter
from tests.runtime.cuda.machine import dense, gpu_program
from tests.runtime.programs import fixed, lookup, regression, walker

F, I = "float32", "int64"
EACH = "    for i in range(block() * 32 + thread(), n, blocks() * 32):\n        "
SOURCES = {  # by kernel: the elements of its buffers, its sizes, and what it does
    "minus": ((F, F, F), "x y out", "n", EACH + "out[i] = x[i] - y[i]\n"),
    "times": ((F, F, F), "x y out", "n", EACH + "out[i] = x[i] * y[i]\n"),
    "update": ((F, F, F), "w g rate", "n", EACH + "w[i] = w[i] - rate[0] * g[i]\n"),
    "row_sum": ((F, F), "x out", "columns n", EACH + "out[i] = float32(0)\n        for j in range(columns):\n"
                "            out[i] = out[i] + x[i * columns + j]\n"),
    "clock": ((I, F), "at out", "n", EACH + "out[i] = float32(at[1])\n"),
    "advance": ((I,), "at", "n", "    if block() * 32 + thread() == 0:\n        at[1] = at[1] + 1\n"),
    "gather": ((F, I, F), "table index out", "n", EACH + "out[i] = table[index[i]]\n"),
    "matmul": ((F, F, F), "x w out", "inner columns n", EACH + "for j in range(columns):\n"
               "            s = float32(0)\n            for k in range(inner):\n"
               "                s = s + x[i * inner + k] * w[k * columns + j]\n            out[i * columns + j] = s\n"),
}  # fmt: skip


@functools.cache
def compiled():
    """Every kernel, by name."""
    jobs = []
    for name, (elements, buffers, sizes, body) in SOURCES.items():
        head = ", ".join((*buffers.split(), *sizes.split(), "scratch"))
        parameters = (*map(Pointer, elements), *(Size() for _ in sizes.split()), Size())
        jobs.append(Job(f"def {name}({head}):\n{body}", name, parameters, 32))
    return dict(zip(SOURCES, compile_kernels(jobs, "sm_90"), strict=True))


def runner(program, device=None):
    """A program of `tests.runtime.programs` with kernels of three CTAs, on the interpreter."""
    device = device or Interpreter(1 << 24)
    executable, _ = gpu_program(program)
    made = [compiled()[kernel.symbol] for kernel in executable.kernels]
    kernels = tuple(Kernel(m.symbol, f"cubin {m.symbol}", ptx=f"ptx {m.symbol}") for m in made)
    objects = {f"{kind} {m.symbol}": getattr(m, kind) for m in made for kind in ("cubin", "ptx")}
    launches = tuple(msgspec.structs.replace(launch, extent=fixed(3)) for launch in executable.launches)
    executable = msgspec.structs.replace(executable, kernels=kernels, launches=launches)
    return Runner(executable, objects, store_on(device, 1), device)


def test_steps_are_those_of_the_cpu():
    there, here = runner(regression()[0]), OnCpu(*regression(), Store(1), walker(), threads=1)
    many, y = np.random.default_rng(1).normal(size=(70, 40, 3)).astype("f4"), np.ones((40, 3), "f4")
    for batch, steps in ((many[0], None), (many[1], None), (many, 70), (many[0, :5], None)):
        given = {"x": batch, "y": y[:5] if batch.shape[0] == 5 else y}
        found, expected = (r.run(given, steps) for r in (there, here))
        for name in expected:
            assert np.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6), name
    assert np.allclose(there.store.params["w"], here.store.params["w"], rtol=1e-5)
    assert there.store.step == here.store.step == 73


def test_indices_find_their_rows():
    one = runner(lookup()[0])
    index = np.random.default_rng(0).integers(0, 5, 100)
    assert np.array_equal(one.run({"index": index})["out"], one.store.params["table"][index])


@pytest.mark.parametrize("library", [True, False])
def test_the_library_and_the_kernel_multiply_alike(library):
    device = Interpreter(1 << 24)
    if not library:
        device.multiply = lambda product: False
    one = runner(dense(), device)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("f4")
    for _ in range(3):
        assert np.allclose(one.run({"x": x})["out"], x @ one.store.params["w"], rtol=1e-5)
    assert len(device.launched) == (0 if library else 3) and len(device.multiplied) == (3 if library else 0)
