"""One program bound to its store: arrays in, one call of the walker, results out.

The first call with some shapes binds sizes and builds a tape. The next one with the same shapes and dtypes does a
minimum of Python: one call of the walker, which takes the inputs from the dict by itself (`take`), and a copy of each
small result; large ones lie in arrays of the caller's already (`results`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.executable import Check, Control, Copy, Executable, Input, evaluate
from chainrule.runtime.buffers import ELEMENTS, Plan, Shape, address, aligned, bind, plan
from chainrule.runtime.calls import (
    array_of,
    check_names,
    check_out,
    checked,
    chosen,
    constants,
    moves,
    numbers,
    out_of_range,
    positive,
)
from chainrule.runtime.load import load
from chainrule.runtime.results import Lent
from chainrule.runtime.store import Store
from chainrule.runtime.take import Fed, take_block
from chainrule.runtime.tape import Tape, Uses, Words, build, uses
from chainrule.runtime.threads import Walker, thread_count, together
from chainrule.runtime.values import Array

BINDINGS = 16  # sizes that stay bound
CHUNK = 0.1  # seconds of steps between two looks at Ctrl-C
IN_PLACE = 1 << 12  # bytes from which an input is read where it lies, unless
FELT = 0.02  # to copy it takes less than this part of the step: on huge pages and cache lines reading is faster
COPIED = 0.1  # nanoseconds that a byte takes to be copied, about
QUICK = 20_000.0  # nanoseconds of a step that may keep the GIL: giving it back costs more than it helps others

Result = tuple[str, Array]  # an output's name, and where it lies


@dataclass(eq=False)
class Binding:
    """A program for one set of sizes: its tape and its arrays in the arena."""

    plan: Plan
    tape: Tape
    arena: Array
    places: dict[str, Array]  # where the kernels read the inputs that are copied
    control: Words  # one step, whose inputs lie in place
    checks: Words
    scratch: Array
    step: Callable[[], int]  # what `control` says
    release: bool  # whether other Python threads run meanwhile; a step that takes no time keeps the GIL
    numbers: tuple[Result, ...]
    results: tuple[Result, ...]  # copied out of the arena
    lent: tuple[Lent, ...]
    moving: dict[str, Uses]  # by input that is read where it lies: which words say so

    def home(self) -> None:
        """Let the kernels find every input in the arena."""
        for name, words in self.moving.items():
            words.point_to(address(self.places[name]))


class Runner:
    """A program that runs: `executable` with its objects (by SHA-256), bound to `store`.

    walker: the object file of the interpreter (`codegen.walker.compile_walker`). threads: at most so many, default
    CHAINRULE_THREADS, else the cores that the process may use; no result depends on it.
    """

    def __init__(
        self,
        executable: Executable,
        objects: Mapping[str, bytes],
        store: Store,
        walker: bytes,
        threads: int | None = None,
    ) -> None:
        self.executable, self.store = executable, store
        self.threads = thread_count(threads)
        self._walker = Walker.load(walker)
        self._functions = load(executable.kernels, objects)
        store.admit(executable)
        self._constants = dict(constants(executable))
        self._stored = {item.buffer: store.array("param", item.name) for item in executable.params}
        self._stored |= {item.buffer: store.array("state", item.name) for item in executable.states}
        self._stored |= {item.buffer: store.array("scalar", item.name) for item in executable.scalars}
        self._arena = aligned(0)
        self._bindings: OrderedDict[tuple[Shape, ...], Binding] = OrderedDict()
        self._names = tuple(item.name for item in executable.inputs)
        self._enter, self._leave = store.lock.acquire, store.lock.release
        self.last: Binding  # what the last step was bound to
        self._numbers: tuple[Result, ...] = ()
        self._results: tuple[Result, ...] = ()
        self._lent: tuple[Lent, ...] = ()
        self._take: Callable[[Mapping[str, Any]], int] = _nothing_known
        self._taken: tuple[Any, ...] = ()  # what `_take` points to

    def run(
        self,
        inputs: Mapping[str, Any],
        steps: int | None = None,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Array] | None = None,
        scalars: Mapping[str, Sequence[float]] | None = None,
    ) -> dict[str, Any]:
        """One step of the program, or `steps` of them in one call; its outputs (or those named) as copies.

        With `steps`, an input may have a leading axis of that length, one slice a step, and every output has it;
        `scalars` are values of run-time numbers for each step, the last of which stays. Numbers of rank 0 come as
        NumPy scalars. out: arrays by output that one step's results go to. Raises ChainruleError before anything
        changes where an input does not fit or an index is out of range.
        """
        if steps is None and outputs is None and not out:
            found = self.again(inputs)
            if found is not None:
                return found
        arrays = self._arrays(inputs)
        with self.store.lock:
            if steps is None:
                found = self._one(arrays, out or {})
            else:
                found = self._many(arrays, positive(steps), numbers(self.executable, scalars or {}, steps))
        return found if outputs is None else chosen(self.executable, found, outputs)

    def again(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """`run` for one step whose inputs have the shapes and dtypes of the last one's; None where they have not."""
        self._enter()  # `with self.store.lock` takes 0.1 µs longer
        try:
            found = {}
            for lent in self._lent:
                found[lent.name] = lent.next()
            code = self._take(inputs)
            if code:
                if code < 0:
                    return None
                raise self._out_of_range(self.last, self.last.places, None)
            for name, view in self._numbers:
                found[name] = view[()]
            for name, view in self._results:
                found[name] = view.copy()
            return found
        finally:
            self._leave()

    def _prepare(self, binding: Binding, arrays: Mapping[str, Array]) -> None:
        """Let the walker take inputs like `arrays` by itself from now on, where it can."""
        if self._taken and self.last is not binding:
            for lent in self._lent:
                lent.forget()
        self.last, self._take = binding, _nothing_known
        self._numbers, self._results, self._lent = binding.numbers, binding.results, binding.lent
        nowhere, places = _words(1, 0)[0], binding.places
        addresses = {name: words.addresses for name, words in binding.moving.items()}
        inputs = [Fed(name, arrays[name], places[name], addresses.get(name, nowhere)) for name in self._names]
        block = take_block(address(binding.control) + binding.release, inputs)
        if block is not None:
            take = self._walker.take(address(block))
            threads = binding.tape.threads
            self._take = together(self._walker, threads, binding.control, take) if threads > 1 else take
        self._taken = (block, binding, [array.dtype for array in arrays.values()], addresses)

    def warm(self, **shapes: Shape) -> None:
        """Bind sizes for inputs of these shapes ahead of the first call."""
        with self.store.lock:
            self._bind({name: tuple(shapes[name]) for name in self._names})

    def _arrays(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """All inputs as arrays whose dtypes can be cast. Names, then dtypes, are checked."""
        check_names(self.executable, inputs)
        return {item.name: array_of(self.executable, item, inputs[item.name]) for item in self.executable.inputs}

    def _one(self, arrays: Mapping[str, Array], out: Mapping[str, Array]) -> dict[str, Any]:
        binding = self._bind({name: array.shape for name, array in arrays.items()})
        check_out(self.executable, binding.plan, out)
        self._prepare(binding, arrays)
        found = {
            lent.name: lent.into(out[lent.name]) if is_apart(lent.name, out, arrays) else lent.next()
            for lent in binding.lent
        }
        code = self._take(dict(arrays))
        places = binding.places
        if code < 0:  # some need to be cast, or moved together
            binding.home()
            for name, array in arrays.items():
                places[name][...] = array
            code = binding.step()
        if code:
            raise self._out_of_range(binding, places, None)
        found |= {name: view[()] for name, view in binding.numbers}
        found |= {name: view.copy() for name, view in binding.results}
        for name, given in out.items():
            if found[name] is not given:
                given[...] = found[name]
        return found | dict(out)

    def _many(self, arrays: Mapping[str, Array], steps: int, scalars: Mapping[int, Array]) -> dict[str, Any]:
        """`steps` steps; inputs with one more axis move on along it, and numbers along their values."""
        inputs = self.executable.inputs
        moving = {item.name for item in inputs if moves(self.executable, item, arrays[item.name].shape, steps)}
        binding = self._bind({name: a.shape[1:] if name in moving else a.shape for name, a in arrays.items()})
        views = binding.places
        sources = {name: np.ascontiguousarray(array, dtype=views[name].dtype) for name, array in arrays.items()}
        lent = tuple((one.name, one.next()) for one in binding.lent)
        outputs = binding.numbers + binding.results + lent
        binding.home()
        fed = [(views[name], source, name in moving) for name, source in sources.items()]
        fed += [(self._stored[buffer], values, True) for buffer, values in scalars.items()]
        feeds, results = _words(len(fed), Copy.WORDS), _words(len(outputs), Copy.WORDS)
        for row, (view, source, moves_on) in zip(feeds, fed, strict=True):
            row[: Copy.STRIDE + 1] = (address(view), address(source), view.nbytes, view.nbytes if moves_on else 0)
        kept = {name: np.empty((steps, *view.shape), view.dtype) for name, view in outputs}
        for row, (name, view) in zip(results, outputs, strict=True):
            row[: Copy.STRIDE + 1] = (address(kept[name]), address(view), view.nbytes, view.nbytes)
        control, checks = binding.control.copy(), self._checks(binding.plan, sources)
        control[Control.FEEDS], control[Control.FEED_COUNT] = address(feeds), len(feeds)
        control[Control.RESULTS], control[Control.RESULT_COUNT] = address(results), len(results)
        control[Control.CHECKS], control[Control.CHECK_COUNT] = address(checks), len(checks)
        walk = self._walker.step(address(control), release=True)
        if binding.tape.threads > 1:
            walk = together(self._walker, binding.tape.threads, control, walk)
        done, chunk = 0, 1
        while done < steps:
            chunk = min(chunk, steps - done)
            control[Control.FIRST], control[Control.STEPS] = done, chunk
            start = time.perf_counter()
            if walk():
                raise self._out_of_range(binding, sources, steps, control)
            control[Control.CHECK_COUNT] = 0  # all steps' indices were looked at
            done += chunk
            chunk = _next_chunk(chunk, time.perf_counter() - start)
        return kept

    def _bind(self, shapes: Mapping[str, Shape]) -> Binding:
        """The binding for inputs of these shapes: found again, or made."""
        known = tuple(shapes[name] for name in self._names)
        binding = self._bindings.get(known)
        if binding is not None:
            self._bindings.move_to_end(known)
            return binding
        binding = self._new_binding(plan(self.executable, bind(self.executable, shapes)))
        self._bindings[known] = binding
        if len(self._bindings) > BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def _new_binding(self, bound: Plan) -> Binding:
        if bound.arena > len(self._arena):  # bindings share one arena; older ones keep a smaller one alive
            self._arena = aligned(bound.arena)
        buffers = self.executable.buffers
        lent = {
            item.buffer: Lent(item.name, bound.shapes[item.buffer], ELEMENTS[buffers[item.buffer].element])
            for item in self.executable.outputs
            if buffers[item.buffer].space == "arena" and bound.offsets[item.buffer] is None
        }
        views = tuple(lent[k].array if k in lent else self._view(k, bound) for k in range(len(buffers)))
        tape = build(self.executable, bound, [address(view) for view in views], self._functions, self.threads)
        scratch = aligned(max(tape.scratch, 1) * tape.threads)
        places = {item.name: views[item.buffer] for item in self.executable.inputs}
        checks = self._checks(bound, places)
        control = _words(1, Control.WORDS)[0]
        control[Control.TAPE], control[Control.ENTRIES] = address(tape.entries), len(tape.entries)
        control[Control.THREADS], control[Control.STEPS] = tape.threads, 1
        control[Control.SCRATCH], control[Control.SCRATCH_STRIDE] = address(scratch), tape.scratch
        control[Control.CHECKS], control[Control.CHECK_COUNT] = address(checks), len(checks)
        control[Control.CLOCK], control[Control.ADVANCE] = address(self.store.clock), int(self.executable.training)
        at, quick = address(control), tape.threads == 1 and tape.cost < QUICK
        step = self._walker.step(at, release=not quick)
        if tape.threads > 1:
            step = together(self._walker, tape.threads, control, step)
        found = [(item.name, views[item.buffer]) for item in self.executable.outputs if item.buffer not in lent]
        numbers, results = tuple(r for r in found if not r[1].ndim), tuple(r for r in found if r[1].ndim)
        for k, one in lent.items():
            one.bind(uses(self.executable, tape, k))
        moving = {i.name: uses(self.executable, tape, i.buffer) for i in self._moving(bound, tape.cost)}
        return Binding(
            bound, tape, self._arena, places, control, checks, scratch, step, not quick,
            numbers, results, tuple(lent.values()), moving,
        )  # fmt: skip

    def _moving(self, bound: Plan, cost: float) -> Iterator[Input]:
        """The inputs that are read where they lie.

        Not one whose values are indices: between the look at them and their use another thread could change them.
        """
        results = {item.buffer for item in self.executable.outputs}
        launches = self.executable.launches
        written = {launch.buffers[k] for launch in launches for k in launch.writes}
        for item in self.executable.inputs:
            count = bound.bytes[item.buffer]
            worth = count >= IN_PLACE and count * COPIED >= FELT * cost
            if worth and item.bound is None and item.buffer not in results | written:
                yield item

    def _view(self, k: int, bound: Plan) -> Array:
        """Buffer k as an array over its memory."""
        buffer, offset = self.executable.buffers[k], bound.offsets[k]
        if offset is not None:
            block = self._arena[offset : offset + bound.bytes[k]]
            return block.view(ELEMENTS[buffer.element]).reshape(bound.shapes[k])
        if buffer.space == "clock":
            return self.store.clock
        return self._constants[k] if k in self._constants else self._stored[k]

    def _checks(self, bound: Plan, arrays: Mapping[str, Array]) -> Words:
        """A record for each input whose values are used as an index."""
        items = checked(self.executable)
        rows = _words(len(items), Check.WORDS)
        for row, item in zip(rows, items, strict=True):
            array = arrays[item.name]
            row[: Check.BOUND + 1] = (address(array), array.size, evaluate(item.bound or (), bound.sizes))
        return rows

    def _out_of_range(
        self, binding: Binding, arrays: Mapping[str, Array], steps: int | None, control: Words | None = None
    ) -> ChainruleError:
        """The error for the check that the walker says failed. Nothing has changed."""
        control = binding.control if control is None else control
        item = checked(self.executable)[int(control[Control.BAD_CHECK])]
        return out_of_range(item, arrays[item.name], int(control[Control.BAD_POSITION]), binding.plan, steps)


def is_apart(name: str, out: Mapping[str, Array], arrays: Mapping[str, Array]) -> bool:
    """Whether kernels may write this output into its array in `out`: it lies together, and over nothing else."""
    given = out.get(name)
    if given is None or not (given.flags.c_contiguous and given.flags.aligned):
        return False
    others = [*arrays.values(), *(array for other, array in out.items() if other != name)]
    return not any(np.may_share_memory(given, other) for other in others)


def _words(rows: int, words: int) -> Words:
    return aligned(8 * rows * words).view(np.int64).reshape(rows, words)


def _nothing_known(inputs: Mapping[str, Any]) -> int:
    """Before the first step: its inputs need a closer look."""
    return -1


def _next_chunk(chunk: int, seconds: float) -> int:
    """How many steps come next, for a chunk to take CHUNK seconds at the pace of the last one; at most 8 times more."""
    return max(1, min(8 * chunk, int(chunk * CHUNK / max(seconds, 1e-9))))
