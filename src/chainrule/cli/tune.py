"""The command that chooses how a model's products are computed, by measuring, and keeps that for this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule import build
from chainrule.choices import Choice
from chainrule.cli import output
from chainrule.cli.asked import source
from chainrule.cli.bench import Asked, drawn, step_of
from chainrule.tuning import LEAST, Bench, Verdict, tuned


def tune_model(asked: Asked, json: bool) -> None:
    """Measure, keep what helped, and show it as a table or JSON."""
    read = source(asked.model, asked.settings)
    step, sizes = step_of(asked, read)
    start = build.choices()
    bench = Bench(read, step.options, drawn(step.runner.executable, sizes), asked.threads)
    with output.counting(json) as watch:
        verdicts = tuned(bench.trials.convolutions(start), start, bench.measure, watch)
        now = {**start, **changes(verdicts)}  # a convolution by other means has other products
        verdicts += tuned(bench.trials.products(now), now, bench.measure, watch)
    changed = changes(verdicts)
    before, after = bench.steps([start, {**start, **changed}]) if changed else [0.0, 0.0]
    kept = bool(changed) and after < before * (1 + LEAST)  # each may help on one core, and all together not
    if kept:
        build.keep_choices(changed)
    whole = {
        "model": asked.model, "sizes": dict(sizes), "threads": step.runner.threads, "kept": kept,
        "step_us_before": before / 1e3 or None, "step_us_after": after / 1e3 or None,
    }  # fmt: skip
    if json:
        output.json_line({**whole, "products": [row(verdict) for verdict in verdicts]})
    else:
        show(whole, verdicts)


def changes(verdicts: Sequence[Verdict]) -> dict[str, Choice]:
    """The choices that are others than before."""
    return {verdict.product: verdict.after for verdict in verdicts if verdict.after != verdict.before}


def row(verdict: Verdict) -> dict[str, Any]:
    """A product's row: of the launches that it is in, the time with either choice."""
    return {
        "product": verdict.product,
        "before": str(verdict.before),
        "after": str(verdict.after),
        "us_before": verdict.before_ns / 1e3,
        "us_after": verdict.after_ns / 1e3,
        "ratio": verdict.ratio,
    }


def show(whole: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """What changed, and the step before and after."""
    changed = [verdict for verdict in verdicts if verdict.after != verdict.before]
    cells = [
        [
            v.product,
            str(v.before),
            str(v.after),
            f"{v.before_ns / 1e3:.4g}",
            f"{v.after_ns / 1e3:.4g}",
            f"{v.ratio:.2f}",
        ]
        for v in changed
    ]
    if changed:
        columns = ["product", "before", "after", "µs before", "µs after", "ratio"]
        output.grid(f"{whole['model']}: products, in the kernels that they are in", columns, cells)
        ratio = whole["step_us_before"] / whole["step_us_after"]
        print(f"a step: {whole['step_us_before']:.4g} µs before, {whole['step_us_after']:.4g} after ({ratio:.2f})")
    print(f"{len(verdicts)} products measured, {len(changed)} choices changed", end="")
    print("" if whole["kept"] or not changed else "; together they do not help: nothing kept")
