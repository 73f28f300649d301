"""Convolutions become products over gathered operands: the values stay, and every one of the three is a tile's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.compiler import derive
from chainrule.ir.formula import Formula
from chainrule.ir.text import equation_text
from chainrule.ir.validate import validate
from chainrule.options import Options
from chainrule.reference import evaluate
from chainrule.schedule import groups, layout, windows
from chainrule.schedule.cost import Sizes
from chainrule.schedule.groups import grouped
from chainrule.schedule.layout import lay_out
from chainrule.schedule.product import contraction_of
from chainrule.schedule.task import task_of
from chainrule.source import Source
from chainrule.views import point
from tests.schedule.laws import assert_law

ONE = """model m():
    dim batch
    input x[batch, {channels}, {size}, {size}]
    y = conv2d(relu(x), {out}, kernel = {kernel}, stride = {stride}, pad = {pad}, dilation = {dilation})
    loss = mean(y * y)
"""


def graph_of(text, *wrt):
    """The loss of a model, and its gradients, ready to be scheduled."""
    return derive(Source(text, "m.graph"), Options("gradient", wrt=wrt)).graph


def values(graph, point):
    return evaluate(graph, point, seed=0, step=0)


def agree(text, *wrt):
    """Whether `lay_out` keeps the values of a model; the graph that it gives."""
    graph = graph_of(text, *wrt)
    laid, _ = lay_out(graph, Sizes(graph))
    validate(laid)
    at = point(graph, "loss", seed=1)
    before, after = values(graph, at), values(laid, at)
    for name in graph.outputs:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-12, atol=1e-12, err_msg=name)
    return laid


@settings(max_examples=25)
@given(
    channels=st.integers(1, 9),
    out=st.sampled_from([1, 3, 8, 9]),
    size=st.integers(3, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_what_is_computed_stays(monkeypatch_module, channels, out, size, kernel, stride, pad, dilation):
    if size + 2 * pad < dilation * (kernel - 1) + 1:
        return
    agree(ONE.format(**locals()), "x", "y.conv2d.K")


GROUPED = """model m():
    dim batch
    input x[batch, {channels}, 5, 6]
    h = conv2d(relu(x), {out}, kernel = 3, stride = {stride}, pad = 1, groups = {groups})
    y = conv2d(h, 4, kernel = {kernel})
    loss = mean(y * y)
"""


@settings(max_examples=5, deadline=None)
@given(
    groups=st.integers(1, 4),
    each=st.integers(1, 5),
    out=st.integers(1, 5),
    stride=st.integers(1, 2),
    kernel=st.integers(1, 2),
)
def test_groups_compute_what_they_did(monkeypatch_module, groups, each, out, stride, kernel):
    given = {"channels": groups * each, "out": groups * out, "groups": groups, "stride": stride, "kernel": kernel}
    agree(GROUPED.format(**given), "x", "h.conv2d.K", "y.conv2d.K")


def test_a_batch_of_products_stores_every_group_at_its_place(monkeypatch_module):
    text = GROUPED.format(channels=8, out=8, groups=2, stride=2, kernel=1).replace("5, 6", "3, 3")
    assert_law(graph_of(text, "x", "h.conv2d.K"), {"batch": 1})


def test_groups_are_a_batch_of_products_forward_and_in_both_gradients():
    text = GROUPED.format(channels=32, out=48, groups=4, stride=1, kernel=1)
    laid = agree(text, "x", "h.conv2d.K")
    tasks = [grouped(task_of(node, laid.tensors)) for node in laid.nodes if isinstance(node, Formula) and node.over]
    found = {task.out: c for task in tasks if (c := contraction_of(task)) is not None}
    parted = [c for c in found.values() if any(i.extent == 4 for i in c.batch)]
    assert len(parted) == 3
    assert all(c.left.outside is None and c.right.outside is None for c in parted)
    assert sorted(int(c.columns[-1].extent) for c in parted) == [8, 12, 12]


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_by_themselves_are_rows_that_vectors_run_along(stride):
    text = GROUPED.format(channels=16, out=16, groups=16, stride=stride, kernel=1).replace("5, 6", "12, 12")
    laid = agree(text, "x", "h.conv2d.K")
    sums = [node for node in laid.nodes if isinstance(node, Formula) and node.over]
    own = [node for node in sums if sum(read.tensor.count("_gathered") for read in node.reads) and len(node.over) > 1]
    alone = [node for node in own if all(read.indices[-1] == node.axes[-1].symbol for read in node.reads)]
    assert len(alone) == 3 and all(node.axes[-1].extent == 16 for node in alone)
    assert all(read.outside is None for node in alone for read in node.reads)


def test_groups_that_are_taken_apart_wrongly_are_noticed(monkeypatch):
    kept = groups.taken_apart

    def late(found, *given):
        axes, reads = kept(found, *given)
        names = {found.group.symbol: found.group.extent - 1 - found.group.symbol}
        return axes, tuple(read.renamed(names) for read in reads)

    monkeypatch.setattr(groups, "taken_apart", late)
    monkeypatch.setattr(windows, "NARROW", 0)
    with pytest.raises(AssertionError):
        agree(GROUPED.format(channels=8, out=8, groups=2, stride=1, kernel=1), "x", "h.conv2d.K")


@pytest.fixture(scope="module")
def monkeypatch_module():
    """Every convolution counts as worth the trouble."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "NARROW", 0)
        yield patch


