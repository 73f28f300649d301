"""The library's definitions, found at once and parsed when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from chainrule.lang import syntax as s
from chainrule.lang.parser import parse_lines

_HEAD = re.compile(r"^(layer|fn|init|law|optimizer) +(\w+)", re.MULTILINE)


class Library(Mapping[str, s.AnyDefinition]):
    """The definitions of .graph texts by name, each parsed at its first use: parsing all would take 0.1 s.

    Laws have names of their own (``law normal`` draws, ``init normal`` starts): they are found as ``law:normal``.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.places: dict[str, tuple[str, int, str]] = {}
        self.parsed: dict[str, s.AnyDefinition] = {}
        for file, text in texts.items():
            heads = list(_HEAD.finditer(text))
            for head, after in zip(heads, [*heads[1:], None], strict=True):
                kind, name = head.groups()
                end = len(text) if after is None else after.start()
                line = text.count("\n", 0, head.start()) + 1
                self.places[key(kind, name)] = (file, line, text[head.start() : end])

    def __getitem__(self, name: str) -> s.AnyDefinition:
        if name not in self.parsed:
            file, line, text = self.places[name]
            (self.parsed[name],) = parse_lines(text, file, line).definitions
        return self.parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def key(kind: str, name: str) -> str:
    """The name under which a definition is found: layers and functions by theirs, others with their kind."""
    return name if kind in ("layer", "fn", "model") else f"{kind}:{name}"


@cache
def library() -> Library:
    """The library that comes with the package."""
    folder = files("chainrule") / "library"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".graph"))
    return Library({f"library/{name}": (folder / name).read_text("utf-8") for name in names})


def table_of(definitions: tuple[s.AnyDefinition, ...]) -> dict[str, s.AnyDefinition]:
    return {key(d.kind, d.name): d for d in definitions}
