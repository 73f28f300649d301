"""What a user wrote, before anything is parsed: the text of a model, where it stands, and its arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from chainrule.errors import ChainruleError, SourceError, Span

Argument = int | float | bool | str

LIBRARY = Path(__file__).parent / "library"

# a quick look, not a parse: it finds what a cache key must cover; the parser checks what `use` may name
_USE = re.compile(r'^\s*use\s+"([^"\n]{1,200})"', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """The text of a model file, or of statements recorded in Python.

    file: how errors name it. model: which of the file's models (None: its one). folder: where `use` may read, or
    None. places: of recorded statements, the caller's place of each line.
    """

    text: str
    file: str
    model: str | None = None
    arguments: tuple[tuple[str, Argument], ...] = ()
    folder: Path | None = None
    places: tuple[Span, ...] = ()

    def place(self, span: Span) -> Span:
        """`span` of this text, as the user knows it: a recorded statement is shown where its caller wrote it."""
        recorded = self.places and span.file == self.file and 1 <= span.line <= len(self.places)
        return self.places[span.line - 1] if recorded else span

    def relocated(self, error: SourceError) -> SourceError:
        """`error`, at the user's own place; of a recorded statement, with what was recorded there."""
        span, at = error.span, self.place(error.span)
        if at is span:
            return error

        def place(match: re.Match[str]) -> str:
            line = int(match[1] or match[2])
            return f"({self.places[line - 1]})" if match[1] else str(self.places[line - 1])

        lines = re.compile(rf"\(line (\d+)\)|{re.escape(self.file)}:(\d+)")
        known = [lines.sub(place, fact) for fact in error.facts]
        text = span.text.strip()
        start = span.column - 1 - (len(span.text) - len(span.text.lstrip()))
        if text and text in at.text:  # a formula, word by word
            at = replace(at, column=at.text.index(text) + start + 1, width=span.width)
        elif text:  # the caller's line does not hold the word in question
            known = [f"recorded as  {text}", f"             {' ' * start}{'^' * span.width}", *known]
        return replace(error, span=at, facts=tuple(known))


def read_source(path: str, arguments: dict[str, Argument]) -> Source:
    """The source in `path`, a file or ``file.graph:model``. Raises ChainruleError if it cannot be read."""
    name, colon, model = path.rpartition(":")
    # a drive letter is no file: C:\nets\mlp.graph
    file = Path(name) if colon and len(name) > 1 and model.isidentifier() else Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ChainruleError(f"{file} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ChainruleError(f"{file} cannot be read: {error.strerror}") from None
    chosen = model if file == Path(name) and colon else None
    return Source(text, str(file), chosen, tuple(sorted(arguments.items())), file.parent)


def texts(source: Source) -> dict[str, str]:
    """Every text that the source's meaning depends on: its own, those that it uses, and the library's."""
    found = {source.file: source.text}
    waiting = [source.text]
    while waiting and source.folder is not None:
        for name in _USE.findall(waiting.pop()):
            path = source.folder / name
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            if inside and str(path) not in found and path.is_file():
                found[str(path)] = path.read_text(encoding="utf-8", errors="replace")
                waiting.append(found[str(path)])
    for path in sorted(LIBRARY.glob("*.graph")):
        found[f"library/{path.name}"] = path.read_text(encoding="utf-8")
    return found
