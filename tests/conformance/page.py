"""The text of a model, written statement by statement from a case's shapes and attributes.

A row of a table is a small function from a sample to such a text; what it reads and writes are `Value`s: names with
shapes, whose reads are text, ``x["i", "0"]`` being ``x[i, 0]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


class NotExpressible(Exception):
    """The language cannot say this sample; the text says why."""


class OutOfScope(Exception):
    """The sample is about something that Chainrule does not set out to do; the text says what."""


@dataclass(frozen=True)
class Value:
    """A tensor of the model: given, or defined by a statement."""

    name: str
    shape: Shape
    dtype: str = "float"  # float, int or bool
    packed: bool = True  # PyTorch's tensor lies in the order of rows

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, indices: str | tuple[str, ...]) -> str:
        indices = (indices,) if isinstance(indices, str) else indices
        assert len(indices) == len(self.shape), f"{self} read at {indices}"
        return f"{self.name}[{', '.join(indices)}]" if self.shape else self.name

    def outside(self, indices: tuple[str, ...], value: str = "0") -> str:
        """The read that is `value` outside the bounds."""
        return f"{self.name}[{', '.join(indices)}; {value}]" if self.shape else self.name

    def wide(self, indices: Sequence[str]) -> str:
        """The read at the last of `indices`, axes of extent 1 at their only place: NumPy's broadcasting."""
        own = tuple(indices[len(indices) - self.rank :])
        return self[tuple("0" if n == 1 else i for i, n in zip(own, self.shape, strict=True))]

    def dim(self, d: int) -> int:
        """Axis d, counted from the end if it is negative; a tensor of rank 0 counts as one of rank 1."""
        return d + max(self.rank, 1) if d < 0 else d

    def dims(self, d: int | Iterable[int] | None) -> tuple[int, ...]:
        """Several axes, in order; None, and no axis at all, mean all of them."""
        if d is None or d == () or d == []:
            return tuple(range(self.rank))
        return tuple(sorted(self.dim(k) for k in ((d,) if isinstance(d, int) else d)))


@dataclass(frozen=True)
class NumberedValue(Value):
    """An integer tensor, whose numbers may decide a shape or a bound."""

    numbers: Any = None


class Page:
    """The statements so far. ``w((3, 4), lambda i: x[i])`` defines a tensor of that shape, and gives it."""

    def __init__(self, asked: int = 0) -> None:
        self.asked = asked  # how many results the case wants, where its operator leaves that open
        self.declarations: list[str] = []
        self.statements: list[str] = []

    def input(self, name: str, shape: Shape, dtype: str) -> Value:
        text = f"input {name}[{', '.join(map(str, shape))}]" if shape else f"input {name}"
        self.declarations.append(text if dtype == "float" else f"{text} : {dtype}")
        return Value(name, shape, dtype)

    def below(self, value: Value, bound: int) -> Value:
        """Say of an integer input that its values are below `bound`, and not below 0."""
        at = next(
            k
            for k, line in enumerate(self.declarations)
            if line.startswith(f"input {value.name}[" if value.shape else f"input {value.name} ")
        )
        self.declarations[at] = self.declarations[at].rsplit(":", 1)[0] + f": index {bound}"
        return value

    def __call__(
        self,
        shape: Iterable[int],
        body: Callable[[tuple[str, ...]], str],
        *,
        dtype: str = "float",
        where: str = "",
        stop: bool = False,
    ) -> Value:
        shape = tuple(shape)
        value = Value(f"y{len(self.statements)}", shape, dtype)
        indices = names("i", len(shape))
        left = f"{value.name}[{ranges(indices, shape)}]" if shape else value.name
        text = f"{left} : {dtype} = {body(indices)}" if dtype != "float" else f"{left} = {body(indices)}"
        text = f"stop {text}" if stop else text
        self.statements.append(text + (f" where {where}" if where else ""))
        return value

    def whole(self, shape: Iterable[int], body: str, *, dtype: str = "float") -> Value:
        """A statement without indices: a call of a function with axes."""
        value = Value(f"y{len(self.statements)}", tuple(shape), dtype)
        self.statements.append(f"{value.name} = {body}")
        return value

    def text(self, outputs: Sequence[Value]) -> str:
        listed = "output " + ", ".join(dict.fromkeys(value.name for value in outputs))
        lines = (*self.declarations, *self.statements, listed)
        return "model case:\n" + "".join(f"    {line}\n" for line in lines)


def names(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{k}" for k in range(count))


def ranges(indices: Sequence[str], shape: Iterable[int]) -> str:
    return ", ".join(f"{i} < {n}" for i, n in zip(indices, shape, strict=True))


def number(value: float | int | bool) -> str:
    """A number as the language writes it."""
    if isinstance(value, bool):
        return str(int(value))
    if value != value:
        return "nan"
    if value in (math.inf, -math.inf):
        return "inf" if value > 0 else "(-inf)"
    return repr(value) if value >= 0 and math.copysign(1, value) > 0 else f"({value!r})"


def broadcast(*shapes: Shape) -> Shape:
    """The shape that tensors of these shapes are spread to."""
    rank = max(map(len, shapes), default=0)
    wide = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in column if n != 1), 1) for column in zip(*wide, strict=True))


def swap(indices: Sequence[str], d: int, index: str) -> tuple[str, ...]:
    """`indices` with another one on axis d."""
    return (*indices[:d], index, *indices[d + 1 :])


def without(sequence: Sequence, d: int) -> tuple:
    return (*sequence[:d], *sequence[d + 1 :])
