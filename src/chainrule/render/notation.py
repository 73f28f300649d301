"""How an equation reads in a picture: the language's text with the mathematician's signs, in lines of bearable length.

Names stay as they are (``x_bar``): one name for one thing everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SIGNS = (
    (re.compile(r"(?<![\w.])sum(?=\[)"), "Σ"),
    (re.compile(r"(?<![\w.])prod(?=\[)"), "Π"),
    (re.compile(r"(?<![\w.])sqrt(?=\()"), "√"),
    (re.compile(r"(?<![\w.])inf(?![\w.])"), "∞"),
    (re.compile(r"<="), "≤"),
    (re.compile(r">="), "≥"),
    (re.compile(r"!="), "≠"),
    (re.compile(r" \* "), "·"),
)
POWER = re.compile(r"\^(?:(\d)|\((-?\d+)\))(?![\w.])")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# where a long equation may break, best places first: before an operator that binds loosely
BREAKS = (" = ", " else ", " then ", " where ", " + ", " - ", "·", " / ", ", ")


def pretty(equation: str) -> str:
    """``y[n] = sum[i] x[n, i]^2 * w[i]`` as ``y[n] = Σ[i] x[n, i]²·w[i]``."""
    for sign, shown in SIGNS:
        equation = sign.sub(shown, equation)
    return POWER.sub(lambda m: (m[1] or m[2]).translate(RAISED), equation)


def lines(text: str, width: int = 44, most: int = 8) -> list[str]:
    """`text` in lines of about `width` signs, further ones indented; what is left after `most` lines is ``…``.

    A name is never broken: a line without any good place runs on to the next one.
    """
    found: list[str] = []
    while len(text) > width and len(found) < most - 1:
        at = _place(text, width)
        found.append(text[:at].rstrip())
        text = "    " + text[at:].lstrip()
        if not text.strip():
            return found
    if len(text) > 2 * width:
        text = text[: 2 * width] + " …"
    return [*found, text]


def _place(text: str, width: int) -> int:
    """Where to break: before the most loosely binding operator of the line's later part, outside brackets if it can."""
    depths = _depths(text)
    start = len(text) - len(text.lstrip()) + 1
    for low in (width // 3, start):
        for deepest in range(max(depths[:width]) + 1):
            for sign in BREAKS:
                places = (at for at in _found(text, sign, max(low, start), width) if depths[at] <= deepest)
                if (at := max(places, default=0)) > 0:
                    return at + len(sign) if sign == ", " else at
    later = [(at, sign) for sign in BREAKS if (at := text.find(sign, width)) > 0]
    if not later:
        return len(text)
    at, sign = min(later)
    return at + len(sign) if sign == ", " else at


def _found(text: str, sign: str, low: int, high: int) -> Iterator[int]:
    at = text.find(sign, low, high)
    while at >= 0:
        yield at
        at = text.find(sign, at + 1, high)


def _depths(text: str) -> list[int]:
    """In how many brackets each sign stands, of those that open in `text`."""
    depths, depth = [], 0
    for sign in text:
        depth = max(0, depth - (sign in ")]"))
        depths.append(depth)
        depth += sign in "(["
    return depths
