"""Launches over a table of arguments do what launches one by one do, for any sets; and what goes wrong is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule import compiler, views
from chainrule import executable as ex
from chainrule.codegen.cuda import numba_cuda
from chainrule.codegen.cuda.batches import common
from chainrule.codegen.cuda.emit import launched, printed
from chainrule.codegen.cuda.objects import Job, compile_kernel, symbol_of
from chainrule.codegen.cuda.sets import of_each
from chainrule.codegen.cuda.toolkit import figures
from chainrule.executable import ONE, Launch
from chainrule.ir.graph import Graph
from chainrule.ir.program import Program
from chainrule.options import Options
from chainrule.reference import evaluate, updated
from chainrule.runtime.cuda.tables import tables_of
from chainrule.source import Source
from tests.codegen.cuda import programs
from tests.codegen.cuda.kernels import MAP, ROWS, TOTALS, WIDE
from tests.codegen.cuda.programs import ARCH, run_on_gpu
from tests.codegen.cuda.running import run
from tests.codegen.running import drawn
from tests.codegen.test_cpu_laws import assert_agrees
from tests.cuda import running
from tests.cuda.device import Interpreter
from tests.cuda.ptx import PTXError
from tests.cuda.running import entry

MODEL = """model shapes():
    dim batch
    input x[batch, 40]
    h = tanh(linear(x, 130))
    z = layer_norm(h)
    u = tanh(linear(z, 40))
    v = dropout(tanh(linear(u, 40)), 0.25)
    loss = mean[n, k] (v[n, k] + u[n, k])^2
