"""The tests and the benchmark of a GPU.

python -m tests.gpu --build FOLDER      without a GPU: compile all that is run, and run it on the CPU
python -m tests.gpu --folder FOLDER     with one: is it right, how fast is it; in at most 9 minutes
python -m tests.gpu --dry               without one: the first part, small, on a device that interprets PTX
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.runtime.cuda import present
from tests.gpu import bench, correct, peers
from tests.gpu.cases import CASES, SMALL, Case
from tests.gpu.folder import make, taken
from tests.gpu.timed import TIMED

PACKAGES = ("numpy", "cuda-bindings", "cuda-core", "numba-cuda", "nvidia-cublas", "torch", "triton", "jax", "jaxlib")
OK, WRONG, NO_GPU = 0, 1, 2
WATCHED = ("products of 5, 6, 7, 8, 3", "softmax of 5 x 3", "layer_norm of 7 x 33", "scattering", "random numbers")


def main() -> int:
    """0: all is right; 1: something is wrong; 2: there is no GPU."""
    asked = arguments()
    began = time.monotonic()
    if asked.build is not None:
        make(asked.build, CASES, TIMED, asked.arch)
        return OK
    with ExitStack() as stack:
        folder = asked.folder
        if folder is None:  # nothing was made beforehand
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = chosen(asked)
        if asked.dry:
            interpreter = importlib.import_module("tests.cuda.device").Interpreter()  # needs what the tests need
            stack.enter_context(present.use(interpreter))
        try:
            device = present.device()
        except ChainruleError as error:
            print(f"python -m tests.gpu needs a GPU: {error}\n  or --dry, which interprets", file=sys.stderr)
            return NO_GPU
        if asked.folder is None:
            make(folder, cases, () if asked.only == "correct" else TIMED, device.architecture)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "programs"
        about = stack.enter_context(taken(folder, work))
        report: dict[str, Any] = {"machine": machine(device.name, about), "rows": []}
        print(report["machine"])
        if asked.only != "bench":
            report["cases"] = correct.compared(cases, folder, print)
        if asked.only is None:
            report["sanitizer"] = correct.sanitized(folder, WATCHED)
            print(report["sanitizer"])
        if asked.only != "correct":
            timed(report, device, asked, began + 60 * asked.minutes)
        if asked.out is not None:
            bench.write(asked.out, report)
    wrong = [row["case"] for row in report.get("cases", ()) if not row["right"]]
    print(
        f"{len(report.get('cases', ()))} cases, wrong: {', '.join(wrong) or 'none'}; {time.monotonic() - began:.0f} s"
    )
    return WRONG if wrong else OK


def timed(report: dict[str, Any], device: Any, asked: argparse.Namespace, until: float) -> None:
    """The benchmark, as far as the time goes."""
    best = report["machine"]["ceilings"] = bench.ceilings(device)
    print(best)
    names = peers.installed()
    for row, precision in TIMED:
        if asked.rows and row.name not in asked.rows:
            continue
        if until - time.monotonic() < 30:
            report.setdefault("left_out", []).append(f"{row.name} ({precision})")
            continue
        report["rows"].append(bench.measured(row, precision, names, until - 15, best))
        print(bench.table(report["rows"][-1:], names), flush=True)
    print(bench.table(report["rows"], names))
    if "left_out" in report:
        print(f"left out for want of time: {', '.join(report['left_out'])}")


def chosen(asked: argparse.Namespace) -> Sequence[Case]:
    known = SMALL if asked.dry else CASES
    return [case for case in known if not asked.cases or case.name in asked.cases]


def machine(device: str, about: dict[str, Any]) -> dict[str, Any]:
    """What the figures were taken on, and when."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device": device,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "programs": about,
    }


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="make FOLDER, without a GPU, and end")
    parser.add_argument("--arch", default="sm_90", help="what --build compiles for")
    parser.add_argument("--folder", type=Path, help="what --build made; without it all is compiled first")
    parser.add_argument("--dry", action="store_true", help="correctness alone, small, on the interpreter")
    parser.add_argument("--only", choices=["correct", "bench"])
    parser.add_argument("--cases", type=names, help="of the first part, by name, with commas between")
    parser.add_argument("--rows", type=names, help="of the benchmark")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--out", type=Path, help="the report as JSON")
    asked = parser.parse_args()
    asked.only = "correct" if asked.dry else asked.only
    return asked


def names(text: str) -> list[str]:
    # a case's name has commas of its own: they stand before a space
    return [name.replace("\0", ", ") for name in text.replace(", ", "\0").split(",")]


if __name__ == "__main__":
    sys.exit(main())
