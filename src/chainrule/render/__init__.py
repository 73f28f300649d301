"""Pictures and pages: a graph, its passes and its program as DOT, SVG, PNG or PDF; a derivation as a page."""

from chainrule.render.dot import FORMATS, Format, draw
from chainrule.render.explain import RULES, explain
from chainrule.render.graph import backward_picture, both_picture, forward_picture, notebook_svg, parts
from chainrule.render.program import frames, program_picture

__all__ = [
    "forward_picture",
    "backward_picture",
    "both_picture",
    "notebook_svg",
    "program_picture",
    "frames",
    "parts",
    "explain",
    "RULES",
    "draw",
    "Format",
    "FORMATS",
]
