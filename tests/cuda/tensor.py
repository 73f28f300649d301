"""mma.sync: a warp's product of 16 rows by 8 columns, its matrices spread over the lanes.

Lane 4 g + t holds of A the rows g and g + 8, of B the column g, of C and D the rows g and g + 8 and columns 2t and
2t + 1. Source: PTX ISA 9.0, 9.7.15.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx import Instruction, PTXError
from tests.cuda.rounding import from_bf16

LANE = np.arange(32)
GROUP, WITHIN = LANE // 4, LANE % 4
FULL = 0xFFFFFFFF
DEPTHS = {("m16n8k4", "tf32"): 4, ("m16n8k8", "tf32"): 8, ("m16n8k8", "bf16"): 8, ("m16n8k16", "bf16"): 16}


def meaning(ins: Instruction) -> tuple[Callable[..., tuple[Any, ...]], tuple[type, ...], tuple[type, ...]]:
    match ins.modifiers:
        case ("sync", "aligned", shape, "row", "col", "f32", a, b, "f32") if a == b and (shape, a) in DEPTHS:
            depth = DEPTHS[shape, a]
            registers = depth // (4 if a == "tf32" else 8)  # of B; A has twice as many
            kinds = (*((np.uint32,) * (3 * registers)), *((np.float32,) * 4))
            return product(a, depth, registers), kinds, (np.float32,) * 4
    raise PTXError(f"an instruction that this machine does not know: {ins.text}")


def parts(kind: str, words: np.ndarray) -> list[np.ndarray]:
    """The numbers in registers of 32 bits: one of tf32, whose low bits do not count, or two of bf16."""
    if kind == "tf32":
        return [(words & np.uint32(0xFFFFE000)).view(np.float32)]
    return [from_bf16(words & np.uint32(0xFFFF)), from_bf16(words >> np.uint32(16))]


def product(kind: str, depth: int, registers: int) -> Callable[..., tuple[Any, ...]]:
    """``D = A B + C``, summed in float64 and rounded once; the hardware's sums may be worse."""

    def run(lanes: Any, ins: Instruction, *values: Any) -> tuple[Any, ...]:
        active = lanes.narrowed(None)
        bad = active[lanes.active_bits()[active] != FULL]
        if len(bad):
            lanes.reach.fail(ins, lanes.ids[bad[0]], "a product of matrices needs all lanes of the warp")
        by_warp = [np.broadcast_to(v, lanes.size)[active].reshape(-1, 32) for v in values]
        count = len(active) // 32
        a, b = np.zeros((count, 16, depth)), np.zeros((count, depth, 8))
        for k, words in enumerate(by_warp[: 2 * registers]):
            for low, x in enumerate(found := parts(kind, words)):
                column = WITHIN * len(found) + low + 4 * len(found) * (k // 2)
                a[:, GROUP + 8 * (k % 2), column] = x
        for k, words in enumerate(by_warp[2 * registers : 3 * registers]):
            for low, x in enumerate(found := parts(kind, words)):
                b[:, WITHIN * len(found) + low + 4 * len(found) * k, GROUP] = x
        sums = a @ b
        results = []
        for k, c in enumerate(by_warp[3 * registers :]):
            whole = np.zeros(lanes.size, np.float32)
            whole[active] = (sums[:, GROUP + 8 * (k // 2), 2 * WITHIN + k % 2] + c).astype(np.float32).reshape(-1)
            results.append(whole)
        return tuple(results)

    return run
