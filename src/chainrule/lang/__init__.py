"""The language: text to syntax, syntax to graph, graph to text."""

from __future__ import annotations

from chainrule.lang.parser import parse, parse_statement

__all__ = ["parse", "parse_statement"]
