"""The language: text to syntax, syntax to graph, graph to text."""

from __future__ import annotations

from chainrule.lang.files import load_graph
from chainrule.lang.library import library
from chainrule.lang.models import elaborate
from chainrule.lang.parser import parse, parse_statement
from chainrule.lang.printer import print_graph

__all__ = ["elaborate", "library", "load_graph", "parse", "parse_statement", "print_graph"]
