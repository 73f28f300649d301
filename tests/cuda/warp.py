"""What the lanes of a warp do together: shuffles, votes, barriers of the warp.

A lane that a mask names must be there, at this instruction: the hardware hangs or gives anything otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda import tensor
from tests.cuda.ptx import Immediate, Instruction, PTXError, Vector

Meaning = tuple[Callable[..., tuple[Any, ...]], tuple[type, ...], tuple[type, ...]]
FULL = 0xFFFFFFFF


def meaning(ins: Instruction) -> Meaning:
    """(function of lanes, instruction and sources, the sources' types, the results' types)."""
    match ins.opcode, ins.modifiers:
        case "mma", _:
            return tensor.meaning(ins)
        case "bar", ("warp", "sync"):
            return barrier, (np.uint32,), ()
        case "shfl", ("sync", way, "b32"):
            pair = isinstance(ins.operands[0], Vector)
            kinds = (np.int32, np.int32, np.int32, np.uint32)
            return shuffles(way, constants(ins)), kinds, (np.int32, np.bool_) if pair else (np.int32,)
        case "vote", ("sync", "ballot", "b32"):
            return ballot, (np.bool_, np.uint32), (np.int32,)
        case "vote", ("sync", ("any" | "all" | "uni") as how, "pred"):
            return (lambda *a: (vote(how, *a),)), (np.bool_, np.uint32), (np.bool_,)
        case "activemask", ("b32",):
            return (lambda lanes, ins: (lanes.active_bits().view(np.int32),)), (), (np.int32,)
        case "match", ("any", "sync", kind):
            wide = np.uint32 if kind == "b32" else np.uint64
            return match_any, (wide, np.uint32), (np.int32,)
        case "redux", ("sync", how, kind):
            dtype = {"u32": np.uint32, "s32": np.int32, "b32": np.int32, "f32": np.float32}[kind]
            return reduction(how), (dtype, np.uint32), (dtype,)
    raise PTXError(f"an instruction that this machine does not know: {ins.text}")


def constants(ins: Instruction) -> tuple[int, int] | None:
    """A shuffle's lane and clamp, if they and the mask are written out and name the whole warp."""
    lane, clamp, mask = ins.operands[2:5]
    if not all(isinstance(x, Immediate) for x in (lane, clamp, mask)) or int(mask.text, 0) & FULL != FULL:
        return None
    return int(lane.text, 0), int(clamp.text, 0)


