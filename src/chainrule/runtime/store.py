"""What lasts from step to step: parameters, states, run-time numbers and the clock, shared by several executables.

A parameter starts from a stream of its own, keyed by the seed and the hash of its path, so that neither order nor
company changes its values; they are drawn in float64 and rounded.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import EllipsisType
from typing import Any, Protocol

import numpy as np

from chainrule.errors import ChainruleError, UnknownName, nearest
from chainrule.executable import Buffer, Executable, Init, Param, State, evaluate
from chainrule.runtime.buffers import ELEMENTS, LINE, Shape, aligned
from chainrule.runtime.values import Array, as_array, check_dtype

MASK = 2**64 - 1


class Held(Protocol):
    """A tensor where its programs find it: an array, or a place on a GPU."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def copy(self) -> Array: ...

    def __setitem__(self, everything: EllipsisType, value: Any) -> None: ...


Make = Callable[[Sequence[tuple[Shape, np.dtype[Any]]]], Sequence[Held]]


@dataclass(eq=False)
class Tensors(MutableMapping[str, Array]):
    """Name → array. Reading copies; assigning writes in place, after a check of shape and dtype."""

    kind: str  # what errors call its members
    store: Store
    arrays: dict[str, Held]

    def __getitem__(self, name: str) -> Array:
        with self.store.lock:
            return self._held(name).copy()

    def __setitem__(self, name: str, value: object) -> None:
        held, given = self._held(name), as_array(name, value)
        check_dtype(name, given, held.dtype.name)
        if given.shape != held.shape:
            raise ChainruleError(
                f"{self.kind} {name} has shape {held.shape}, given: {given.shape}"
                f"\n  Way out: assign an array of shape {held.shape}"
            )
        with self.store.lock:
            held[...] = given

    def __delitem__(self, name: str) -> None:
        raise ChainruleError(f"{self.kind} {name} belongs to the model\n  Way out: leave it out of the model's text")

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self.arrays))

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}{list(array.shape)}" for name, array in self.arrays.items())
        return f"{{{shown}}}"

    def _held(self, name: str) -> Held:
        held = self.arrays.get(name)
        if held is None:
            raise UnknownName(
                f"there is no {self.kind} {name!r}\n  {nearest(name, self.arrays)}\n  Way out: use one of these names"
            )
        return held


@dataclass(eq=False)
class Scalars(MutableMapping[str, float]):
    """Name → run-time number, such as a learning rate: changing it recompiles nothing."""

    store: Store
    arrays: dict[str, Array]

    def __getitem__(self, name: str) -> float:
        return float(self._held(name))

    def __setitem__(self, name: str, value: float) -> None:
        held = self._held(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ChainruleError(f"scalar {name} is a number, given: {value!r}\n  Way out: assign a float") from None
        with self.store.lock:
            held[...] = number

    def __delitem__(self, name: str) -> None:
        raise ChainruleError(f"scalar {name} belongs to the program\n  Way out: assign another value")

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self.arrays))

    def __len__(self) -> int:
        return len(self.arrays)

    def _held(self, name: str) -> Array:
        if name not in self.arrays:
            raise UnknownName(
                f"there is no scalar {name!r}\n  {nearest(name, self.arrays)}\n  Way out: use one of these names"
            )
        return self.arrays[name]


