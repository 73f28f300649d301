"""A picture before layout: boxes and wires, and how layers collapse into one box.

A box is a tensor with the formula that computes it (or a whole layer), a wire says that one reads the other.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["input", "param", "state", "random", "primal", "cotangent", "update", "kernel"]

MOST = 1000
"""Beyond so many boxes a picture starts collapsed: nobody reads more, and layout takes seconds."""

LEGIBLE = 250
"""How many boxes a picture that collapses itself aims at."""


@dataclass(frozen=True)
class Box:
    """One node of a picture. beside: the box on whose level it stands (a primal's cotangent); cluster: its frame.

    belongs: the pass whose box takes it in when its layer collapses. members, params, states: of such a box, how many
    formulas, parameters and states it holds.
    """

    key: str
    label: str
    kind: Kind
    tip: str = ""
    layer: str = ""
    cluster: str = ""
    beside: str | None = None
    output: bool = False
    belongs: Kind = "primal"
    members: int = 1
    params: int = 0
    states: int = 0


@dataclass(frozen=True)
class Wire:
    """`head` reads `tail`; `saved`: a value of the forward pass, kept for the backward pass or the update."""

    tail: str
    head: str
    label: str = ""
    saved: bool = False


@dataclass(frozen=True)
class Picture:
    """Boxes and wires, and the run-time numbers (learning rates) that the equations mention without a wire."""

    name: str
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    numbers: tuple[str, ...] = ()


def path(layer: str) -> list[str]:
    """The steps of a layer's path, a repetition's number with its name: ``x.3.linear`` is x.3, then linear."""
    return re.findall(r"[^.]+(?:\.\d+)*", layer)


def within(layer: str, depth: int) -> str:
    return ".".join(path(layer)[:depth])


def collapse(picture: Picture, depth: int) -> Picture:
    """`picture` with every layer at `depth` (1: the outermost calls) as one box a pass; what has no layer stays.

    Parameters and states go into the box of their layer; wires inside a box vanish, parallel ones become one.
    """
    into: dict[str, str] = {}
    groups: dict[tuple[str, Kind], list[Box]] = defaultdict(list)
    for box in picture.boxes:
        layer = within(box.layer, depth)
        if layer and box.kind != "input":
            groups[layer, box.belongs].append(box)
            into[box.key] = f"{layer}/{box.belongs}"
        else:
            into[box.key] = box.key
    boxes: dict[str, Box] = {}
    for box in picture.boxes:
        key = into[box.key]
        if key == box.key:
            beside = into.get(box.beside) if box.beside else None
            boxes[key] = replace(box, beside=beside)
        elif key not in boxes:
            layer = within(box.layer, depth)
            boxes[key] = _merged(key, layer, box.belongs, groups[layer, box.belongs], into)
    return replace(picture, boxes=tuple(boxes.values()), wires=_bundled(picture.wires, into))


def _merged(key: str, layer: str, kind: Kind, boxes: Sequence[Box], into: dict[str, str]) -> Box:
    formulas = [box for box in boxes if box.kind not in ("param", "state")]
    params, states = (sum(box.kind == kind for box in boxes) for kind in ("param", "state"))
    counts = [(len(formulas), "formula"), (params, "parameter"), (states, "state")]
    held = " · ".join(f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count)
    beside = [into[box.beside] for box in boxes if box.beside in into and into[box.beside] != key]
    return Box(
        key=key,
        label=f"{layer}{_TITLES[kind]}\n{held}",
        kind=kind if formulas else boxes[0].kind,
        tip="\n".join(box.label.replace("\n", " ") for box in formulas[:20]) + ("\n…" if formulas[20:] else ""),
        layer=layer,
        beside=Counter(beside).most_common(1)[0][0] if beside else None,
        output=any(box.output for box in boxes),
        belongs=kind,
        members=len(formulas),
        params=params,
        states=states,
    )


_TITLES: dict[Kind, str] = {"primal": "", "cotangent": " backward", "update": " update"}


def _bundled(wires: Sequence[Wire], into: dict[str, str]) -> tuple[Wire, ...]:
    """The wires between boxes: those of one pair as one, labelled by what it carries or by how many."""
    pairs: dict[tuple[str, str], list[Wire]] = defaultdict(list)
    for wire in wires:
        tail, head = into[wire.tail], into[wire.head]
        if tail != head:
            pairs[tail, head].append(wire)
    return tuple(
        Wire(tail, head, several[0].label if len({w.tail for w in several}) == 1 else f"{len(several)} reads",
             all(w.saved for w in several))
        for (tail, head), several in pairs.items()
    )  # fmt: skip


def bearable(picture: Picture, depth: int | None = None) -> Picture:
    """`picture` collapsed to `depth`; 0: as it is; None: as it is up to `MOST` boxes, else down to `LEGIBLE` or so."""
    if depth == 0 or (depth is None and len(picture.boxes) <= MOST):
        return picture
    if depth is not None:
        return collapse(picture, depth)
    deepest = max((len(path(box.layer)) for box in picture.boxes), default=0)
    tried = (collapse(picture, d) for d in range(deepest, 0, -1))
    return next((p for p in tried if len(p.boxes) <= LEGIBLE), collapse(picture, 1))
