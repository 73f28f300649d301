"""Inputs that the compiled walker takes from a call's dict by itself, where they are as at the call before.

Looking at an array's dtype and shape and copying it takes Python 0.4 µs an input, the walker 10 ns. It reads what
NumPy's public header declares of an array; `is_known` proves that it lies there, else calls go on in Python.

A large input is read where it lies, a small one copied to where kernels find it on a cache line.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import msgspec
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


class Fed(msgspec.Struct, frozen=True):
    """An input: its name, an array of the kind that calls pass, and where it goes.

    uses: addresses of the words that tell kernels where it lies; empty where it is copied to `place`.
    """

    name: str
    array: Array
    place: Array
    uses: Words


def take_block(control: int, inputs: Sequence[Fed]) -> Words | None:
    """The block of `Take`s for inputs like these; None where some need Python's care.

    control: the control block's address, plus one to let other Python threads run meanwhile. Names, dtypes and uses
    must outlive the block.
    """
    if not all(_is_plain(one.array, one.place) and is_known(one.array) for one in inputs):
        return None
    block = aligned(8 * (Take.FIRST + len(inputs) * Take.WORDS)).view(np.int64)
    block[Take.CONTROL], block[Take.MAPPING], block[Take.INPUTS] = control, id(dict), len(inputs)
    rows = block[Take.FIRST :].reshape(-1, Take.WORDS)
    for row, one in zip(rows, inputs, strict=True):
        array, place = one.array, one.place
        row[: Take.USE] = (id(one.name), id(np.ndarray), id(array.dtype), address(place), place.nbytes)
        row[Take.USE : Take.SHAPE] = (address(one.uses), len(one.uses), array.itemsize - 1, array.ndim)
        row[Take.SHAPE : Take.SHAPE + array.ndim] = array.shape
    return block


def _is_plain(array: Array, place: Array) -> bool:
    """Whether the array's bytes are what `place` should hold."""
    return array.dtype == place.dtype and array.dtype.isnative and array.flags.c_contiguous and array.ndim <= AXES
