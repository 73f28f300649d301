"""The interpreter refuses what a GPU's checkers find: each planted fault is named, with its thread and its place."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.cuda.device import Interpreter
from tests.cuda.ptx import PTXError
from tests.cuda.races import LAST_LAUNCH
from tests.cuda.running import compiled, handwritten, launch, numba_cuda
from tests.cuda.test_ptx import column_sums

cuda = numba_cuda()
X = np.zeros(64, np.float32)


def run(body: str, threads: int = 64, grid: int = 1, module: str = "", **options) -> list[np.ndarray]:
    setup = "ld.param.u64 %d1, [p0]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mul.wide.u32 %d2, %r1, 4;"
    setup += "add.s64 %d3, %d1, %d2; mov.f32 %f1, 0f3F800000;"
    return launch(handwritten(setup + body, 1, module=module), grid, threads, X, **options)


def shared(count: int, name: str = "s") -> str:
    return f".visible .shared .align 4 .b8 {name}[{count}];"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("st.global.f32 [%d3+2], %f1; ret;", "not a multiple of 4"),
        ("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d3]; ret;", "not a multiple of 16"),
        ("st.global.f32 [%d3+4], %f1; ret;", "is byte 256 of global memory of 256 bytes"),
        ("ld.global.f32 %f1, [%d3+-4]; ret;", "lies before all global memory"),
        ("ld.f32 %f1, [%d2]; ret;", "points into no memory"),
    ],
)
def test_a_bad_address_is_an_error(body, problem):
    with pytest.raises(PTXError, match=problem):
        run(body)


def test_the_error_names_kernel_instruction_and_thread():
    with pytest.raises(PTXError, match=r"kernel: address .*\n  at st\.global\.f32.*\n  in thread 60 of CTA 1"):
        run("mul.wide.u32 %d4, %r2, 16; add.s64 %d3, %d3, %d4; st.global.f32 [%d3], %f1; ret;", grid=2, races=False)


def test_memory_that_was_freed_is_not_used():
    device = Interpreter(1 << 24)
    gone = device.allocate(256)
    device.free(gone)
    with pytest.raises(PTXError, match="was freed"):
        device.write(gone, X)


def test_shared_memory_has_bounds():
    body = "mov.u64 %d4, s; add.s64 %d4, %d4, %d2; st.shared.f32 [%d4], %f1; ret;"
    run(body, module=shared(256))
    with pytest.raises(PTXError, match="byte 128 of shared memory of 128 bytes"):
        run(body, module=shared(128))


def test_a_barrier_that_some_threads_skip_is_divergent():
    with pytest.raises(PTXError, match="divergent barrier: 8 of 64 threads wait here; of the others 56 have exited"):
        run("setp.gt.u32 %p1, %r1, 7; @%p1 bra L; bar.sync 0; L: ret;")


def test_threads_at_two_barriers_do_not_meet():
    with pytest.raises(PTXError, match="8 of 64 threads wait here; of the others 0 have exited and 56 wait at another"):
        run("setp.gt.u32 %p1, %r1, 7; @%p1 bra L; bar.sync 0; ret; L: bar.sync 0; ret;")


def test_ctas_may_pass_different_numbers_of_barriers():
    run("setp.eq.u32 %p1, %r2, 1; @%p1 bra L; bar.sync 0; bar.sync 0; L: bar.sync 0; ret;", grid=3)


SHUFFLE = "shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1;"


def test_a_shuffle_needs_the_lanes_that_its_mask_names():
    with pytest.raises(PTXError, match="names lane 31, which is not at this instruction"):
        run(f"setp.gt.u32 %p1, %r1, 7; @%p1 bra L; {SHUFFLE} L: ret;")
    with pytest.raises(PTXError, match="names lane 31"):
        run(f"{SHUFFLE} ret;", threads=40)


def test_a_shuffle_waits_for_lanes_that_are_on_their_way():
    # The second half of the warp comes from a block that stands after the shuffle in the text.
    body = f"setp.gt.u32 %p1, %r1, 15; @%p1 bra L; M: {SHUFFLE} cvt.rn.f32.u32 %f1, %r3;"
    found = run(body + "st.global.f32 [%d3], %f1; ret; L: mov.u32 %r5, 1; bra M;", threads=32)[0]
    np.testing.assert_array_equal(found[:32], np.arange(32) ^ 1)


def test_a_shuffle_from_a_lane_outside_its_mask_is_an_error():
    body = "setp.gt.u32 %p1, %r1, 7; @%p1 bra L; shfl.sync.idx.b32 %r3, %r1, 9, 31, 255; L: ret;"
    with pytest.raises(PTXError, match="asks lane 9 of its warp"):
        run(body)


def neighbour(x):
    part = cuda.shared.array(64, np.float32)
    t = cuda.threadIdx.x
    part[t] = x[t]
    x[t] = part[63 - t]


def neighbour_after_a_barrier(x):
    part = cuda.shared.array(64, np.float32)
    t = cuda.threadIdx.x
    part[t] = x[t]
    cuda.syncthreads()
    x[t] = part[63 - t]


def test_a_missing_barrier_is_a_race():
    launch(compiled(neighbour_after_a_barrier, "float32*"), 1, 64, X)
    with pytest.raises(PTXError, match=r"a race: it reads shared memory at .*\n  at ld\.shared"):
        launch(compiled(neighbour, "float32*"), 1, 64, X)
    launch(compiled(neighbour, "float32*"), 1, 64, X, races=False)


def test_the_message_names_both_threads():
    with pytest.raises(PTXError, match=r"which thread 63 of CTA 0 uses too(.|\n)*in thread 0 of CTA 0"):
        launch(compiled(neighbour, "float32*"), 1, 64, X)


def test_without_any_one_of_its_barriers_a_reduction_races():
    ptx = compiled(column_sums, "float32*", "float32*", "int64")
    barriers = [found.span() for found in re.finditer(r"bar\.sync\s+0;", ptx)]
    arguments = (np.ones(300, np.float32), np.zeros(1, np.float32), 300)
    assert launch(ptx, 1, 256, *arguments)[1] == 300
    for start, end in barriers:
        with pytest.raises(PTXError, match="a race"):
            launch(ptx[:start] + ptx[end:], 1, 256, *arguments)


STORE = "st.global.f32 [%d3], %f1;"


@pytest.mark.parametrize(
    ("body", "racing"),
    [
        (STORE, False),
        (f"{STORE} ld.global.f32 %f2, [%d3];", False),
        (f"ld.global.f32 %f2, [%d1]; {STORE}", True),  # all read what the first writes
        (f"ld.global.f32 %f2, [%d1]; bar.sync 0; {STORE}", False),
        (f"{STORE} ld.global.f32 %f2, [%d1];", True),
        (f"{STORE} bar.sync 0; ld.global.f32 %f2, [%d1];", False),
        (
            "xor.b32 %r3, %r1, 1; mul.wide.u32 %d4, %r3, 4; add.s64 %d4, %d4, %d1; ld.global.f32 %f2, [%d4];" + STORE,
            True,
        ),
        (
            "xor.b32 %r3, %r1, 1; mul.wide.u32 %d4, %r3, 4; add.s64 %d4, %d4, %d1; ld.global.f32 %f2, [%d4];"
            "bar.warp.sync -1;" + STORE,
            False,
        ),
        (
            "xor.b32 %r3, %r1, 32; mul.wide.u32 %d4, %r3, 4; add.s64 %d4, %d4, %d1; ld.global.f32 %f2, [%d4];"
            "bar.warp.sync -1;" + STORE,
            True,  # the other warp is not at this warp's barrier
        ),
        ("st.global.f32 [%d1], %f1;", True),  # two warps write one place
        ("cvt.rn.f32.u32 %f2, %r1; st.global.f32 [%d1], %f2;", True),
        ("atom.global.add.f32 %f2, [%d1], %f1;", False),
        ("atom.global.add.f32 %f2, [%d1], %f1; ld.global.f32 %f3, [%d1];", True),
        ("red.global.add.f32 [%d1], %f1; bar.sync 0; ld.global.f32 %f3, [%d1];", False),
    ],
)
def test_unordered_accesses_of_one_cta_are_a_race(body, racing):
    if racing:
        with pytest.raises(PTXError, match="a race"):
            run(body + "ret;")
    else:
        run(body + "ret;")


@pytest.mark.parametrize(
    ("body", "racing"),
    [
        ("ld.global.f32 %f2, [%d3];", False),
        (STORE, True),
        ("setp.eq.u32 %p1, %r2, 0; @%p1 st.global.f32 [%d3], %f1;", False),
        ("setp.eq.u32 %p1, %r2, 0; @%p1 st.global.f32 [%d3], %f1; bar.sync 0; ld.global.f32 %f2, [%d3];", True),
        ("ld.global.f32 %f2, [%d1]; bar.sync 0; setp.eq.u32 %p1, %r2, 0; @%p1 st.global.f32 [%d3], %f1;", True),
        ("atom.global.add.f32 %f2, [%d3], %f1;", False),
    ],
)
@pytest.mark.parametrize("grid", [2, 700])
def test_nothing_orders_two_ctas(body, racing, grid):
    if racing:
        with pytest.raises(PTXError, match="a race"):
            run(body + "ret;", grid=grid)
    else:
        run(body + "ret;", grid=grid)


@pytest.mark.parametrize("place", ["%d1", "%d3"])
def test_what_is_read_as_constant_is_not_written(place):
    for body in (
        f"ld.global.nc.f32 %f2, [{place}]; bar.sync 0; {STORE}",
        f"{STORE} bar.sync 0; ld.global.nc.f32 %f2, [{place}];",
    ):
        with pytest.raises(PTXError, match="reads as constant"):
            run(body + "ret;")


def test_a_kernel_runs_with_the_threads_that_it_was_compiled_for():
    text = handwritten("ret;", 1).replace("(.param .u64 p0)\n", "(.param .u64 p0)\n.reqntid 64, 1, 1\n")
    launch(text, 1, 64, X)
    with pytest.raises(PTXError, match="compiled for CTAs of 64 threads, not 32"):
        launch(text, 1, 32, X)


def test_launches_follow_each_other():
    device = Interpreter(1 << 24)
    ptx = handwritten("ld.param.u64 %d1, [p0]; mov.f32 %f1, 0f3F800000; st.global.f32 [%d1], %f1; ret;", 1)
    kernel, place = device.load(b"", ptx.encode(), "kernel"), device.allocate(4)
    for number in (0, 1, LAST_LAUNCH - 1, LAST_LAUNCH):
        device.machine.launches = number
        device.launch(kernel, 1, 1, [place])


def test_an_unknown_instruction_is_named():
    with pytest.raises(PTXError, match=r"does not know: wgmma\.fence\.sync"):
        run("wgmma.fence.sync.aligned; ret;")
