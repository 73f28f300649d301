"""Shapes bind dims, and temporaries share an arena only where their lives do not meet."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.errors import ChainruleError
from chainrule.executable import FORMAT, Buffer, Dim, Executable, Input
from chainrule.runtime import buffers
from chainrule.runtime.buffers import Interval, address, aligned, bind, pack, plan, polynomial_text
from tests.runtime.programs import BATCH, ONE, fixed, regression


def program(dims, **inputs) -> Executable:
    """A program of inputs alone."""
    return Executable(
        name="shapes",
        format=FORMAT,
        target="test",
        element="float32",
        training=False,
        dims=tuple(dims),
        buffers=tuple(Buffer(name, "float32", shape, "input") for name, shape in inputs.items()),
        inputs=tuple(Input(name, k) for k, name in enumerate(inputs)),
        params=(),
        states=(),
        scalars=(),
        outputs=(),
        kernels=(),
        launches=(),
    )


TWO = program([Dim("batch", minimum=1, maximum=100)], x=(BATCH, fixed(64)), y=(BATCH,))
intervals = st.lists(
    st.builds(
        lambda size, first, length: Interval(size, first, first + length),
        st.integers(0, 3000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=24,
)


def overlapping(wanted, offsets):
    """Pairs that live at the same time and share a byte."""
    blocks = [(o, o + item.bytes, item) for o, item in zip(offsets, wanted, strict=True) if item.bytes]
    return [
        (a, b)
        for k, a in enumerate(blocks)
        for b in blocks[:k]
        if a[2].first <= b[2].last and b[2].first <= a[2].last and a[0] < b[1] and b[0] < a[1]
    ]


@given(wanted=intervals, line=st.sampled_from((64, 256)))
@settings(max_examples=80)
def test_nothing_alive_shares_memory_and_every_block_starts_on_a_line(wanted, line):
    offsets, total = pack(wanted, line)
    assert not overlapping(wanted, offsets)
    assert all(offset % line == 0 for offset in offsets)
    assert total == max(
        (o + -(-i.bytes // line) * line for o, i in zip(offsets, wanted, strict=True) if i.bytes), default=0
    )


@given(wanted=intervals)
@settings(max_examples=40)
def test_the_arena_is_no_larger_than_everything_and_no_smaller_than_the_busiest_launch(wanted):
    lines = [-(-item.bytes // 64) * 64 for item in wanted]
    busiest = max(
        (sum(n for n, i in zip(lines, wanted, strict=True) if i.first <= t <= i.last) for t in range(20)), default=0
    )
    assert busiest <= pack(wanted)[1] <= sum(lines)


def test_memory_of_the_dead_is_used_again():
    wanted = [Interval(640, k, k + 1) for k in range(50)]
    assert pack(wanted)[1] == 2 * 640


def test_the_law_catches_a_packer_that_forgets_who_is_alive(monkeypatch):
    wanted = [Interval(100, 0, 3), Interval(100, 1, 2)]
    monkeypatch.setattr(buffers, "_insert", lambda placed, count, item: count)
    assert overlapping(wanted, pack(wanted)[0])


def test_shapes_bind_dims():
    assert bind(TWO, {"x": (32, 64), "y": (32,)}) == {"batch": 32}


def test_derived_dims_and_sums_are_solved():
    dims = (
        Dim("h"),
        Dim("n"),
        Dim("rows", numerator=((1.0, ("h",)), (-1.0, ())), denominator=((2.0, ()),)),
    )
    shape = ((2.0, ("n",)), (1.0, ()))
    sizes = bind(program(dims, x=(((1.0, ("h",)),), shape), y=(((1.0, ("rows",)),),)), {"x": (9, 7), "y": (4,)})
    assert sizes == {"h": 9, "n": 3, "rows": 4}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"x": (32, 64), "y": (31,)}, ["input y", "(31,)", "(32, 64)", "batch = 32", "from input x", "Way out"]),
        ({"x": (32, 63), "y": (32,)}, ["input x", "(32, 63)", "(32, 64)", "[batch, 64]", "Way out"]),
        ({"x": (64,), "y": (32,)}, ["input x has 1 axes, 2 are declared", "[batch, 64]", "Way out"]),
        ({"x": (0, 64), "y": (0,)}, ["batch is 0", ">= 1", "<= 100", "input x", "Way out"]),
        ({"x": (101, 64), "y": (101,)}, ["batch is 101", "<= 100", "Way out"]),
    ],
)
def test_shapes_that_do_not_fit_are_named_with_a_way_out(shapes, said):
    with pytest.raises(ChainruleError) as caught:
        bind(TWO, shapes)
    for words in said:
        assert words in str(caught.value)


def test_a_dim_that_no_input_binds_is_an_error():
    with pytest.raises(ChainruleError, match="follows from no input"):
        bind(program([Dim("lost")], x=(ONE,)), {"x": (1,)})
    assert bind(program([Dim("known", 3, 3)], x=(ONE,)), {"x": (1,)}) == {"known": 3}


def test_results_live_until_the_end_of_the_step():
    executable, _ = regression()
    bound = plan(executable, {"batch": 100})
    ends = [(o, o + n) for o, n in zip(bound.offsets, bound.bytes, strict=True) if o is not None]
    results = {output.buffer for output in executable.outputs if output.name != "count"}  # it comes after g
    g = next(k for k, buffer in enumerate(executable.buffers) if buffer.name == "g")
    for k in results:
        lo, hi = bound.offsets[k], bound.offsets[k] + bound.bytes[k]
        assert not (lo < bound.offsets[g] + bound.bytes[g] and bound.offsets[g] < hi)
    assert bound.arena >= max(end for _, end in ends)


def test_blocks_start_on_cache_lines():
    for count in (1, 63, 64, 1000):
        block = aligned(count)
        assert address(block) % 64 == 0 and len(block) == count and not block.any()


def test_polynomials_read_like_mathematics():
    assert polynomial_text(((4.0, ("batch", "width")), (3.0, ()))) == "4*batch*width + 3"
    assert polynomial_text(()) == "0" and polynomial_text(ONE) == "1" and polynomial_text(BATCH) == "batch"


def test_an_executable_survives_json():
    from chainrule.executable import decode, encode, faults  # noqa: PLC0415

    executable, _ = regression()
    assert decode(encode(executable)) == executable and not faults(executable)
    assert faults(msgspec.structs.replace(executable, format=0))
    assert np.all([faults(msgspec.structs.replace(executable, dims=()))])
