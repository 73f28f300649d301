"""A picture as DOT text, plain or mirrored: colours, frames, levels and the legend are decided here, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from chainrule.render.dot import attributes, digraph, escaped, subgraph
from chainrule.render.picture import Box, Kind, Picture, Wire

FONT = "Helvetica,Arial,sans-serif"
MONO = "DejaVu Sans Mono,Menlo,Consolas,monospace"


@dataclass(frozen=True)
class Look:
    """How a kind of box is drawn: what the legend calls it, fill and line colours, shape."""

    says: str
    fill: str
    line: str
    shape: str = "box"
    style: str = "rounded,filled"


LOOKS: dict[Kind, Look] = {
    "input": Look("input", "#eceff1", "#546e7a", "box", "filled"),
    "param": Look("parameter", "#e6f2dc", "#558b2f", "box", "filled"),
    "state": Look("state", "#ede7f6", "#5e35b1", "cylinder", "filled"),
    "random": Look("random", "#ffffff", "#546e7a", "box", "rounded,filled,dashed"),
    "primal": Look("primal", "#dceaf7", "#1f6299"),
    "cotangent": Look("cotangent", "#fde5d2", "#c4541a"),
    "update": Look("update", "#f8dfe9", "#a3315f"),
    "kernel": Look("kernel", "#f5f5f5", "#37474f", "box", "filled"),
}

FLOW, BACK, SAVED = "#37474f", LOOKS["cotangent"].line, "#90a4ae"

CROWDED = 400
"""With more boxes than this, a wire's type is in its tooltip only."""

COLUMN = "4"
"""The weight of an edge inside one pass: it keeps each pass a column, where levels alone drift to one side."""


def plain(picture: Picture) -> str:
    """DOT with what is read above what reads it; boxes of one cluster in one frame."""
    names = {box.key: f"n{k}" for k, box in enumerate(picture.boxes)}
    kinds = {box.key: box.kind for box in picture.boxes}
    frames: dict[str, list[Box]] = defaultdict(list)
    for box in picture.boxes:
        frames[box.cluster].append(box)
    body = [_node(names[box.key], box) for box in frames.pop("", [])]
    for k, (frame, boxes) in enumerate(frames.items()):
        body += _frame(f"cluster_{k}", frame, (_node(names[box.key], box) for box in boxes))
    crowded = len(picture.boxes) > CROWDED
    for wire in picture.wires:
        column = kinds[wire.tail] == kinds[wire.head]
        body.append(_edge(names, wire, _colour(wire, kinds), crowded, **({"weight": COLUMN} if column else {})))
    return _document(picture, body)


def _colour(wire: Wire, kinds: dict[str, Kind]) -> str:
    if wire.saved:
        return SAVED
    return LOOKS[kinds[wire.tail]].line if kinds[wire.tail] in ("cotangent", "update") else FLOW


def mirrored(picture: Picture) -> str:
    """DOT with both passes side by side: the forward pass runs down, the backward pass up beside it.

    A cotangent stands on its primal's level; its edges are emitted reversed (head first, drawn ``dir=back``), so that
    they point down for the layout; an edge between the passes does not count in it.
    """
    boxes = {box.key: box for box in picture.boxes}
    names = {key: f"n{k}" for k, key in enumerate(boxes)}
    levels: dict[str, list[Box]] = defaultdict(list)
    for box in boxes.values():
        levels[_anchor(box, boxes)].append(box)
    body: list[str] = []
    for k, level in enumerate(levels.values()):
        level.sort(key=lambda box: {"cotangent": 1, "update": 2}.get(box.kind, 0))
        nodes = [_node(names[box.key], box) for box in level]
        if len(level) > 1:
            # an unseen edge inside a level keeps the primal on the left of its cotangent
            nodes.append(f"{' -> '.join(names[box.key] for box in level)} {attributes(style='invis')}")
            nodes = subgraph(f"level_{k}", nodes, rank="same")
        body += nodes
    crowded = len(boxes) > CROWDED
    for wire in picture.wires:
        tail, head = boxes[wire.tail].kind, boxes[wire.head].kind
        if wire.saved:
            body.append(_edge(names, wire, SAVED, True, constraint="false"))
        elif tail in ("cotangent", "update") and head in ("cotangent", "update"):
            beside = _anchor(boxes[wire.tail], boxes) == _anchor(boxes[wire.head], boxes)
            body.append(_back(names, wire, LOOKS[tail].line, crowded, beside, head == tail))
        else:
            body.append(_edge(names, wire, FLOW, crowded, **({"weight": COLUMN} if head == tail else {})))
    return _document(picture, body)


