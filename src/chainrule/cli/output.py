"""How answers are shown: JSON lines, tables, the bar of a training run. rich is imported when something is drawn."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lazy_loader

from chainrule.train.loop import Progress, Watch

console = lazy_loader.load("rich.console", suppress_warning=True)
progress = lazy_loader.load("rich.progress", suppress_warning=True)
table = lazy_loader.load("rich.table", suppress_warning=True)
markup = lazy_loader.load("rich.markup", suppress_warning=True)


def json_line(value: Mapping[str, Any]) -> None:
    """`value` as one line on standard output; what JSON has no number for is null."""
    print(json.dumps(plain(value), ensure_ascii=False), flush=True)


def plain(value: Any) -> Any:
    """`value` made of what JSON has."""
    match value:
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case str() | bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case Sequence():
            return [plain(item) for item in value]
        case _:
            return str(value)


def figures(title: str, rows: Mapping[str, object]) -> None:
    """Names and values in two columns."""
    shown = table.Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows.items():
        # square brackets of an equation are no markup
        shown.add_row(markup.escape(name), markup.escape(str(value)))
    console.Console(soft_wrap=False).print(shown)


def steps(found: Sequence[Mapping[str, Any]]) -> None:
    """A derivation: each rule with what it does, the formulas before it and, marked by an arrow, after it."""
    shown = console.Console(soft_wrap=True, highlight=False)
    for number, step in enumerate(found, 1):
        means = f"[dim]: {markup.escape(step['means'])}[/dim]" if step["means"] else ""
        shown.print(f"[bold]{number}. {step['rule'].replace('_', ' ')}[/bold]{means}")
        for equation in step["before"]:
            shown.print(f"     {markup.escape(equation)}")
        for equation in step["after"]:
            shown.print(f"   → {markup.escape(equation)}")


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with a header."""
    shown = table.Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(markup.escape(str(cell)) for cell in row))
    console.Console().print(shown)


def rows_json(rows: Sequence[Mapping[str, object]]) -> str:
    """`rows` as a JSON array, one row a line."""
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def rows_text(rows: Sequence[Mapping[str, object]]) -> str:
    """`rows` as a text table: the keys, a rule, then columns as wide as what is in them; for pipes, so never cut."""
    if not rows:
        return "(none)\n"
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    texts = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{text.rstrip()}\n" for text in texts)


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """A bar on standard error where that is a terminal; elsewhere a line an epoch; nothing if `quiet`."""
    if quiet:
        yield lambda where: None
    elif not sys.stderr.isatty():
        yield _line_an_epoch()
    else:
        with progress.Progress(
            progress.TextColumn("epoch {task.fields[epoch]}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[latest]}"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None, epoch="1", latest="")

            def watch(where: Progress) -> None:
                epoch, latest = f"{where.epoch}/{where.epochs}", standing(where)
                bar.update(task, completed=where.step, total=where.steps, epoch=epoch, latest=latest)

            yield watch


@contextmanager
def counting(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar of how many are done, of how many, and what is next, as `watching` shows epochs."""
    if quiet:
        yield lambda done, of, name: None
    elif not sys.stderr.isatty():
        yield lambda done, of, name: print(f"{done}/{of} {name}".rstrip(), file=sys.stderr, flush=True)
    else:
        columns = (progress.BarColumn(), progress.TextColumn("{task.completed}/{task.total} {task.description}"))
        with progress.Progress(*columns, console=console.Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, of, name: bar.update(task, completed=done, total=of, description=name)


def _line_an_epoch() -> Watch:
    shown = 0

    def watch(where: Progress) -> None:
        nonlocal shown
        if len(where.curve) > shown:
            shown = len(where.curve)
            print(f"epoch {shown}/{where.epochs}: {standing(where)}", file=sys.stderr, flush=True)

    return watch


def standing(where: Progress) -> str:
    """The latest loss, and what the last whole epoch came to."""
    text = f"loss {where.loss:.4g}"
    if where.curve and where.curve[-1].value is not None:
        text += f", test {where.curve[-1].value:.4g}"
    return text
