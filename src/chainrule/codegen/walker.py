"""The one interpreter of every tape: readable Python, compiled once by Numba to an object like any kernel's.

The layouts that it walks are in `executable.py`. All threads run `_walk` over the same tape (SPMD): each does its
part of every divided launch, and they meet at a barrier only where an entry says so. Nothing here allocates, raises
or knows of CPython, so that a warm process loads the object without Numba.

Waiting is a bounded spin, then a yield of the core, then sleep: pure spinning on a shared core stalls for
milliseconds. The kernel's futex compares the word again before it sleeps, so a signal is never lost.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from chainrule.executable import (
    STEP_SYMBOL,
    TAKE_SYMBOL,
    WALKER_SYMBOL,
    Check,
    Control,
    Copy,
    Entry,
    Layout,
    Pool,
    Take,
)

F = TypeVar("F", bound=Callable[..., Any])

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
LINUX = sys.platform.startswith("linux")
ARM = platform.machine().lower() in ("arm64", "aarch64")
FUTEX = 98 if ARM else 202  # the number of the system call
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # private to the process

# Numba freezes module globals into the code; a plain int spares it the enum.
ENTRY_BYTES, COPY_BYTES, CHECK_BYTES = 8 * Entry.WORDS, 8 * Copy.WORDS, 8 * Check.WORDS
FUNCTION, TABLE, EXTENT, PARTS, BARRIER = (
    8 * field for field in (Entry.FUNCTION, Entry.TABLE, Entry.EXTENT, Entry.PARTS, Entry.BARRIER)
)
TARGET, SOURCE, BYTES, STRIDE = (8 * field for field in (Copy.TARGET, Copy.SOURCE, Copy.BYTES, Copy.STRIDE))
ADDRESS, COUNT, BOUND = (8 * field for field in (Check.ADDRESS, Check.COUNT, Check.BOUND))
TAPE, ENTRIES, THREADS = 8 * Control.TAPE, 8 * Control.ENTRIES, 8 * Control.THREADS
SCRATCH, SCRATCH_STRIDE = 8 * Control.SCRATCH, 8 * Control.SCRATCH_STRIDE
FEEDS, FEED_COUNT = 8 * Control.FEEDS, 8 * Control.FEED_COUNT
RESULTS, RESULT_COUNT = 8 * Control.RESULTS, 8 * Control.RESULT_COUNT
CHECKS, CHECK_COUNT = 8 * Control.CHECKS, 8 * Control.CHECK_COUNT
CLOCK, ADVANCE, STEPS, FIRST = 8 * Control.CLOCK, 8 * Control.ADVANCE, 8 * Control.STEPS, 8 * Control.FIRST
POOL, BAD_CHECK, BAD_POSITION = 8 * Control.POOL, 8 * Control.BAD_CHECK, 8 * Control.BAD_POSITION
TAKE_MAPPING, TAKE_INPUTS, TAKE_FIRST = 8 * Take.MAPPING, 8 * Take.INPUTS, 8 * Take.FIRST
TAKE_BYTES = 8 * Take.WORDS
TAKE_NAME, TAKE_KIND, TAKE_DTYPE = 8 * Take.NAME, 8 * Take.KIND, 8 * Take.DTYPE
TAKE_TARGET, TAKE_COUNT, TAKE_AXES, TAKE_SHAPE = 8 * Take.TARGET, 8 * Take.BYTES, 8 * Take.AXES, 8 * Take.SHAPE
ARRIVED, GENERATION, ASLEEP = 8 * Pool.ARRIVED, 8 * Pool.GENERATION, 8 * Pool.ASLEEP
SPINS, YIELDS, STOP, JOB = 8 * Pool.SPINS, 8 * Pool.YIELDS, 8 * Pool.STOP, 8 * Pool.JOB
MAIL, MAIL_ASLEEP, MAIL_BYTES = 8 * Pool.MAIL, 8 * Pool.MAIL_ASLEEP, 8 * Pool.MAIL_WORDS

# How CPython and NumPy lay out an array; the run side proves it on an array before it uses this.
OBJECT_KIND, ARRAY_DATA, ARRAY_AXES = int(Layout.KIND), int(Layout.DATA), int(Layout.AXES)
ARRAY_SHAPE, ARRAY_DTYPE, ARRAY_FLAGS, CONTIGUOUS = int(Layout.SHAPE), int(Layout.DTYPE), int(Layout.FLAGS), 1


def _compiled(function: F) -> F:
    """`function` for Numba; division as NumPy's, since a check for zero would raise."""
    return cast(F, njit(error_model="numpy")(function))


