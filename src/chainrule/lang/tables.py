"""The grammar's tables as JSON beside the grammar: lark takes 0.3 s to make them anew in each process.

lark's own cache is a pickle, which we neither write nor read. `write` makes the file; where that is of another grammar,
or of another lark, the tables are made from the grammar.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

FILE = "grammar.json"


def machine(postlex: Any) -> lark.Lark:
    """The parser of the language: from its tables if they are those of the grammar, else from the grammar."""
    grammar = (files("chainrule.lang") / "grammar.lark").read_text("utf-8")
    written = files("chainrule.lang") / FILE
    if written.is_file():
        made = from_tables(written.read_text("utf-8"), grammar, postlex)
        if made is not None:
            return made
    return from_grammar(grammar, postlex)


def from_grammar(grammar: str, postlex: Any) -> lark.Lark:
    return lark.Lark(
        grammar,
        parser="lalr",
        lexer="basic",
        postlex=postlex,
        start=["file", "single"],
        maybe_placeholders=True,
        propagate_positions=True,
    )


def from_tables(text: str, grammar: str, postlex: Any) -> lark.Lark | None:
    """The parser whose tables are written in `text`; None if they are not those of `grammar`."""
    told = json.loads(text)
    if told["of"] != digest(grammar):
        return None
    parser = told["data"]["parser"]["parser"]
    parser["tokens"] = {int(number): name for number, name in parser["tokens"].items()}
    parser["states"] = {
        int(state): {int(token): action for token, action in actions.items()}
        for state, actions in parser["states"].items()
    }
    memo = {int(number): made for number, made in told["memo"].items()}
    made: lark.Lark = lark.Lark._load_from_dict(told["data"], memo, postlex=postlex)  # type: ignore[no-untyped-call]
    return made


def tables(grammar: str, postlex: Any) -> str:
    """The tables of `grammar`, and what they are of."""
    data, memo = from_grammar(grammar, postlex).memo_serialize([TerminalDef, Rule])
    data["options"]["postlex"] = None
    return json.dumps({"of": digest(grammar), "data": data, "memo": memo}, separators=(",", ":")) + "\n"


def digest(grammar: str) -> str:
    return hashlib.sha256(f"{lark.__version__}\n{grammar}".encode()).hexdigest()


def write() -> None:
    """Put the tables beside the grammar: to be called where the grammar, or lark, is another than it was."""
    here = Path(__file__).parent
    (here / FILE).write_text(tables((here / "grammar.lark").read_text("utf-8"), None), "utf-8")
