"""Passes, each a pure function from a graph to a graph of the same values; `compiler.py` says in which order."""

from chainrule.optimize.checkpoint import checkpoint
from chainrule.optimize.contract import contract
from chainrule.optimize.cse import cse
from chainrule.optimize.dead import drop_dead, drop_unread_inputs
from chainrule.optimize.eliminate import eliminate
from chainrule.optimize.expand_reductions import expand_reductions
from chainrule.optimize.inline import inline
from chainrule.optimize.output_form import output_form
from chainrule.optimize.prefix import prefix
from chainrule.optimize.settle import settle
from chainrule.optimize.simplify import simplify
from chainrule.optimize.specialize import specialize
from chainrule.optimize.stabilize import stabilize

__all__ = [
    "checkpoint",
    "contract",
    "cse",
    "drop_dead",
    "drop_unread_inputs",
    "eliminate",
    "expand_reductions",
    "inline",
    "output_form",
    "prefix",
    "settle",
    "simplify",
    "specialize",
    "stabilize",
]
