"""The one interpreter of every tape: readable Python, compiled once to an object like any kernel's.

The layouts that it walks are in `executable.py`. All threads run `_walk` over the same tape (SPMD): each does its
part of every divided launch, and they meet at a barrier only where an entry says so. Nothing here allocates or
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
ARRIVED, GENERATION, ASLEEP = 8 * Pool.ARRIVED, 8 * Pool.GENERATION, 8 * Pool.ASLEEP
SPINS, YIELDS, STOP, JOB = 8 * Pool.SPINS, 8 * Pool.YIELDS, 8 * Pool.STOP, 8 * Pool.JOB
MAIL, MAIL_ASLEEP, MAIL_BYTES = 8 * Pool.MAIL, 8 * Pool.MAIL_ASLEEP, 8 * Pool.MAIL_WORDS

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


def _meet(pool: int, threads: int) -> None:
    """The barrier: nobody leaves before `threads` threads have come."""
    generation = peek_shared(pool + GENERATION)
    if add_shared(pool + ARRIVED, 1) == threads:
        set_shared(pool + ARRIVED, 0)
        _signal(pool + GENERATION, pool + ASLEEP)
    else:
        _wait(pool + GENERATION, generation, pool + ASLEEP, peek(pool + SPINS), peek(pool + YIELDS))


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


def _share(entry: int, scratch: int, parts: int) -> None:
    """Chunk after chunk of a launch, until `parts` threads find none left: a thread that is held up takes fewer.

    Whoever is last to find none sets the count to 0; nobody asks again before the next step, which starts at a barrier.
    """
    extent, size = peek(entry + EXTENT), peek(entry + CHUNK)
    chunks = (extent + size - 1) // size
    while True:
        turn = add_shared(entry + NEXT, 1)
        if turn > chunks:
            if turn == chunks + parts:
                set_shared(entry + NEXT, 0)
            return
        lo = (turn - 1) * size
        hi = lo + size if lo + size < extent else extent
        launch(peek(entry + FUNCTION), peek(entry + TABLE), scratch, lo, hi)


def _walk_together(control: int, pool: int, thread: int, threads: int) -> None:
    """This thread's part of all steps. What is not divided is thread 0's."""
    tape, entries = peek(control + TAPE), peek(control + ENTRIES)
    scratch = peek(control + SCRATCH) + thread * peek(control + SCRATCH_STRIDE)
    first = peek(control + FIRST)
    for step in range(first, first + peek(control + STEPS)):
        if step != first:  # the first step was started before the workers were called
            if thread == 0:
                _advance(control)
                _feed(control, step)
            _meet(pool, threads)
        entry = tape
        for _ in range(entries):
            if peek(entry + BARRIER) != 0:
                _meet(pool, threads)
            parts = peek(entry + PARTS)
            if thread < parts:
                if parts == 1:
                    launch(peek(entry + FUNCTION), peek(entry + TABLE), scratch, 0, peek(entry + EXTENT))
                else:
                    _share(entry, scratch, parts)
            entry += ENTRY_BYTES
        _meet(pool, threads)
        if thread == 0:
            _keep(control, step)


def _call(pool: int, threads: int) -> None:
    """Send mail to the workers below `threads`. The locked addition orders the plain stores before it."""
    for worker in range(1, threads):
        mail = pool + MAIL + worker * MAIL_BYTES
        _signal(mail, mail + MAIL_ASLEEP)


def _work(pool: int, thread: int) -> None:
    """The life of a worker: its part of each job, until it is told to stop."""
    mail = pool + MAIL + thread * MAIL_BYTES
    seen = 0
    while True:
        _wait(mail, seen, mail + MAIL_ASLEEP, peek(pool + SPINS), peek(pool + YIELDS))
        seen = peek_shared(mail)
        if peek_shared(pool + STOP) != 0:
            return
        control = peek(pool + JOB)
        _walk_together(control, pool, thread, peek(control + THREADS))


def _walk(control: int, thread: int) -> int:
    """thread 0: do what `control` says. Above: live as that worker of the pool at `control`.

    Below: tell the -thread threads of that pool to stop or, without a pool, pause -thread times (to time it).
    """
    if thread > 0:
        _work(control, thread)
        return 0
    if thread < 0 and control != 0:
        set_shared(control + STOP, 1)
        _call(control, -thread)
        return 0
    if thread < 0:
        for _ in range(-thread):
            pause()
        return 0
    if peek(control + CHECK_COUNT) != 0 and _checked(control) != 0:
        return 1
    threads = peek(control + THREADS)
    if threads == 1:
        _walk_alone(control)
        return 0
    pool = peek(control + POOL)
    _advance(control)
    _feed(control, peek(control + FIRST))
    poke(pool + JOB, control)
    _call(pool, threads)
    _walk_together(control, pool, 0, threads)
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


ROUTINES = (_wait, _signal, _meet, _checked, _advance, _feed, _keep, _walk_alone, _share, _walk_together, _call, _work)


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
