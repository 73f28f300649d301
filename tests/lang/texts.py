"""What the language's tests share: a text's formulas as text, its error, and its values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest

from chainrule.errors import SourceError
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph
from chainrule.ir.text import formula_text
from chainrule.ir.validate import validate
from chainrule.lang import elaborate, parse, print_graph
from chainrule.reference import evaluate

BATCH = """
model m:
    dim n
    input x[n, 4]
    input label[n] : index 4
"""


def model(statements: str, head: str = BATCH) -> str:
    """A model with inputs x[n, 4] and label[n], and `statements`."""
    lines = [line.strip("\n") for line in statements.strip("\n").split("\n")]
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return head + "".join(f"    {line[margin:]}\n" for line in lines)


def graph(text: str, **arguments: Any) -> Graph:
    """The graph of a text, legal, and equal to what its print says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = elaborate(parse(text, "m.graph"), arguments=arguments)
    validate(made)
    assert elaborate(parse(print_graph(made), "printed.graph")) == made
    return made


def formulas(text: str, **arguments: Any) -> list[str]:
    """The formulas of a text, as text."""
    return [formula_text(node) for node in graph(text, **arguments).nodes if isinstance(node, Formula)]


def error(text: str, **arguments: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        graph(text, **arguments)
    return caught.value


def values(text: str, inputs: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """All tensors of a text, in float64."""
    return evaluate(graph(text), inputs, **settings)
