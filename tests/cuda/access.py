"""Loads, stores and atomic updates: addresses checked, races watched, then NumPy's gather or scatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.memory import GLOBAL, LOCAL, SHARED, WINDOW
from tests.cuda.ptx import Instruction, PTXError

Operation = Callable[[list[Any], Any], None]
SPACES = ("global", "shared", "local", "const", "param")


def space_of(ins: Instruction) -> str:
    """The space that `ins` names, "generic" if none."""
    named = [m.removesuffix("::cta") for m in ins.modifiers[:-1]]
    found = next((m for m in named if m in SPACES), "generic")
    return "global" if found == "const" else found


def load(ins: Instruction, kind: type, base: int, offset: Any, slots: list[int], guard: int | None) -> Operation:
    space, count = space_of(ins), len(slots)

    def run(R: list[Any], lanes: Any) -> None:
        address = R[base] + offset
        active = lanes.active if guard is None else lanes.narrowed(R[guard])
        if active is not None and not len(active):
            found = [np.zeros(lanes.size, kind)] * count
        elif address.ndim == 0 and space == "global":
            found = lanes.reach.load_one(ins, address, kind, count, lanes.who(active))
        else:
            at = lanes.compressed(address, active)
            parts = load_lanes(lanes, ins, space, at, kind, count, lanes.who(active))
            found = parts if active is None else [lanes.expanded(x, active) for x in parts]
        for slot, value in zip(slots, found, strict=True):
            R[slot] = value

    return run


def load_lanes(
    lanes: Any, ins: Instruction, space: str, address: np.ndarray, kind: type, count: int, who: np.ndarray
) -> list[np.ndarray]:
    if space != "generic":
        return lanes.reach.load(ins, space, address, kind, count, who)
    parts = split(lanes, ins, address, who)
    if len(parts) == 1:
        ((named, _, near),) = parts
        return lanes.reach.load(ins, named, near, kind, count, who)
    found = [np.zeros(len(address), kind) for _ in range(count)]
    for named, chosen, near in parts:
        for whole, part in zip(found, lanes.reach.load(ins, named, near, kind, count, who[chosen]), strict=True):
            whole[chosen] = part
    return found


def split(lanes: Any, ins: Instruction, address: np.ndarray, who: np.ndarray) -> list[tuple[str, Any, np.ndarray]]:
    """Generic addresses by the space that they point into: (space, which lanes, addresses there)."""
    found = []
    for name, window, base in (("global", GLOBAL, 0), ("shared", SHARED, SHARED), ("local", LOCAL, LOCAL)):
        inside = (address >= window) & (address < window + WINDOW)
        if inside.all():
            return [(name, slice(None), address - base)]
        if inside.any():
            found.append((name, np.flatnonzero(inside), address[inside] - base))
    if sum(len(chosen) for _, chosen, _ in found) < len(address):
        outside = ~np.isin(np.arange(len(address)), np.concatenate([c for _, c, _ in found] or [[]]))
        at = int(np.flatnonzero(outside)[0])
        lanes.reach.fail(ins, who[at], f"address {int(address[at]):#x} points into no memory")
    return found


def store(ins: Instruction, kind: type, base: int, offset: Any, slots: list[int], guard: int | None) -> Operation:
    space = space_of(ins)

    def run(R: list[Any], lanes: Any) -> None:
        active = lanes.active if guard is None else lanes.narrowed(R[guard])
        if active is not None and not len(active):
            return
        who = lanes.who(active)
        at = lanes.compressed(R[base] + offset, active)
        values = [R[s] if R[s].ndim == 0 or active is None else R[s][active] for s in slots]
        if space != "generic":
            lanes.reach.store(ins, space, at, kind, values, who)
            return
        for named, chosen, near in split(lanes, ins, at, who):
            part = [v if v.ndim == 0 else v[chosen] for v in values]
            lanes.reach.store(ins, named, near, kind, part, who[chosen])

    return run


UPDATES: dict[str, Callable[..., Any]] = {
    "add": lambda old, x: old + x,
    "min": lambda old, x: min(old, x),
    "max": lambda old, x: max(old, x),
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "cas": lambda old, x, y: y if old == x else old,
    "inc": lambda old, x: old.dtype.type(0) if old >= x else old + old.dtype.type(1),
    "dec": lambda old, x: x if old == 0 or old > x else old - old.dtype.type(1),
}


def update(
    ins: Instruction, kind: type, base: int, offset: Any, slots: list[int], result: int | None, guard: int | None
) -> Operation:
    """Lane after lane, in their order."""
    space = space_of(ins)
    name = next((m for m in ins.modifiers if m in UPDATES), None)
    if name is None:
        raise PTXError(f"an atomic update that this machine does not know: {ins.text}")
    f = UPDATES[name]

    def run(R: list[Any], lanes: Any) -> None:
        active = lanes.narrowed(None if guard is None else R[guard])
        old = np.zeros(lanes.size, kind)
        who = lanes.who(active)
        values = [np.broadcast_to(R[s], lanes.size)[active] for s in slots]
        address = lanes.compressed(R[base] + offset, active)
        parts = split(lanes, ins, address, who) if space == "generic" else [(space, slice(None), address)]
        for named, chosen, near in parts:
            data, index = lanes.reach.places(ins, named, near, kind, who[chosen])
            for at, place, *arguments in zip(active[chosen], index, *(v[chosen] for v in values), strict=True):
                old[at] = data[place]
                data[place] = f(data[place], *arguments)
        if result is not None:
            R[result] = old

    return run
