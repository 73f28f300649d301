"""Large inputs are read where they lie and large results written where they stay, and nobody notices."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from chainrule.errors import ChainruleError
from chainrule.runtime import results
from chainrule.runtime.buffers import LENT, address
from chainrule.runtime.results import ALONE, Lent
from chainrule.runtime.step import IN_PLACE, Runner
from chainrule.runtime.store import Store
from chainrule.runtime.tape import Uses
from tests.runtime.programs import chain, regression, walker
from tests.runtime.test_step import Foreign, OnCpu, reference

runner = OnCpu()

ROWS = max(LENT, IN_PLACE) // 4 + 3
X, Y = np.random.default_rng(0).normal(size=(2, ROWS, 3)).astype(np.float32)


def moved(a: np.ndarray, by: int) -> np.ndarray:
    """`a` at an address that is `by` bytes beyond a multiple of 64."""
    block = np.zeros(a.nbytes + 128, np.uint8)
    start = -address(block) % 64 + by
    found = block[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    found[...] = a
    return found


FORMS = {
    "as it is": lambda a: a,
    "on a line": lambda a: moved(a, 0),
    "between lines": lambda a: moved(a, 4),
    "between elements": lambda a: moved(a, 2),
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.float32).reshape(a.shape),
    "with gaps": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "float64": lambda a: a.astype(float),
    "another's": Foreign,
    "list": lambda a: a.tolist(),
}


def test_any_form_of_a_large_input_after_any_other_gives_the_same():
    one, expected = runner(Store(1), regression), reference(np.zeros(3, np.float32), X, Y)[0]
    for before in ("as it is", "between elements", "list"):
        for form, of in FORMS.items():
            one.run({"x": -X, "y": FORMS[before](Y)})
            assert np.allclose(one.run({"x": of(X), "y": of(Y)})["s"], expected, atol=1e-6), (before, form)


def test_an_input_may_change_after_its_step_and_the_next_step_sees_it():
    one, x = runner(Store(1), regression), X.copy()
    first = one.run({"x": x, "y": Y})["s"]
    kept = first.copy()
    x += 1
    assert np.array_equal(first, kept)
    assert np.allclose(one.run({"x": x, "y": Y})["s"], first + 3, atol=1e-5)


def test_several_steps_after_one_read_their_own_slices():
    one, other = runner(Store(1), regression), runner(Store(1), regression)
    batches = np.stack([X, 2 * X, -X])
    one.run({"x": Y, "y": X})
    other.run({"x": Y, "y": X})
    found = one.run({"x": batches, "y": Y}, 3)["s"]
    assert np.array_equal(found, np.stack([other.run({"x": x, "y": Y})["s"] for x in batches]))
    assert np.array_equal(one.run({"x": X, "y": Y})["s"], other.run({"x": X, "y": Y})["s"])


@pytest.mark.skipif(ALONE is None, reason="Python does not count who holds an array")
def test_results_that_are_held_stay_and_the_memory_of_others_is_used_again():
    one = runner(Store(1), regression)
    held = [one.run({"x": k * X, "y": Y})["s"] for k in range(6)]
    for k, s in enumerate(held):
        assert np.allclose(s, (k * X - Y).sum(1), atol=1e-4)
        assert address(s) % 64 == 0 and s.flags.writeable
    part, whole = held[5][:2], memoryview(held[4])
    del held, s
    was, bytes_before = part.copy(), bytes(whole)
    places = {address(one.run({"x": X, "y": X})["s"]) for _ in range(9)}
    assert len(places) == 1  # nobody held one of these
    assert np.array_equal(part, was) and bytes(whole) == bytes_before


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's counts")
def test_the_law_catches_memory_that_is_given_twice(monkeypatch):
    one = runner(Store(1), regression)
    monkeypatch.setattr(results, "_holders", lambda block: ALONE)
    first = one.run({"x": X, "y": Y})["s"]
    assert address(one.run({"x": 2 * X, "y": Y})["s"]) == address(first)


def test_where_holders_cannot_be_counted_every_result_has_memory_of_its_own(monkeypatch):
    monkeypatch.setattr(results, "ALONE", None)
    table = np.zeros(4, np.int64)
    lent = Lent("s", (5,), np.dtype(np.float32))
    lent.bind(Uses(table, (1, 3)))
    first, second = lent.next(), lent.next()
    assert address(first) != address(second) == table[1] == table[3] and not table[0] and not table[2]


@pytest.mark.parametrize("form", ["as it is", "on a line", "between elements", "with gaps"])
def test_results_go_to_the_arrays_that_are_given(form):
    one, two = runner(Store(1), regression), np.zeros((ROWS, 2), np.float32)
    out = two[:, 0] if form == "with gaps" else FORMS[form](two[:, 0].copy())
    held = one.run({"x": X, "y": Y})["s"]
    expected, kept = (2 * X - Y).sum(1), held.copy()
    found = one.run({"x": 2 * X, "y": Y}, out={"s": out})
    assert found["s"] is out and np.allclose(out, expected, atol=1e-4) and np.array_equal(held, kept)
    again = one.run({"x": -X, "y": Y})["s"]
    assert np.allclose(out, expected, atol=1e-4) and np.allclose(again, (-X - Y).sum(1), atol=1e-4)


def test_a_result_may_go_over_an_input():
    one, x = runner(Store(1), regression), X.copy()
    over = x.reshape(-1)[:ROWS]
    one.run({"x": x, "y": Y}, out={"s": over})
    assert np.allclose(over, (X - Y).sum(1), atol=1e-4)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ({"t": np.zeros(ROWS, np.float32)}, "no output 't'"),
        ({"s": np.zeros(ROWS)}, "float64"),
        ({"s": np.zeros(ROWS + 1, np.float32)}, "the result is float32"),
        ({"s": [0.0] * ROWS}, "is list"),
        ({"s": np.broadcast_to(np.float32(0), ROWS)}, "cannot be written"),
    ],
)
def test_arrays_that_cannot_take_a_result_are_named_with_a_way_out(out, said):
    one = runner(Store(1), regression)
    with pytest.raises(ChainruleError, match=said) as caught:
        one.run({"x": X, "y": Y}, out=out)
    assert "Way out" in str(caught.value) and one.store.step == 0


def test_a_result_may_be_the_next_input():
    one = runner(Store(1), regression)
    x = X
    for _ in range(4):
        s = one.run({"x": x, "y": Y})["s"]
        expected = (x - Y).sum(1)
        assert np.allclose(s, expected, rtol=1e-3, atol=1e-3)
        x = np.stack([s, s, s], 1)


def test_threads_meet_where_a_result_is_read_again_wherever_it_lies():
    one = Runner(*chain(6, ROWS, cost=1e6), Store(1), walker(), threads=2)
    x = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    held = []
    for k in range(1, 5):
        expected, other = 1.5 * k * x, None
        for _ in range(6):
            expected, other = 0.5 * expected + k * x, expected
        found = one.run({"x": k * x})
        held.append(found["b"])
        assert np.allclose(found["a"], expected, rtol=1e-5) and np.allclose(found["b"], other, rtol=1e-5)
    assert np.allclose(held[3], 4 * held[0], rtol=1e-5)
