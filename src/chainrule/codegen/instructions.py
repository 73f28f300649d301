"""The walker's words: each function here is one machine instruction, or one call of the system, as Numba intrinsics.

All arguments and results are int64; an address is a number. The shared words are 32 bits, and every thread sees their
changes in the same order.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
LINUX = sys.platform.startswith("linux")
ARM = platform.machine().lower() in ("arm64", "aarch64")
FUTEX = 98 if ARM else 202  # the number of the system call
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # private to the process


@dataclass(frozen=True)
class Instruction:
    """What `routines` writes down for a call, of int64 arguments and an int64 result, as Numba's intrinsics say it."""

    define: Callable[..., Any]

    def emit(self, context: Any, builder: ir.IRBuilder, args: Sequence[ir.Value]) -> ir.Value:
        signature, emit = self.define(None, *(types.int64 for _ in args))
        return emit(context, builder, signature, args)


def _instruction(define: Callable[..., Any]) -> Callable[..., int]:
    return cast(Callable[..., int], Instruction(define))


def _external(builder: ir.IRBuilder, name: str, result: ir.Type, *parameters: ir.Type) -> ir.Function:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)


@_instruction
def peek(typing, address):  # type: ignore[no-untyped-def]
    """The int64 at `address`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.int64(types.int64), emit


@_instruction
def poke(typing, address, value):  # type: ignore[no-untyped-def]
    """Store an int64."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[1], builder.inttoptr(args[0], I64.as_pointer()))
        return args[1]

    return types.int64(types.int64, types.int64), emit


@_instruction
def peek_shared(typing, address):  # type: ignore[no-untyped-def]
    """The low 32 bits of a shared word, in the one order that all threads see."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        return builder.sext(builder.load_atomic(pointer, "seq_cst", 4), I64)

    return types.int64(types.int64), emit


@_instruction
def add_shared(typing, address, value):  # type: ignore[no-untyped-def]
    """Add to the low 32 bits of a shared word; the sum."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        value = builder.trunc(args[1], I32)
        return builder.sext(builder.add(builder.atomic_rmw("add", pointer, value, "seq_cst"), value), I64)

    return types.int64(types.int64, types.int64), emit


@_instruction
def set_shared(typing, address, value):  # type: ignore[no-untyped-def]
    """Store the low 32 bits of a shared word."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        builder.store_atomic(builder.trunc(args[1], I32), pointer, "seq_cst", 4)
        return args[1]

    return types.int64(types.int64, types.int64), emit


@_instruction
def swap_shared(typing, address, seen, value):  # type: ignore[no-untyped-def]
    """Store the low 32 bits of a shared word if it still is `seen`: 1 if so, else 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        seen, value = (builder.trunc(args[k], I32) for k in (1, 2))
        found = builder.cmpxchg(pointer, seen, value, "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(found, 1), I64)

    return types.int64(types.int64, types.int64, types.int64), emit


@_instruction
def pause(typing):  # type: ignore[no-untyped-def]
    """Tell the core that this is a waiting loop."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if ARM:
            builder.call(_external(builder, "llvm.aarch64.hint", ir.VoidType(), I32), (ir.Constant(I32, 1),))  # yield
        else:
            builder.call(_external(builder, "llvm.x86.sse2.pause", ir.VoidType()), ())
        return ir.Constant(I64, 0)

    return types.int64(), emit


@_instruction
def yield_core(typing):  # type: ignore[no-untyped-def]
    """Let another thread run on this core."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(_external(builder, name, I32), ())
        return ir.Constant(I64, 0)

    return types.int64(), emit


@_instruction
def sleep(typing, address, seen):  # type: ignore[no-untyped-def]
    """Sleep while the shared word still is `seen`; may wake early. Without futexes: a nap of 0.1 ms."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if LINUX:
            system_call = _external(builder, "syscall", I64, I64, I64, I64, I64, I64)
            numbers = (ir.Constant(I64, FUTEX), args[0], ir.Constant(I64, FUTEX_WAIT), args[1], ir.Constant(I64, 0))
            return builder.call(system_call, numbers)
        if sys.platform == "win32":
            builder.call(_external(builder, "Sleep", ir.VoidType(), I32), (ir.Constant(I32, 1),))
        else:
            builder.call(_external(builder, "usleep", I32, I32), (ir.Constant(I32, 100),))
        return ir.Constant(I64, 0)

    return types.int64(types.int64, types.int64), emit


@_instruction
def wake(typing, address):  # type: ignore[no-untyped-def]
    """Wake all who sleep at the shared word."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if not LINUX:
            return ir.Constant(I64, 0)
        system_call = _external(builder, "syscall", I64, I64, I64, I64, I64, I64)
        everyone = ir.Constant(I64, 2**31 - 1)
        numbers = (ir.Constant(I64, FUTEX), args[0], ir.Constant(I64, FUTEX_WAKE), everyone, ir.Constant(I64, 0))
        return builder.call(system_call, numbers)

    return types.int64(types.int64), emit


@_instruction
def launch(typing, function, table, scratch, lo, hi):  # type: ignore[no-untyped-def]
    """Call the kernel at the address `function`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kernel = ir.FunctionType(ir.VoidType(), (I64.as_pointer(), I8.as_pointer(), I64, I64))
        pointer = builder.inttoptr(args[0], kernel.as_pointer())
        table, scratch = builder.inttoptr(args[1], I64.as_pointer()), builder.inttoptr(args[2], I8.as_pointer())
        builder.call(pointer, (table, scratch, args[3], args[4]))
        return ir.Constant(I64, 0)

    return types.int64(*(types.int64,) * 5), emit


@_instruction
def copy(typing, target, source, count):  # type: ignore[no-untyped-def]
    """Copy `count` bytes."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte = I8.as_pointer()
        target, source = builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte)
        builder.call(_external(builder, "memcpy", byte, byte, byte, I64), (target, source, args[2]))
        return ir.Constant(I64, 0)

    return types.int64(types.int64, types.int64, types.int64), emit


@_instruction
def count_items(typing, mapping):  # type: ignore[no-untyped-def]
    """How many items a dict has."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(_external(builder, "chainrule_count", I64, I64), (args[0],))

    return types.int64(types.int64), emit


@_instruction
def look_up(typing, mapping, name):  # type: ignore[no-untyped-def]
    """The value under a name in a dict, borrowed, or 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(_external(builder, "chainrule_look_up", I64, I64, I64), (args[0], args[1]))

    return types.int64(types.int64, types.int64), emit
