"""The one interpreter of every tape: readable Python, compiled once to an object like any kernel's.

The layouts that it walks are in `executable.py`. A tape falls into phases, runs of launches of which none waits for
another. Thread 0 walks it; workers that come while a phase is open take chunks of its divided launches, and thread 0
waits for those who came, never for one that the system has not let run: where cores are busy with other things, a
step takes about as long as on one thread, and no part of a result depends on who came. Nothing here allocates or
raises, and Numba's runtime is not needed, so that a warm process loads the object without Numba.

Waiting is a bounded spin, then a yield of the core, then sleep: pure spinning on a shared core stalls for
milliseconds. The kernel's futex compares the word again before it sleeps, so a signal is never lost.
"""

from __future__ import annotations

from typing import cast

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock

from chainrule.codegen.instructions import (
    I64,
    add_shared,
    copy,
    count_items,
    launch,
    look_up,
    pause,
    peek,
    peek_shared,
    poke,
    set_shared,
    sleep,
    swap_shared,
    wake,
    yield_core,
)
from chainrule.codegen.routines import module_of_routines
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

# Plain integers, which become constants of the code.
ENTRY_BYTES, COPY_BYTES, CHECK_BYTES = 8 * Entry.WORDS, 8 * Copy.WORDS, 8 * Check.WORDS
FUNCTION, TABLE, EXTENT, PARTS, BARRIER, CHUNK, NEXT = (
    8 * field
    for field in (Entry.FUNCTION, Entry.TABLE, Entry.EXTENT, Entry.PARTS, Entry.BARRIER, Entry.CHUNK, Entry.NEXT)
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
TAKE_USE, TAKE_USES, TAKE_ODD = 8 * Take.USE, 8 * Take.USES, 8 * Take.ODD
STATE, ASLEEP, LEFT, LEFT_ASLEEP = 8 * Pool.STATE, 8 * Pool.ASLEEP, 8 * Pool.LEFT, 8 * Pool.LEFT_ASLEEP
SPINS, YIELDS, STOP = 8 * Pool.SPINS, 8 * Pool.YIELDS, 8 * Pool.STOP
JOB, FROM, TO = 8 * Pool.JOB, 8 * Pool.FROM, 8 * Pool.TO
PHASE, OPEN = 10, 512  # in the state: the phase's number from this bit on; whether it is open; who came, below

# How CPython and NumPy lay out an array; the run side proves it on an array before it uses this.
OBJECT_KIND, ARRAY_DATA, ARRAY_AXES = int(Layout.KIND), int(Layout.DATA), int(Layout.AXES)
ARRAY_SHAPE, ARRAY_DTYPE, ARRAY_FLAGS, CONTIGUOUS = int(Layout.SHAPE), int(Layout.DTYPE), int(Layout.FLAGS), 1


def _wait(word: int, seen: int, asleep: int, spins: int, yields: int) -> None:
    """Until the shared `word` is no longer `seen`; `asleep` counts who may need to be woken."""
    for _ in range(spins):
        if peek_shared(word) != seen:
            return
        pause()
    for _ in range(yields):
        if peek_shared(word) != seen:
            return
        yield_core()
    while peek_shared(word) == seen:
        # whoever changes the word looks at `asleep` after: either it sees us, or the system call sees the change
        add_shared(asleep, 1)
        sleep(word, seen)
        add_shared(asleep, -1)


def _signal(word: int, asleep: int) -> None:
    """Change the shared `word` and wake who sleeps there."""
    add_shared(word, 1)
    if peek_shared(asleep) != 0:
        wake(word)


def _open(pool: int) -> None:
    """A phase starts: who comes from now on takes part in it."""
    set_shared(pool + LEFT, 0)
    set_shared(pool + STATE, ((peek_shared(pool + STATE) >> PHASE) + 1 << PHASE) + OPEN)
    if peek_shared(pool + ASLEEP) != 0:
        wake(pool + STATE)


def _close(pool: int) -> None:
    """Nobody comes any more; wait until all who came have left."""
    came = add_shared(pool + STATE, -OPEN) & (OPEN - 1)
    left = peek_shared(pool + LEFT)
    while left != came:
        _wait(pool + LEFT, left, pool + LEFT_ASLEEP, peek(pool + SPINS), peek(pool + YIELDS))
        left = peek_shared(pool + LEFT)


def _checked(control: int) -> int:
    """1 and the place, where an index lies outside its bound; else 0."""
    check = peek(control + CHECKS)
    for k in range(peek(control + CHECK_COUNT)):
        address, count, bound = peek(check + ADDRESS), peek(check + COUNT), peek(check + BOUND)
        bad = 0
        for i in range(count):
            value = peek(address + 8 * i)
            bad |= (value < 0) | (value >= bound)
        if bad:
            for i in range(count):
                value = peek(address + 8 * i)
                if value < 0 or value >= bound:
                    poke(control + BAD_CHECK, k)
                    poke(control + BAD_POSITION, i)
                    return 1
        check += CHECK_BYTES
    return 0


def _advance(control: int) -> None:
    """A step starts: the clock goes on."""
    clock = peek(control + CLOCK)
    if clock != 0:
        poke(clock + 8, peek(clock + 8) + peek(control + ADVANCE))


def _feed(control: int, step: int) -> None:
    """Copy the inputs of a step to where the kernels read them."""
    feed = peek(control + FEEDS)
    for _ in range(peek(control + FEED_COUNT)):
        copy(peek(feed + TARGET), peek(feed + SOURCE) + step * peek(feed + STRIDE), peek(feed + BYTES))
        feed += COPY_BYTES


def _keep(control: int, step: int) -> None:
    """Copy the results of a step to the caller's arrays."""
    result = peek(control + RESULTS)
    for _ in range(peek(control + RESULT_COUNT)):
        target = peek(result + TARGET) + step * peek(result + STRIDE)
        copy(target, peek(result + SOURCE), peek(result + BYTES))
        result += COPY_BYTES


def _walk_alone(control: int) -> None:
    """All steps on one thread."""
    tape, entries, scratch = peek(control + TAPE), peek(control + ENTRIES), peek(control + SCRATCH)
    first = peek(control + FIRST)
    for step in range(first, first + peek(control + STEPS)):
        _advance(control)
        _feed(control, step)
        entry = tape
        for _ in range(entries):
            launch(peek(entry + FUNCTION), peek(entry + TABLE), scratch, 0, peek(entry + EXTENT))
            entry += ENTRY_BYTES
        _keep(control, step)


def _share(entry: int, scratch: int) -> None:
    """Chunk after chunk of a launch, until none is left: a thread that is held up takes fewer."""
    extent, size = peek(entry + EXTENT), peek(entry + CHUNK)
    chunks = (extent + size - 1) // size
    while True:
        turn = add_shared(entry + NEXT, 1)
        if turn > chunks:
            return
        lo = (turn - 1) * size
        hi = lo + size if lo + size < extent else extent
        launch(peek(entry + FUNCTION), peek(entry + TABLE), scratch, lo, hi)


def _end_of(entry: int, stop: int) -> int:
    """Where the phase that starts at `entry` ends: before the next entry that waits for what is before it."""
    end = entry + ENTRY_BYTES
    while end < stop:
        if peek(end + BARRIER) != 0:
            return end
        end += ENTRY_BYTES
    return stop


def _divided(entry: int, end: int) -> int:
    """How many launches of a phase are divided; their chunks count from 0 again."""
    at, count = entry, 0
    while at < end:
        if peek(at + PARTS) > 1:
            poke(at + NEXT, 0)
            count += 1
        at += ENTRY_BYTES
    return count


def _phase(control: int, entry: int, end: int, thread: int) -> None:
    """This thread's part of a phase. What is not divided is thread 0's."""
    scratch = peek(control + SCRATCH) + thread * peek(control + SCRATCH_STRIDE)
    at = entry
    while at < end:
        parts = peek(at + PARTS)
        if thread < parts:
            if parts == 1:
                launch(peek(at + FUNCTION), peek(at + TABLE), scratch, 0, peek(at + EXTENT))
            else:
                _share(at, scratch)
        at += ENTRY_BYTES


def _walk_together(control: int, pool: int) -> None:
    """All steps on thread 0, phase by phase; workers take part in a phase if they come before it ends."""
    tape = peek(control + TAPE)
    stop = tape + peek(control + ENTRIES) * ENTRY_BYTES
    first = peek(control + FIRST)
    poke(pool + JOB, control)
    for step in range(first, first + peek(control + STEPS)):
        _advance(control)
        _feed(control, step)
        entry = tape
        while entry < stop:
            end = _end_of(entry, stop)
            if _divided(entry, end) != 0:
                poke(pool + FROM, entry)
                poke(pool + TO, end)
                _open(pool)
                _phase(control, entry, end, 0)
                _close(pool)
            else:
                _phase(control, entry, end, 0)
            entry = end
        _keep(control, step)


def _work(pool: int, thread: int) -> None:
    """The life of a worker: its part of each phase that it comes to in time, until it is told to stop."""
    done = -1
    while True:
        state = peek_shared(pool + STATE)
        if peek_shared(pool + STOP) != 0:
            return
        if (state & OPEN) == 0 or (state >> PHASE) == done:
            _wait(pool + STATE, state, pool + ASLEEP, peek(pool + SPINS), peek(pool + YIELDS))
        elif swap_shared(pool + STATE, state, state + 1) != 0:
            done = state >> PHASE
            control = peek(pool + JOB)
            if thread < peek(control + THREADS):
                _phase(control, peek(pool + FROM), peek(pool + TO), thread)
            _signal(pool + LEFT, pool + LEFT_ASLEEP)


def _walk(control: int, thread: int) -> int:
    """thread 0: do what `control` says. Above: live as that worker of the pool at `control`.

    Below: tell the threads of that pool to stop or, without a pool, pause -thread times (to time it).
    """
    if thread > 0:
        _work(control, thread)
        return 0
    if thread < 0 and control != 0:
        set_shared(control + STOP, 1)
        add_shared(control + STATE, 1 << PHASE)
        wake(control + STATE)
        return 0
    if thread < 0:
        for _ in range(-thread):
            pause()
        return 0
    if peek(control + CHECK_COUNT) != 0 and _checked(control) != 0:
        return 1
    if peek(control + THREADS) == 1:
        _walk_alone(control)
    else:
        _walk_together(control, peek(control + POOL))
    return 0


def _is_as_before(array: int, take: int) -> bool:
    """Whether an object is an array of the type, dtype and shape that `take` says, its elements without gaps."""
    if array == 0 or peek(array + OBJECT_KIND) != peek(take + TAKE_KIND):
        return False
    axes = peek(take + TAKE_AXES)
    if peek(array + ARRAY_DTYPE) != peek(take + TAKE_DTYPE) or peek_shared(array + ARRAY_AXES) != axes:
        return False
    if peek_shared(array + ARRAY_FLAGS) & CONTIGUOUS == 0:
        return False
    shape, other = peek(array + ARRAY_SHAPE), 0
    for k in range(axes):
        other |= peek(shape + 8 * k) != peek(take + TAKE_SHAPE + 8 * k)
    return other == 0


def _take(block: int, mapping: int) -> int:
    """Copy the inputs in a dict to where the kernels read them, or tell the kernels where they lie.

    0 where they are not as `block` says.
    """
    count = peek(block + TAKE_INPUTS)
    if peek(mapping + OBJECT_KIND) != peek(block + TAKE_MAPPING) or count_items(mapping) != count:
        return 0
    take = block + TAKE_FIRST
    for _ in range(count):
        array = look_up(mapping, peek(take + TAKE_NAME))
        if not _is_as_before(array, take):
            return 0
        data, uses = peek(array + ARRAY_DATA), peek(take + TAKE_USES)
        if uses == 0:
            copy(peek(take + TAKE_TARGET), data, peek(take + TAKE_COUNT))
        elif data & peek(take + TAKE_ODD) != 0:
            return 0
        use = peek(take + TAKE_USE)
        for k in range(uses):
            poke(peek(use + 8 * k), data)
        take += TAKE_BYTES
    return 1


ROUTINES = (
    _wait, _signal, _open, _close, _checked, _advance, _feed, _keep, _walk_alone, _share, _end_of, _divided, _phase,
    _walk_together, _work,
)  # fmt: skip


def compile_walker() -> bytes:
    """The walker as object code that defines WALKER_SYMBOL, STEP_SYMBOL and TAKE_SYMBOL, for this machine's CPU."""
    with global_compiler_lock:
        module = module_of_routines((*ROUTINES, _walk, _is_as_before, _take), globals())
        module.get_function(_walk.__name__).name = WALKER_SYMBOL
        module.get_function(_take.__name__).name = TAKEN
        module.link_in(llvm.parse_assembly(str(_step_module())))
        for item in module.functions:
            if not item.is_declaration and item.name not in (WALKER_SYMBOL, STEP_SYMBOL, TAKE_SYMBOL):
                item.linkage = "internal"
        target = llvm.Target.from_triple(llvm.get_process_triple())
        features = llvm.get_host_cpu_features().flatten()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="static", jit=True
        )
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        return cast(bytes, machine.emit_object(module))


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