class Store:
    """Parameters, states, scalars and the clock ``(seed, step)``, as aligned arrays.

    make: where parameters and states lie; default: arrays of the host's, side by side. `lock` serialises what reads
    and writes them: steps of all executables, and assignments.
    """

    def __init__(self, seed: int = 0, make: Make | None = None) -> None:
        self.lock = threading.Lock()
        self._make = make or side_by_side
        self.params = Tensors("parameter", self, {})
        self.states = Tensors("state", self, {})
        self.scalars = Scalars(self, {})
        self.clock = aligned(16).view(np.int64)
        self.clock[0] = _signed(seed)
        self._inits: dict[str, Init] = {}
        self._starts: dict[str, float] = {}
        _stores.add(self)

    @property
    def seed(self) -> int:
        """What all random draws are keyed by."""
        return int(self.clock[0])

    @property
    def step(self) -> int:
        """How many training steps were done; the first one is step 1 to the formulas."""
        return int(self.clock[1])

    @step.setter
    def step(self, value: int) -> None:
        self.clock[1] = value

    def admit(self, executable: Executable) -> None:
        """Make and initialise what `executable` needs and is not here yet. What is here keeps its values."""
        params = [p for p in executable.params if self._is_new(self.params.arrays, p, executable)]
        states = [s for s in executable.states if self._is_new(self.states.arrays, s, executable)]
        scalars = [s for s in executable.scalars if s.name not in self.scalars.arrays]
        buffers = executable.buffers
        numbers = [*(param.buffer for param in params), *(state.buffer for state in states)]
        made = iter(self._make([_kind(buffers[number]) for number in numbers]))
        for param, held in zip(params, made, strict=False):
            held[...] = _drawn(held.shape, param.init, self.seed, param.name)
            self.params.arrays[param.name], self._inits[param.name] = held, param.init
        for state, held in zip(states, made, strict=False):
            held[...] = state.value
            self.states.arrays[state.name], self._starts[state.name] = held, state.value
        arrays = side_by_side([_kind(buffers[scalar.buffer]) for scalar in scalars])
        for scalar, array in zip(scalars, arrays, strict=True):
            array[...] = scalar.default
            self.scalars.arrays[scalar.name] = array

    def restart(self, seed: int | None = None) -> None:
        """Everything as at the start: parameters drawn again, states at their first values, step 0."""
        with self.lock:
            if seed is not None:
                self.clock[0] = _signed(seed)
            self.clock[1] = 0
            for name, init in self._inits.items():
                held = self.params.arrays[name]
                held[...] = _drawn(held.shape, init, self.seed, name)
            for name, value in self._starts.items():
                self.states.arrays[name][...] = value

    def array(self, space: str, name: str) -> Any:
        """The array itself (of a tensor: what `make` made), for a runner to bind."""
        if space == "scalar":
            return self.scalars.arrays[name]
        return {"param": self.params, "state": self.states}[space].arrays[name]

    def _is_new(self, arrays: dict[str, Held], item: Param | State, executable: Executable) -> bool:
        if item.name not in arrays:
            return True
        held, buffer = arrays[item.name], executable.buffers[item.buffer]
        if (held.shape, held.dtype.name) != (_fixed_shape(buffer), buffer.element):
            raise ChainruleError(
                f"{item.name} is {held.dtype}{list(held.shape)}, and {executable.name} wants "
                f"{buffer.element}{list(_fixed_shape(buffer))}"
                "\n  Way out: compile both programs of one model with the same arguments and dtype"
            )
        return False


def _signed(seed: int) -> int:
    """The 64 bits of `seed` as the int64 that kernels read."""
    return ((int(seed) & MASK) ^ 2**63) - 2**63


def side_by_side(kinds: Sequence[tuple[Shape, np.dtype[Any]]]) -> list[Array]:
    """An array of each shape and dtype, in one block: a huge page holds many."""
    counts = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
    starts = [0, *accumulate(-(-count // LINE) * LINE for count in counts)]
    block = aligned(starts[-1])
    parts = (block[start : start + count] for start, count in zip(starts, counts, strict=False))
    return [part.view(dtype).reshape(shape) for part, (shape, dtype) in zip(parts, kinds, strict=True)]


def _kind(buffer: Buffer) -> tuple[Shape, np.dtype[Any]]:
    return _fixed_shape(buffer), ELEMENTS[buffer.element]


def _fixed_shape(buffer: Buffer) -> Shape:
    if any(names for axis in buffer.shape for _, names in axis):
        raise ChainruleError(
            f"{buffer.name} is kept between steps, and its shape depends on a size that may change"
            "\n  Way out: give that dim a fixed size in the model"
        )
    return tuple(evaluate(axis, {}) for axis in buffer.shape)


def _drawn(shape: Shape, init: Init, seed: int, path: str) -> Array | float:
    """An array of this shape by its law, from the stream of (seed, path). Source: Salmon et al. 2011 (Philox)."""
    numbers = init.numbers
    if init.law == "constant":
        return numbers[0]
    path_key = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")
    stream = np.random.Generator(np.random.Philox(key=np.array([seed & MASK, path_key], np.uint64)))
    match init.law:
        case "uniform":
            return stream.uniform(numbers[0], numbers[1], shape)
        case "normal":
            return stream.normal(numbers[0], numbers[1], shape)
        case "orthogonal":
            array = np.empty(shape)
            stacked = array[None] if init.each is None else np.moveaxis(array, init.each, 0)
            for matrix in stacked:
                columns = int(numbers[1])
                drawn = _orthogonal(stream, matrix.size // max(columns, 1), columns)
                matrix[...] = (numbers[0] * drawn).reshape(matrix.shape)
            return array


def _orthogonal(stream: np.random.Generator, rows: int, columns: int) -> Array:
    """A rows × columns matrix whose shorter side is orthonormal, uniform among these.

    The signs of R's diagonal make the Q of a normal matrix uniform: Mezzadri 2007, arXiv:math-ph/0609050.
    """
    q, r = np.linalg.qr(stream.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _stores:  # another thread may have held it; it does not exist here
        store.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
