"""Limits that hold before anything is parsed: size, control characters, nesting, words in one statement.

One cheap pass over the text, so that no input, however large or nested, reaches the parser or a recursion.
"""

from __future__ import annotations

import re

from chainrule.errors import SourceError, Span

PRINTED = "# printed by chainrule"
"""The first line of a text that the printer wrote: it may be longer than one that a person writes."""

BYTES, PRINTED_BYTES = 1_000_000, 200_000_000
STATEMENTS, FORMULAS = 10_000, 200_000
NESTING, RANK, NODES, DIGITS, EXPONENT = 100, 16, 10_000, 40, 400

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_TOKEN = re.compile(r"[\[(]|[\])]|\n|#[^\n]*|[\w.]+|\t")


def place(text: str, offset: int, file: str, width: int = 1) -> Span:
    """The span of `width` characters from `offset` on."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start : end if end >= 0 else len(text)]
    # a line of a megabyte is no help; what a control character does to a terminal is none either
    shown = _CONTROL.sub("?", line[:240])
    return Span(file, text.count("\n", 0, offset) + 1, offset - start + 1, width, shown)


def cleaned(text: str, file: str) -> str:
    """`text` with plain line ends and no byte order mark. Raises SourceError where a limit is passed."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    printed = text.startswith(PRINTED)
    if len(text) > (PRINTED_BYTES if printed else BYTES):
        span = Span(file, 1)
        raise SourceError(span, f"the file has more than {BYTES:,} characters", (), 'split it: use "part.graph"')
    if found := _CONTROL.search(text):
        code = ord(found.group())
        name = {0: "a NUL", 13: "a carriage return"}.get(code, f"the control character U+{code:04X}")
        raise SourceError(place(text, found.start(), file), f"{name} in the text", (), "delete it")
    _scan(text, file, printed)
    return text + "\n"


def _scan(text: str, file: str, printed: bool) -> None:
    depth = words = 0
    for token in _TOKEN.finditer(text):
        sign = token.group()
        if sign in "[(":
            depth += 1
            if depth > NESTING:
                span = place(text, token.start(), file)
                raise SourceError(span, f"brackets nest deeper than {NESTING}", (), "give a part a name of its own")
        elif sign in "])":
            depth = max(depth - 1, 0)
        elif sign == "\n":
            words = words if depth else 0
        elif sign == "\t":
            span = place(text, token.start(), file)
            raise SourceError(span, "a tab outside a comment", (), "indent with spaces")
        elif sign[0] != "#":
            words += 1
            if words > NODES and not printed:
                span = place(text, token.start(), file)
                raise SourceError(span, f"a statement of more than {NODES:,} words", (), "split it into several")