def _anchor(box: Box, boxes: dict[str, Box]) -> str:
    """The box that decides the level of `box`: its primal, or that one's primal (a gradient of a gradient)."""
    seen = {box.key}
    while box.beside in boxes and box.beside not in seen:
        seen.add(box.beside)
        box = boxes[box.beside]
    return box.key


def _back(names: dict[str, str], wire: Wire, colour: str, crowded: bool, level: bool, column: bool) -> str:
    if level:
        return _edge(names, wire, colour, True, constraint="false")
    turned = Wire(wire.head, wire.tail, wire.label)
    return _edge(names, turned, colour, crowded, dir="back", **({"weight": COLUMN} if column else {}))


def _node(name: str, box: Box) -> str:
    look = LOOKS[box.kind]
    left = "\n    " in box.label or box.kind == "kernel"
    more: dict[str, str | float] = {"fontname": MONO, "fontsize": 10} if box.kind == "kernel" else {}
    more |= {"penwidth": 2.6} if box.output else {}
    more |= {"peripheries": 2} if box.members > 1 else {}
    return f"{name} " + attributes(
        label=escaped(box.label, "l" if left else "n"),
        tooltip=escaped(box.tip or box.label),
        shape=look.shape,
        style=look.style,
        fillcolor=look.fill,
        color=look.line,
        **more,
    )


def _edge(names: dict[str, str], wire: Wire, colour: str, quiet: bool, **more: str) -> str:
    label = {} if quiet or not wire.label else {"label": escaped(f" {wire.label} ")}
    style = {"style": "dashed", "arrowsize": "0.6"} if wire.saved else {}
    tip = {"edgetooltip": escaped(wire.label)} if wire.label else {}
    return f"{names[wire.tail]} -> {names[wire.head]} " + attributes(color=colour, **label, **tip, **style, **more)


def _frame(name: str, label: str, body: Iterable[str]) -> list[str]:
    return subgraph(
        name,
        body,
        label=escaped(label),
        labeljust="l",
        labelloc="t",
        margin=10,
        style="rounded",
        color="#b0bec5",
        fontcolor="#546e7a",
        fontsize=10,
    )


def _document(picture: Picture, body: Iterable[str]) -> str:
    kinds = [kind for kind in LOOKS if any(box.kind == kind for box in picture.boxes)]
    start = [
        f"node {attributes(fontname=FONT, fontsize=11, margin='0.12,0.06', height=0.3)}",
        f"edge {attributes(fontname=FONT, fontsize=9, fontcolor='#607d8b', arrowsize=0.7)}",
    ]
    note = []
    if picture.numbers and any(box.kind == "update" for box in picture.boxes):
        text = f"run-time numbers:\n{', '.join(picture.numbers)}"
        note = [f"numbers {attributes(label=escaped(text), shape='note', color='#90a4ae', fontcolor='#546e7a')}"]
    return digraph(
        (*start, *note, *body),
        id=escaped(picture.name),
        tooltip=escaped(picture.name),
        label=_legend(kinds, any(wire.saved for wire in picture.wires)),
        labelloc="b",
        fontname=FONT,
        fontsize=10,
        nodesep=0.3,
        ranksep=0.35,
    )


def _legend(kinds: Iterable[Kind], saved: bool) -> str:
    """The colours' meaning, as Graphviz's table. Constant text only: nothing of a user's may come in here."""
    cells = [
        f'<TD BGCOLOR="{LOOKS[kind].fill}" COLOR="{LOOKS[kind].line}" BORDER="1" CELLPADDING="4">'
        f'<FONT COLOR="{LOOKS[kind].line}">{LOOKS[kind].says}</FONT></TD>'
        for kind in kinds
    ]
    cells.append('<TD CELLPADDING="4">thick border: output</TD>')
    if saved:
        cells.append(f'<TD CELLPADDING="4"><FONT COLOR="{SAVED}">dashed: read by a later pass</FONT></TD>')
    return f'<<TABLE BORDER="0" CELLSPACING="6"><TR>{"".join(cells)}</TR></TABLE>>'
