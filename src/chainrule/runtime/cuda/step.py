"""One program on a GPU, bound to its store: arrays in, a CUDA graph, results out.

The first step with some shapes runs launch by launch, so that modules are loaded and products are chosen; from the
second on it is one graph. Many steps of one call are graphs of 2, 4 … CHUNK steps: each step in such a graph reads its
own slice of the inputs and writes its own slice of the results, by address, so nothing is copied between steps.
Learning rates and the count of steps are read from memory too: a graph is replayed unchanged.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.executable import Executable, Input, Launch, evaluate, launches_at
from chainrule.runtime.buffers import ELEMENTS, Plan, Shape, bind, plan
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
from chainrule.runtime.cuda.arrays import Block, DeviceArray, adopt, check_element, is_on_gpu, padded
from chainrule.runtime.cuda.device import ALIGNMENT, Device, DeviceMemoryError, Function, product_of
from chainrule.runtime.cuda.recording import Binding, Recording, laid, placed
from chainrule.runtime.cuda.tables import Tables
from chainrule.runtime.store import Store
from chainrule.runtime.values import Array

BINDINGS = 16  # sizes that stay bound
CHUNK = 32  # steps of one graph, at most, and so few that
NODES = 4096  # launches are in it, at most, for a graph of many takes long to make, and
STAGED = 1 << 28  # bytes of inputs and results lie beside it, at most
SMALL = 1 << 20  # bytes of inputs and results of one step that a graph copies by itself from and to pinned memory

Given = Array | DeviceArray


class Runner:
    """A program that runs on `device`: `executable` with its objects (by SHA-256), bound to `store`, which lies there.

    What it offers is what `runtime.step.Runner` does.
    """

    threads: int | None = None  # of the CPU

    def __init__(self, executable: Executable, objects: Mapping[str, bytes], store: Store, device: Device) -> None:
        self.executable, self.store, self.device = executable, store, device
        self._functions: list[Function] = [
            device.load(objects[kernel.object], objects[kernel.ptx], kernel.symbol) for kernel in executable.kernels
        ]
        store.admit(executable)
        self._lasting = {item.buffer: store.array("param", item.name).array.address for item in executable.params}
        self._lasting |= {item.buffer: store.array("state", item.name).array.address for item in executable.states}
        self._fixed()
        self._known: tuple[float, ...] = ()  # the run-time numbers that the device has
        self._arena: Block | None = None
        self._bindings: OrderedDict[tuple[Shape, ...], Binding] = OrderedDict()
        self._names = tuple(item.name for item in executable.inputs)
        self._checked = checked(executable)
        self._dtypes = [ELEMENTS[buffer.element] for buffer in executable.buffers]
        self._last: tuple[Binding, Recording] | None = None  # what the last single step was
        self._busy = False  # whether steps were enqueued that nobody has waited for

    def run(
        self,
        inputs: Mapping[str, Any],
        steps: int | None = None,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        on_device: bool = False,
        scalars: Mapping[str, Sequence[float]] | None = None,
    ) -> dict[str, Any]:
        """One step of the program, or `steps` of them in one call; its outputs (or those named).

        Inputs, and arrays in `out`, may lie on the GPU. With `steps`, an input may have a leading axis of that length,
        one slice a step, and every output has it; `scalars` are values of run-time numbers for each step, the last of
        which stays. on_device: results as DeviceArrays; else NumPy's. When this returns,
        all is done. Raises ChainruleError before anything changes where an input does not fit or an index is out of
        range.
        """
        check_names(self.executable, inputs)
        with self.store.lock:
            self._settle()
            given = {item.buffer: self._given(item, inputs[item.name]) for item in self.executable.inputs}
            if steps is None:
                found = self._one(given, out or {}, on_device)
            else:
                numbered = numbers(self.executable, scalars or {}, positive(steps))
                found = self._many(given, steps, numbered, on_device)
        return found if outputs is None else chosen(self.executable, found, outputs)

    def again(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """`run` for one step whose inputs are arrays of the host like the last one's; None where they are not."""
        with self.store.lock:
            if self._last is None or len(inputs) != len(self._names):
                return None
            self._settle()
            binding, recording = self._last
            if recording.host is None or recording.replay is None:
                return None
            given: dict[int, Given] = {}
            for item in self.executable.inputs:
                array, k = inputs.get(item.name), item.buffer
                if type(array) is not (np.ndarray if k in recording.inputs else DeviceArray):
                    return None
                if array.shape != binding.plan.shapes[k] or array.dtype != self._dtypes[k]:
                    return None
                given[k] = array
            self._check_ranges(binding, given, None)
            self._feed_all(binding, recording, given)
            self._do(binding, recording)
            return self._collect(binding, recording, {})

    def warm(self, **shapes: Shape) -> None:
        """Bind sizes for inputs of these shapes ahead of the first call."""
        with self.store.lock:
            self._bind([tuple(shapes[name]) for name in self._names])

    @property
    def plan(self) -> Plan:
        """Of the last single step."""
        assert self._last is not None
        return self._last[0].plan

    def launches(self) -> Iterator[tuple[Launch, Callable[[], None]]]:
        """The launches of the last single step, each with what enqueues it alone."""
        assert self._last is not None
        binding, recording = self._last
        places = self._places(binding, recording, 0)
        for launch, table in zip(binding.launches, recording.tables.places(0), strict=True):
            yield launch, partial(self._launch, launch, table, binding, places)

    def nearer(self, arrays: Mapping[str, Array]) -> dict[str, Given]:
        """Samples of inputs, with one more axis in front, where a step reads them fastest: on the GPU, as far as there
        is room. What is an index stays here, where it is looked at before each step.
        """
        found: dict[str, Given] = dict(arrays)
        for item in self.executable.inputs:
            if item.name in arrays and item.bound is None:
                dtype = ELEMENTS[self.executable.buffers[item.buffer].element]
                with contextlib.suppress(DeviceMemoryError):
                    found[item.name] = DeviceArray.of(self.device, np.asarray(arrays[item.name], dtype))
        return found

    def _settle(self) -> None:
        """Wait for a step whose call was interrupted: it may still read the inputs that it was given."""
        if self._busy:
            self.device.wait()
            self._busy = False

    def _given(self, item: Input, value: Any) -> Given:
        """The input as an array, here or on the GPU."""
        if not is_on_gpu(value):
            return array_of(self.executable, item, value)
        array = adopt(item.name, value, self.device)
        check_element(item.name, array, self.executable.buffers[item.buffer].element)
        return array

    def _one(self, given: Mapping[int, Given], out: Mapping[str, Any], on_device: bool) -> dict[str, Any]:
        binding = self._bind([array.shape for array in given.values()])
        targets = {name: adopt(name, a, self.device) if is_on_gpu(a) else a for name, a in out.items()}
        check_out(self.executable, binding.plan, targets, (np.ndarray, DeviceArray))
        self._check_ranges(binding, given, None)
        recording = self._recording_of_one(binding, given)
        if on_device:
            targets = self._room(binding, (), True) | targets
        self._feed_all(binding, recording, given)
        self._do(binding, recording)
        self._last = binding, recording
        return self._collect(binding, recording, targets) | dict(out)

    def _many(
        self, given: Mapping[int, Given], steps: int, numbered: Mapping[int, Array], on_device: bool
    ) -> dict[str, Any]:
        """`steps` steps; inputs with one more axis move on along it, and numbers along their values."""
        items = self.executable.inputs
        moving = frozenset(i.buffer for i in items if moves(self.executable, i, given[i.buffer].shape, steps))
        binding = self._bind([a.shape[1:] if k in moving else a.shape for k, a in given.items()])
        self._check_ranges(binding, given, steps)
        whole = self._room(binding, (steps,), on_device)
        for buffer in given.keys() - moving:
            self._feed(binding.places[buffer], 0, given[buffer], buffer, binding.plan)
        done = 0
        while done < steps:
            count = min(binding.chunk, _power(steps - done)) if binding.warm else 1
            try:
                recording = self._recording(binding, count, moving.union(numbered) if count > 1 else frozenset())
            except DeviceMemoryError:
                if count == 1:
                    raise
                binding.chunk = 1  # there is no room for what many steps read and write
                continue
            for buffer in moving:
                place, stride = recording.fed.get(buffer, (binding.places[buffer], 0))
                self._feed(place, stride, given[buffer][done : done + count], buffer, binding.plan)
            for buffer, values in numbered.items():
                if buffer in recording.fed:
                    self._feed(*recording.fed[buffer], values[done : done + count], buffer, binding.plan)
                self._numbers_here[buffer][...] = values[done + count - 1]
            self._do(binding, recording)
            self._collect(binding, recording, {name: array[done : done + count] for name, array in whole.items()})
            done += count
        return whole

    def _room(self, binding: Binding, leading: Shape, on_device: bool) -> dict[str, Any]:
        """An array for each output, with these axes before its own."""
        found: dict[str, Any] = {}
        for item in self.executable.outputs:
            shape = (*leading, *binding.plan.shapes[item.buffer])
            dtype = self._dtypes[item.buffer]
            found[item.name] = DeviceArray.empty(self.device, shape, dtype) if on_device else np.empty(shape, dtype)
        return found

    def _check_ranges(self, binding: Binding, given: Mapping[int, Given], steps: int | None) -> None:
        """Raises ChainruleError where an index would lead out of what it indexes."""
        for item in self._checked:
            held = given[item.buffer]
            array = held.numpy() if isinstance(held, DeviceArray) else held
            bound = evaluate(item.bound or (), binding.plan.sizes)
            unsigned = array.astype(np.int64, copy=False).view(np.uint64)  # what is negative is large
            if array.size and unsigned.max() >= bound:
                raise out_of_range(item, array, int((unsigned >= bound).argmax()), binding.plan, steps)

    def _feed_all(self, binding: Binding, recording: Recording, given: Mapping[int, Given]) -> None:
        """Put the inputs of one step where the kernels, or the graph's own copies, read them."""
        for buffer, array in given.items():
            pinned = recording.inputs.get(buffer)
            if pinned is None:
                self._feed(binding.places[buffer], 0, array, buffer, binding.plan)
            else:
                pinned[...] = array

    def _feed(self, place: int, stride: int, array: Given, buffer: int, bound: Plan) -> None:
        """Put an input, or the slices of one, `stride` bytes from each other, where the kernels read it."""
        count, dtype = bound.bytes[buffer], self._dtypes[buffer]
        if count == 0:
            return
        if isinstance(array, DeviceArray):
            together = stride in (0, count)
            for at in range(0, array.nbytes, array.nbytes if together else count):
                self.device.copy(place + at // count * stride, array.address + at, array.nbytes if together else count)
            return
        rows = np.ascontiguousarray(array, dtype)
        if stride not in (0, count):
            spread = np.zeros((array.shape[0], stride), np.uint8)
            spread[:, :count] = rows.reshape(-1).view(np.uint8).reshape(-1, count)
            rows = spread
        self.device.write(place, rows)

    def _do(self, binding: Binding, recording: Recording) -> None:
        """The steps of `recording`, enqueued."""
        hosted = recording.host is not None
        if hosted:
            for buffer, number in self._numbers_here.items():
                recording.inputs[buffer][...] = number
        else:
            self._tell_numbers()
        self._busy = True
        if recording.replay is not None:
            recording.replay()
        elif not binding.warm:
            self._enqueue(binding, recording)
            binding.warm = True
        else:
            recording.replay = self.device.capture(lambda: self._enqueue(binding, recording))
            recording.replay()
        if self.executable.training:
            self.store.clock[1] += recording.count
            if self.executable.clock is not None and not hosted:  # a kernel of its own has counted on the device
                self._known = (*self._known[:-1], self._known[-1] + recording.count)

    def _tell_numbers(self) -> None:
        """Let the device have the learning rates and the clock as they are now."""
        now = tuple(value for number in self._numbers_here.values() for value in number.reshape(-1).tolist())
        if now == self._known:
            return
        block = np.zeros(self._numbers.count, np.uint8)
        for k, number in enumerate(self._numbers_here.values()):
            block[k * ALIGNMENT :][: number.nbytes] = number.reshape(-1).view(np.uint8)
        self.device.write(self._numbers.address, block)
        self._known = now

    def _enqueue(self, binding: Binding, recording: Recording) -> None:
        """Every launch of every step, or the library's product for it, and copies of results that no launch wrote."""
        device, host, results = self.device, recording.host, recording.results
        if host is not None and len(host) > results:
            device.send(recording.block.address + results, host[results:])
        for step in range(recording.count):
            places = self._places(binding, recording, step)
            for launch, table in zip(binding.launches, recording.tables.places(step), strict=True):
                self._launch(launch, table, binding, places)
            for buffer, (place, stride) in recording.kept.items():
                target, count = place + step * stride, binding.plan.bytes[buffer]
                if places[buffer] != target and count:
                    device.copy(target, places[buffer], count)
        if host is not None and results:
            device.fetch(host[:results], recording.block.address)

    def _launch(self, launch: Launch, table: Sequence[int], binding: Binding, places: Sequence[int]) -> None:
        """Let the library multiply, where that is all that the launch does, else the kernel run. table: where a launch
        of several sets finds them."""
        sizes, element = binding.plan.sizes, self.executable.element
        extent, function = evaluate(launch.extent, sizes), self._functions[launch.kernel]
        if extent == 0:
            return
        if launch.sets:
            self.device.launch(function, extent, launch.threads, [*table, binding.scratch])
            return
        held = [places[buffer] for buffer in launch.buffers]
        itemsize = ELEMENTS[element].itemsize
        product = launch.multiply and product_of(launch.multiply, element, itemsize, held, sizes)
        if product and self.device.multiply(product):
            return
        words = [*held, *(evaluate(size, sizes) for size in launch.sizes), binding.scratch]
        self.device.launch(function, extent, launch.threads, words)

    def _places(self, binding: Binding, recording: Recording, step: int) -> list[int]:
        """Where the buffers lie in this step of `recording`."""
        places = list(binding.places)
        for buffer, (place, stride) in recording.fed.items():
            places[buffer] = place + step * stride
        for buffer, (place, stride) in recording.kept.items():
            if self.executable.buffers[buffer].space == "arena":
                places[buffer] = place + step * stride
        return places

    def _collect(self, binding: Binding, recording: Recording, targets: Mapping[str, Any]) -> dict[str, Any]:
        """The results of the steps of `recording`: in `targets`, a slice a step, or where there is none, as copies."""
        block, here = recording.block, None
        found: dict[str, Any] = {}
        for item in self.executable.outputs:
            place, stride = recording.kept[item.buffer]
            target, count = targets.get(item.name), binding.plan.bytes[item.buffer]
            if isinstance(target, DeviceArray):
                for step in range(recording.count if count else 0):
                    self.device.copy(target.address + step * count, place + step * stride, count)
                found[item.name] = target
                continue
            if here is None:
                here = self._here(recording)
            at, dtype, shape = place - block.address, self._dtypes[item.buffer], binding.plan.shapes[item.buffer]
            if target is None:
                array = here[at : at + count].view(dtype)
                found[item.name] = array.reshape(shape) if shape else array[0]
            else:
                rows = here[at : at + recording.count * stride].reshape(recording.count, stride)[:, :count]
                target[...] = np.ascontiguousarray(rows).view(dtype).reshape(target.shape)
                found[item.name] = target
        if here is None or any(isinstance(target, DeviceArray) for target in targets.values()):
            self.device.wait()
        self._busy = False
        return found

    def _here(self, recording: Recording) -> NDArray[np.uint8]:
        """A copy of all results on the host."""
        if recording.host is not None:
            self.device.wait()
            return recording.host[: recording.results].copy()
        found = np.empty(recording.results, np.uint8)
        self.device.read(recording.block.address, found)
        return found

    def _bind(self, shapes: Sequence[Shape]) -> Binding:
        """The binding for inputs of these shapes, in their order: found again, or made."""
        known = tuple(shapes)
        binding = self._bindings.get(known)
        if binding is None:
            named = dict(zip(self._names, known, strict=True))
            binding = self._new_binding(plan(self.executable, bind(self.executable, named), ALIGNMENT))
            self._bindings[known] = binding
            if len(self._bindings) > BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(known)
        return binding

    def _new_binding(self, bound: Plan) -> Binding:
        executable, sizes = self.executable, bound.sizes
        launches = launches_at(executable, sizes)
        scratch = max((evaluate(x.extent, sizes) * evaluate(x.scratch, sizes) for x in launches), default=0)
        needed = bound.arena + scratch
        if self._arena is None or needed > self._arena.count:  # all bindings share one: with it go those before
            self._bindings.clear()
            self._arena = self._last = None
            told = ", ".join(f"{dim.name} = {sizes[dim.name]}" for dim in executable.dims if dim.numerator is None)
            what = f"{executable.name} with {told}" if told else executable.name
            self._arena = self._block(needed, f"a step of {what} needs {needed:,} bytes beside its parameters")
        start = self._arena.address
        places = [start + (offset or 0) for offset in bound.offsets]
        for buffer, place in self._lasting.items():
            places[buffer] = place
        staged = [*(item.buffer for item in executable.inputs), *(item.buffer for item in executable.outputs)]
        step = sum(padded(bound.bytes[buffer]) for buffer in staged)
        chunk = _power(max(min(CHUNK, NODES // max(len(launches), 1), STAGED // max(step, 1)), 1))
        return Binding(bound, launches, self._arena, places, start + bound.arena if scratch else 0, chunk)

    def _recording_of_one(self, binding: Binding, given: Mapping[int, Given]) -> Recording:
        """That of one step, which copies by itself what comes from the host and what it gives, if that is little."""
        here = frozenset(buffer for buffer, array in given.items() if not isinstance(array, DeviceArray))
        outputs = (item.buffer for item in self.executable.outputs)
        if sum(padded(binding.plan.bytes[buffer]) for buffer in (*here, *outputs)) > SMALL:
            return self._recording(binding, 1, frozenset())
        return self._recording(binding, 1, here.union(self._numbers_here), hosted=True)

    def _recording(self, binding: Binding, count: int, moving: frozenset[int], hosted: bool = False) -> Recording:
        """The recording of so many steps that move on along these inputs: found again, or with memory made for it."""
        known = binding.recordings.get((count, moving, hosted))
        if known is not None:
            return known
        plan = binding.plan
        outputs = dict.fromkeys(item.buffer for item in self.executable.outputs)
        kept, results = laid(outputs, plan.bytes, count, 0)
        fed, total = laid(sorted(moving), plan.bytes, count, results)
        block = self._block(total, f"inputs and results of {count} steps need {total:,} bytes")
        made = Recording(count, block, placed(block.address, fed), placed(block.address, kept), results)
        places = [self._places(binding, made, step) for step in range(count)]
        made.tables = Tables.of(self.device, binding.launches, places, plan.sizes)
        if hosted:
            made.host = host = self.device.pinned(total)
            made.inputs = {
                k: host[at : at + plan.bytes[k]].view(self._dtypes[k]).reshape(plan.shapes[k])
                for k, (at, _) in fed.items()
            }
        binding.recordings[count, moving, hosted] = made
        return made

    def _fixed(self) -> None:
        """Places on the device of what has one size for good: constants, run-time numbers, the clock."""
        executable, store = self.executable, self.store
        self._numbers_here = {item.buffer: store.array("scalar", item.name) for item in executable.scalars}
        if executable.clock is not None:
            self._numbers_here[executable.clock] = store.clock  # the last: `_do` counts there
        self._numbers = Block(self.device, len(self._numbers_here) * ALIGNMENT)
        self._lasting |= {k: self._numbers.address + n * ALIGNMENT for n, k in enumerate(self._numbers_here)}
        self._constants = []
        for buffer, array in constants(executable):
            block = self._block(array.nbytes, f"a constant of {executable.name}")
            if array.nbytes:
                self.device.write(block.address, array)
            self._constants.append(block)
            self._lasting[buffer] = block.address

    def _block(self, count: int, needs: str) -> Block:
        try:
            return Block(self.device, count)
        except DeviceMemoryError as error:
            raise error.during(needs) from None


def _power(count: int) -> int:
    """The largest power of two that is not above `count`: few graphs then do for every number of steps."""
    return 1 << (count.bit_length() - 1)
