"""From a path, or a text, to a graph."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from chainrule.errors import SourceError, Span
from chainrule.ir.graph import Graph
from chainrule.lang.library import library
from chainrule.lang.models import Argument, elaborate, nothing, own_definitions
from chainrule.lang.parser import parse
from chainrule.lang.syntax import AnyDefinition
from chainrule.source import Source


def load_graph(source: str | Path, name: str | None = None, arguments: Mapping[str, Argument] | None = None) -> Graph:
    """The graph of the model in a file, ``graphs/mlp.graph`` or ``file.graph:name``, or in a text of several lines."""
    if isinstance(source, str) and "\n" in source:
        return elaborate(parse(source, "<text>"), model=name, arguments=arguments)
    path, inner = split(str(source))
    name = name or inner
    text = _text(path)
    if text is None:
        raise SourceError(Span(str(path), 1), f"cannot read {path}", (), "check the path: graphs/mlp.graph")
    return elaborate(parse(text, str(path)), model=name, arguments=arguments, read=reader(path.parent))


def load_source(source: Source) -> Graph:
    """The graph of a source. Raises SourceError at its text."""
    read = nothing if source.folder is None else reader(source.folder)
    file = parse(source.text, source.file)
    return elaborate(file, model=source.model, arguments=dict(source.arguments), read=read)


def definitions(source: Source) -> Mapping[str, AnyDefinition]:
    """What a source can name: its own definitions, those of the files that it uses, and the library's."""
    read = nothing if source.folder is None else reader(source.folder)
    return ChainMap(own_definitions(parse(source.text, source.file), read), library())  # type: ignore[arg-type]


def split(source: str) -> tuple[Path, str | None]:
    """The file and the model's name of ``file.graph:name``."""
    head, colon, tail = source.rpartition(":")
    if colon and tail.replace("_", "a").replace(".", "a").isalnum() and head.endswith(".graph"):
        return Path(head), tail
    return Path(source), None


def reader(folder: Path) -> _Reader:
    """Reads the files that ``use`` names, in `folder` or below it, links that lead outside refused."""
    return _Reader(folder)


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __call__(self, path: str) -> str | None:
        target = (self.folder / path).resolve()
        return _text(target) if target.is_relative_to(self.folder) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return None
