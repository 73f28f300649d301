"""Convolutions by fewer multiplications: the values stay, to a stated error in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainrule.compiler import derive
from chainrule.ir.formula import Formula
from chainrule.ir.graph import Graph
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule import schedule, winograd
from chainrule.schedule.cook_toom import cook_toom
from chainrule.schedule.cost import Sizes
from chainrule.schedule.kernels import Planner
from chainrule.schedule.layout import lay_out
from chainrule.source import Source
from tests.codegen.running import run_compiled
from tests.schedule.laws import values_of
from tests.schedule.test_windows import agree, graph_of

TEXT = """model m():
    dim batch
    input x[batch, {channels}, {rows}, {columns}]
    y = conv2d(relu(x), {out}, kernel = 3, pad = {pad}, bias = false)
    loss = mean(y * y)
"""


@pytest.fixture
def always(monkeypatch):
    """Every convolution is worth it."""
    monkeypatch.setattr(winograd, "GAIN", 1e9)
    return monkeypatch


def tiled(laid) -> list[str]:
    return [node.out for node in laid.nodes if isinstance(node, Formula) and node.out.endswith("_products")]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tile=st.sampled_from([2, 4]),
    channels=st.integers(8, 9),
    out=st.integers(8, 9),
    rows=st.integers(4, 9),
    columns=st.integers(4, 9),
    pad=st.integers(0, 2),
)
def test_what_is_computed_stays(always, tile, channels, out, rows, columns, pad):
    always.setattr(winograd, "TILES", (tile,))
    if min(rows, columns) + 2 * pad < 6:
        return
    laid = agree(TEXT.format(**locals()), "x", "y.conv2d.K")
    assert len(tiled(laid)) == 3


def test_the_kernels_compute_it_at_every_size(always):
    always.setattr(winograd, "TILES", (4,))
    graph = graph_of(TEXT.format(channels=8, out=9, rows=6, columns=9, pad=1), "x", "y.conv2d.K")
    program = schedule(graph, training=True)
    assert len(tiled(lay_out(graph, Sizes(graph))[0])) == 3
    for batch in (1, 3, 0):
        values = values_of(graph, {"batch": batch})
        with np.errstate(invalid="ignore"):
            found, wanted = run_compiled(program, {"batch": batch}, values, "float64"), evaluate(graph, values)
        for name in ("x_bar", "y.conv2d.K_bar"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_matrix_that_is_wrong_is_noticed(always):
    def wrong(m, r):
        f = cook_toom(m, r)
        return replace(f, G=2 * f.G) if r == 3 else f

    always.setattr(winograd, "cook_toom", wrong)
    with pytest.raises(AssertionError):
        agree(TEXT.format(channels=8, out=8, rows=6, columns=6, pad=1), "x", "y.conv2d.K")


@pytest.mark.parametrize(("channels", "rows", "found"), [(64, 28, 3), (64, 8, 2), (16, 32, 0), (4, 64, 0)])
def test_it_is_used_where_it_is_clearly_faster(channels, rows, found):
    given = {"channels": channels, "out": channels, "rows": rows, "columns": rows, "pad": 1}
    graph = graph_of(TEXT.format(**given), "x", "y.conv2d.K")
    assert len(tiled(lay_out(graph, Sizes(graph))[0])) == found
    assert not tiled(lay_out(graph, Sizes(graph), accurate=True)[0])


ERROR = """model m():
    dim batch
    input x[batch, 64, 14, 15]
    y = conv2d(x, 64, kernel = 3, pad = 1, bias = false)
    loss = sum[n, o, i, j] (2 * y[n, o, i, j] - y[n, o, i, j]^2)
"""


def computed(graph: Graph, values: dict[str, np.ndarray], element: str) -> dict[str, np.ndarray]:
    found = run_compiled(schedule(graph, training=True), {"batch": 2}, values, element)
    return {name: found[name].astype(np.float64) for name in ("y", "x_bar", "y.conv2d.K_bar")}


BOUNDS = {0: (6e-7, 6e-6), 2: (4e-7, 3e-6), 4: (1.4e-6, 1.1e-5)}
"""By tile (0: the plain sums), relative to the root of the mean square: the error's root of the mean square, and the
greatest error."""


def test_the_error_in_float32_is_bounded(monkeypatch):
    graph = derive(Source(ERROR, "m.graph"), Options("gradient", ("y",), wrt=("x", "y.conv2d.K"))).graph
    values = {name: v.astype(np.float32) for name, v in values_of(graph, {"batch": 2}).items()}
    monkeypatch.setattr(winograd, "GAIN", 0.0)
    wanted = computed(graph, values, "float64")
    for tile, bounds in BOUNDS.items():
        monkeypatch.setattr(winograd, "GAIN", 1e9 if tile else 0.0)
        monkeypatch.setattr(winograd, "TILES", (tile or 4,))
        for name, found in computed(graph, values, "float32").items():
            error = np.abs(found - wanted[name]) / np.sqrt(np.mean(wanted[name] ** 2))
            assert (np.sqrt(np.mean(error**2)), error.max()) < bounds and error.max() < bounds[1], (tile, name)


def test_the_tiles_of_an_image_are_never_kept():
    graph = graph_of(TEXT.format(channels=64, out=64, rows=28, columns=28, pad=1), "x", "y.conv2d.K")

    def kept() -> set[str]:
        found = {b.name for b in schedule(graph, training=True).buffers}
        return found & {"y.relu_gathered_tiles", "y.relu_gathered_tiles2", "y.conv2d.z_products", "y.relu_bar_products"}

    assert not kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "awaited", lambda planner, t: 0)
        assert kept()
