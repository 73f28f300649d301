"""Kernels for the tests: Python compiled by numba-cuda or PTX as text, and one launch of them on the interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cuda.device import Interpreter

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n"


def numba_cuda() -> Any:
    """The package's module; the test is skipped where it is not installed (plain numba's copy of it does not serve)."""
    pytest.importorskip("numba_cuda", exc_type=ImportError)
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30.4 asks for it, NumPy 2.5 has it no more
        np.row_stack = np.vstack
    return pytest.importorskip("numba.cuda", exc_type=ImportError)


def compiled(function: Callable[..., None], *kinds: str, **options: Any) -> str:
    """The PTX of `function`; kinds: "float32*" for a pointer, "int64" for a number."""
    cuda = numba_cuda()
    types = cuda.types
    signature = [
        types.CPointer(getattr(types, kind[:-1])) if kind.endswith("*") else getattr(types, kind) for kind in kinds
    ]
    ptx, _ = cuda.compile(function, types.void(*signature), cc=(9, 0), device=False, abi="numba", **options)
    return ptx


def entry(ptx: str) -> str:
    return re.search(r"\.entry\s+([\w$]+)", ptx)[1]


def launch(ptx: str | bytes, grid: int, threads: int, *arguments: Any, races: bool = True) -> list[np.ndarray]:
    """What the arrays among `arguments` hold after one launch; numbers are passed as they are."""
    text = ptx if isinstance(ptx, str) else ptx.decode()
    device = Interpreter(1 << 30, races)
    words, arrays = [], []
    for x in arguments:
        if isinstance(x, np.ndarray):
            words.append(device.allocate(x.nbytes))
            device.write(words[-1], x)
            arrays.append((words[-1], np.empty_like(x)))
        else:
            words.append(int(x))
    device.launch(device.load(b"", text.encode(), entry(text)), grid, threads, words)
    for address, into in arrays:
        device.read(address, into)
    return [into for _, into in arrays]


def handwritten(body: str, params: int, registers: str = "", module: str = "") -> str:
    """An entry `kernel` of so many 64-bit parameters p0, p1 ..., with registers of every usual type."""
    usual = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<19>; .reg .b64 %d<19>; .reg .f32 %f<19>; .reg .f64 %g<9>;"
    listed = ", ".join(f".param .u64 p{k}" for k in range(params))
    return f"{HEAD}{module}\n.visible .entry kernel({listed})\n{{\n{usual}\n{registers}\n{body}\n}}\n"
