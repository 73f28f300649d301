"""The language: text to syntax, syntax to graph, graph to text."""

from __future__ import annotations

from chainrule.lang.files import definitions, load_graph, load_source
from chainrule.lang.library import library
from chainrule.lang.models import elaborate
from chainrule.lang.optimizers import apply_optimizer, optimizer_names
from chainrule.lang.parser import parse, parse_statement
from chainrule.lang.printer import print_graph

__all__ = [
    "apply_optimizer",
    "definitions",
    "elaborate",
    "library",
    "load_graph",
    "load_source",
    "optimizer_names",
    "parse",
    "parse_statement",
    "print_graph",
]
