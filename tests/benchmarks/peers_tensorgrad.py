"""tensorgrad: the step as tensor equations, derived by it, compiled through torch.compile; axes go by names.

What it says in a line: perceptrons, functions of elements, and losses over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import tensorgrad as tg
import tensorgrad.functions as F
import torch
from tensorgrad.compiler.runtime import compile_to_callable

from tests.benchmarks.peers import Calls, Step, calls_of
from tests.benchmarks.rows import Row, params_of

FUNCTIONS = {"exp": F.exp, "tanh": F.tanh, "gelu": F.gelu, "sigmoid": F.sigmoid, "erf": F.erf, "log": F.log}


def convert(value: Any) -> torch.Tensor:
    """Everything as floats: its indices are whole ones."""
    return torch.tensor(value, dtype=torch.float32)


def mlp(p: dict[str, Any], axes: dict[str, list[Any]], x: Any, label: Any) -> Any:
    """A relu perceptron with mean cross-entropy."""
    h = F.relu(x @ p["a.linear.W"] + p["a.linear.b"])
    h = F.relu(h @ p["b.linear.W"] + p["b.linear.b"])
    z = h @ p["logits.linear.W"] + p["logits.linear.b"]
    classes = axes["logits.linear.b"][0]
    return F.mean(F.cross_entropy(z, F.one_hot(label, classes), classes.name), "rows")


def softmax_rows(p: dict[str, Any], axes: dict[str, list[Any]], w: Any) -> Any:
    return F.mean(F.sum(F.pow(F.softmax(p["x"], "columns") - w, 2), "columns"), "rows")


def layer_norm_rows(p: dict[str, Any], axes: dict[str, list[Any]], w: Any) -> Any:
    gain, bias = p["y.layer_norm.gain"], p["y.layer_norm.bias"]
    y = F.layer_norm(p["x"], dim="columns", weight=gain, bias=bias)
    return F.mean(F.sum(F.pow(y - w, 2), "columns"), "rows")


def cross_entropy_rows(p: dict[str, Any], axes: dict[str, list[Any]], label: Any) -> Any:
    return F.mean(F.cross_entropy(p["x"], F.one_hot(label, axes["x"][1]), "columns"), "rows")


LOSSES: dict[str, Callable[..., Any]] = {
    "mlp": mlp,
    "softmax_rows": softmax_rows,
    "layer_norm_rows": layer_norm_rows,
    "cross_entropy_rows": cross_entropy_rows,
}


def axes_of(row: Row, params: dict[str, Any]) -> dict[str, list[Any]]:
    """The symbol of each axis of each parameter and input: a layer's outputs are the next one's inputs."""
    if row.loss != "mlp":
        known = {1: ["columns"], 2: ["rows", "columns"]}
        shapes = {name: value.ndim for name, value in params.items()}
        shapes |= {name: len(shape) for name, (shape, _) in row.inputs.items()}
        named = {name: ["rows"] if name == "label" else known[rank] for name, rank in shapes.items()}
    else:
        named = {"x": ["rows", "width0"], "label": ["rows"]}
        for k, layer in enumerate(("a", "b", "logits")):
            named |= {f"{layer}.linear.W": [f"width{k}", f"width{k + 1}"], f"{layer}.linear.b": [f"width{k + 1}"]}
    return {name: [sympy.Symbol(axis) for axis in axes] for name, axes in named.items()}


def compiled(outputs: list[Any], sizes: dict[str, int]) -> tuple[list[str], Callable[..., list[torch.Tensor]]]:
    """The inputs' names in order, and a function of them on plain tensors.

    tensorgrad's own wrapper has named ones, which PyTorch took away in 2.12; without it a call takes less time.
    """
    program = compile_to_callable(*outputs, torch_compile=True)
    dims = {symbol: sizes[symbol.name] for symbol in program.symbols}
    function = program._torch_compile(program.codegen.specialize(dims, dtype=torch.float32, for_inductor=True))
    turns = [turn for turn, _ in program._wrap_plans]

    def call(*values: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            found = function(*values)
        return [value if turn is None else value.permute(turn) for value, turn in zip(found, turns, strict=True)]

    return [variable.name for variable in program.vars], call


def start(row: Row, data: dict[str, Any], threads: int) -> tuple[Step, Calls]:
    """One step a call."""
    torch.set_num_threads(threads)
    calls = calls_of(row, data, convert)
    if row.forward:
        x = tg.Variable("x", sympy.Symbol("n"))
        _, function = compiled([FUNCTIONS[row.loss](x)], {"n": len(calls[0][1]["x"])})
        return lambda x: float(function(x)[0][0]), calls
    params = params_of(data)
    axes = axes_of(row, params)
    variables = {name: tg.Variable(name.replace(".", "_"), *symbols) for name, symbols in axes.items()}
    trained = {name: variables[name] for name in params}
    loss = LOSSES[row.loss](trained, axes, **{name: variables[name] for name in row.inputs})
    grads = tg.grad(loss, trained)
    values = {**params, **calls[0][1]}
    sizes = {
        axis.name: n for name, symbols in axes.items() for axis, n in zip(symbols, values[name].shape, strict=True)
    }
    moved = [p - row.rate * grads[name] for name, p in trained.items()]
    names, function = compiled([loss, *moved], sizes)
    state = {trained[name].name: convert(value) for name, value in params.items()}

    def step(**batch: torch.Tensor) -> float:
        nonlocal state
        given = state | batch
        found, *after = function(*(given[name] for name in names))
        state = dict(zip(state, after, strict=True))
        return float(found)

    return step, calls
