"""How an equation reads in a picture: the language's text with the mathematician's signs, in lines of bearable length.

Names stay as they are (``x_bar``): one name for one thing everywhere.
"""

from __future__ import annotations

import re

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
    """Where to break: the last place before a loosely binding operator in the line's second half, then anywhere."""
    start = len(text) - len(text.lstrip()) + 1
    for low in (width // 2, start):
        for sign in BREAKS:
            at = text.rfind(sign, max(low, start), width)
            if at > 0:
                return at + len(sign) if sign == ", " else at
    later = [(at, sign) for sign in BREAKS if (at := text.find(sign, width)) > 0]
    if not later:
        return len(text)
    at, sign = min(later)
    return at + len(sign) if sign == ", " else at
