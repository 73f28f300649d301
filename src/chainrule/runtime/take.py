"""Inputs that the compiled walker takes from a call's dict by itself, where they are as at the call before.

Looking at an array's dtype and shape and copying it takes Python 0.4 µs an input, the walker 10 ns. It reads what
NumPy's public header declares of an array; `is_known` proves that it lies there, else calls go on in Python.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import numpy as np

from chainrule.executable import Layout, Take
from chainrule.runtime.buffers import address, aligned
from chainrule.runtime.tape import Words
from chainrule.runtime.values import Array

AXES = Take.WORDS - Take.SHAPE  # the most that a record holds


def is_known(array: Array) -> bool:
    """Whether this array is laid out as `Layout` says."""
    if sys.implementation.name != "cpython" or type(array) is not np.ndarray:
        return False

    def word(place: int) -> int:
        return ctypes.c_int64.from_address(id(array) + place).value

    def half(place: int) -> int:
        return ctypes.c_int32.from_address(id(array) + place).value

    if (word(Layout.KIND), word(Layout.DTYPE), half(Layout.AXES)) != (id(np.ndarray), id(array.dtype), array.ndim):
        return False
    shape = (ctypes.c_int64 * array.ndim).from_address(word(Layout.SHAPE)) if array.ndim else ()
    contiguous = bool(half(Layout.FLAGS) & 1)
    return (word(Layout.DATA), tuple(shape), contiguous) == (array.ctypes.data, array.shape, array.flags.c_contiguous)


def take_block(control: int, inputs: Sequence[tuple[str, Array, Array]]) -> Words | None:
    """The block of `Take`s for inputs (name, array, where it goes) like these; None where some need Python's care.

    control: the control block's address, plus one to let other Python threads run meanwhile. The names and dtypes
    must outlive the block.
    """
    if not all(_is_plain(array, place) for _, array, place in inputs) or not all(is_known(a) for _, a, _ in inputs):
        return None
    block = aligned(8 * (Take.FIRST + len(inputs) * Take.WORDS)).view(np.int64)
    block[Take.CONTROL], block[Take.MAPPING], block[Take.INPUTS] = control, id(dict), len(inputs)
    rows = block[Take.FIRST :].reshape(-1, Take.WORDS)
    for row, (name, array, place) in zip(rows, inputs, strict=True):
        row[: Take.SHAPE] = (id(name), id(np.ndarray), id(array.dtype), address(place), place.nbytes, array.ndim)
        row[Take.SHAPE : Take.SHAPE + array.ndim] = array.shape
    return block


def _is_plain(array: Array, place: Array) -> bool:
    """Whether the array's bytes are what `place` should hold."""
    return array.dtype == place.dtype and array.dtype.isnative and array.flags.c_contiguous and array.ndim <= AXES
