"""The page of a derivation."""

from chainrule.ir.trace import Step
from chainrule.render.explain import explain
from tests.render.graphs import mlp


def test_the_page_shows_rule_before_and_after():
    graph = mlp(1)
    h, s_bar = graph.producers["h0"], graph.producers["s0_bar"]
    page = explain(graph, [Step("vjp", (h,), (s_bar,)), Step("drop_dead", (h,), ()), Step("seed", (), (s_bar,))])
    assert "### 1. vjp: x_bar[p] = sum" in page
    assert "    h0[n, o] = if s0[n, o] <= 0 then 0 else s0[n, o]\n\ncomes\n\n    s0_bar[n, o] = if h0[n, o] > 0" in page
    assert "### 2. drop dead: what no output or update depends on, left out" in page
    assert "which is left out." in page
    assert "There comes\n" in page


def test_an_unknown_rule_is_shown_by_its_name():
    assert "### 1. my pass\n" in explain(mlp(1), [Step("my_pass", (), ())])