def _instruction(define: Callable[..., Any]) -> Callable[..., int]:
    """An intrinsic of int64 arguments and an int64 result."""
    return cast(Callable[..., int], intrinsic(define))


def _external(builder: ir.IRBuilder, name: str, result: ir.Type, *parameters: ir.Type) -> ir.Function:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)


@_instruction
def _peek(typing, address):  # type: ignore[no-untyped-def]
    """The int64 at `address`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.int64(types.int64), emit


@_instruction
def _poke(typing, address, value):  # type: ignore[no-untyped-def]
    """Store an int64."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[1], builder.inttoptr(args[0], I64.as_pointer()))
        return args[1]

    return types.int64(types.int64, types.int64), emit


@_instruction
def _peek_shared(typing, address):  # type: ignore[no-untyped-def]
    """The low 32 bits of a shared word, in the one order that all threads see."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        return builder.sext(builder.load_atomic(pointer, "seq_cst", 4), I64)

    return types.int64(types.int64), emit


@_instruction
def _add_shared(typing, address, value):  # type: ignore[no-untyped-def]
    """Add to the low 32 bits of a shared word; the sum."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        value = builder.trunc(args[1], I32)
        return builder.sext(builder.add(builder.atomic_rmw("add", pointer, value, "seq_cst"), value), I64)

    return types.int64(types.int64, types.int64), emit


@_instruction
def _set_shared(typing, address, value):  # type: ignore[no-untyped-def]
    """Store the low 32 bits of a shared word."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        builder.store_atomic(builder.trunc(args[1], I32), pointer, "seq_cst", 4)
        return args[1]

    return types.int64(types.int64, types.int64), emit


@_instruction
def _pause(typing):  # type: ignore[no-untyped-def]
    """Tell the core that this is a waiting loop."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if ARM:
            builder.call(_external(builder, "llvm.aarch64.hint", ir.VoidType(), I32), (ir.Constant(I32, 1),))  # yield
        else:
            builder.call(_external(builder, "llvm.x86.sse2.pause", ir.VoidType()), ())
        return ir.Constant(I64, 0)

    return types.int64(), emit


@_instruction
def _yield_core(typing):  # type: ignore[no-untyped-def]
    """Let another thread run on this core."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(_external(builder, name, I32), ())
        return ir.Constant(I64, 0)

    return types.int64(), emit


@_instruction
def _sleep(typing, address, seen):  # type: ignore[no-untyped-def]
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
def _wake(typing, address):  # type: ignore[no-untyped-def]
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
def _launch(typing, function, table, scratch, lo, hi):  # type: ignore[no-untyped-def]
    """Call the kernel at the address `function`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kernel = ir.FunctionType(ir.VoidType(), (I64.as_pointer(), I8.as_pointer(), I64, I64))
        pointer = builder.inttoptr(args[0], kernel.as_pointer())
        table, scratch = builder.inttoptr(args[1], I64.as_pointer()), builder.inttoptr(args[2], I8.as_pointer())
        builder.call(pointer, (table, scratch, args[3], args[4]))
        return ir.Constant(I64, 0)

    return types.int64(*(types.int64,) * 5), emit


@_instruction
def _copy(typing, target, source, count):  # type: ignore[no-untyped-def]
    """Copy `count` bytes."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte = I8.as_pointer()
        target, source = builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte)
        builder.call(_external(builder, "memcpy", byte, byte, byte, I64), (target, source, args[2]))
        return ir.Constant(I64, 0)

    return types.int64(types.int64, types.int64, types.int64), emit


@_instruction
def _count(typing, mapping):  # type: ignore[no-untyped-def]
    """How many items a dict has."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(_external(builder, "chainrule_count", I64, I64), (args[0],))

    return types.int64(types.int64), emit


