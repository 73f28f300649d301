"""Pictures of a graph: what they hold, how both passes mirror each other, and that large ones stay bearable."""

import re
import time
from dataclasses import replace

import pygraphviz
import pytest
import sympy as sp

from chainrule.ir.expression import slot
from chainrule.ir.formula import Formula, Origin
from chainrule.render import layout
from chainrule.render.dot import draw
from chainrule.render.graph import backward_picture, both_picture, forward_picture, notebook_svg, parts, picture_of
from chainrule.render.layout import LOOKS, mirrored, plain
from chainrule.render.picture import LEGIBLE, MOST, bearable, collapse, path
from tests.render.graphs import mlp


def parsed(text):
    return pygraphviz.AGraph(string=text)


def nodes(text):
    graph = parsed(text)  # held: its nodes die with it
    return [dict(node.attr) for node in graph.nodes()]


def edges(text):
    graph = parsed(text)
    return [dict(edge.attr) for edge in graph.edges()]


def labels(text):
    return {re.split(r"\\[nl]", node["label"])[0] for node in nodes(text)}


def filled(text, kind):
    return [node for node in nodes(text) if node.get("fillcolor") == LOOKS[kind].fill]


def test_each_node_belongs_to_its_pass():
    found = parts(mlp(1))
    assert [name for name, part in found.items() if part == "forward"] == ["z0", "s0", "h0", "loss"]
    assert [name for name, part in found.items() if part == "update"] == ["h.0.linear.W_next", "h.0.linear.b_next"]
    assert {"loss_bar", "h0_bar", "s0_bar", "h.0.linear.W_bar"} <= {n for n, p in found.items() if p == "backward"}


def test_what_serves_only_the_update_is_of_the_update():
    graph = mlp(1)
    decay = Formula("decay", (), (), sp.Integer(2))
    step = next(n for n in graph.nodes if n.out == "h.0.linear.b_next")
    reads = (*step.reads, replace(step.reads[1], tensor="decay"))
    changed = replace(step, body=step.body * slot(len(step.reads)), reads=reads)
    nodes = tuple(changed if n is step else n for n in graph.nodes)
    assert parts(replace(graph, nodes=(decay, *nodes)))["decay"] == "update"


def test_a_rewritten_formula_of_the_forward_pass_stays_forward():
    graph = mlp(1)
    nodes = tuple(
        replace(n, origin=Origin(formula="h0", rule="stabilize")) if n.out == "h0" else n for n in graph.nodes
    )
    assert parts(replace(graph, nodes=nodes))["h0"] == "forward"


def test_nodes_show_equations_and_edges_shape_and_dtype():
    text = forward_picture(mlp(1))
    assert "z0[n, o] = Σ[i] x[n, i]·h.0.linear.W[i, o]" in labels(text)
    assert "h.0.linear.W" in labels(text)
    assert {edge["label"].strip() for edge in edges(text)} == {
        "float[batch, 16]",
        "float[16, 16]",
        "float[16]",
    }


def test_layers_are_framed_and_kernels_instead_where_given():
    assert 'label="h.0.linear"' in forward_picture(mlp(1))
    framed = forward_picture(mlp(1), {"z0": "kernel first", "s0": "kernel first"})
    assert 'label="kernel first"' in framed
    assert 'label="h.0.linear"' not in framed


def test_the_backward_picture_names_what_it_reads_and_shows_no_forward_equation():
    text = backward_picture(mlp(1))
    assert {"h0", "x", "h.0.linear.W"} <= labels(text)
    assert not any(label.startswith("z0") for label in labels(text))
    assert filled(text, "cotangent")
    assert filled(text, "update")
    assert "→ h.0.linear.W" in text


def test_a_cotangent_stands_on_its_primals_level():
    graph = mlp(2)
    positions = _positions(mirrored(picture_of(graph)))
    for name in ("s0", "h0", "s1", "h1", "loss", "h.1.linear.W"):
        assert positions[name][1] == pytest.approx(positions[f"{name}_bar"][1], abs=1)
        assert positions[name][0] < positions[f"{name}_bar"][0]
    assert positions["loss"][1] < positions["h0"][1] < positions["x"][1]


def _positions(text):
    """Where `dot` puts each box, by its tensor's name."""
    graph = parsed(text)
    graph.layout(prog="dot")
    found = {}
    for node in graph.nodes():
        name = re.match(r"[\w.]+", node.attr["label"])
        if name and node.attr["pos"]:
            found[name[0]] = tuple(float(v) for v in node.attr["pos"].split(","))
    return found


def test_without_levels_the_mirror_would_be_noticed(monkeypatch):
    monkeypatch.setattr(layout, "_anchor", lambda box, boxes: box.key)
    with pytest.raises(AssertionError):
        test_a_cotangent_stands_on_its_primals_level()


def test_saved_values_cross_without_moving_a_level():
    text = both_picture(mlp(2))
    saved = [edge for edge in edges(text) if edge.get("style") == "dashed"]
    assert saved
    assert all(edge["constraint"] == "false" for edge in saved)


def test_colours_are_explained():
    text = both_picture(mlp(1))
    for kind in ("input", "param", "primal", "cotangent", "update"):
        assert f">{LOOKS[kind].says}<" in text


def test_a_thousand_nodes_are_mirrored_in_about_a_second():
    picture = picture_of(mlp(91))
    assert len(picture.boxes) > 1000
    text = mirrored(picture)
    started = time.process_time()
    draw(text, "svg", seconds=20)  # 0.4 s on a quiet machine; without levels it does not end
    assert time.process_time() - started < 5


def test_a_repetitions_number_belongs_to_its_name():
    assert path("x.3.multi_head.softmax") == ["x.3", "multi_head", "softmax"]
    assert path("") == []


def test_collapsed_layers_hold_their_formulas_and_parameters():
    picture = collapse(picture_of(mlp(3)), 1)
    keys = [box.key for box in picture.boxes]
    assert {"h.0/primal", "h.0/cotangent", "h.0/update", "x", "loss"} <= set(keys)
    first = next(box for box in picture.boxes if box.key == "h.0/primal")
    assert (first.label, first.members, first.params) == ("h.0\n3 formulas · 2 parameters", 3, 2)
    assert next(box for box in picture.boxes if box.key == "h.0/cotangent").beside == "h.0/primal"
    assert all(wire.tail in keys and wire.head in keys and wire.tail != wire.head for wire in picture.wires)
    assert len({(w.tail, w.head) for w in picture.wires}) == len(picture.wires)


def test_large_pictures_collapse_by_themselves_and_small_ones_do_not():
    small, large = picture_of(mlp(3)), picture_of(mlp(95))
    assert bearable(small) is small
    assert len(large.boxes) > MOST
    assert bearable(large, 0) is large
    assert len(bearable(large).boxes) < max(LEGIBLE, len(large.boxes) // 3 + 1)


def test_collapsing_loses_no_wire_between_layers():
    whole = picture_of(mlp(3))
    few = collapse(whole, 1)
    assert ("h.0/primal", "h.1/primal") in {(w.tail, w.head) for w in few.wires}
    assert ("h.1/cotangent", "h.0/cotangent") in {(w.tail, w.head) for w in few.wires}
    assert sum(box.members for box in few.boxes if box.kind == "primal") == sum(b.kind == "primal" for b in whole.boxes)


def test_the_notebooks_svg_is_an_element_alone():
    text = notebook_svg(mlp(1))
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")


def test_the_same_graph_gives_the_same_text():
    assert both_picture(mlp(2)) == both_picture(mlp(2))
    assert plain(picture_of(mlp(2))) == plain(picture_of(mlp(2)))
