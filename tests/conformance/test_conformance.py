"""PyTorch's samples against the language: a few of every row here, all of them by ``python -m tests.conformance``."""

from __future__ import annotations

import importlib

import pytest

torch = pytest.importorskip("torch", reason="PyTorch's samples are left out: pip install 'chainrule[oracle]'")
pytest.importorskip("expecttest", reason="PyTorch's samples are left out: pip install 'chainrule[oracle]'")

runner = importlib.import_module("tests.conformance.runner")
tables = importlib.import_module("tests.conformance.tables")
report = importlib.import_module("tests.conformance.report")

ENTRIES = runner.entries()
FAMILIES = sorted(tables.FAMILIES)
SAMPLES = 1
TWICE = {"sigmoid", "logsumexp", "cumulative_trapezoid", "nn.functional.conv1d", "linalg.vector_norm", "gather"}


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_every_row_agree_with_pytorch(family):
    """Each in turn; what is slow to draw is left to the long run."""
    wrong = {}
    for name in tables.FAMILIES[family].ROWS:
        if name in ENTRIES and name not in tables.SLOW:
            entry = runner.check(name, ENTRIES[name], twice=int(name in TWICE), first=SAMPLES)
            if entry.wrong:
                wrong[name] = entry.wrong
    assert not wrong


def test_every_row_is_an_entry_and_every_other_entry_says_why():
    assert set(tables.ROWS) <= set(ENTRIES)
    assert not set(tables.ROWS) & set(tables.UNSAID)
    assert set(tables.ROWS) | set(tables.UNSAID) >= set(ENTRIES)


def test_a_wrong_row_is_noticed(monkeypatch):
    monkeypatch.setitem(tables.ROWS, "sin", tables.ROWS["cos"])
    assert runner.check("sin", ENTRIES["sin"]).status == "wrong"
    nearly = lambda w, x: w(x.shape, lambda i: f"sqrt({x[i]}^2 + 0.000001)")  # noqa: E731
    monkeypatch.setitem(tables.ROWS, "abs", nearly)
    assert runner.check("abs", ENTRIES["abs"]).status == "wrong"


def test_the_page_lists_every_entry_once():
    text = report.PAGE.read_text()
    assert all(text.count(f"| `{name}` |") == 1 for name in ENTRIES)
    assert "**0 wrong**" in text
