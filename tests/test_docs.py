"""What README and docs show is true: their Python runs, and their models are the language."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from chainrule.lang import parse
from chainrule.train import recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_graph(example):
    """A block in the language must parse; one that opens with ``# NAME.graph`` becomes that file."""
    text = str(example.parsed)
    parse(text)
    if named := re.match(r"# (\w+\.graph)\n", text):
        Path(named[1]).write_text(text)


def read_recipe(example):
    """A block of TOML is a recipe."""
    recipe.parse(str(example.parsed))


SYBIL = Sybil(
    parsers=[
        CodeBlockParser("graph", read_graph),
        CodeBlockParser("toml", read_recipe),
        PythonCodeBlockParser(),
        SkipParser(),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_on_this_page_run(page, tmp_path, monkeypatch):
    (tmp_path / "graphs").symlink_to(ROOT / "graphs")
    monkeypatch.chdir(tmp_path)
    skipped = []
    for example in SYBIL.parse(page).examples():
        try:
            example.evaluate()
        except SkipTest as reason:  # of this example alone, not of those after it
            skipped.append(str(reason))
    if skipped:
        pytest.skip(f"the rest runs: {skipped[0]}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_on_this_page_is_dead(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_has_the_two_commands_as_they_are_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin = "    python3 -m venv .venv && .venv/bin/pip install -e "
    assert f"{begin}'.[examples]' && .venv/bin/chainrule train graphs/mlp.graph --data digits\n" in text
    assert f"{begin}'.[test]' && .venv/bin/pytest\n" in text


def test_the_readme_s_model_is_the_one_in_graphs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"```graph\n(.*?)```", text, re.DOTALL)[1]
    stored = (ROOT / "graphs/mlp.graph").read_text(encoding="utf-8")
    assert comments_out(shown) == comments_out(stored)


def comments_out(text):
    """Lines without comments and blanks at their ends."""
    return [re.sub(r"\s*#.*", "", line).rstrip() for line in text.splitlines()]