"""
OPTIMIZERS = [
    ("sgd", {}),
    ("momentum", {"decay": 0.1}),
    ("nesterov", {"clip": 0.5}),
    ("adam", {}),
    ("adamw", {"clip": 0.5}),
]


@cache
def step_of(optimizer: str, **asked: Any) -> tuple[Graph, Program]:
    arguments = {name: value for name, value in asked.items() if name not in ("memory", "batch")}
    options = Options(
        "train",
        optimizer=optimizer,
        arguments=tuple(arguments.items()),
        target=f"cuda:{ARCH}",
        sizes=(("batch", asked.get("batch", 512)),),
        memory=asked.get("memory"),
    )
    compiled = compiler.derive(Source(MODEL, "shapes.graph"), options)
    return compiled.graph, compiler.program(compiled, options)


def one(count: int) -> tuple[tuple[float, tuple[str, ...]], ...]:
    return ((float(count), ()),)


def at_once(job: Job, sets: Sequence[tuple[int, Sequence[Any]]]) -> list[list[np.ndarray]]:
    """What the arrays of each set hold after one launch of all; a set is its blocks, and its arguments."""
    device, compiled = Interpreter(1 << 28), compile_kernel(of_each(job, "each"), ARCH)
    places, numbers, held = [], [], []
    for _, arguments in sets:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        addresses = [device.allocate(a.nbytes) for a in arrays]
        for place, array in zip(addresses, arrays, strict=True):
            device.write(place, array)
        places += addresses
        held.append(list(zip(addresses, arrays, strict=True)))
        numbers += [one(a) for a in arguments if not isinstance(a, np.ndarray)]
    launch = Launch(
        0, "all", tuple(range(len(places))), tuple(numbers), ONE, (), ONE, (), (), threads=job.threads,
        sets=tuple(one(grid) for grid, _ in sets),
    )  # fmt: skip
    tables = tables_of(launch, places, {})
    words = [device.allocate(table.nbytes) for table in tables]
    for place, table in zip(words, tables, strict=True):
        device.write(place, table)
    text = compiled.ptx.decode()
    grid = sum(grid for grid, _ in sets)
    if grid:
        device.launch(device.load(b"", compiled.ptx, entry(text)), grid, job.threads, [*words, 0])
    found = []
    for pairs in held:
        found.append([np.empty_like(array) for _, array in pairs])
        for (place, _), into in zip(pairs, found[-1], strict=True):
            device.read(place, into)
    return found


def arguments_of(job: Job, n: int, seed: int) -> tuple[int, list[Any]]:
    """Blocks and arguments of a launch over n things."""
    draws = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return draws.normal(size=(max(int(np.prod(shape)), 1),)).astype(np.float32)

    if job is MAP:
        return -(-n * 64 // 256), [some(n, 64), some(64), some(n, 64), n]
    if job is WIDE:
        return -(-n // 256), [some(4 * n), some(4 * n), 4 * n]
    if job is ROWS:
        return -(-n // 8), [some(n, 256), some(n, 256), n]
    return n, [some(n, 100), some(n), 100]


@pytest.mark.parametrize("job", [MAP, WIDE, ROWS, TOTALS], ids=["map", "wide", "rows", "totals"])
@pytest.mark.parametrize("sizes", [(5,), (1, 9, 0, 3), (0, 0), (17, 1, 1, 1, 300)])
def test_a_launch_of_several_sets_does_what_a_launch_of_each_does(job: Job, sizes: tuple[int, ...]) -> None:
    sets = [arguments_of(job, n, k) for k, n in enumerate(sizes)]
    for (grid, arguments), found in zip(sets, at_once(job, sets), strict=True):
        if grid:
            for mine, theirs in zip(found, run(job, grid, *arguments, 0), strict=True):
                np.testing.assert_array_equal(mine, theirs)


@cache
def update() -> Job:
    """The kernel of Adam, which takes arrays of any length."""
    made, written = printed(step_of("adam")[1], "float32")
    return next(s.job for k, s in zip(made.kernels, written, strict=True) if k.name.endswith("W.next"))


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2500)), min_size=1, max_size=6))
def test_arrays_of_any_lengths_are_updated_at_once(lengths: list[int]) -> None:
    job, draws = update(), np.random.default_rng(0)
    arrays = sum(hasattr(p, "element") for p in job.parameters)
    numbers = [draws.uniform(0.1, 0.9, 64).astype(np.float32) for _ in range(arrays - 4)]
    sets = []
    for n in lengths:
        tensors = [draws.uniform(0.1, 1, max(n, 1)).astype(np.float32) for _ in range(4)]
        sets.append((-(-(n // 4 + n % 4) // 256), placed(job, tensors, numbers, n)))
    for (grid, arguments), found in zip(sets, at_once(job, sets), strict=True):
        alone = run(job, grid, *arguments, 0) if grid else [a for a in arguments if isinstance(a, np.ndarray)]
        for mine, theirs in zip(found, alone, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def placed(job: Job, tensors: list[np.ndarray], numbers: list[np.ndarray], n: int) -> list[Any]:
    """The kernel's arguments: its arrays are those that it loads four elements of."""
    head = job.source[job.source.index("def ") :]
    names = head[head.index("(") + 1 : head.index(")")].split(", ")[:-2]
    left, right = iter(tensors), iter(numbers)
    found: list[Any] = []
    for name, kind in zip(names, job.parameters, strict=False):
        if kind.element == "int64":  # type: ignore[union-attr]
            found.append(np.array([0, 3]))
        else:
            found.append(next(left) if f"load4({name}, " in job.source else next(right))
    return [*found, n]


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
def test_a_step_in_batches_is_the_reference_s(optimizer: str, arguments: dict[str, float]) -> None:
    graph, made = step_of(optimizer, **arguments)
    program, found = launched(made, "float32", sizes={"batch": 512})
    updates = [batch for batch in found if batch.name.endswith(f"× {len(batch.kernels)}")]
    (last,) = (batch for batch in updates if all("next" in kernel.name for kernel in batch.kernels))
    assert len(last.kernels) == 8
    assert len(found) < len(program.kernels) - 8
    for batch in (1, 5, 70):
        values = inputs_of(graph, batch)
        got = run_on_gpu(made, {"batch": batch}, values, "float64", step=3)
        assert_agrees(got, expected(graph, values, made), "float64")


