"""What threads do together: reductions, shared memory, wide accesses, on the interpreter, which knows each thread."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import reductions
from chainrule.codegen.cuda.objects import Job, Pointer, Size, compile_kernel
from chainrule.codegen.cuda.toolkit import figures
from tests.codegen.cuda.kernels import MAP, ROWS, TOTALS, WIDE
from tests.codegen.cuda.running import run
from tests.cuda.ptx import PTXError

RNG = np.random.default_rng(0)
ELEMENTS = ("float32", "float64", "int64")
NUMPY = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


def job(body: str, element: str, threads: int = 64, target: str | None = None) -> Job:
    """A kernel of x and y whose threads are numbered i."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    head = f"def kernel(x, y, n, scratch):\n    i = block() * {threads} + thread()\n"
    return Job(head + lines, "kernel", (Pointer(element), Pointer(target or element), Size(), Size()), threads)


def drawn(element: str, count: int) -> np.ndarray:
    return RNG.integers(-4, 5, count) if element == "int64" else RNG.normal(1, 0.1, count).astype(element)


def in_order(name: str, x: np.ndarray) -> np.ndarray:
    """Each group of the last axis by halves, as lanes whose numbers differ in the highest bit first meet."""
    step = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[name]
    while x.shape[-1] > 1:
        x = step(*np.split(x, 2, axis=-1))
    return x[..., 0]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", NUMPY)
def test_a_warp_reduces_to_every_lane_in_one_order(name: str, element: str) -> None:
    x = drawn(element, 128)
    _, y = run(job(f"y[i] = warp_{name}(x[i])", element), 2, x, np.zeros_like(x), 0, 0)
    assert np.array_equal(y, np.repeat(in_order(name, x.reshape(4, 32)), 32))
    _, y = run(job(f"y[i] = warp_{name}(x[i], 8)", element), 2, x, np.zeros_like(x), 0, 0)
    assert np.array_equal(y, np.repeat(in_order(name, x.reshape(16, 8)), 8))


