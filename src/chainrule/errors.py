"""What goes wrong, said to a person: where, what, the facts that show it, and a way out. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import lazy_loader

difflib = lazy_loader.load("difflib")  # only where something went wrong


class ChainruleWarning(UserWarning):
    """Something was not as it should be, and the result is right all the same."""


class ChainruleError(Exception):
    """The one family of errors that the public functions raise."""


class UnknownName(ChainruleError, KeyError):
    """A name that a mapping does not have: also a KeyError, as mappings raise it."""

    __str__ = Exception.__str__  # KeyError's shows one line, quoted


@dataclass(frozen=True)
class Span:
    """Where something was written: lines and columns count from 1, `text` is the whole line."""

    file: str
    line: int
    column: int = 1
    width: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(eq=False)
class SourceError(ChainruleError):
    """An error in a text that a user wrote: its place with a caret, the facts, and a way out."""

    span: Span
    problem: str
    facts: tuple[str, ...] = ()
    way_out: str = ""

    def __str__(self) -> str:
        s = self.span
        place = f"{s.file}:{s.line}:{s.column}: {self.problem}"
        if s.text:
            # the caret line repeats the tabs of the text, or the caret stands elsewhere
            indent = "".join("\t" if c == "\t" else " " for c in s.text[: s.column - 1])
            place += f"\n    {s.text}\n    {indent}{'^' * max(s.width, 1)}"
        way_out = (f"Way out: {self.way_out}",) if self.way_out else ()
        return "\n  ".join((place, *self.facts, *way_out))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names nearest to `name`, as the end of a sentence: ``did you mean 'hidden'?``, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known are: {shown}"