@_instruction
def _look_up(typing, mapping, name):  # type: ignore[no-untyped-def]
    """The value under a name in a dict, borrowed, or 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(_external(builder, "chainrule_look_up", I64, I64, I64), (args[0], args[1]))

    return types.int64(types.int64, types.int64), emit


@_compiled
def _wait(word: int, seen: int, asleep: int, spins: int, yields: int) -> None:
    """Until the shared `word` is no longer `seen`; `asleep` counts who may need to be woken."""
    for _ in range(spins):
        if _peek_shared(word) != seen:
            return
        _pause()
    for _ in range(yields):
        if _peek_shared(word) != seen:
            return
        _yield_core()
    while _peek_shared(word) == seen:
        # whoever changes the word looks at `asleep` after: either it sees us, or the system call sees the change
        _add_shared(asleep, 1)
        _sleep(word, seen)
        _add_shared(asleep, -1)


@_compiled
def _signal(word: int, asleep: int) -> None:
    """Change the shared `word` and wake who sleeps there."""
    _add_shared(word, 1)
    if _peek_shared(asleep) != 0:
        _wake(word)


@_compiled
def _meet(pool: int, threads: int) -> None:
    """The barrier: nobody leaves before `threads` threads have come."""
    generation = _peek_shared(pool + GENERATION)
    if _add_shared(pool + ARRIVED, 1) == threads:
        _set_shared(pool + ARRIVED, 0)
        _signal(pool + GENERATION, pool + ASLEEP)
    else:
        _wait(pool + GENERATION, generation, pool + ASLEEP, _peek(pool + SPINS), _peek(pool + YIELDS))


@_compiled
def _checked(control: int) -> int:
    """1 and the place, where an index lies outside its bound; else 0."""
    check = _peek(control + CHECKS)
    for k in range(_peek(control + CHECK_COUNT)):
        address, count, bound = _peek(check + ADDRESS), _peek(check + COUNT), _peek(check + BOUND)
        bad = 0
        for i in range(count):
            value = _peek(address + 8 * i)
            bad |= (value < 0) | (value >= bound)
        if bad:
            for i in range(count):
                value = _peek(address + 8 * i)
                if value < 0 or value >= bound:
                    _poke(control + BAD_CHECK, k)
                    _poke(control + BAD_POSITION, i)
                    return 1
        check += CHECK_BYTES
    return 0


@_compiled
def _advance(control: int) -> None:
    """A step starts: the clock goes on."""
    clock = _peek(control + CLOCK)
    if clock != 0:
        _poke(clock + 8, _peek(clock + 8) + _peek(control + ADVANCE))


@_compiled
def _feed(control: int, step: int) -> None:
    """Copy the inputs of a step to where the kernels read them."""
    feed = _peek(control + FEEDS)
    for _ in range(_peek(control + FEED_COUNT)):
        _copy(_peek(feed + TARGET), _peek(feed + SOURCE) + step * _peek(feed + STRIDE), _peek(feed + BYTES))
        feed += COPY_BYTES


@_compiled
def _keep(control: int, step: int) -> None:
    """Copy the results of a step to the caller's arrays."""
    result = _peek(control + RESULTS)
    for _ in range(_peek(control + RESULT_COUNT)):
        target = _peek(result + TARGET) + step * _peek(result + STRIDE)
        _copy(target, _peek(result + SOURCE), _peek(result + BYTES))
        result += COPY_BYTES


@_compiled
def _walk_alone(control: int) -> None:
    """All steps on one thread."""
    tape, entries, scratch = _peek(control + TAPE), _peek(control + ENTRIES), _peek(control + SCRATCH)
    first = _peek(control + FIRST)
    for step in range(first, first + _peek(control + STEPS)):
        _advance(control)
        _feed(control, step)
        entry = tape
        for _ in range(entries):
            _launch(_peek(entry + FUNCTION), _peek(entry + TABLE), scratch, 0, _peek(entry + EXTENT))
            entry += ENTRY_BYTES
        _keep(control, step)


