"""Text to syntax: lark's LALR parser and its errors said to a person."""

from __future__ import annotations

from functools import cache
from typing import Any

import lark
from lark.indenter import DedentError, Indenter

from chainrule.errors import SourceError, Span
from chainrule.lang import scan, tables
from chainrule.lang import syntax as s
from chainrule.lang.builder import Builder, Text


class _Lines(Indenter):
    NL_type = "_NL"
    OPEN_PAREN_types = ["LPAR", "LSQB"]  # noqa: RUF012 - lark's interface
    CLOSE_PAREN_types = ["RPAR", "RSQB"]  # noqa: RUF012
    INDENT_type = "_INDENT"
    DEDENT_type = "_DEDENT"
    tab_len = 8


@cache
def _machine() -> lark.Lark:
    """The parser, made once a process."""
    return tables.machine(_Lines())


def parse(text: str, file: str = "<text>") -> s.File:
    """The definitions in `text`. Raises SourceError, and nothing else, on what is no text of the language."""
    made = _parse(Text(scan.cleaned(text, file), file), "file")
    assert isinstance(made, s.File)
    return made


def parse_lines(text: str, file: str, first: int) -> s.File:
    """`text`, which stands in `file` from line `first` on."""
    made = _parse(Text(scan.cleaned(text, file), file, Span(file, first)), "file")
    assert isinstance(made, s.File)
    return made


def parse_statement(text: str, span: Span) -> tuple[s.Statement, ...]:
    """One statement that a Python program wrote at `span`; errors point there.

    ``dim a, b`` declares two things: hence a tuple.
    """
    made = _parse(Text(scan.cleaned(text.strip(), span.file), span.file, span), "single")
    assert isinstance(made, tuple)
    return made


def _parse(source: Text, start: str) -> Any:
    try:
        tree = _machine().parse(source.text, start=start)
        return Builder(source).transform(tree)
    except lark.UnexpectedToken as error:
        raise _unexpected(source, error) from None
    except lark.UnexpectedCharacters as error:
        span = source.span(error.line, error.column, error.line, error.column + 1)
        sign = source.text[error.pos_in_stream or 0]
        problem = f"the character {sign!r} has no meaning here"
        raise SourceError(span, problem, (), _CHARACTERS.get(sign, "names are ASCII or Greek letters")) from None
    except DedentError:
        raise SourceError(*_dedent(source)) from None
    except lark.exceptions.VisitError as error:
        if isinstance(error.orig_exc, SourceError):
            raise error.orig_exc from None
        raise error.orig_exc from error


_CHARACTERS = {
    "!": "write `not c`, or `a != b`",
    "&": "write `and`",
    "|": "write `or`",
    "{": "indices stand in [ ]",
    "}": "indices stand in [ ]",
    "@": "write a contraction: sum[i] x[n, i] * W[i, o]",
    '"': "only `use` takes a text in quotes",
    ".": "a number starts with a digit: 0.5",
    "·": "write *",
    "×": "write *",
    "−": "write -",
    "≤": "write <=",
    "≥": "write >=",
    "≠": "write !=",
    "←": "write <-",
}


def _dedent(source: Text) -> tuple[Span, str, tuple[str, ...], str]:
    """Where the indentation goes back to a column that no block above has."""
    open_columns, before = [0], 0
    for number, line in enumerate(source.lines, 1):
        bare = line.split("#")[0].rstrip()
        if not bare:
            continue
        column = len(bare) - len(bare.lstrip(" "))
        if column > open_columns[-1]:
            open_columns.append(column)
        while column < open_columns[-1]:
            open_columns.pop()
        if column != open_columns[-1]:
            before = number
            break
    at = max(before, 1)
    span = source.span(at, 1, at, 2)
    return span, "this line's indentation fits no line above", (), "indent a block's lines equally"


_SHOWN = {
    "PATH": "a name",
    "NUMBER": "a number",
    "STRING": "a file name in quotes",
    "_NL": "the end of the line",
    "_INDENT": "an indented block",
    "_DEDENT": "the end of the block",
    "$END": "the end of the text",
}


def _unexpected(source: Text, error: lark.UnexpectedToken) -> SourceError:
    token, expected = error.token, set(error.expected)
    if token.type in ("$END", "_DEDENT") or token.line is None or token.type == "_NL":
        return _ends_early(source, token, expected)
    span = source.span(token.line, token.column, token.end_line or token.line, token.end_column or token.column + 1)
    if token.type == "_INDENT":
        span = source.span(token.line, 1, token.line, 2)
        return SourceError(span, "this line is indented, and nothing above opens a block", (), "take the blanks out")
    way_out = _advice(token, expected)
    return SourceError(span, f"'{token}' cannot stand here", _wanted(expected), way_out)


def _ends_early(source: Text, token: Any, expected: set[str]) -> SourceError:
    """At the end of a line, a block or the text: point behind the last thing that was written."""
    line = token.line if token.type == "_NL" and token.line else len(source.lines)
    line = min(line, len(source.lines))
    while line > 1 and not source.lines[line - 1].split("#")[0].strip():
        line -= 1
    column = len(source.lines[line - 1].split("#")[0].rstrip()) + 1
    span = source.span(line, column, line, column + 1)
    if "_INDENT" in expected:
        return SourceError(span, "an indented block is missing after this line", (), "indent its lines by 4 blanks")
    return SourceError(span, "the line ends too early", _wanted(expected), "write the rest, or close the bracket")


def _wanted(expected: set[str]) -> tuple[str, ...]:
    names = [_SHOWN.get(name) or _sign(name) for name in sorted(expected)]
    shown = sorted({name for name in names if name})
    if not shown or len(shown) > 14:
        return ()
    return ("here may stand: " + ", ".join(shown),)


def _sign(terminal: str) -> str:
    """A terminal as it is written."""
    definition = _machine().get_terminal(terminal) if not terminal.startswith("_") else None
    return f"'{definition.pattern.value}'" if definition is not None else ""


def _advice(token: Any, expected: set[str]) -> str:
    if token == "=" and "EQ" in expected:
        return "compare with =="
    if token.type == "EQUAL":
        return "a definition is `name[indices] = value`"
    if "COLON" in expected and token.type == "_NL":
        return "end the line with ':'"
    if token == "where":
        return "a condition stands at the end of a statement, or inside the brackets of a reduction"
    if token.type.rstrip("_") in ("MODEL", "LAYER", "FN", "OPTIMIZER", "INIT", "LAW", "USE"):
        return "a definition starts at the left margin"
    if str(token).isidentifier() and "PATH" in expected:
        return f"'{token}' is a reserved word: take another name"
    if str(token).isidentifier() and "STAR" in expected:
        return "is a sign missing before it, such as *?"
    return "see the language reference for how this is written"
