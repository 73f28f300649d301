"""Object files become functions in this process: plain llvmlite, no Numba.

One LLVM engine holds many objects. Objects that define the same name go to different engines, for LLVM silently takes
the first of two, and each object with a global offset table has an engine of its own: of two such tables LLVM mixes up
the entries (compile with the static relocation model, and there is none). Loaded code stays for the life of the
process: some thread may be in it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.executable import Kernel
from chainrule.symbols import ObjectFileError, symbols

_lock = threading.RLock()
_engines: list[tuple[Any, set[str]]] = []  # each with the names that its objects define
_closed: list[Any] = []  # engines that hold one object each
_addresses: dict[tuple[str, str], int] = {}  # by object and symbol
_blas: list[ctypes.CDLL] = []

# The walker is called as a method of a Python integer; these are all that it needs for that, and no kernel has them.
PYTHON = {
    "chainrule_as_integer": "PyLong_AsLongLong",
    "chainrule_integer": "PyLong_FromLongLong",
    "chainrule_leave_python": "PyEval_SaveThread",
    "chainrule_enter_python": "PyEval_RestoreThread",
    "chainrule_count": "PyDict_Size",
    "chainrule_look_up": "PyDict_GetItem",
}


@functools.cache
def _llvm() -> Any:
    """llvmlite, imported when the first object is loaded: 40 ms that a process which runs nothing does not pay."""
    llvm = importlib.import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def load(kernels: Sequence[Kernel], objects: Mapping[str, bytes]) -> tuple[int, ...]:
    """The address of each kernel's function. `objects` holds the object files by the SHA-256 of their bytes.

    Raises ChainruleError for an object that is damaged, lacks its symbol, or needs a symbol outside the bound list.
    """
    with _lock:
        new: dict[str, list[str]] = {}
        for kernel in kernels:
            if (kernel.object, kernel.symbol) not in _addresses:
                new.setdefault(kernel.object, []).append(kernel.symbol)
        placed = [(name, wanted, _place(objects[name], wanted)) for name, wanted in new.items()]
        for name, wanted, engine in placed:  # only now: LLVM links all objects of an engine at once
            for symbol in wanted:
                _addresses[name, symbol] = engine.get_function_address(symbol)
        return tuple(_addresses[kernel.object, kernel.symbol] for kernel in kernels)


def load_function(name: str, data: bytes, symbol: str) -> int:
    """The address of one function of an object file whose SHA-256 is `name`."""
    return load((Kernel(symbol, name),), {name: data})[0]


def _place(data: bytes, wanted: Sequence[str]) -> Any:
    """The engine that now holds the object `data`."""
    try:
        table = symbols(data)
    except ObjectFileError as error:
        raise ChainruleError(
            f"an object file cannot be loaded: {error}\n  Way out: clear the cache (chainrule cache --clear)"
        ) from None
    if table.foreign or not table.defined.issuperset(wanted):
        names = ", ".join(sorted(table.foreign)) or "nothing foreign"
        missing = ", ".join(sorted(set(wanted) - table.defined)) or "none"
        raise ChainruleError(
            f"an object file is refused\n  it needs: {names}\n  missing functions: {missing}"
            "\n  Way out: clear the cache (chainrule cache --clear); compiled anew, it needs listed symbols only"
        )
    if any(name.startswith("scipy_") for name in table.undefined):
        _bind_blas()
    for name in table.undefined & PYTHON.keys():
        _llvm().add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, PYTHON[name]), ctypes.c_void_p).value)
    engine = _engine_without(table.defined, alone=b"_GLOBAL_OFFSET_TABLE_" in data)
    engine.add_object_file(_llvm().ObjectFileRef.from_data(data))
    return engine


def _engine_without(names: frozenset[str], alone: bool) -> Any:
    """An engine in which none of `names` is defined; they count as defined from now on. alone: a new, closed one."""
    for engine, defined in () if alone else _engines:
        if defined.isdisjoint(names):
            defined |= names
            return engine
    llvm = _llvm()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    if alone:
        _closed.append(engine)
    else:
        _engines.append((engine, set(names)))
    return engine


def _bind_blas() -> None:
    """Bind OpenBLAS's functions by pointer, one thread inside: our own threads divide the work."""
    if _blas:
        return
    with _coretype():
        library = ctypes.CDLL(str(_blas_path()))
    set_threads = library.scipy_openblas_set_num_threads
    set_threads.argtypes = (ctypes.c_int,)
    set_threads(1)
    for name in ("sgemm", "dgemm", "sgemv", "dgemv"):
        function = getattr(library, f"scipy_cblas_{name}")
        _llvm().add_symbol(f"scipy_cblas_{name}", ctypes.cast(function, ctypes.c_void_p).value)
    _blas.append(library)


def _blas_path() -> Path:
    # find_spec, not an import: the package reads its metadata, 20 ms
    spec = importlib.util.find_spec("scipy_openblas32")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    patterns = ("libscipy_openblas*.so*", "libscipy_openblas*.dylib", "libscipy_openblas*.dll")
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))] if spec else []
    if not found:
        raise ChainruleError(
            "OpenBLAS was not found, and a kernel multiplies large matrices by it"
            f"\n  looked in: {folder}\n  Way out: pip install scipy-openblas32"
        )
    return found[0]


@contextmanager
def _coretype() -> Iterator[None]:
    """OpenBLAS takes newer CPUs with AVX-512 for a Haswell (118 instead of 222 GFLOP/s), unless told while it loads."""
    name, before = "OPENBLAS_CORETYPE", os.environ.get("OPENBLAS_CORETYPE")
    if before is not None or not _has_avx512():
        yield
        return
    os.environ[name] = "SKYLAKEX"
    try:
        yield
    finally:
        del os.environ[name]


def _has_avx512() -> bool:
    if Path("/proc/cpuinfo").exists():
        try:
            flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
        except (OSError, StopIteration):
            return False
        return {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags.split())
    return bool(_llvm().get_host_cpu_features().get("avx512bw", False))
