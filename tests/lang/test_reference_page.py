"""Every example of the reference page is a model of the language, and its lists are complete."""

import re
from pathlib import Path

import pytest

from chainrule.ir.expression import FUNCTIONS
from chainrule.lang import library, parse
from chainrule.lang.builder import RESERVED
from tests.lang.texts import graph

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text("utf-8")
BLOCKS = re.findall(r"```graph\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_every_example_is_a_model_of_the_language(text):
    if "model " in text:
        graph(text)
    else:
        assert parse(text).definitions


def test_every_reserved_word_is_listed():
    listed = re.search(r"Reserved are: `(.*?)`", PAGE, re.DOTALL)
    assert set(listed[1].split()) == RESERVED


def test_every_function_and_definition_is_named():
    words = set(re.findall(r"\w+", PAGE))
    assert set(FUNCTIONS) <= words
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    headings = set(re.findall(r"^### (\w+)$", operations, re.MULTILINE))
    assert {name.split(":")[-1] for name in library()} <= words | headings
