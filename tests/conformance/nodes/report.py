"""docs/onnx.md: each operator of ONNX's node cases, the line that says it, and how its cases went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from tests.conformance.nodes.runner import Operator

PAGE = Path(__file__).parents[3] / "docs" / "onnx.md"
LONGEST = 160  # characters of a line that the table shows

HEAD = """# ONNX's node cases

ONNX tests each of its operators with cases: a model of one node, inputs, expected outputs, tolerances. This page says
how they fare here. A row is a small function in `tests/conformance/nodes` that turns a case's shapes and attributes
into the text of a model; that text is compiled, and its kernels, in float32, must put out what the case expects within
the case's own tolerances (1e-3 relative and 1e-7 absolute unless it says otherwise, absolute also float32's last bit of
the tensor's largest number; integers and truth values exactly).
"by" names the library's functions in the text; "line" is its last statement, of the operator's shortest case. Left
out are the cases that spell an operator out by others (`_expanded`).

Written by `python -m tests.conformance.nodes --write` with ONNX {version}; `python -m tests.conformance.nodes --only
NAME` checks one operator, `--equations` all of them in float64 without compiling, `--json` prints all as data.

"""


def page(operators: Sequence[Operator], version: str = onnx.__version__) -> str:
    counts = Counter(operator.status for operator in operators)
    cases, agreed = sum(o.cases for o in operators), sum(o.agreed for o in operators)
    wrong = sum(len(o.wrong) for o in operators)
    scope = sum(n for o in operators for reason, n in o.left.items() if reason.startswith("out of scope"))
    lines = [
        HEAD.format(version=version),
        f"Of {len(operators)} operators, **{counts['agreed'] + counts['agreed in part']} agree** "
        f"({counts['agreed in part']} of them in part: some cases have no counterpart here), "
        f"{counts['not expressible']} are not expressible, {counts['out of scope']} out of scope, and "
        f"**{counts['wrong']} wrong**. Of {cases:,} cases, {agreed:,} agree, {scope} are out of scope, "
        f"{cases - agreed - scope - wrong} are not expressible, and {wrong} are wrong.\n",
        "| operator | | cases | agree | by | line | notes |\n|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(row, operators)]) + "\n"


def row(operator: Operator) -> str:
    notes = [f"{reason} ({count})" if operator.agreed else reason for reason, count in operator.left.items()]
    notes += [f"{why} (1)" for why in operator.ties]
    notes += [f"{len(operator.wrong)} wrong"] * bool(operator.wrong)
    line = operator.line if len(operator.line) <= LONGEST else f"{operator.line[: LONGEST - 1]}…"
    cells = (
        f"`{operator.name}`",
        operator.status,
        str(operator.cases),
        str(operator.agreed) if operator.agreed else "",
        " ".join(f"`{name}`" for name in operator.functions),
        f"`{line}`" if line else "",
        "; ".join(notes),
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def data(operator: Operator) -> dict[str, Any]:
    return {
        "name": operator.name,
        "status": operator.status,
        "cases": operator.cases,
        "agreed": operator.agreed,
        "functions": operator.functions,
        "line": operator.line,
        "left": dict(operator.left),
        "wrong": operator.wrong,
    }
