"""Small training steps, one for each form that a kernel takes and one for each model: what they leave behind.

A case is the same on every machine: its parameters are drawn from a seed, its inputs from another.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import chainrule as cr
from chainrule.cli.bench import drawn
from chainrule.executable import derived_sizes
from chainrule.train import recipe
from tests.benchmarks.rows import KINDS

ROOT = Path(os.path.relpath(Path(__file__).parents[2]))
ROWS, FORMS, MLP = (
    str(ROOT / "tests" / name) for name in ("benchmarks/rows.graph", "gpu/forms.graph", "benchmarks/mlp.graph")
)
STEPS = 3
EXTENT = 5
"""Of a dim that no case sets; the next ones are larger, so that no two are taken for each other."""

Arrays = dict[str, np.ndarray]
Values = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model with its arguments, and how its steps are compiled. tolerance: of a tensor's greatest element."""

    name: str
    model: str
    arguments: Values = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    optimizer: str = "sgd"
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    rate: float = 0.01
    tolerance: float = 1e-3


def ran(case: Case, target: Literal["cpu", "cuda"]) -> Arrays:
    """The losses of the first steps, the parameters after them, and a prediction's outputs."""
    model = cr.load(case.model, **case.arguments)
    asked: Values = {"target": target, "dtype": case.dtype, "rate": case.rate, "seed": 1}
    if target == "cuda":
        asked["precision"] = case.precision
    step = model.compile(case.optimizer, **asked)
    batch = drawn(step.runner.executable, sizes_of(step.runner.executable, case.sizes))
    losses = [float(step(**batch)) for _ in range(STEPS)]
    return {"losses": np.array(losses), **{f"after {name}": value for name, value in step.params.items()}}


def sizes_of(executable: Any, asked: dict[str, int]) -> dict[str, int]:
    """The size of every dim."""
    free = [dim for dim in executable.dims if dim.numerator is None]
    sizes = {}
    for k, dim in enumerate(free):
        usual = max(EXTENT + k, dim.minimum)
        sizes[dim.name] = asked.get(dim.name, usual if dim.maximum is None else min(usual, dim.maximum))
    return derived_sizes(executable.dims, sizes)


def off(found: Arrays, right: Arrays) -> tuple[float, str]:
    """The greatest difference, relative to its tensor's greatest element, and where it is; NaN is the greatest."""
    worst, where = 0.0, ""
    for name, value in right.items():
        scale = max(float(np.abs(value).max(initial=0)), 1e-3)
        error = float(np.abs(found[name].astype(np.float64) - value).max(initial=0)) / scale
        error = math.inf if math.isnan(error) else error
        if error > worst:
            worst, where = error, name
    return worst, where


def perceptron(batch: int, inputs: int, first: int, second: int, classes: int, **more: Any) -> Case:
    """Products of these sizes, which are no multiples of a tile, with their gradients."""
    arguments = {"inputs": inputs, "first": first, "second": second, "classes": classes}
    more = {"name": f"products of {batch}, {inputs}, {first}, {second}, {classes}", **more}
    return Case(model=MLP, arguments=arguments, sizes={"batch": batch}, **more)


def rowwise(kind: str, rows: int, columns: int) -> Case:
    """Rows shorter than a warp, of a warp, and of a block."""
    return Case(f"{kind} of {rows} x {columns}", f"{ROWS}:{kind}_rows", {"rows": rows, "columns": columns})


def of_file(path: Path) -> Case:
    """A model as small as its recipe's quick run makes it."""
    return Case(path.name, str(path), dict(recipe.shortened(recipe.beside(path)).set), rate=1e-3)


SMALL = (
    perceptron(5, 6, 7, 8, 3),
    perceptron(33, 17, 65, 9, 10, optimizer="adamw", name="products with AdamW"),
    rowwise("softmax", 5, 3),
    rowwise("layer_norm", 7, 33),
    rowwise("cross_entropy", 9, 100),
    Case("random numbers", f"{FORMS}:drawn"),
    Case("float64", MLP, {"inputs": 6, "first": 7, "second": 8, "classes": 3}, dtype="float64", tolerance=1e-10),
)
"""A few that an interpreter runs in seconds, too."""

FORM = (
    *SMALL,
    *(perceptron(batch, 37, 53, 129, 7) for batch in (1, 67, 130)),
    perceptron(256, 784, 1024, 1024, 10),
    *(rowwise(kind, *size) for kind in KINDS for size in ((9, 1000), (4, 1500), (3, 5000))),
    Case("maps", f"{FORMS}:maps"),
    Case("reductions", f"{FORMS}:reductions"),
    Case("sorting", f"{FORMS}:ordered"),
    Case("scattering", f"{FORMS}:looked_up", sizes={"batch": 200}),
    Case("updates", f"{ROWS}:descent", {"count": 100_003}, optimizer="adam"),
    Case("products and what follows", f"{FORMS}:ended", sizes={"batch": 67}),
    Case("convolution", f"{ROWS}:convolution", {"batch": 3, "channels": 5, "side": 9}),
    Case("recurrence", f"{ROWS}:lstm2", {"hidden": 8}),
    Case("attention", f"{ROWS}:attend", {"batch": 1, "heads": 2, "time": 37, "width": 16}),
    Case("graph", f"{ROWS}:graph_convolution", {"features": 8}, {"nodes": 30, "edges": 100}),
    Case("second order", f"{ROWS}:hessian_product", {"inputs": 6, "hidden": 7}),
    # a relu that another rounding switches changes a small gradient by a whole sample's part
    perceptron(67, 64, 128, 128, 10, precision="tf32", tolerance=1e-1, name="products in TF32"),
    perceptron(67, 64, 128, 128, 10, precision="bf16", tolerance=1e-1, name="products in bf16"),
)  # fmt: skip

MODELS = tuple(of_file(path) for path in sorted((ROOT / "graphs").glob("*.graph")))

CASES = (*FORM, *MODELS)
