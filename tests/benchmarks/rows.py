"""What is measured: each row's model, data and work, and the losses that every peer has to reproduce.

A training step is forward, backward, update, and the loss read back as a Python float; a forward row computes its
output, of which the first element is read back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

RATE = 0.01
DECAY = 0.01
"""AdamW's, by default."""
COMPARED = 20
"""So many first steps must have the reference's losses: then the work is the same."""

HERE = Path(os.path.relpath(Path(__file__).parent))  # programs compiled elsewhere are found by their files' names
ROWS_FILE = HERE / "rows.graph"
GRAPHS = HERE.parents[1] / "graphs"
ALL = ("torch", "torch.compile", "jax", "pytensor", "chainrule")
DENSE = tuple(name for name in ALL if name != "pytensor")
"""Who can express convolutions."""
EQUATIONS = (*ALL, "tensorgrad")
"""Who can express perceptrons, functions of elements and losses over rows."""
Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A model with its arguments, and what it is given.

    loss: its name in `networks`; where `forward`, that of a function in NumPy's words (exp, gelu …). inputs: name →
    shape and bound (None: floats). once: the same input every step, for large ones. rate: of the optimizer. inner:
    steps in one Python call. peers: who can express that. threads: None, or what it is measured with alone. flops: of
    one step's products; bytes: the least that one step must move.
    """

    name: str
    model: str
    loss: str
    inputs: Mapping[str, tuple[Shape, int | None]] = field(default_factory=dict)
    arguments: Mapping[str, int] = field(default_factory=dict)
    flops: int = 0
    bytes: int = 0
    once: bool = False
    forward: bool = False
    optimizer: str = "sgd"
    rate: float = RATE
    inner: int = 1
    peers: tuple[str, ...] = ALL
    threads: int | None = None

    @property
    def steps(self) -> int:
        """How many batches there are."""
        return 1 if self.once else max(COMPARED, self.inner)


def mlp(widths: tuple[int, int, int, int], batch: int, inner: int = 1) -> Row:
    """A relu perceptron of `widths` with biases and mean cross-entropy; the inputs need no gradient."""
    layers = list(pairwise(widths))
    each = [2 * batch * rows * columns for rows, columns in layers]
    parameters = sum(rows * columns + columns for rows, columns in layers)
    return Row(
        f"mlp-{'-'.join(map(str, widths))}" if inner == 1 else "many-steps",
        str(HERE / "mlp.graph"),
        "mlp",
        {"x": ((batch, widths[0]), None), "label": ((batch,), widths[-1])},
        dict(zip(("inputs", "first", "second", "classes"), widths, strict=True)),
        flops=3 * sum(each) - each[0],
        bytes=4 * (2 * parameters + batch * widths[0]) + 8 * batch,
        inner=inner,
        peers=EQUATIONS if inner == 1 else ("jax", "pytensor", "chainrule"),
    )


def of_file(name: str, model: str, **more: Any) -> Row:
    """A row whose model is in rows.graph."""
    return Row(name, f"{ROWS_FILE}:{model}", **{"loss": model, **more})


def conv(kernel: int) -> Row:
    """A convolution of 64 channels alone, with both of its gradients."""
    points, channels = 32 * 28 * 28, 64
    return of_file(
        f"conv-{kernel}x{kernel}",
        "convolution",
        arguments={"kernel": kernel},
        flops=3 * 2 * points * channels**2 * kernel**2,
        bytes=4 * (3 * points * channels + 2 * points * channels),
        peers=DENSE,
    )


def rowwise(kind: str, rows: int, columns: int) -> Row:
    """A softmax, a layer norm or a cross-entropy over rows, with its gradient."""
    given = {"label": ((rows,), columns)} if kind == "cross_entropy" else {"w": ((rows, columns), None)}
    arrays = 3 if kind == "cross_entropy" else 4  # x in and out again, and w; read once more for the gradient
    return of_file(
        f"{kind}-{rows}x{columns}",
        f"{kind}_rows",
        inputs=given,
        arguments={"rows": rows, "columns": columns},
        bytes=4 * arrays * rows * columns,
        once=True,
        peers=EQUATIONS,
    )


def attend(time: int) -> Row:
    """Causal attention alone: 8 examples of 4 heads, 64 wide; of the products half is masked away."""
    return of_file(
        f"attention-{time}",
        "attend",
        arguments={"time": time},
        flops=8 * 4 * (2 + 4) * 2 * time * time * 64 // 2,
        bytes=4 * 2 * 3 * 8 * 4 * time * 64,
    )


def elementwise(function: str) -> Row:
    """A function of 64 Ki elements, forward, on one thread."""
    count = 1 << 16
    inputs = {"x": ((count,), None)}
    about = {"bytes": 8 * count, "forward": True, "peers": EQUATIONS, "threads": 1}
    return Row(f"elementwise-{function}", function, function, inputs, **about)


def gpt() -> Row:
    """4 layers of 128, 4 heads, 128 characters, 16 texts."""
    tokens, width, depth, vocab = 16 * 128, 128, 4, 63
    products = depth * (12 * width**2 + 2 * 128 * width // 2) + vocab * width
    shape = ((16, 128), vocab)
    inputs = {"token": shape, "next": shape}
    return Row("gpt", str(GRAPHS / "gpt.graph"), "gpt", inputs, {"vocab": vocab}, flops=6 * tokens * products)


KINDS = ("softmax", "layer_norm", "cross_entropy")

ROWS = (
    mlp((2, 16, 16, 2), 1),
    mlp((64, 32, 32, 10), 32),
    mlp((784, 256, 128, 10), 64),
    mlp((784, 1024, 1024, 10), 256),
    mlp((2, 16, 16, 2), 1, inner=1000),
    *(elementwise(f) for f in ("exp", "tanh", "gelu", "sigmoid", "erf", "log")),
    *(rowwise(kind, 4096, 1024) for kind in KINDS),
    *(rowwise(kind, 65536, 10) for kind in KINDS),
    of_file(
        "lenet",
        "lenet",
        inputs={"x": ((64, 1, 28, 28), None), "label": ((64,), 10)},
        flops=3 * 64 * 833_000,
        peers=DENSE,
    ),
    Row(
        "resnet20",
        str(GRAPHS / "resnet20.graph"),
        "resnet",
        {"x": ((32, 1024), None), "label": ((32,), 10)},
        {"side": 32},
        flops=3 * 2 * 32 * 40_550_000,
        peers=DENSE,
        rate=1e-3,  # at 0.01 rounding grows a thousandfold in ten steps, for every peer
    ),
    conv(3),
    conv(1),
    of_file(
        "lstm",
        "lstm2",
        inputs={"x": ((32, 64, 128), None), "y": ((32, 64, 128), None)},
        flops=2 * 6 * 32 * 64 * 2 * 4 * 128**2,
    ),
    gpt(),
    *(attend(time) for time in (64, 256, 1024)),
    of_file(
        "graph-convolution",
        "graph_convolution",
        inputs={"x": ((10_000, 64), None), "source": ((100_000,), 10_000), "target": ((100_000,), 10_000)},
        flops=3 * 2 * 10_000 * 64**2,
        once=True,
    ),
    of_file("adam-10M", "descent", inputs={"g": ((10_000_000,), None)}, bytes=28 * 10**7, once=True, optimizer="adam"),
    of_file(
        "deep-1000",
        "deep",
        inputs={"x": ((32, 16), None), "label": ((32,), 10)},
        flops=3 * 2 * 32 * 16**2 * 1000,
        peers=("torch", "chainrule"),
    ),
    of_file(
        "hessian-product",
        "hessian_product",
        inputs={"x": ((64, 64), None), "label": ((64,), 10), "v": ((64, 64), None)},
        flops=10 * 2 * 64 * 64 * 74,
        rate=1e-6,  # the objective has no least value: larger steps drive softmax below the normal numbers
    ),
)  # fmt: skip


def named(name: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.name == name)


def write_data(row: Row, path: Path, params: Mapping[str, np.ndarray]) -> None:
    """Initial parameters ``p/NAME`` and the batches ``x/NAME``, stacked, into one .npz.

    params: what the parameters start at.
    """
    rng = np.random.default_rng(0)
    arrays: Arrays = {f"p/{name}": np.asarray(value, np.float32) for name, value in params.items()}
    for name, (shape, bound) in row.inputs.items():
        whole = (row.steps, *shape)
        drawn = rng.standard_normal(whole, np.float32) if bound is None else rng.integers(0, bound, whole)
        arrays[f"x/{name}"] = np.abs(drawn) + 0.1 if row.loss == "log" else drawn
    np.savez(path, **arrays)


def params_of(data: Mapping[str, np.ndarray]) -> Arrays:
    """The parameters by name."""
    return {name[2:]: value for name, value in data.items() if name.startswith("p/")}


def batches_of(data: Mapping[str, np.ndarray]) -> Arrays:
    """The batches by input, stacked."""
    return {name[2:]: value for name, value in data.items() if name.startswith("x/")}


def reference_losses(data: Mapping[str, np.ndarray]) -> list[float]:
    """The losses of a perceptron's first steps in float64, the gradients written out by hand."""
    names = ("a.linear", "b.linear", "logits.linear")
    W = [data[f"p/{name}.W"].astype(np.float64) for name in names]
    b = [data[f"p/{name}.b"].astype(np.float64) for name in names]
    losses = []
    for x, label in zip(data["x/x"][:COMPARED], data["x/label"], strict=False):
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
