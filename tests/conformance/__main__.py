"""``python -m tests.conformance``: every sample of every row; ``--write`` makes docs/conformance.md anew."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.progress import track

from tests.conformance.report import PAGE, data, page
from tests.conformance.runner import check, entries
from tests.conformance.tables import ROWS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="an entry of OpInfo; may be given again")
    parser.add_argument("--most", type=int, help="at most so many samples an entry, spread over all")
    parser.add_argument("--twice", type=int, default=4, help="second derivatives of at most so many samples an entry")
    parser.add_argument("--json", action="store_true", help="the results as a JSON list")
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    asked = parser.parse_args(arguments)
    known = entries()
    unknown = [name for name in asked.only or () if name not in known]
    if unknown:
        parser.error(f"OpInfo has no entry {unknown[0]!r} with a gradient in float64")
    errors = Console(stderr=True)
    names = asked.only or list(known)
    found = [
        check(name, known[name], asked.most, asked.twice)
        for name in track(names, "entries", console=errors, disable=not errors.is_terminal)
    ]
    if asked.json:
        json.dump([data(entry) for entry in found], sys.stdout, indent=1)
    else:
        for entry in found:
            if entry.wrong or asked.only:
                print(entry.name, entry.status, f"{entry.agreed} of {entry.samples}", *entry.wrong, sep="\n  ")
    if asked.write:
        PAGE.write_text(page(found))
    print(f"{len(ROWS)} rows, {sum(bool(e.wrong) for e in found)} wrong", file=sys.stderr)
    return int(any(entry.wrong for entry in found))


if __name__ == "__main__":
    sys.exit(main())
