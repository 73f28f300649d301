"""The curve of a run as a picture: losses above, the metric below, over epochs. Our own SVG.

Matplotlib's import alone would take a third of the time that a small training run has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from chainrule.train.checkpoint import Epoch
from chainrule.train.recipe import Recipe

WIDTH, LEFT, RIGHT = 720, 56, 112
PANEL, GAP, TOP, BOTTOM = 210, 46, 68, 44
INK, SOFT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
TRAIN, TEST, GOAL = "#9aa5b8", "#2563eb", "#059669"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve with its name, which stands at its end."""

    name: str
    points: Points
    colour: str


@dataclass(frozen=True)
class Panel:
    """A plot of `lines`; `top` is its upper edge. logarithmic: of the vertical axis. goal: a level to reach."""

    title: str
    lines: tuple[Line, ...]
    top: float
    logarithmic: bool = False
    goal: float | None = None


def curve_svg(title: str, curve: Sequence[Epoch], recipe: Recipe) -> str:
    """The picture as the text of an SVG file; of no epochs, an empty frame."""
    losses = (
        Line("train", [(e.epoch, e.train_loss) for e in curve], TRAIN),
        Line("test", [(e.epoch, e.test_loss) for e in curve if e.test_loss is not None], TEST),
    )
    positive = [y for line in losses for _, y in line.points if y > 0]
    wide = len(positive) > 0 and len(positive) == sum(len(line.points) for line in losses)
    logarithmic = wide and max(positive) > 20 * min(positive)
    panels = [Panel("loss", losses, TOP, logarithmic, recipe.goal if recipe.metric == "loss" else None)]
    if recipe.metric not in (None, "loss"):
        values = [(e.epoch, e.value) for e in curve if e.value is not None]
        line = Line("test", values, TEST)
        panels.append(Panel(str(recipe.metric), (line,), TOP + PANEL + GAP, goal=recipe.goal))
    height = TOP + len(panels) * PANEL + (len(panels) - 1) * GAP + BOTTOM
    epochs = max(recipe.epochs, len(curve), 2)
    inside = [text(LEFT, 30, title, INK, 15, weight=600)]
    for panel in panels:
        inside += draw(panel, epochs, last=panel is panels[-1])
    body = "\n".join(inside)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def draw(panel: Panel, epochs: int, last: bool) -> Iterator[str]:
    """A panel: its grid with numbers, its goal, its lines, and a name at each line's end."""
    low, high, ticks = scale(panel)
    bottom, right = panel.top + PANEL, WIDTH - RIGHT

    def x(epoch: float) -> float:
        return LEFT + (epoch - 1) / (epochs - 1) * (right - LEFT)

    def y(value: float) -> float:
        position = math.log10(value) if panel.logarithmic else value
        return bottom - (position - low) / (high - low) * PANEL

    yield text(LEFT, panel.top - 10, panel.title, SOFT, 12)
    for tick in ticks:
        yield segment(LEFT, y(tick), right, y(tick), GRID)
        yield text(LEFT - 8, y(tick) + 4, label(tick), SOFT, 11, anchor="end")
    for epoch in steps_between(1, epochs, 8, whole=True):
        if last:
            yield text(x(epoch), bottom + 18, label(epoch), SOFT, 11, anchor="middle")
    if last:
        yield text(right, bottom + 34, "epoch", SOFT, 11, anchor="end")
    if panel.goal is not None and math.isfinite(panel.goal) and (panel.goal > 0 or not panel.logarithmic):
        yield segment(LEFT, y(panel.goal), right, y(panel.goal), GOAL, dash="5 4")
    for line in panel.lines:
        path = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in line.points if math.isfinite(v))
        stroke = f'stroke="{line.colour}" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
        yield f'<polyline points="{path}" fill="none" {stroke}/>'
    yield from names(panel, x, y)


def names(panel: Panel, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    """The lines' names and last values beside their ends, and the goal's, pushed apart where they would overlap."""
    ends = [
        (y(line.points[-1][1]), x(line.points[-1][0]), f"{line.name} {label(line.points[-1][1], 3)}", line.colour)
        for line in panel.lines
        if line.points and math.isfinite(line.points[-1][1])
    ]
    for height, end, _, colour in ends:
        yield f'<circle cx="{end:.1f}" cy="{height:.1f}" r="3.5" fill="{colour}"/>'
    if panel.goal is not None and math.isfinite(panel.goal) and (panel.goal > 0 or not panel.logarithmic):
        ends.append((y(panel.goal), WIDTH - RIGHT, f"goal {label(panel.goal, 3)}", GOAL))
    above = -math.inf
    for height, end, name, colour in sorted(ends):
        above = max(height, above + 15)
        yield text(end + 9, above + 4, name, colour, 12, weight=600)


def scale(panel: Panel) -> tuple[float, float, list[float]]:
    """The axis: its lower and upper end (logarithms of them, if it is logarithmic) and where its numbers stand."""
    values = [v for line in panel.lines for _, v in line.points if math.isfinite(v)]
    if panel.goal is not None and math.isfinite(panel.goal) and (panel.goal > 0 or not panel.logarithmic):
        values.append(panel.goal)
    if not values:
        return 0.0, 1.0, [0.0, 0.5, 1.0]
    low, high = min(values), max(values)
    if panel.logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        few = len(decades) > 3
        wanted = [m * 10.0**d for d in decades for m in ((1,) if few else (1, 3))]
        span = math.log10(high / low) * 0.06
        bottom, top = math.log10(low) - span, math.log10(high) + span
        return bottom, top, [t for t in wanted if bottom <= math.log10(t) <= top]
    ticks = steps_between(low, high, 5)
    margin = (high - low or abs(high) or 1.0) * 0.06
    return low - margin, high + margin, ticks


def steps_between(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers from `low` to `high`; `whole`: no fractions among them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, float(round(step))) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [k * step for k in range(first, last + 1)]
    return [low, *(t for t in found if t - low > 0.6 * step)] if whole else found


def label(value: float, digits: int = 4) -> str:
    """A number as one reads it: so many digits, no exponent where there need not be one."""
    return f"{value:.{digits}g}" if value == 0 or 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"


def text(x: float, y: float, words: str, colour: str, size: int, anchor: str = "start", weight: int = 400) -> str:
    """Words at a place. Whatever they are, they stay words: this is the one place that escapes them."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}" font-weight="{weight}">{escape(words)}</text>'


def segment(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    """A straight line."""
    dashes = f' stroke-dasharray="{dash}" stroke-width="1.5"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'
