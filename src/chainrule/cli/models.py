"""Commands that look at a model: compile, render, check; and the cache of what was compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from chainrule import build
from chainrule.api.place import Place
from chainrule.cli import output
from chainrule.cli.asked import options, source
from chainrule.errors import ChainruleError, nearest
from chainrule.runtime.cache import Usage

OK, NO = 0, 1


def compile_model(
    model: str,
    settings: Sequence[str],
    optimizer: str | None,
    dtype: Literal["float32", "float64"],
    table: str | None,
    out: Path | None,
    cpu: str | None,
    place: Place,
    json: bool,
) -> None:
    """Show the summary of a training step, or a table of its graph; save tables and sources in `out`.

    cpu: one to save the sources for, with their assembly. place: what is compiled for; of a GPU's kernels, PTX, machine
    code and the executable are saved too.
    """
    read, asked = source(model, settings), options(optimizer, dtype, place)
    if cpu is not None and place.on_gpu:
        raise ChainruleError("--cpu is for the CPU's kernels\n  Way out: --target cuda --arch sm_90, or --cpu alone")
    if cpu is not None and out is None:
        raise ChainruleError("--cpu chooses what --out saves\n  Way out: add --out DIR")
    if out is not None:
        tables = build.tables(read, asked)
        saved = [str(write(out, f"{name}.json", output.rows_json(rows))) for name, rows in tables.items()]
        saved += [str(write(out, name, content)) for name, content in build.sources(read, asked, cpu).items()]
    if table is not None:
        rows = build.tables(read, asked)[table]
        print(output.rows_json(rows) if json else output.rows_text(rows), end="")
        return
    figures: Mapping[str, int | str] = build.summary(read, asked)
    if json:
        about = {"target": asked.target, "precision": asked.precision} if place.on_gpu else {}
        output.json_line({"model": model, **about, **figures, **({"saved": saved} if out is not None else {})})
        return
    output.figures(model, figures)
    if out is not None:
        print(f"saved {len(saved)} files in {out}")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file in `folder`, which is made; its path. `name` is ours or the compiler's, and stays inside."""
    path = folder / Path(name).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ChainruleError(f"{path} cannot be written: {error.strerror}") from None
    return path


def render_model(
    model: str,
    settings: Sequence[str],
    optimizer: str | None,
    pictures: Sequence[str],
    format: Literal["svg", "pdf", "png", "dot"],
    depth: int | None,
    out: Path,
    json: bool,
) -> None:
    """Write ``forward.svg`` and so on into `out`."""
    read, asked = source(model, settings), options(optimizer, "float32")
    saved = [
        str(write(out, f"{picture}.{format}", build.picture(read, asked, picture, format, depth)))
        for picture in pictures
    ]
    if json:
        output.json_line({"model": model, "saved": saved})
    else:
        print("\n".join(saved))


def explain_model(model: str, settings: Sequence[str], of: str | None, json: bool) -> None:
    """Show how the gradients were derived, step by step; only the steps that touch the formula `of`, if it is named."""
    found = build.steps(source(model, settings), options(None, "float32"))
    names = dict.fromkeys(name for step in found for name in step["formulas"])
    if of is not None and of not in names:
        raise ChainruleError(f"no step makes or changes {of!r}\n  Way out: {nearest(of, names)}")
    chosen = [step for step in found if of is None or of in step["formulas"]]
    if json:
        output.json_line({"model": model, "steps": chosen})
    else:
        output.steps(chosen)


def check_model(model: str, settings: Sequence[str], seed: int, json: bool) -> int:
    """Compare gradients with finite differences, parameter by parameter. Returns the exit code, 1 if they disagree."""
    report = build.check(source(model, settings), options(None, "float64"), seed=seed)
    tensors: dict[str, list[Any]] = {}
    for comparison in report.comparisons:
        tensors.setdefault(comparison.tensor, []).append(comparison)
    rows = [judged(name, several) for name, several in tensors.items()]
    if json:
        found = {"passed": report.passed, "worst": report.worst, "kinks": report.kinks, "parameters": rows}
        output.json_line({"model": model, **found})
    else:
        cells = [[f"{v:.1e}" if isinstance(v, float) else v for v in row.values()] for row in rows]
        title = f"{model}: derived gradients against finite differences"
        output.grid(title, list(rows[0]) if rows else [], cells)
        print("all agree" if report.passed else "they disagree")
    return OK if report.passed else NO


def judged(name: str, comparisons: Sequence[Any]) -> dict[str, str | int | float]:
    """A parameter's row: how many derivatives were compared, how far apart the worst are and where, kinks left out."""
    smooth = [c for c in comparisons if c.smooth]
    # NaN is the worst of all
    worst = max(smooth, key=lambda c: math.inf if math.isnan(c.error) else c.error, default=None)
    return {
        "parameter": name,
        "compared": len(smooth),
        "kinks": len(comparisons) - len(smooth),
        "worst": worst.error if worst else 0.0,
        "where": worst.along if worst else "",
        "derived": worst.derived if worst else 0.0,
        "measured": worst.measured if worst else 0.0,
    }


def manage_cache(action: str, json: bool) -> None:
    """Show where the cache is and how large, or clear it."""
    cache = build.cache()
    freed = cache.clear() if action == "clear" else 0
    used: Usage = cache.usage()
    if json:
        place = None if used.directory is None else str(used.directory)
        about = {"directory": place, "files": used.files, "bytes": used.bytes, "limit": used.limit}
        output.json_line(about | ({"freed": freed} if action == "clear" else {}))
        return
    if action == "clear":
        print(f"removed {size(freed)}")
    where = used.directory or "in memory"
    print(f"{where}: {used.files} files, {size(used.bytes)} of at most {size(used.limit)}")


def size(count: int) -> str:
    """``12.3 MB``."""
    number = float(count)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
