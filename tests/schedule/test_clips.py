"""Strips of an index: the same numbers, of all that products pass to each other a strip at a time, masks cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.api.model import Model
from chainrule.ir.graph import Graph
from chainrule.ir.program import Leaf, Loop, Program
from chainrule.schedule import clips, schedule, tree
from chainrule.source import Source
from tests.schedule.laws import assert_law
from tests.schedule.test_masks import FULL, SEEN, graph_of, products, text

SMALL = 3000
"""Bytes of a strip's results: 8 of 16 places in the models here."""

TEXTS = {"whole": FULL, **{name: text(name) for name in SEEN}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "STRIP_BYTES", SMALL)


def within(body: tuple[Leaf, ...]) -> list[Loop]:
    found = [node for node in body if isinstance(node, Loop)]
    return [*found, *(inner for node in found for inner in within(node.body))]


def loops(program: Program) -> list[Loop]:
    return [loop for kernel in program.kernels for loop in within(kernel.body)]


def strips(program: Program) -> list[Loop]:
    return [loop for loop in loops(program) if loop.range.pretty.endswith("_strip")]


def shortened(program: Program) -> int:
    """How many loops and products end or begin with their strip."""
    symbols = {loop.range.symbol for loop in strips(program)}
    ranges = [loop.range for loop in loops(program)]
    ranges += [r for leaf in products(program) for r in (*leaf.rows, *leaf.columns, *leaf.inner)]
    return sum(bool((r.start.free_symbols | r.stop.free_symbols) & symbols) for r in ranges)


def cut(name: str, time: int = 16) -> tuple[Graph, Program]:
    graph = graph_of(TEXTS[name], time=time, wide=8)
    return graph, schedule(graph, training=True, sizes={"batch": 64})


@pytest.mark.parametrize("name", TEXTS)
def test_strips_compute_the_same(name: str) -> None:
    graph, program = cut(name)
    assert len(strips(program)) == 1
    assert (shortened(program) > 0) == (name not in ("whole", "strictly causal"))
    assert_law(graph, {"batch": 1}, program=program)


def test_what_products_pass_to_each_other_is_never_there_as_a_whole() -> None:
    kernel = cut("causal")[1].kernels[0]
    assert not any(buffer.shape[-2:] == (16, 16) for buffer in kernel.locals)
    assert sum(buffer.shape[-2:] == (8, 16) for buffer in kernel.locals) >= 4


def test_a_causal_mask_shortens_every_loop_over_keys() -> None:
    _, program = cut("causal")
    (strip,) = strips(program)
    last = 8 * strip.range.symbol + 8
    inside = within(strip.body)
    assert sum(loop.range.stop == last for loop in inside) >= 4
    assert not any(loop.range.stop == 16 for loop in inside)
    assert all(last in {r.stop for r in (*p.rows, *p.columns, *p.inner)} for p in products(program))


@settings(max_examples=5, deadline=None)
@given(
    time=st.sampled_from([8, 16, 24]),
    batch=st.integers(0, 2),
    name=st.sampled_from(sorted(TEXTS)),
    size=st.sampled_from([1000, SMALL, 6000]),
)
def test_strips_of_any_size_compute_the_same(time: int, batch: int, name: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "STRIP_BYTES", size)
        graph, program = cut(name, time)
        assert_law(graph, {"batch": batch}, program=program)


@pytest.mark.parametrize(
    ("name", "dtype"), [("whole", "float32"), ("causal", "float32"), ("causal", "float64"), ("from the end", "float64")]
)
def test_kernels_of_strips_compute_the_same(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = {key: rng.normal(size=(3, 24, 8)) for key in "qkv"}
    source = TEXTS[name]
    results = []
    for kind, most in (("strips", 4500), ("none", 1 << 30)):
        monkeypatch.setattr(tree, "STRIP_BYTES", most)
        model = Model(Source(source.replace("model m", f"model {kind}"), "test.graph"))  # another key of the cache
        results.append([model.gradients(("q", "k", "v"), dtype=dtype, threads=n, **given) for n in (1, 2)])
    for (loss, found), (wanted_loss, wanted) in zip(*results, strict=True):
        np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
        for key in "qkv":
            np.testing.assert_allclose(found[key], wanted[key], rtol=2e-5, atol=3e-7 if dtype == "float32" else 1e-12)
            np.testing.assert_array_equal(found[key], results[0][0][1][key])


def test_a_loop_cut_without_a_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = cut("whole")
    monkeypatch.setattr(clips, "_adds_nothing", lambda *given: True)
    with pytest.raises(AssertionError):
        assert_law(graph, {"batch": 1}, program=schedule(graph, training=True, sizes={"batch": 64}))


def test_reading_what_was_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = cut("causal")
    monkeypatch.setattr(clips, "_adds_nothing", lambda *given: False)
    monkeypatch.setattr(clips, "_unread", lambda *given: True)
    with pytest.raises(AssertionError):
        assert_law(graph, {"batch": 1}, program=schedule(graph, training=True, sizes={"batch": 64}))
