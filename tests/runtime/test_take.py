"""The walker takes by itself exactly those inputs that look like the call's before; the result is the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from chainrule.runtime import take
from chainrule.runtime.store import Store
from tests.runtime.programs import regression
from tests.runtime.test_step import OnCpu

runner = OnCpu()

X, Y = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


class Mine(dict):
    """Another kind of mapping."""


class Marked(np.ndarray):
    """Another kind of array."""


def wide(a: np.ndarray) -> np.ndarray:
    """`a` with gaps between its elements."""
    return np.repeat(a, 2, axis=1)[:, ::2]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's objects")
@pytest.mark.parametrize(
    ("inputs", "taken"),
    [
        ({"x": X.copy(), "y": Y.copy()}, True),
        ({"y": Y, "x": X}, True),
        (Mine(x=X, y=Y), False),
        ({"x": X, "y": wide(Y)}, False),
        ({"x": X, "y": Y.view(Marked)}, False),
        ({"x": X, "y": Y.astype(float)}, False),
        ({"x": X, "y": Y.tolist()}, False),
        ({"x": X.astype(">f4"), "y": Y}, False),
        ({"x": X[:2], "y": Y[:2]}, False),
        ({"x": X}, False),
    ],
)
def test_only_what_is_as_before_is_taken_and_all_give_the_same(inputs, taken):
    one, other = runner(Store(1), regression), runner(Store(1), regression)
    one.run({"x": X, "y": Y})
    other.run({"x": X, "y": Y})
    found = one.again(inputs)
    assert (found is not None) == taken
    if taken:
        expected = other.run({"x": X.tolist(), "y": Y.tolist()})
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_without_the_layout_that_we_know_steps_go_on_in_python(monkeypatch):
    monkeypatch.setattr(take, "is_known", lambda array: False)
    one = runner(Store(1), regression)
    one.run({"x": X, "y": Y})
    assert one.again({"x": X, "y": Y}) is None
    assert one.run({"x": X, "y": Y})["count"] == 2


@pytest.mark.parametrize("a", [X, X[::2], np.zeros(()), np.zeros((0, 3)), np.zeros((2, 3), np.int8).T])
def test_the_layout_of_arrays_is_what_the_walker_reads(a):
    assert take.is_known(a) == (sys.implementation.name == "cpython")
