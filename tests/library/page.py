"""Writes docs/operations.md: each definition of the library, its derived gradient, and the test that checks it.

    python -m tests.library.page

The gradient is what is derived from the row that the tests draw from, with attributes in the middle of their ranges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chainrule.compiler import IMPROVE, PREPARE
from chainrule.derive import backward
from chainrule.ir.formula import DType, Formula
from chainrule.ir.graph import Tensor
from chainrule.ir.text import equation_text
from chainrule.lang import load_graph
from chainrule.optimize import specialize
from tests.derive import test_library_gradients
from tests.library import test_operations, test_rows

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
LIBRARY = ROOT / "src" / "chainrule" / "library"
FILES = {
    "functions": "Built-in functions",
    "elementwise": "Functions of elements",
    "activations": "Activations",
    "reductions": "Reductions",
    "order": "Order",
    "losses": "Losses",
    "layers": "Layers",
    "shapes": "Shapes",
    "convolutions": "Convolutions",
    "pooling": "Pooling",
    "normalisation": "Normalisation and noise",
    "attention": "Attention",
    "recurrent": "Recurrence",
    "equilibrium": "Equilibrium",
    "graphs": "Graphs",
    "random": "Laws of random tensors",
    "initialisers": "Initial laws",
    "optimizers": "Optimizers",
}
HEAD = """# Operations

<!-- Written by `python -m tests.library.page`; a test compares it with the library. -->

Every operation of the library: its definition as the library has it, and the gradient that is derived from it, after
simplification, with `y_bar` for the cotangent of the result (`y_seed` where a recurrence adds to that). No gradient
here was written by hand. The built-in functions and signs of [the language](language.md) are differentiated by sympy;
the functions that carry their names show what comes out. The line below an operation names the test that compares it
with PyTorch (values, gradients, second derivatives, in float64).
"""
RECURRENT = {
    "rnn": "x[n, t, 3]", "lstm": "x[n, t, 3]", "gru": "x[n, t, 3]",
    "masked_rnn": "x[n, t, 3]; mask[n, t]", "masked_lstm": "x[n, t, 3]; mask[n, t]",
    "masked_gru": "x[n, t, 3]; mask[n, t]",
    "rnn_from": "x[n, t, 3]; start[n, 2]", "lstm_from": "x[n, t, 3]; start[n, 2]; cell[n, 2]",
    "gru_from": "x[n, t, 3]; start[n, 2]",
    "bidirectional_rnn": "x[n, t, 3]", "bidirectional_lstm": "x[n, t, 3]", "bidirectional_gru": "x[n, t, 3]",
    "masked_bidirectional_rnn": "x[n, t, 3]; mask[n, t]", "masked_bidirectional_lstm": "x[n, t, 3]; mask[n, t]",
    "masked_bidirectional_gru": "x[n, t, 3]; mask[n, t]",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A model that calls an operation, and the test that draws from the same row."""

    text: str
    test: str


def middle(strategy: Any) -> Any:
    """A value in the middle of what a hypothesis strategy draws."""
    s = getattr(strategy, "wrapped_strategy", strategy)
    match type(s).__name__:
        case "IntegersStrategy":
            return (s.start + s.end + 1) // 2
        case "SampledFromStrategy":
            return s.elements[-1]
        case "BooleansStrategy":
            return True
        case kind:
            raise TypeError(f"no middle of {kind}")


