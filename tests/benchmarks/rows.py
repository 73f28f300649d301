"""What is measured: each row's network, data and work, and the losses that every peer has to reproduce.

A training step is forward, backward, plain SGD update, and the loss read back as a Python float.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

RATE = 0.01
COMPARED = 20
"""So many first steps must have the reference's losses: then the work is the same."""


@dataclass(frozen=True)
class Row:
    """A relu perceptron of `widths` with biases and mean cross-entropy, trained `batch` samples a step.

    inner: steps in one Python call. peers: who can express that.
    """

    name: str
    widths: tuple[int, int, int, int]
    batch: int
    inner: int = 1
    peers: tuple[str, ...] = ("torch", "torch.compile", "jax", "chainrule")

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def flops(self) -> int:
        """Of one step's products: forward, weight gradients, and data gradients but for the input's."""
        each = [2 * self.batch * rows * columns for rows, columns in self.layers]
        return 3 * sum(each) - each[0]

    @property
    def bytes(self) -> int:
        """The least that must move in one step: parameters in and out, the batch in."""
        parameters = sum(rows * columns + columns for rows, columns in self.layers)
        return 4 * (2 * parameters + self.batch * self.widths[0]) + 8 * self.batch


ROWS = (
    Row("mlp-2-16-16-2", (2, 16, 16, 2), 1),
    Row("mlp-64-32-32-10", (64, 32, 32, 10), 32),
    Row("mlp-784-256-128-10", (784, 256, 128, 10), 64),
    Row("mlp-784-1024-1024-10", (784, 1024, 1024, 10), 256),
    Row("many-steps", (2, 16, 16, 2), 1, inner=1000, peers=("jax", "chainrule")),
)


def named(name: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.name == name)


def write_data(row: Row, path: Path) -> None:
    """Initial weights W0, b0, W1, … and the batches x[k, batch, inputs], label[k, batch] into one .npz."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for k, (rows, columns) in enumerate(row.layers):
        reach = np.sqrt(6 / rows)
        arrays[f"W{k}"] = rng.uniform(-reach, reach, (rows, columns)).astype(np.float32)
        arrays[f"b{k}"] = rng.uniform(-0.1, 0.1, columns).astype(np.float32)
    count = max(COMPARED, row.inner)
    arrays["x"] = rng.standard_normal((count, row.batch, row.widths[0]), np.float32)
    arrays["label"] = rng.integers(0, row.widths[-1], (count, row.batch))
    np.savez(path, **arrays)


def reference_losses(data: dict[str, np.ndarray]) -> list[float]:
    """The losses of the first steps in float64, the gradients written out by hand."""
    W = [data[f"W{k}"].astype(np.float64) for k in range(3)]
    b = [data[f"b{k}"].astype(np.float64) for k in range(3)]
    losses = []
    for x, label in zip(data["x"][:COMPARED], data["label"], strict=False):
        h = [x.astype(np.float64)]
        for k in range(3):
            z = h[k] @ W[k] + b[k]
            h.append(np.maximum(z, 0) if k < 2 else z)
        shifted = np.exp(h[3] - h[3].max(axis=1, keepdims=True))
        p = shifted / shifted.sum(axis=1, keepdims=True)
        rows = np.arange(len(label))
        losses.append(float(-np.log(p[rows, label]).mean()))
        z_bar = p
        z_bar[rows, label] -= 1
        z_bar /= len(label)
        for k in (2, 1, 0):
            h_bar = z_bar @ W[k].T
            W[k] = W[k] - RATE * h[k].T @ z_bar
            b[k] = b[k] - RATE * z_bar.sum(axis=0)
            z_bar = h_bar * (h[k] > 0)
    return losses
