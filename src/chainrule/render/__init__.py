"""Pictures and pages: a graph, its passes and its program as DOT, SVG, PNG or PDF; a derivation as a page."""

from chainrule.render.dot import FORMATS, Format, draw
from chainrule.render.graph import backward_picture, both_picture, forward_picture, notebook_svg, parts

__all__ = [
    "forward_picture",
    "backward_picture",
    "both_picture",
    "notebook_svg",
    "parts",
    "draw",
    "Format",
    "FORMATS",
]