def products(laid):
    return {
        node.out: contraction_of(task_of(node, laid.tensors))
        for node in laid.nodes
        if isinstance(node, Formula) and node.over and contraction_of(task_of(node, laid.tensors)) is not None
    }


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_forward_and_both_gradients_are_products_without_guards(kernel, stride):
    text = ONE.format(channels=16, out=24, size=8, kernel=kernel, stride=stride, pad=kernel // 2, dilation=1)
    found = products(agree(text, "x", "y.conv2d.K"))
    assert len(found) == 3
    for contraction in found.values():
        assert contraction.left.outside is None and contraction.right.outside is None
        assert contraction.columns[-1].extent in (16, 24)
        assert contraction.right.indices[-1] == contraction.columns[-1].symbol


def test_one_dimension_and_transposed_convolutions_are_products_too():
    text = """model m():
    dim batch
    input x[batch, 16, 8]
    y = conv_transpose1d(relu(conv1d(x, 16, pad = 1)), 8)
    loss = mean(y * y)
"""
    found = products(agree(text, "x", "y.conv_transpose1d.K"))
    assert len(found) >= 4


def test_what_is_read_over_the_same_windows_is_gathered_once():
    text = ONE.format(channels=16, out=16, size=8, kernel=3, stride=1, pad=1, dilation=1)
    laid = agree(text, "x", "y.conv2d.K")
    gathered = [node.out for node in laid.nodes if "_gathered" in node.out and node.reads[0].outside is not None]
    assert len(gathered) == 2  # of x for the product and the weight's gradient, and of the cotangent


def test_inner_tensors_have_channels_last_and_outputs_stay_as_written():
    text = """model m():
    dim batch
    input x[batch, 8, 6, 6]
    h = tanh(conv2d(x, 16, pad = 1))
    output y = relu(conv2d(h, 16, pad = 1))
    loss = mean(y * y)
"""
    graph = derive(Source(text, "m.graph"), Options("predict", outputs=("y", "loss"))).graph
    laid, _ = lay_out(graph, Sizes(graph))
    assert [str(e) for e in laid.tensors["h"].shape] == ["batch", "6", "6", "16"]
    assert [str(e) for e in laid.tensors["y"].shape] == ["batch", "16", "6", "6"]
    at = point(graph, "loss", seed=2)
    np.testing.assert_allclose(values(laid, at)["y"], values(graph, at)["y"], rtol=1e-12, atol=1e-12)


def test_a_window_that_starts_too_late_is_noticed(monkeypatch):
    text = ONE.format(channels=8, out=8, size=8, kernel=3, stride=2, pad=1, dilation=1)
    kept = layout.windowed

    def late(*given):
        laid = kept(*given)
        if laid is None:
            return None
        made = [windows.replace(f, reads=tuple(moved(r) for r in f.reads)) for f in laid.made[:-1]]
        return windows.replace(laid, made=(*made, laid.made[-1]))

    def moved(read):
        return windows.replace(read, indices=tuple(i + (0 if i.is_Symbol else 1) for i in read.indices))

    monkeypatch.setattr(layout, "windowed", late)
    with pytest.raises(AssertionError):
        agree(text, "x", "y.conv2d.K")


def test_a_stride_of_single_places_leaves_a_product(monkeypatch_module):
    laid = agree(ONE.format(channels=4, out=9, size=8, kernel=1, stride=2, pad=0, dilation=1), "x")
    found = laid.producers["y.relu_bar_product"]
    assert contraction_of(task_of(found, laid.tensors)) is not None
    assert equation_text(found).endswith("sum[o] y.conv2d.K_gathered2[o, n] * y_bar[b, m, p, o]")
