"""Objects are loaded by plain llvmlite; what they need is known before."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from chainrule.errors import ChainruleError
from chainrule.executable import Kernel
from chainrule.runtime.buffers import address
from chainrule.runtime.cache import digest
from chainrule.runtime.load import load
from chainrule.symbols import ObjectFileError, symbols
from tests.runtime.programs import F32, I64, ZERO, compiled, kernel, object_of, place, walker

CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def constant_kernel(symbol: str, value: float) -> bytes:
    return kernel(symbol, 1, lambda b, t, i: b.store(ir.Constant(F32, value), place(b, t[0], ZERO)))


def result_of(function: int) -> float:
    out = np.zeros(1, np.float32)
    table = np.array([address(out)], np.int64)
    CALL(function)(address(table), None, 0, 1)
    return float(out[0])


def test_symbols_tells_what_is_defined_and_what_is_missing():
    table = symbols(walker())
    assert table.defined == {"chainrule_walk", "chainrule_step", "chainrule_take"}
    assert not table.foreign
    if sys.platform == "linux":
        assert {"memcpy", "syscall", "sched_yield"} <= table.undefined


def test_objects_that_define_the_same_name_keep_apart():
    one, two = constant_kernel("same", 1.0), constant_kernel("same", 2.0)
    kernels = [Kernel("same", digest(one)), Kernel("same", digest(two)), Kernel("axpy", digest(compiled("axpy")))]
    objects = {digest(data): data for data in (one, two, compiled("axpy"))}
    first, second, _ = load(kernels, objects)
    assert (result_of(first), result_of(second)) == (1.0, 2.0)
    assert load(kernels, objects)[:2] == (first, second)


def test_an_object_that_needs_more_than_the_list_is_refused():
    def foreign(b, t, i):
        b.call(ir.Function(b.module, ir.FunctionType(ir.VoidType(), ()), "PyErr_Clear"), ())

    data = kernel("wants_python", 1, foreign)
    with pytest.raises(ChainruleError, match="PyErr_Clear"):
        load([Kernel("wants_python", digest(data))], {digest(data): data})


def test_a_missing_function_is_an_error_not_a_crash():
    data = compiled("axpy")
    with pytest.raises(ChainruleError, match="nowhere"):
        load([Kernel("nowhere", digest(data))], {digest(data): data})


@pytest.mark.parametrize("reloc", ["static", "pic"])  # with pic it has a table of offsets
def test_blas_is_bound_by_pointer_where_a_kernel_needs_it(reloc):
    before = os.environ.get("OPENBLAS_CORETYPE")
    module = ir.Module(f"product {os.urandom(4).hex()}")
    module.triple = llvm.get_process_triple()
    sgemm = ir.Function(module, ir.FunctionType(ir.VoidType(), ()), "scipy_cblas_sgemm")
    function = ir.Function(module, ir.FunctionType(I64, ()), "where_is_sgemm")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.ptrtoint(sgemm, I64))
    data = object_of(module, reloc)
    (at,) = load([Kernel("where_is_sgemm", digest(data), ("scipy_cblas_sgemm",))], {digest(data): data})
    sgemm_at = ctypes.CFUNCTYPE(ctypes.c_int64)(at)()
    a, b, c = (np.random.default_rng(k).random((5, 5), np.float32) for k in range(3))
    i, f, p = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    product = ctypes.CFUNCTYPE(None, i, i, i, i, i, i, f, p, i, p, i, f, p, i)(sgemm_at)
    product(101, 111, 111, 5, 5, 5, 1.0, address(a), 5, address(b), 5, 0.0, address(c), 5)
    assert np.allclose(c, a @ b, rtol=1e-5)
    assert os.environ.get("OPENBLAS_CORETYPE") == before
    test_many_kernels_load_in_little_time()  # beside it


def test_many_kernels_load_in_little_time():
    objects = [constant_kernel(f"many_{k}", float(k)) for k in range(30)]
    kernels = [Kernel(f"many_{k}", digest(data)) for k, data in enumerate(objects)]
    start = time.perf_counter()
    functions = load(kernels, {digest(data): data for data in objects})
    assert time.perf_counter() - start < 2.0  # some 5 ms; the bound only catches a compiler at work
    assert [result_of(function) for function in functions] == list(range(30))


@given(at=st.integers(0, 10**6), value=st.integers(0, 255), length=st.integers(0, 10**6))
def test_no_bytes_make_the_reader_of_symbols_fall_over(at, value, length):
    data = bytearray(compiled("axpy"))
    data[at % len(data)] = value
    for damaged in (bytes(data), bytes(data[: length % len(data)])):
        with contextlib.suppress(ObjectFileError):
            symbols(damaged)


def coff(names: list[tuple[str, int]]) -> bytes:
    """A COFF object of nothing but a symbol table."""
    table, strings = b"", b""
    for name, section in names:
        text = name.encode()
        if len(text) > 8:
            text, strings = struct.pack("<II", 0, 4 + len(strings)), strings + text + b"\0"
        table += struct.pack("<8sIhHBB", text, 0, section, 0, 2, 0)
    head = struct.pack("<HHIIIHH", 0x8664, 0, 0, 20, len(names), 0, 0)
    return head + table + struct.pack("<I", 4 + len(strings)) + strings


def mach_o(names: list[tuple[str, int]]) -> bytes:
    """A Mach-O object of nothing but a symbol table."""
    strings, table = b"\0", b""
    for name, section in names:
        table += struct.pack("<IBBHQ", len(strings), 0x0F if section else 0x01, section, 0, 0)
        strings += b"_" + name.encode() + b"\0"
    start = 32 + 24
    head = struct.pack("<IIIIIIII", 0xFEEDFACF, 0, 0, 1, 1, 24, 0, 0)
    return head + struct.pack("<IIIIII", 2, 24, start, len(names), start + len(table), len(strings)) + table + strings


@pytest.mark.parametrize("write", [coff, mach_o])
def test_symbols_of_other_systems_are_read_too(write):
    table = symbols(write([("a_kernel_with_a_long_name", 1), ("short", 1), ("memcpy", 0), ("PyErr_Occurred", 0)]))
    assert table.defined == {"a_kernel_with_a_long_name", "short"}
    assert table.undefined == {"memcpy", "PyErr_Occurred"} and table.foreign == {"PyErr_Occurred"}


WARM = """
import sys
sys.path[:0] = [{source!r}]
from pathlib import Path
from chainrule.runtime.cache import Cache
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
assert "llvmlite" not in sys.modules
cache = Cache(Path({folder!r}))
found, walker = cache.find({name!r}), cache.find_kernel({name!r})
runner = Runner(found.executable, found.objects, Store(1), walker[1])
print(runner.run({{"index": [1, 2]}})["out"].shape)
slow = {{"numba", "sympy", "networkx", "filelock._api", "scipy", "lark"}} & set(sys.modules)
assert not slow, slow
"""


def test_a_warm_process_imports_neither_numba_nor_sympy(tmp_path):
    from chainrule.runtime.cache import Cache, key  # noqa: PLC0415
    from tests.runtime.programs import lookup  # noqa: PLC0415

    cache, name = Cache(tmp_path / "cache"), key(["lookup"])
    cache.keep(name, *lookup())
    cache.keep_kernel(name, "chainrule_walk", walker())
    text = WARM.format(source=str(Path(__file__).parents[2] / "src"), folder=str(tmp_path / "cache"), name=name)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "(2,)\n"), done.stderr
