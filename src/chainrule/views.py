"""What a model looks like inside: pictures, tables, explanations, generated source. The compiler's other faces."""

from __future__ import annotations

from typing import Any, Literal

from chainrule import codegen, render
from chainrule.compiler import derive, program
from chainrule.errors import ChainruleError, nearest
from chainrule.ir.tables import edge_list, node_table
from chainrule.options import Options
from chainrule.source import Source


def picture(
    source: Source,
    options: Options,
    kind: str,
    format: render.Format | Literal["dot"] = "svg",
    depth: int | None = None,
) -> bytes:
    """The graph that runs, or its program, drawn; formulas that became one kernel are framed together.

    kind: forward, backward, both (mirrored) or program. format: svg, pdf, png or dot (the text that Graphviz reads).
    depth: of layers that are collapsed.
    Raises ChainruleError where there is no such kind or format, or no Graphviz.
    """
    compiled = derive(source, options)
    kernels = program(compiled, options)
    frames = render.frames(kernels)
    drawings = {
        "forward": lambda: render.forward_picture(compiled.graph, frames, depth),
        "backward": lambda: render.backward_picture(compiled.graph, frames, depth),
        "both": lambda: render.both_picture(compiled.graph, depth),
        "program": lambda: render.program_picture(kernels),
    }
    if kind not in drawings:
        raise ChainruleError(f"there is no picture {kind!r}: {nearest(kind, drawings)}")
    text = drawings[kind]()
    return text.encode() if format == "dot" else render.draw(text, format)


def tables(source: Source, options: Options) -> dict[str, list[Any]]:
    """The rows of the node table and of the edge list."""
    graph = derive(source, options).graph
    return {"nodes": list(node_table(graph)), "edges": list(edge_list(graph))}


def explain(source: Source, options: Options) -> str:
    """How each formula came about, as Markdown."""
    compiled = derive(source, options)
    return render.explain(compiled.graph, compiled.trace)


def sources(source: Source, options: Options) -> dict[str, str]:
    """The generated source of each kernel, as files that also run as plain Python, by file name."""
    written = codegen.sources(program(derive(source, options), options), element=options.dtype)
    return codegen.saved(written)
