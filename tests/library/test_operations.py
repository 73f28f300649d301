"""Every operation of the library's shapes, convolutions, pooling, normalisation, attention and graphs: one table.

Values and gradients are PyTorch's, in float64 to 1e-8 of the greatest element, with sizes and attributes drawn; second
derivatives too; what is derived costs a constant times what it is derived from.
"""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from chainrule.lang import library
from tests.library import rows_images, rows_layers, rows_shapes
from tests.library.oracle import Derived, Seeded, check, check_twice, work

ROWS = {**rows_shapes.ROWS, **rows_images.ROWS, **rows_layers.ROWS}


@pytest.mark.parametrize("name", sorted(ROWS))
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_pytorch(name, data, seed):
    check(ROWS[name](data.draw), seed)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_second_derivatives_are_those_of_pytorch(name):
    case = ROWS[name](Seeded(2))
    if case.twice:
        check_twice(case, 0)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_gradient_costs_a_constant_times_its_operation(name):
    """Sizes of 40: a sum over an image that the equations determine, and that is left, would cost 40 times as much.

    Of a stride s, s of s² places of a gradient meet their condition: the scheduler's phases leave the others out.
    """
    case = ROWS[name](Seeded(1))
    sizes = {d: 9 if "learned" in name and d == "t" else 40 for d in case.sizes}
    d = Derived(case)
    assert work(d.graph, sizes) <= 9 * max(work(d.forward, sizes), 400)


def test_a_pass_that_leaves_a_sum_over_the_image_is_noticed(monkeypatch):
    eliminate = sys.modules["chainrule.optimize.eliminate"]  # the package gives its function that name
    monkeypatch.setattr(eliminate, "_solved", lambda a, b, atom: None)
    eliminate._eliminated.cache_clear()
    try:
        with pytest.raises(AssertionError):
            test_a_gradient_costs_a_constant_times_its_operation("conv_transpose2d")
    finally:
        eliminate._eliminated.cache_clear()


FILES = ("attention", "convolutions", "graphs", "layers", "normalisation", "pooling", "shapes")
ELSEWHERE = {"linear", "embedding"}  # in tests/derive/test_library_gradients.py


def test_every_definition_of_these_files_has_a_row():
    files = {f"library/{name}.graph" for name in FILES}
    names = {name for name, (file, _, _) in library().places.items() if file in files}
    called = {word for name in ROWS for word in re.findall(r"\w+", name)}
    inside = {"convolve1d", "convolve3d", "spread1d", "spread2d", "spread3d"}  # called by the layers of that name
    assert names <= called | ELSEWHERE | inside
