"""How often a loop of a GPU's kernel runs, and whether it is unrolled.

Short loops are unrolled whole: what they index in registers stays there only where each place is known, and loads that
do not wait for each other are on their way together.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from chainrule.codegen.cuda.intrinsics import WARP
from chainrule.codegen.translate import literal

LONGEST, LARGEST = 32, 2048
"""Of a loop that is unrolled: how often it runs, and how many statements it becomes."""


def span(e: ast.expr, threads: int) -> tuple[int, int] | None:
    """The least and the greatest value of an expression of numbers and a thread's place, in a block of `threads`."""
    number = literal(e)
    if isinstance(number, int):
        return number, number
    match e:
        case ast.Call(ast.Name("thread"), [], []):
            return 0, threads - 1
        case ast.Call(ast.Name("lane"), [], []):
            return 0, min(threads, WARP) - 1
        case ast.Call(ast.Name("warp"), [], []):
            return 0, (threads - 1) // WARP
        case ast.BinOp(left, ast.Add() | ast.Mult() as op, right):
            a, b = span(left, threads), span(right, threads)
            if a is None or b is None or min(*a, *b) < 0:
                return None
            ends = [x + y if isinstance(op, ast.Add) else x * y for x, y in zip(a, b, strict=True)]
            return ends[0], ends[1]
        case _:
            return None


def times(bounds: Sequence[ast.expr], threads: int) -> int | None:
    """How often a loop over ``range(*bounds)`` runs, if that is one number for all threads.

    ``range(lane(), 256, 32)`` runs 8 times, ``range(lane(), 250, 32)`` 7 or 8.
    """
    spans = [found for bound in bounds if (found := span(bound, threads)) is not None]
    if len(spans) < len(bounds):
        return None
    start, stop, step = spans if len(spans) == 3 else [*[(0, 0), *spans][-2:], (1, 1)]
    if stop[0] != stop[1] or step[0] != step[1] or step[0] < 1:
        return None
    least, most = (len(range(first, stop[0], step[0])) for first in reversed(start))
    return least if least == most else None


def unrolling(bounds: Sequence[ast.expr], body: Sequence[ast.stmt], threads: int) -> str:
    """What a loop asks of libNVVM; empty: its own choice.

    A step that is known at run time alone makes a loop over the whole grid: most threads take it once, and unrolling
    it would begin with a division of 64 bits.
    """
    if len(bounds) == 3 and span(bounds[2], threads) is None:
        return "llvm.loop.unroll.disable"
    count = times(bounds, threads)
    few = count is not None and count <= LONGEST and count * _statements(body, threads) <= LARGEST
    return "llvm.loop.unroll.full" if few else ""


def _statements(body: Sequence[ast.stmt], threads: int) -> int:
    """How many statements the body becomes with its short loops unrolled."""
    total = 0
    for s in body:
        match s:
            case ast.For(_, ast.Call(_, bounds, []), inner, []):
                count = times(bounds, threads)
                total += _statements(inner, threads) * (count if count is not None and count <= LONGEST else 1)
            case ast.If(_, then, other):
                total += _statements(then, threads) + _statements(other, threads)
            case _:
                total += 1
    return total


def own_metadata(module: ir.Module, wish: str) -> Any:
    """A loop's metadata, which has to begin with itself: `with_own_metadata` sees to that, for no builder can."""
    name = ir.MetaDataString(module, f"loop {len(module.metadata)}")
    return module.add_metadata([name, module.add_metadata([ir.MetaDataString(module, wish)])])


def with_own_metadata(text: str) -> str:
    """A module's text with the loops' metadata as LLVM wants it."""
    return re.sub(r'^(!\d+) = !{ !"loop \d+", ', r"\1 = distinct !{ \1, ", text, flags=re.MULTILINE)
