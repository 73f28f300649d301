"""A derivation as a page: each formula of the backward pass, by which rule it came about, from what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph
from chainrule.ir.text import equation_text
from chainrule.ir.trace import Step

RULES = {
    "seed": "the cotangent of what is derived: 1",
    "zero": "nothing depends on it: its cotangent is 0",
    "vjp": "x_bar[p] = sum[o, r where α(o, r) = p] ∂φ/∂x · y_bar[o], for y[o] = sum[r] φ(x[α(o, r)], …)",
    "jvp": "y_dot[o] = sum[r] ∂φ/∂x · x_dot[α(o, r)], for y[o] = sum[r] φ(x[α(o, r)], …)",
    "other terms": "the derivative of a product by a factor: the product of the others",
    "accumulate": "the contributions of all readers, added",
    "stabilize": "the same value, in a form that does not overflow",
    "expand_reductions": "max, min and prod as gathers and products, which derive like any formula",
    "eliminate": "indices that the conditions determine, solved for",
    "simplify": "the same value, shorter",
    "output_form": "the derivative written in the formula's own value, so that its argument need not be kept",
    "cse": "what was computed twice, computed once",
    "inline": "a cheap formula, put into its readers",
    "contract": "a contraction of many operands, in pairs",
    "drop_dead": "what no output or update depends on, left out",
}
"""What each rule does, in a line."""


def explain(graph: Graph, trace: Sequence[Step]) -> str:
    """The page of a derivation, as Markdown: the formulas of `graph` at the end, then every step that led there."""
    inputs = ", ".join(f"`{t.name}`" for t in graph.inputs) or "none"
    head = [f"# How {graph.name} was derived", "", f"Inputs: {inputs}. Outputs: {_names(graph.outputs)}.", ""]
    end = ["## The result", "", *_fenced(n for n in graph.nodes if isinstance(n, Formula)), ""]
    steps = [line for number, step in enumerate(trace, 1) for line in _step(number, step)]
    return "\n".join([*head, *end, "## The steps", "", *steps])


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _step(number: int, step: Step) -> list[str]:
    said = f": {RULES[step.rule]}" if step.rule in RULES else ""
    lines = [f"### {number}. {step.rule.replace('_', ' ')}{said}", ""]
    if step.before:
        lines += ["From", "", *_fenced(step.before), ""]
    if step.after:
        lines += ["comes" if step.before else "There comes", "", *_fenced(step.after), ""]
    elif step.before:
        lines += ["which is left out.", ""]
    return lines


def _fenced(formulas: Iterable[Formula]) -> list[str]:
    # four signs indent a block that no text in it can end, unlike a fence
    return [f"    {equation_text(formula)}" for formula in formulas] or ["    (none)"]
