"""ONNX's node cases against the language: what a model of one operator puts out, within the case's own tolerances.

A row is a function with the operator's inputs and attributes, behind the page that it writes, as PyTorch's samples
have them. Integer inputs that are a shape, axes or lengths decide the text, since a model's shapes are its text's.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

import chainrule
from chainrule.api.model import Model
from chainrule.reference import evaluate
from chainrule.source import Source
from tests.conformance import derivation
from tests.conformance.nodes.tables import ROWS, TIES, UNSAID
from tests.conformance.page import NotExpressible, NumberedValue, OutOfScope, Page, Value

Evaluate = Callable[[str, tuple[str, ...], dict[str, Any]], dict[str, Any]]

PLAIN = {onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "DOUBLE", "BOOL", "STRING")}
PLAIN |= {onnx.TensorProto.DataType.Value(f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}


@dataclass
class Operator:
    """How one operator's cases went."""

    name: str
    cases: int = 0
    agreed: int = 0
    left: Counter[str] = field(default_factory=Counter)  # why cases were not expressed
    wrong: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    text: str = ""  # the shortest that agreed

    @property
    def status(self) -> str:
        if self.wrong:
            return "wrong"
        if self.agreed:
            return "agreed" if not self.left else "agreed in part"
        scope = all(reason.startswith("out of scope") for reason in self.left)
        return "out of scope" if scope else "not expressible"

    @property
    def line(self) -> str:
        """The statement that says the operator."""
        return next((line.strip() for line in reversed(self.text.splitlines()[:-1])), "")

    @property
    def functions(self) -> list[str]:
        """The library's functions in the text."""
        return sorted(set(re.findall(r"\b([a-z]\w*)\(", self.text)) & library())


@cache
def library() -> frozenset[str]:
    """The names that the library's files define."""
    folder = Path(chainrule.__file__).parent / "library"
    return frozenset(
        name for path in folder.glob("*.graph") for name in re.findall(r"^(?:fn|layer) (\w+)", path.read_text(), re.M)
    )


@cache
def operators() -> dict[str, list[Any]]:
    """The cases of each operator; without those that spell an operator out by others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    found: dict[str, list[Any]] = {}
    for case in cases:
        if "_expanded" not in case.name:
            node = case.model.graph.node[0]
            domain = f"{node.domain.removeprefix('ai.onnx.')}." if node.domain else ""
            found.setdefault(domain + node.op_type, []).append(case)
    return dict(sorted(found.items()))


def as_kernels(text: str, outputs: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """The model compiled, in float32."""
    return Model(Source(text, "case.graph")).predict(**values)


def as_equations(text: str, outputs: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """The model formula by formula, in float64."""
    graph = derivation.forward(text)
    return evaluate(graph, {tensor.name: values[tensor.name] for tensor in graph.inputs})


def check(name: str, run: Evaluate = as_kernels, most: int | None = None) -> Operator:
    """Compare an operator's cases, or the first `most`."""
    found = Operator(name)
    for case in operators()[name][:most]:
        found.cases += 1
        if name not in ROWS:
            found.left[UNSAID.get(name, "not yet written")] += 1
            continue
        try:
            problem, text = compare(case, ROWS[name], run)
        except (NotExpressible, OutOfScope) as reason:
            scope = "out of scope: " if isinstance(reason, OutOfScope) else ""
            found.left[f"{scope}{reason}"] += 1
            continue
        except Exception as error:
            problem, text = f"{type(error).__name__}: {error}", ""
        if problem:
            found.wrong.append(f"{case.name}: {problem}")
        else:
            found.agreed += 1
            found.ties += [TIES[case.name]] if case.name in TIES else []
            found.text = min(found.text or text, text, key=len)
    return found


def compare(case: Any, row: Callable[..., Any], run: Evaluate) -> tuple[str, str]:
    """What is wrong, or nothing; and the text."""
    node = case.model.graph.node[0]
    inputs, results = (list(map(unpacked, side)) for side in case.data_sets[0])
    given = dict(zip((i.name for i in case.model.graph.input), inputs, strict=True))
    wanted = dict(zip((o.name for o in case.model.graph.output), results, strict=True))
    for value in (*given.values(), *wanted.values()):
        kind(value)
    page, values = Page(asked=len(node.output)), {}
    known: dict[str, Value | None] = {"": None}
    for name in node.input:
        if name not in known:
            array = np.asarray(given[name])
            x = page.input(f"x{len(values)}", array.shape, kind(array))
            values[x.name] = array if x.dtype != "int" else array.astype(np.int64)
            known[name] = NumberedValue(x.name, x.shape, x.dtype, True, array)
    attributes = {a.name: attribute(a) for a in node.attribute}
    result = row(page, *(known[name] for name in node.input), **attributes)
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    outputs = {name: y for name, y in zip(node.output, results, strict=False) if name}
    if set(outputs) != set(wanted):
        return f"outputs {sorted(outputs)}, ONNX gives {sorted(wanted)}", ""
    text = page.text(list(outputs.values()))
    found = run(text, tuple(y.name for y in outputs.values()), values)
    problems = (differs(found[y.name], wanted[name], case) for name, y in outputs.items())
    return next(filter(None, problems), ""), text


def unpacked(value: Any) -> Any:
    """An array, of a tensor in ONNX's own form, where NumPy has its type."""
    if isinstance(value, onnx.TensorProto) and value.data_type in PLAIN:
        return onnx.numpy_helper.to_array(value)
    return value


def kind(value: Any) -> str:
    """The language's type for an array's."""
    if not isinstance(value, (np.ndarray, np.generic)):
        packed = isinstance(value, onnx.TensorProto)
        raise OutOfScope(
            "floats of 16 bits and fewer, integers of 4 and fewer" if packed else "sequences, maps and optional values"
        )
    if value.dtype == np.bool_:
        return "bool"
    if value.dtype.kind in "iu":
        return "int"
    if value.dtype in (np.float32, np.float64):
        return "float"
    if value.dtype.kind in "OSU":
        raise OutOfScope("text")
    raise OutOfScope("complex numbers" if value.dtype.kind == "c" else "another floating-point type than float32, 64")


def attribute(a: Any) -> Any:
    value = onnx.helper.get_attribute_value(a)
    if isinstance(value, bytes):
        return value.decode()
    return [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, Sequence) else value


def differs(found: Any, wanted: Any, case: Any) -> str:
    """What is wrong with `found` by the case's tolerances, or nothing."""
    if found.shape != wanted.shape:
        return f"shape {found.shape}, ONNX's {wanted.shape}"
    if wanted.dtype.kind in "iub":
        off = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
        same = off <= int(case.name in TIES)
    else:
        # what is expected was computed in float32 too, and is 0 to so many bits only
        least = np.abs(wanted[np.isfinite(wanted)]).max(initial=0) * np.finfo(np.float32).eps
        same = np.isclose(found, wanted, rtol=case.rtol, atol=max(case.atol, least), equal_nan=True)
    if np.all(same):
        return ""
    at = int(np.argmin(same))
    return f"{found.reshape(-1)[at]!r}, ONNX's {wanted.reshape(-1)[at]!r} at {at}; {np.sum(~same)} of {same.size}"