@_compiled
def _walk_together(control: int, pool: int, thread: int, threads: int) -> None:
    """This thread's part of all steps. What is not divided is thread 0's."""
    tape, entries = _peek(control + TAPE), _peek(control + ENTRIES)
    scratch = _peek(control + SCRATCH) + thread * _peek(control + SCRATCH_STRIDE)
    first = _peek(control + FIRST)
    for step in range(first, first + _peek(control + STEPS)):
        if step != first:  # the first step was started before the workers were called
            if thread == 0:
                _advance(control)
                _feed(control, step)
            _meet(pool, threads)
        entry = tape
        for _ in range(entries):
            if _peek(entry + BARRIER) != 0:
                _meet(pool, threads)
            parts = _peek(entry + PARTS)
            if thread < parts:
                extent = _peek(entry + EXTENT)
                lo, hi = extent * thread // parts, extent * (thread + 1) // parts
                _launch(_peek(entry + FUNCTION), _peek(entry + TABLE), scratch, lo, hi)
            entry += ENTRY_BYTES
        _meet(pool, threads)
        if thread == 0:
            _keep(control, step)


@_compiled
def _call(pool: int, threads: int) -> None:
    """Send mail to the workers below `threads`. The locked addition orders the plain stores before it."""
    for worker in range(1, threads):
        mail = pool + MAIL + worker * MAIL_BYTES
        _signal(mail, mail + MAIL_ASLEEP)


@_compiled
def _work(pool: int, thread: int) -> None:
    """The life of a worker: its part of each job, until it is told to stop."""
    mail = pool + MAIL + thread * MAIL_BYTES
    seen = 0
    while True:
        _wait(mail, seen, mail + MAIL_ASLEEP, _peek(pool + SPINS), _peek(pool + YIELDS))
        seen = _peek_shared(mail)
        if _peek_shared(pool + STOP) != 0:
            return
        control = _peek(pool + JOB)
        _walk_together(control, pool, thread, _peek(control + THREADS))


@_compiled
def _walk(control: int, thread: int) -> int:
    """thread 0: do what `control` says. Above: live as that worker of the pool at `control`.

    Below: tell the -thread threads of that pool to stop or, without a pool, pause -thread times (to time it).
    """
    if thread > 0:
        _work(control, thread)
        return 0
    if thread < 0 and control != 0:
        _set_shared(control + STOP, 1)
        _call(control, -thread)
        return 0
    if thread < 0:
        for _ in range(-thread):
            _pause()
        return 0
    if _peek(control + CHECK_COUNT) != 0 and _checked(control) != 0:
        return 1
    threads = _peek(control + THREADS)
    if threads == 1:
        _walk_alone(control)
        return 0
    pool = _peek(control + POOL)
    _advance(control)
    _feed(control, _peek(control + FIRST))
    _poke(pool + JOB, control)
    _call(pool, threads)
    _walk_together(control, pool, 0, threads)
    return 0


@_compiled
def _is_as_before(array: int, take: int) -> bool:
    """Whether an object is an array of the type, dtype and shape that `take` says, its elements without gaps."""
    if array == 0 or _peek(array + OBJECT_KIND) != _peek(take + TAKE_KIND):
        return False
    axes = _peek(take + TAKE_AXES)
    if _peek(array + ARRAY_DTYPE) != _peek(take + TAKE_DTYPE) or _peek_shared(array + ARRAY_AXES) != axes:
        return False
    if _peek_shared(array + ARRAY_FLAGS) & CONTIGUOUS == 0:
        return False
    shape, other = _peek(array + ARRAY_SHAPE), 0
    for k in range(axes):
        other |= _peek(shape + 8 * k) != _peek(take + TAKE_SHAPE + 8 * k)
    return other == 0


@_compiled
def _take(block: int, mapping: int) -> int:
    """Copy the inputs in a dict to where the kernels read them; 0 where they are not as `block` says."""
    count = _peek(block + TAKE_INPUTS)
    if _peek(mapping + OBJECT_KIND) != _peek(block + TAKE_MAPPING) or _count(mapping) != count:
        return 0
    take = block + TAKE_FIRST
    for _ in range(count):
        array = _look_up(mapping, _peek(take + TAKE_NAME))
        if not _is_as_before(array, take):
            return 0
        _copy(_peek(take + TAKE_TARGET), _peek(array + ARRAY_DATA), _peek(take + TAKE_COUNT))
        take += TAKE_BYTES
    return 1


