"""How often a loop of a GPU's kernel runs, and how far it is unrolled.

Unrolled, loads that do not wait for each other are on their way together, and an array of registers is one: memory
cannot be told from registers where a place is not known. But a kernel of few threads reads its instructions from far
away, so no more of them than that needs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence
from typing import Any

from llvmlite import ir

from chainrule.codegen.cuda.intrinsics import WARP
from chainrule.codegen.translate import literal

WHOLE, PART, REGISTERS = 96, 256, 4096
"""Statements that a loop becomes at most: unrolled whole, in part, and whole where it has arrays of registers."""


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


def unrolling(
    bounds: Sequence[ast.expr], body: Sequence[ast.stmt], threads: int, arrays: Collection[str]
) -> tuple[str, int]:
    """What a loop asks of libNVVM, and with which number; empty: its own choice.

    arrays: the names of those that are to be registers. A step that is known at run time alone makes a loop over the
    whole grid: most threads take it once, and unrolling it would begin with a division of 64 bits.
    """
    return _wish(bounds, body, _statements(body, threads, arrays), threads, arrays)


def _wish(
    bounds: Sequence[ast.expr], body: Sequence[ast.stmt], size: int | None, threads: int, arrays: Collection[str]
) -> tuple[str, int]:
    """`unrolling` of a body that becomes so many statements."""
    grid = len(bounds) == 3 and span(bounds[2], threads) is None
    count = times(bounds, threads)
    meets = _calls(body, "sync") and (count is None or size is None or count * size > WHOLE)
    if grid or size is None or meets:  # a turn that ends with a barrier loads what the next one needs
        return "llvm.loop.unroll.disable", 0
    if count is None:
        return "", 0
    if count * size <= (REGISTERS if _mentions(body, arrays) else WHOLE):
        return "llvm.loop.unroll.full", 0
    return "llvm.loop.unroll.count", next((k for k in (16, 8, 4, 2) if count % k == 0 and k * size <= PART), 1)


def _statements(body: Sequence[ast.stmt], threads: int, arrays: Collection[str]) -> int | None:
    """How many statements the body becomes with its loops unrolled; None: one of them stays a loop."""
    total = 0
    for s in body:
        match s:
            case ast.For(_, ast.Call(_, bounds, []), inner, []):
                size = _statements(inner, threads, arrays)
                wish, _ = _wish(bounds, inner, size, threads, arrays)
                whole = wish == "llvm.loop.unroll.full" and size is not None
                parts: list[int | None] = [(times(bounds, threads) or 0) * (size or 0) if whole else None]
            case ast.If(_, then, other):
                parts = [_statements(then, threads, arrays), _statements(other, threads, arrays)]
            case _:
                parts = [1]
        for part in parts:
            if part is None:
                return None
            total += part
    return total


def _calls(body: Sequence[ast.stmt], name: str) -> bool:
    calls = (node.func for s in body for node in ast.walk(s) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == name for function in calls)


def _mentions(body: Sequence[ast.stmt], names: Collection[str]) -> bool:
    return any(isinstance(node, ast.Name) and node.id in names for s in body for node in ast.walk(s))


def register_arrays(body: Sequence[ast.stmt]) -> dict[str, int]:
    """A kernel's arrays of registers, and how many each has."""
    found: dict[str, int] = {}
    for s in body:
        match s:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name(maker), [ast.Constant(int(count))])):
                if maker.startswith("local_"):
                    found[name] = count
            case ast.For(_, _, inner, other) | ast.If(_, inner, other):
                found |= register_arrays(inner) | register_arrays(other)
            case _:
                pass
    return found


def own_metadata(module: ir.Module, wish: str, number: int) -> Any:
    """A loop's metadata, which has to begin with itself: `with_own_metadata` sees to that, for no builder can."""
    name = ir.MetaDataString(module, f"loop {len(module.metadata)}")
    told = [ir.MetaDataString(module, wish), *([ir.IntType(32)(number)] if number else [])]
    return module.add_metadata([name, module.add_metadata(told)])


def with_own_metadata(text: str) -> str:
    """A module's text with the loops' metadata as LLVM wants it."""
    return re.sub(r'^(!\d+) = !{ !"loop \d+", ', r"\1 = distinct !{ \1, ", text, flags=re.MULTILINE)
