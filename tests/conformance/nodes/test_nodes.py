"""ONNX's node cases against the language: one of every operator here, all by ``python -m tests.conformance.nodes``."""

from __future__ import annotations

import importlib

import pytest

pytest.importorskip("onnx", reason="ONNX's node cases are left out: pip install 'chainrule[onnx]'")

runner = importlib.import_module("tests.conformance.nodes.runner")
tables = importlib.import_module("tests.conformance.nodes.tables")
report = importlib.import_module("tests.conformance.nodes.report")

COMPILED = ("LayerNormalization", "TopK", "Mod")


@pytest.mark.parametrize("family", tables.FAMILIES)
def test_a_case_of_every_operator_agrees_with_onnx(family):
    """Formula by formula; kernels of all of them are the long run's."""
    names = [name for name in tables.FAMILIES[family].ROWS if name in runner.operators()]
    found = [runner.check(name, runner.as_equations, most=1) for name in names]
    assert not [problem for operator in found for problem in operator.wrong]


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_agree_with_onnx(name):
    found = runner.check(name, runner.as_kernels, most=1)
    assert found.agreed and not found.wrong


def test_every_row_is_an_operator_and_every_other_operator_says_why():
    known = set(runner.operators())
    assert set(tables.ROWS) <= known
    assert not set(tables.ROWS) & set(tables.UNSAID)
    assert set(tables.ROWS) | set(tables.UNSAID) == known


def test_a_wrong_row_is_noticed(monkeypatch):
    monkeypatch.setitem(tables.ROWS, "Sin", tables.ROWS["Cos"])
    assert runner.check("Sin", runner.as_equations).status == "wrong"
    monkeypatch.setitem(tables.ROWS, "Hardmax", tables.ROWS["Softmax"])
    assert runner.check("Hardmax", runner.as_equations, most=1).status == "wrong"


def test_what_a_shape_cannot_say_is_no_agreement():
    found = runner.check("Compress", runner.as_equations)
    assert found.status == "not expressible" and not found.agreed


def test_the_page_lists_every_operator_once():
    text = report.PAGE.read_text()
    assert all(text.count(f"| `{name}` |") == 1 for name in runner.operators())
    assert "**0 wrong**" in text