@pytest.mark.parametrize("warps", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_block_reduces_to_every_thread_and_can_at_once_again(element: str, warps: int) -> None:
    x = drawn(element, 64 * warps)
    body = f"a = block_sum(x[i], {warps})\nb = block_max(x[i], {warps})\nc = block_sum(a, {warps})\ny[i] = a + b - c"
    _, y = run(job(body, element, 32 * warps), 2, x, np.zeros_like(x), 0, 0)
    rows = x.reshape(2, -1)
    total = rows.astype(np.float64).sum(1)
    want = total + rows.max(1) - total * 32 * warps
    np.testing.assert_allclose(y.reshape(2, -1), np.repeat(want[:, None], 32 * warps, 1), rtol=1e-4)
    assert len(np.unique(y.reshape(2, -1)[0])) == 1


@pytest.mark.parametrize("element", ["float32", "float64"])
def test_extremes_over_threads_hand_nan_on(element: str) -> None:
    x = drawn(element, 64)
    x[37] = np.nan
    for value in ("block_max(x[i], 2)", "block_min(x[i], 2)"):
        assert np.isnan(run(job(f"y[i] = {value}", element), 1, x, np.zeros_like(x), 0, 0)[1]).all()


@pytest.mark.parametrize("element", [*ELEMENTS, "bool"])
def test_shared_memory_is_seen_by_the_whole_block_after_it_met(element: str) -> None:
    x = RNG.integers(0, 2, 128).astype(element)
    body = f"row = shared_{element}(64)\nrow[thread()] = x[i]\nsync()\ny[i] = row[63 - thread()]"
    _, y = run(job(body, element), 2, x, np.zeros_like(x), 0, 0)
    assert np.array_equal(y, x.reshape(2, 64)[:, ::-1].ravel())


def test_shared_memory_without_a_meeting_is_a_race() -> None:
    x = drawn("float32", 64)
    body = "row = shared_float32(64)\nrow[thread()] = x[i]\ny[i] = row[63 - thread()]"
    with pytest.raises(PTXError):
        run(job(body, "float32"), 1, x, np.zeros_like(x), 0, 0)


def test_shared_memory_may_be_read_in_pieces_of_16_bytes_to_its_end() -> None:
    """As libNVVM does with neighbours: seven elements are two accesses of four."""
    x = drawn("float32", 64)
    lines = ["row = shared_float32(7)", "if thread() < 7:", "    row[thread()] = x[i]", "sync()", "y[i] = float32(0.0)"]
    lines += ["for k in range(7):", "    y[i] = y[i] + row[k] * x[i]"]
    _, y = run(job("\n".join(lines), "float32"), 1, x, np.zeros_like(x), 0, 0)
    np.testing.assert_allclose(y, x * x[:7].sum(), rtol=1e-5)


@pytest.mark.parametrize("element", [*ELEMENTS, "bool"])
@pytest.mark.parametrize("width", [2, 4])
def test_a_wide_access_is_that_of_each_element(element: str, width: int) -> None:
    x = RNG.integers(0, 2, 64 * width).astype(element)
    names = ", ".join("abcd"[:width])
    body = f"{names} = load{width}(x, i * {width})\nstore{width}(y, i * {width}, {', '.join('dcba'[-width:])})"
    _, y = run(job(body, element), 1, x, np.zeros_like(x), 0, 0)
    assert np.array_equal(y, x.reshape(-1, width)[:, ::-1].ravel())


def test_a_wide_access_at_no_multiple_of_its_width_is_refused() -> None:
    x = drawn("float32", 512)
    with pytest.raises(PTXError):
        run(job("a, b, c, d = load4(x, i + 1)\ny[i] = a", "float32"), 1, x, np.zeros_like(x), 0, 0)


@pytest.mark.parametrize("element", [*ELEMENTS, "bool"])
def test_arrays_of_a_thread_and_views_of_scratch_hold_what_was_written(element: str) -> None:
    x = RNG.integers(0, 2, 64).astype(element)
    body = f"""own = local_{element}(2)
own[0] = x[i]
own[1] = own[0]
kept = view_{element}(scratch, 64)
kept[i] = own[1]
sync()
y[i] = kept[63 - i]"""
    _, y, scratch = run(job(body, element), 1, x, np.zeros_like(x), 0, np.zeros(1024, np.uint8))
    assert np.array_equal(y, x[::-1])
    assert np.array_equal(scratch[64:].view(element)[:64], x)


def test_a_register_that_data_choose_needs_no_memory() -> None:
    body = "own = local_int64(5)\nfor k in range(5):\n    own[k] = x[i] * 10 + k\ny[i] = own[x[i + 64]]"
    x, which = RNG.integers(0, 9, 64), RNG.integers(0, 5, 64)
    assert np.array_equal(run(job(body, "int64"), 1, np.concatenate([x, which]), x, 0, 0)[1], x * 10 + which)
    assert figures(compile_kernel(job(body, "int64"), "sm_90").cubin).local == 0


def test_a_thread_knows_its_place() -> None:
    names = "((blocks() * 100 + block()) * 1000 + thread()) * 1000 + warp() * 100 + lane()"
    x = np.zeros(192, np.int64)
    _, y = run(job(f"y[i] = {names}", "int64", 96), 2, x, x, 0, 0)
    t = np.tile(np.arange(96), 2)
    assert np.array_equal(y, ((200 + np.repeat([0, 1], 96)) * 1000 + t) * 1000 + t // 32 * 100 + t % 32)


def test_the_standard_forms_compute_what_they_say() -> None:
    z, b = drawn("float32", 640), drawn("float32", 64)
    assert run(MAP, 2, z, b, np.zeros_like(z), 10, 0)[2] == pytest.approx(np.tanh(z.reshape(10, 64) + b).ravel())
    assert run(WIDE, 1, z, np.zeros_like(z), 640, 0)[1] == pytest.approx(np.exp(z) / 2)
    x = drawn("float32", 11 * 256) * 10
    e = np.exp(x.reshape(11, 256) - x.reshape(11, 256).max(1, keepdims=True))
    assert run(ROWS, 1, x, np.zeros_like(x), 11, 0)[1] == pytest.approx((e / e.sum(1, keepdims=True)).ravel())
    assert run(TOTALS, 3, x, np.zeros(3, np.float32), 900, 0)[1] == pytest.approx(x[:2700].reshape(3, 900).sum(1))


def test_a_reduction_that_leaves_out_a_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reductions.within
    monkeypatch.setattr(reductions, "within", lambda x, combine, width: whole(x, combine, max(width // 2, 1)))
    with pytest.raises(AssertionError):
        test_a_warp_reduces_to_every_lane_in_one_order("sum", "float32")


def test_a_block_that_does_not_meet_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "meeting", lambda name: lambda *_: None)
    with pytest.raises(PTXError):
        test_a_block_reduces_to_every_thread_and_can_at_once_again("float32", 8)