def inputs_of(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Values of everything that a step reads; means of squares are positive."""
    values = drawn(graph, {"batch": batch})
    return {name: np.abs(value) if name.endswith(".v") else value for name, value in values.items()}


def expected(graph: Graph, values: dict[str, np.ndarray], made: Program) -> dict[str, np.ndarray]:
    """What each output's and each store's buffer holds after the third step."""
    found = evaluate(graph, values, seed=0, step=3)
    return {**{buffer: found[name] for name, buffer in made.outputs}, **updated(graph, found)}


def test_equal_kernels_are_compiled_once_whatever_their_sets_are() -> None:
    _, found = launched(step_of("adamw")[1], "float32")
    distinct = {symbol_of(batch.job, ARCH) for batch in found}
    alone = {symbol_of(source.job, ARCH) for batch in found for source in batch.sources}
    assert len(distinct) <= len(alone) + sum(len(batch.kernels) > 1 for batch in found)


def test_a_budget_is_kept_to() -> None:
    """The old order keeps to it, so batches are as large as they may be."""
    program = step_of("adam")[1]
    sizes = {"batch": 512}
    free = [len(batch.kernels) for batch in launched(program, "float32", sizes=sizes)[1]]
    tight = [len(batch.kernels) for batch in launched(program, "float32", sizes=sizes, memory=1)[1]]
    assert len(tight) >= len(free)
    assert sum(tight) == sum(free)


def test_sets_that_begin_at_a_wrong_block_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, made = step_of("adam")
    values = inputs_of(graph, 5)
    want = expected(graph, values, made)

    def shifted(launch: Launch, addresses: Sequence[int], sizes: dict[str, int]) -> Any:
        owners, words = tables_of(launch, addresses, sizes)
        rows = words.reshape(len(launch.sets), -1).copy()
        rows[1:, 0] += 1
        return owners, rows.reshape(-1)

    monkeypatch.setattr(programs, "tables_of", shifted)
    with pytest.raises((AssertionError, PTXError)):
        assert_agrees(run_on_gpu(made, {"batch": 5}, values, "float64", step=3), want, "float64")


def test_blocks_that_take_a_neighbour_s_set_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, made = step_of("adam")
    values = inputs_of(graph, 5)
    want = expected(graph, values, made)

    def rolled(launch: Launch, addresses: Sequence[int], sizes: dict[str, int]) -> Any:
        owners, words = tables_of(launch, addresses, sizes)
        return np.roll(owners, 1), words

    monkeypatch.setattr(programs, "tables_of", rolled)
    with pytest.raises((AssertionError, PTXError)):
        assert_agrees(run_on_gpu(made, {"batch": 5}, values, "float64", step=3), want, "float64")


def test_names_are_what_kernels_have_in_common() -> None:
    assert common(["adam.h.W.m.next_to_h.W.next", "adam.z.b.m.next_to_z.b.next"]) == "adam"
    assert common(["h.linear.b_bar", "z.linear.b_bar"]) == "linear.b_bar"
    assert common(["x.0.a", "x.1.b"]) == "x" and common(["one", "other"]) == "one"


def test_the_executable_says_what_a_launch_does_at_a_time() -> None:
    executable, _, texts = programs.emitted(step_of("adam")[1], "float32")
    (launch,) = (launch for launch in executable.launches if launch.name == "adam × 8")
    assert len(launch.sets) == 8 and len(launch.buffers) % 8 == len(launch.sizes) % 8 == 0
    assert ex.evaluate(launch.extent, {}) == sum(ex.evaluate(count, {}) for count in launch.sets)
    names = [executable.buffers[k].name for k in launch.buffers]
    assert {"h.linear.W", "z.layer_norm.gain", "u.linear.b"} <= set(names)
    assert launch.multiply is None and "own = owners[block()]" in texts["adam × 8"]


def test_machine_code_of_a_batch_is_as_wide_as_that_of_one_and_has_no_doubles() -> None:
    _, found = launched(step_of("adamw", clip=0.5)[1], "float32")
    batch = next(batch for batch in found if batch.name == "adamw × 8")
    made = figures(compile_kernel(batch.job, ARCH).cubin)
    assert made.doubles == made.local == 0
    assert made.loads[128] == 4 and made.stores[128] == 3  # gradient, both moments, parameter


def test_numba_cuda_compiles_the_same_source_of_a_batch() -> None:
    compiled = running.numba_cuda() and numba_cuda.compile_with_numba(of_each(MAP, "each"), ARCH)
    assert b".entry" in compiled.ptx


def test_kernels_of_a_launch_have_its_note_in_the_program_s_picture() -> None:
    options = Options("train", optimizer="adam", target=f"cuda:{ARCH}", sizes=(("batch", 512),))
    _, found = launched(step_of("adam")[1], "float32", sizes={"batch": 512})
    notes = ["together" if len(batch.kernels) == 8 else "" for batch in found]
    drawn = views.picture(Source(MODEL, "shapes.graph"), options, "program", "dot", notes=notes).decode()
    assert notes.count("together") == 1 and drawn.count("together") == 8