def examples() -> dict[str, Example]:
    """By the names of definitions: the first row, in each table, that calls it."""
    found: dict[str, Example] = {}
    for name, row in test_rows.ROWS.items():
        found.setdefault(called(row.call), Example(test_rows.text_of(row), f"tests/library/test_rows.py[{name}]"))
    for name, make in test_operations.ROWS.items():
        case = make(middle)
        example = Example(case.text, f"tests/library/test_operations.py[{name}]")
        found.setdefault(called(case.call), example)
        found.setdefault(name, example)
    for name, (declared, call, _, _) in test_library_gradients.TABLE.items():
        text = f"model m():\n    dim n, k, m\n    {declared}\n    y = {call}\n"
        found.setdefault(name, Example(text, f"tests/derive/test_library_gradients.py[{name}]"))
    for name, declared in RECURRENT.items():
        inputs = [d.strip() for d in declared.split(";")]
        arguments = ", ".join(d.partition("[")[0] for d in inputs)
        out = "" if name.endswith("_from") else ", 2"  # else the width is the start's
        lines = ["dim n, t", *(f"input {d}" for d in inputs), f"y = {name}({arguments}{out})"]
        text = "model m():\n" + "".join(f"    {line}\n" for line in lines)
        found.setdefault(name, Example(text, f"tests/derive/test_recurrent_layers.py[{name}]"))
    text = "model m():\n    dim n\n    input x[n, 3]\n    y = deq(x, 2)\n"
    found.setdefault("deq", Example(text, "tests/derive/test_fixed_point.py"))
    return found


def called(call: str) -> str:
    """The outermost function of a call, conversions aside."""
    return re.sub(r"^(float|int)\(", "", call.rpartition(": ")[2]).partition("(")[0]


def gradient(example: Example) -> list[str]:
    """What is derived, as equations."""
    g = specialize(load_graph(example.text), training=True)
    y = g.outputs[0] if g.outputs else g.nodes[-1].out
    g = replace(g, inputs=(*g.inputs, Tensor("y_seed", g.tensors[y].shape)), outputs=(y,), updates=())
    given = (*g.inputs[:-1], *(p.tensor for p in g.params))
    wrt = tuple(t.name for t in given if t.dtype is DType.FLOAT)
    for step in PREPARE:
        g = step(g)
    derivation = backward(g, {y: "y_seed"}, wrt)
    g = replace(derivation.graph, outputs=(y, *dict.fromkeys(derivation.gradients.values())))
    for step in IMPROVE:
        g = step(g)
    nodes = [node for node in g.nodes if isinstance(node, Formula)]
    bars = [node for node in nodes if node.origin.rule not in (None, "stabilize") or node.out in g.outputs[1:]]
    seed = "y_seed" if any(node.out == "y_bar" for node in nodes) else "y_bar"  # a recurrence adds to it
    return [equation_text(node).replace("y_seed", seed) for node in bars if node.out != y]


def blocks(file: str) -> list[tuple[str, str, str]]:
    """(comment, name, definition) of each definition of a library file, in order."""
    found, comment = [], ""
    for part in (LIBRARY / f"{file}.graph").read_text("utf-8").split("\n\n"):
        lines = part.strip("\n").split("\n")
        starts = [k for k, line in enumerate(lines) if re.match(r"(fn|layer|law|init|optimizer) ", line)]
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
        for k, start in enumerate(starts):
            end = starts[k + 1] if k + 1 < len(starts) else len(lines)
            body = [line for line in lines[start:end] if not line.startswith("#")]
            found.append((comment if k == 0 else "", re.split(r"\W", lines[start])[1], "\n".join(body)))
        if not starts and found:  # a body that goes on after an empty line
            last = found.pop()
            found.append((*last[:2], last[2] + "\n\n" + part.strip("\n")))
    return found


def entry(comment: str, name: str, definition: str, example: Example | None) -> str:
    text = f"### {name}\n\n" + (f"{comment}\n\n" if comment else "") + f"```text\n{definition}\n```\n"
    if example is None:
        return text
    derived = gradient(example)
    if derived:
        text += "\nDerived:\n\n```text\n" + "\n".join(derived) + "\n```\n"
    else:
        text += "\nNo gradient: it reads integers only.\n"
    return text + f"\nChecked by `{example.test}`.\n"


def page() -> str:
    found = examples()
    parts = [HEAD]
    others = {path.stem: path.stem.capitalize() for path in sorted(LIBRARY.glob("*.graph")) if path.stem not in FILES}
    for file, title in (FILES | others).items():
        parts.append(f"## {title}\n\n`library/{file}.graph`\n")
        parts += [entry(*block, found.get(block[1])) for block in blocks(file)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