# Numba links what it compiles into an engine of its own as well, which ends the process at a name that is not bound.
EXTERNAL = {"chainrule_count": ctypes.pythonapi.PyDict_Size, "chainrule_look_up": ctypes.pythonapi.PyDict_GetItem}


def compile_walker() -> bytes:
    """The walker as object code that defines WALKER_SYMBOL, STEP_SYMBOL and TAKE_SYMBOL, for this machine's CPU."""
    for name, function in EXTERNAL.items():
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    module = _module(_walk, WALKER_SYMBOL)
    module.link_in(_module(_take, TAKEN))
    module.link_in(llvm.parse_assembly(str(_step_module())))
    module.get_function(TAKEN).linkage = "internal"
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="static", jit=True
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return cast(bytes, machine.emit_object(module))


def _module(function: Callable[..., int], symbol: str) -> llvm.ModuleRef:
    """LLVM's module of `function`, which becomes the only name that others see, as `symbol`."""
    entry = cfunc(types.int64(types.int64, types.int64), error_model="numpy")(function.py_func)  # type: ignore[attr-defined]
    module = llvm.parse_assembly(entry.inspect_llvm())
    module.get_function(entry._wrapper_name).name = symbol
    for item in (*module.functions, *module.global_variables):
        if not item.is_declaration and item.name != symbol:
            item.linkage = "internal"
    return module


TAKEN = "chainrule_taken"  # int64 taken(int64 block, int64 dict), of this object alone


def _step_module() -> ir.Module:
    """The walker as methods of a Python integer: the address of a control block, or of a block of inputs to take.

    The first has no argument; the second takes a dict of inputs and answers -1 where they are not as described. One
    is added to the address (blocks are aligned) to let other Python threads run meanwhile. A call by ctypes with
    two arguments takes 0.3 µs longer. The four functions are of Python's stable interface, bound under our own names
    when the object is loaded. A dict taken apart here instead of in Python spares 1 µs a step.
    """
    module = ir.Module("step")
    module.triple = llvm.get_process_triple()
    binary, unary, source = (ir.FunctionType(I64, (I64,) * count) for count in (2, 1, 0))
    walk = ir.Function(module, binary, WALKER_SYMBOL)
    as_integer = ir.Function(module, unary, "chainrule_as_integer")  # PyLong_AsLongLong
    integer = ir.Function(module, unary, "chainrule_integer")  # PyLong_FromLongLong
    leave = ir.Function(module, source, "chainrule_leave_python")  # PyEval_SaveThread
    enter = ir.Function(
        module, ir.FunctionType(ir.VoidType(), (I64,)), "chainrule_enter_python"
    )  # PyEval_RestoreThread
    taken = ir.Function(module, binary, TAKEN)
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)

    def walked(builder: ir.IRBuilder, control: ir.Value) -> None:
        with builder.if_then(builder.trunc(control, ir.IntType(1))):
            thread = builder.call(leave, ())
            code = builder.call(walk, (builder.sub(control, one), zero))
            builder.call(enter, (thread,))
            builder.ret(builder.call(integer, (code,)))
        builder.ret(builder.call(integer, (builder.call(walk, (control, zero)),)))

    step = ir.Function(module, binary, STEP_SYMBOL)
    builder = ir.IRBuilder(step.append_basic_block())
    walked(builder, builder.call(as_integer, (step.args[0],)))
    take = ir.Function(module, binary, TAKE_SYMBOL)
    builder = ir.IRBuilder(take.append_basic_block())
    block = builder.call(as_integer, (take.args[0],))
    with builder.if_then(builder.icmp_signed("==", builder.call(taken, (block, take.args[1])), zero)):
        builder.ret(builder.call(integer, (ir.Constant(I64, -1),)))
    walked(builder, builder.load(builder.inttoptr(block, I64.as_pointer())))
    return module
