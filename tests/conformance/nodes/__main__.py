"""``python -m tests.conformance.nodes``: every case of every operator; ``--write`` makes docs/onnx.md anew."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.progress import track

from tests.conformance.nodes.report import PAGE, data, page
from tests.conformance.nodes.runner import as_equations, as_kernels, check, operators


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.nodes", description=__doc__)
    parser.add_argument("--only", metavar="OPERATOR", action="append", help="an operator; may be given again")
    parser.add_argument("--most", type=int, help="at most so many cases an operator")
    parser.add_argument("--equations", action="store_true", help="formula by formula in float64; nothing is compiled")
    parser.add_argument("--json", action="store_true", help="the results as a JSON list")
    parser.add_argument("--write", action="store_true", help="write docs/onnx.md")
    asked = parser.parse_args(arguments)
    known = operators()
    unknown = [name for name in asked.only or () if name not in known]
    if unknown:
        parser.error(f"ONNX has no node cases of {unknown[0]!r}")
    errors = Console(stderr=True)
    run = as_equations if asked.equations else as_kernels
    found = [
        check(name, run, asked.most)
        for name in track(asked.only or list(known), "operators", console=errors, disable=not errors.is_terminal)
    ]
    if asked.json:
        json.dump([data(operator) for operator in found], sys.stdout, indent=1)
    else:
        for operator in found:
            if operator.wrong or asked.only:
                print(operator.name, operator.status, f"{operator.agreed} of {operator.cases}", sep="  ")
                print(*operator.wrong, *operator.left.items(), sep="\n  ")
    if asked.write:
        PAGE.write_text(page(found))
    print(f"{len(found)} operators, {sum(bool(o.wrong) for o in found)} wrong", file=sys.stderr)
    return int(any(operator.wrong for operator in found))


if __name__ == "__main__":
    sys.exit(main())
