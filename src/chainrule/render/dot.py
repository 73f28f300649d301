"""DOT text, and the engines that draw it.

Text from a user (names, equations, file names) enters DOT through `escaped` alone: always a string's content, never
HTML, never an identifier or an attribute's name. Layout runs in a process of its own with a time limit, for
dot's network simplex has no bound that anyone would wait for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast, get_args

import graphviz
from graphviz import quoting
from graphviz.backend import DOT_BINARY, dot_command

from chainrule.errors import ChainruleError

Format = Literal["svg", "png", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)

WHEEL = Path(__file__).with_name("wheel.py")


def escaped(text: str, end: str = "n") -> str:
    r"""`text` as the content of a DOT string; line ends become ``\n`` (centred) or, with `end` "l", ``\l`` (left)."""
    rows = []
    for row in text.split("\n"):
        shown = "".join(c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in row)
        # Graphviz reads backslashes as escapes, and &lt; as HTML's <, in every label
        rows.append(shown.replace("&", "&amp;").replace("\\", "\\\\"))
    joined = f"\\{end}".join(rows)
    return cast(str, graphviz.nohtml(f"{joined}\\l" if end == "l" else joined))


def attributes(**values: str | float) -> str:
    """``[label=x color="#336699"]``. Values come from our own tables, or from `escaped`."""
    return cast(str, quoting.attr_list(kwargs=_texts(values))).strip()


def _texts(values: Mapping[str, str | float]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else str(value) for key, value in values.items()}


def digraph(body: Iterable[str], **settings: str | float) -> str:
    """A whole DOT text: the graph's settings, then `body`."""
    lines = [f"\t{line}\n" for line in body]
    return cast(str, graphviz.Digraph(graph_attr=_texts(settings), body=lines).source)


def subgraph(name: str, body: Iterable[str], **settings: str | float) -> list[str]:
    """A subgraph's lines; a `name` that begins with "cluster" is drawn as a box. Names are ours, not a user's."""
    head = [f"  graph {attributes(**settings)}"] if settings else []
    return [f"subgraph {name} {{", *head, *(f"  {line}" for line in body), "}"]


def draw(dot_text: str, format: Format, seconds: float = 60.0) -> bytes:
    """The picture that `dot_text` describes, drawn by ``dot`` on PATH, else by the library in pygraphviz's wheel.

    Raises ChainruleError if there is no engine, if it takes longer than `seconds`, or if it fails.
    """
    if format not in FORMATS:
        raise ChainruleError(f"a picture cannot be {format!r}\n  Way out: one of {', '.join(FORMATS)}")
    try:
        done = subprocess.run(
            engine(format), input=dot_text.encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ChainruleError(
            f"Graphviz had not laid the picture out after {seconds:g} s\n"
            "  Way out: collapse it by layer (depth=1), or save the DOT text and lay it out without a limit"
        ) from None
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise ChainruleError(f"Graphviz could not draw the picture: {said[0]}\n  Way out: save the DOT text instead")
    return done.stdout


def engine(format: Format) -> list[str]:
    """The command that draws: ``dot`` where it is on PATH, else our script over pygraphviz's library."""
    if shutil.which(DOT_BINARY) is not None:
        return [str(part) for part in dot_command.command("dot", format)]
    if find_spec("pygraphviz") is not None:
        # -P: the folder of this script must not come before the installed packages
        return [sys.executable, "-P", str(WHEEL), format]
    raise ChainruleError(
        "a picture needs Graphviz, and there is neither a `dot` on PATH nor pygraphviz\n"
        "  Way out: pip install 'chainrule[graphviz]', or save the DOT text (--format dot)"
    )
