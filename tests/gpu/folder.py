"""What is made where there is no GPU, and taken along: compiled programs, and what the CPU's steps came to.

    FOLDER/about.json     what compiled the programs, for which architecture
    FOLDER/programs/      a cache of compiled programs
    FOLDER/expected/      an .npz a case

The programs are copied before they are used: a checkout may belong to somebody else, and what is not its user's own a
cache does not believe.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import chainrule as cr
from chainrule import build
from tests.benchmarks.rows import Row
from tests.gpu import peers
from tests.gpu.cases import Arrays, Case, ran

Tell = Callable[[str], None]
Timed = tuple[Row, str]
"""A row of the benchmark, and what its products are rounded to."""


@contextmanager
def cache_at(programs: Path) -> Iterator[None]:
    """Let this process keep its programs there meanwhile."""
    before = os.environ.get("CHAINRULE_CACHE")
    programs.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["CHAINRULE_CACHE"] = str(programs)
    build.cache.cache_clear()
    try:
        yield
    finally:
        del os.environ["CHAINRULE_CACHE"]
        os.environ.update({} if before is None else {"CHAINRULE_CACHE": before})
        build.cache.cache_clear()


def make(folder: Path, cases: Sequence[Case], timed: Sequence[Timed], arch: str, tell: Tell = print) -> None:
    """Compile all programs for GPUs of `arch`, and run the cases on the CPU."""
    (folder / "expected").mkdir(parents=True, exist_ok=True)
    about = {"compiler": build._gpu_compiler(), "architecture": arch}
    (folder / "about.json").write_text(json.dumps(about))
    with cache_at(folder / "programs"):
        for case in cases:
            tell(f"compile {case.name}")
            compiled(case, arch)
        for row, precision in timed:
            tell(f"compile {row.name}, {precision}")
            peers.compiled(row, precision, arch)
    for case in cases:
        tell(f"run {case.name} on the CPU")
        np.savez(folder / "expected" / file_of(case), **ran(case, "cpu"))


def compiled(case: Case, arch: str) -> None:
    """Compile the case's step, and do none."""
    about: dict[str, Any] = {"dtype": case.dtype, "precision": case.precision, "rate": case.rate, "seed": 1}
    cr.load(case.model, **case.arguments).compile(case.optimizer, target="cuda", arch=arch, **about)


@contextmanager
def taken(folder: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Use what `make` made, whatever compiler is installed here; `work`: where its copy goes."""
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    shutil.copytree(folder / "programs", work, copy_function=shutil.copyfile)
    work.chmod(0o700)
    for path in work.iterdir():
        path.chmod(0o600)
    before, os.environ[peers.COMPILER] = build._gpu_compiler, str(about["compiler"])
    try:
        with cache_at(work):
            peers.believe()
            yield about
    finally:
        del os.environ[peers.COMPILER]
        build._gpu_compiler = before
        build._gpu_versions.cache_clear()


def expected(folder: Path, case: Case) -> Arrays:
    """What the case came to on the CPU."""
    with np.load(folder / "expected" / file_of(case)) as archive:
        return dict(archive)


def file_of(case: Case) -> str:
    return "".join(c if c.isalnum() else "_" for c in case.name) + ".npz"
