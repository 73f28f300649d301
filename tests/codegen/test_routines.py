"""Routines do what the same Python does: returns, loops, short circuits, calls of each other."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

from chainrule.codegen.routines import module_of_routines
from chainrule.codegen.translate import Untranslatable

SEVEN = 7


def test_kernels_compile_after_routines_in_a_process_that_had_none():
    """Numba is told of our functions before it is asked, whatever is imported first."""
    script = """
from chainrule.codegen.walker import compile_walker
compile_walker()
from chainrule.codegen.objects import Array, Job, compile_object
from chainrule.codegen.target import host
source = "def k(x, lo, hi):\\n    for i in range(lo, hi):\\n        x[i] = exp(maximum(x[i], 0.0))\\n"
assert compile_object(Job(source, "k", (Array("float32", (64,)),)), host()).code
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def _is_small(a: int) -> bool:
    """What the others call."""
    return a < SEVEN and a > -SEVEN


def _steps(a: int, b: int) -> int:
    if b <= 0 or a // b > 100:
        return -1
    count, left = 0, a
    while True:
        left, count = left - b, count + 1
        if left < 0:
            return count


def _mixed(a: int, b: int) -> int:
    total, k = 0, 0
    for i in range(a):
        if i % 2 == 0 or _is_small(b):
            total += i
        elif i == 5:
            return total * 1000
    while k < b and not _is_small(k):
        k += 1
    bad = 0
    bad |= (a < b) | (b == 3)
    return total - k + bad


ROUTINES = (_is_small, _steps, _mixed)


@pytest.fixture(scope="module")
def compiled():
    module = module_of_routines(ROUTINES, globals())
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    yield {f.__name__: kind(engine.get_function_address(f.__name__)) for f in ROUTINES[1:]}
    del engine


@settings(max_examples=60, deadline=None)
@given(a=integers(-20, 20), b=integers(-20, 20))
def test_a_routine_returns_what_its_python_returns(compiled, a, b):
    for function in ROUTINES[1:]:
        assert compiled[function.__name__](a, b) == function(a, b)


def test_what_no_routine_knows_is_refused():
    with pytest.raises(Untranslatable, match="no function of ours"):
        module_of_routines((_outside,), {})


def _outside(a: int) -> int:
    return _is_small(a)
