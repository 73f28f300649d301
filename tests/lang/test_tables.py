"""The grammar's tables: beside the grammar they are its own, and what is read with them is the same."""

from __future__ import annotations

import json
from importlib.resources import files

import lark
import pytest

from chainrule.lang import tables
from chainrule.lang.parser import _Lines

HERE = files("chainrule.lang")
GRAMMAR, WRITTEN = ((HERE / name).read_text("utf-8") for name in ("grammar.lark", tables.FILE))
LIBRARY = [path.read_text("utf-8") for path in (files("chainrule") / "library").iterdir() if path.name[-6:] == ".graph"]


def test_the_tables_in_the_package_are_those_of_its_grammar():
    way_out = 'python -c "from chainrule.lang import tables; tables.write()"'
    assert json.loads(WRITTEN)["of"] == tables.digest(GRAMMAR), way_out
    assert len(json.loads(WRITTEN)["data"]["rules"]) == len(tables.from_grammar(GRAMMAR, None).rules), way_out


def test_the_library_reads_the_same_with_tables_and_with_the_grammar():
    made, read = tables.from_grammar(GRAMMAR, _Lines()), tables.from_tables(WRITTEN, GRAMMAR, _Lines())
    assert read is not None
    assert len(LIBRARY) > 5
    for text in LIBRARY:
        assert made.parse(text, start="file") == read.parse(text, start="file")


def test_tables_of_another_grammar_or_another_lark_are_not_read(monkeypatch):
    assert tables.from_tables(WRITTEN, GRAMMAR + "\n", _Lines()) is None
    monkeypatch.setattr(lark, "__version__", "0")
    assert tables.from_tables(WRITTEN, GRAMMAR, _Lines()) is None
    assert tables.machine(_Lines()).parse("model m():\n    output y = 1\n", start="file")


def test_tables_without_their_actions_are_noticed():
    told = json.loads(WRITTEN)
    states = told["data"]["parser"]["parser"]["states"]
    states.update({state: {} for state in states})
    broken = tables.from_tables(json.dumps(told), GRAMMAR, _Lines())
    assert broken is not None
    with pytest.raises(lark.UnexpectedInput):
        broken.parse("\n".join(LIBRARY), start="file")