def source_lane(way: str, lane: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """The lane whose value `lane` gets, and whether that lies within bounds (PTX ISA 9.7.9.6)."""
    b, clamp, segment = b & 31, c & 31, (c >> 8) & 31
    most = (lane & segment) | (clamp & ~segment)
    least = lane & segment
    match way:
        case "up":
            j = lane - b
            inside = j >= most
        case "down":
            j = lane + b
            inside = j <= most
        case "bfly":
            j = lane ^ b
            inside = j <= most
        case "idx":
            j = least | (b & ~segment)
            inside = j <= most
        case _:
            raise PTXError(f"shfl.{way} is not known to this machine")
    return np.where(inside, j, lane), inside


def shuffles(way: str, known: tuple[int, int] | None) -> Callable[..., tuple[Any, ...]]:
    remembered: dict[int, tuple[Any, Any]] = {}

    def run(lanes: Any, ins: Instruction, a: Any, b: Any, c: Any, mask: Any) -> tuple[Any, ...]:
        if known and lanes.whole_warps:
            # The common case: nothing to check, and the same lanes every time.
            found = remembered.get(lanes.size)
            if found is None:
                ids = np.arange(lanes.size)
                j, inside = source_lane(way, ids & 31, *known)
                found = remembered[lanes.size] = ((ids & ~31) + j, inside)
            return (a if a.ndim == 0 else a[found[0]]), found[1]
        named(lanes, ins, mask)
        ids = lanes.ids
        lane = lanes.lane
        j, inside = source_lane(way, lane, b, c)
        source = lanes.position[ids - lane + j]
        active = lanes.narrowed(None)
        gone = active[source[active] < 0]
        if len(gone):
            at = int(gone[0])
            lanes.reach.fail(ins, ids[at], f"it asks lane {int(j[at])} of its warp, which is not at this instruction")
        return (a if a.ndim == 0 else a[np.maximum(source, 0)]), inside

    return run


def named(lanes: Any, ins: Instruction, mask: Any) -> np.ndarray:
    """The masks, one a lane; each must name its own lane, and only lanes that are here."""
    masks = np.broadcast_to(mask, lanes.size)
    if lanes.whole_warps and mask.ndim == 0 and mask == FULL:
        return masks
    active = lanes.narrowed(None)
    here = lanes.active_bits()
    absent = masks & ~here
    own = (masks >> lanes.lane.astype(np.uint32)) & np.uint32(1)
    bad = active[(absent[active] != 0) | (own[active] == 0)]
    if len(bad):
        at = int(bad[0])
        if absent[at]:
            missing = int(absent[at]).bit_length() - 1
            problem = f"its mask {int(masks[at]):#010x} names lane {missing}, which is not at this instruction"
        else:
            problem = f"its mask {int(masks[at]):#010x} does not name the lane itself"
        lanes.reach.fail(ins, lanes.ids[at], problem)
    return masks


def barrier(lanes: Any, ins: Instruction, mask: Any) -> tuple[Any, ...]:
    named(lanes, ins, mask)
    lanes.pass_warp_barrier()
    return ()


def bits_of(lanes: Any, p: Any, masks: Any) -> np.ndarray:
    """For each lane, its warp's lanes among `masks` at which `p` holds."""
    active = lanes.narrowed(None)
    words = np.zeros(lanes.batch.warps, np.uint32)
    chosen = active[np.broadcast_to(p, lanes.size)[active]]
    np.add.at(words, lanes.warp[chosen], np.uint32(1) << lanes.lane[chosen].astype(np.uint32))
    return words[lanes.warp] & masks


def ballot(lanes: Any, ins: Instruction, p: Any, mask: Any) -> tuple[Any, ...]:
    return (bits_of(lanes, p, named(lanes, ins, mask)).view(np.int32),)


def vote(how: str, lanes: Any, ins: Instruction, p: Any, mask: Any) -> Any:
    masks = named(lanes, ins, mask)
    bits = bits_of(lanes, p, masks)
    match how:
        case "any":
            return bits != 0
        case "all":
            return bits == masks
    return (bits == masks) | (bits == 0)


def match_any(lanes: Any, ins: Instruction, a: Any, mask: Any) -> tuple[Any, ...]:
    masks = named(lanes, ins, mask)
    found = np.zeros(lanes.size, np.uint32)
    values = np.broadcast_to(a, lanes.size)
    active = lanes.narrowed(None)
    for k in range(32):
        peer = lanes.position[np.minimum(lanes.ids - lanes.lane + k, lanes.batch.count - 1)]
        same = (peer[active] >= 0) & (values[np.maximum(peer[active], 0)] == values[active])
        found[active] |= same.astype(np.uint32) << np.uint32(k)
    return ((found & masks).view(np.int32),)


REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
REDUCTIONS["xor"] = np.bitwise_xor


def reduction(how: str) -> Callable[..., tuple[Any, ...]]:
    def run(lanes: Any, ins: Instruction, a: Any, mask: Any) -> tuple[Any, ...]:
        masks = named(lanes, ins, mask)
        values = np.broadcast_to(a, lanes.size)
        found = np.zeros(lanes.size, values.dtype)
        for at in lanes.narrowed(None):
            first = lanes.ids[at] - lanes.lane[at]
            peers = [lanes.position[first + k] for k in range(32) if int(masks[at]) >> k & 1]
            found[at] = REDUCTIONS[how].reduce(values[peers])
        return (found,)

    return run
