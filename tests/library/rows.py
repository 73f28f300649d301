"""What the library's functions must equal: PyTorch's, row by row. Every law of `test_rows` holds for each row.

A row says how its tensors are declared, what is called, what PyTorch calls, and where its numbers are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]


@dataclass(frozen=True)
class Row:
    """declare: inputs, apart by `;`. least: what sizes may not go below. draw: numbers that are not normal."""

    declare: str
    call: str
    oracle: Callable[..., Any]
    least: Mapping[str, int] = field(default_factory=dict)
    draw: Mapping[str, Draw] = field(default_factory=dict)
    wrt: tuple[str, ...] | None = None  # None: every input that is no integer
    smooth: bool = True  # second derivatives are compared too

    @property
    def text(self) -> str:
        lines = [f"input {d.strip()}" for d in self.declare.split(";")]
        return "".join(f"    {line}\n" for line in ("dim n, k, m", *lines, f"y = {self.call}"))


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0.2, 4, shape)


def above_one(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(1.2, 4, shape)


def inside(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(-0.9, 0.9, shape)


def share(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0.05, 0.95, shape)


def wide(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return 5 * rng.normal(size=shape)


def far(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.choice([-1, 1], shape) * rng.uniform(0.3, 3, shape)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.choice([-1.0, 1.0], shape)


def distribution(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    p = rng.uniform(0.1, 1, shape)
    return p / p.sum(-1, keepdims=True) if p.size else p


def one(call: str, oracle: Callable[..., Any], draw: Draw | None = None, smooth: bool = True) -> Row:
    """A function of one element."""
    return Row("x[n, k]", call, oracle, draw={"x": draw} if draw else {}, smooth=smooth)


def two(call: str, oracle: Callable[..., Any], smooth: bool = True, wrt: tuple[str, ...] | None = None,
        **draw: Draw) -> Row:  # fmt: skip
    """A function of two tensors x and t, element by element."""
    return Row("x[n, k]; t[n, k]", call, oracle, draw=draw, smooth=smooth, wrt=wrt)
