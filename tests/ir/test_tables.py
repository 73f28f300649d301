"""The node table and the edge list say of a graph what its network view holds."""

import json

import sympy as sp

from chainrule.ir.formula import DType
from chainrule.ir.tables import edge_list, node_table, type_text
from tests.render.graphs import mlp


def test_every_node_and_every_access_has_a_row():
    graph = mlp(2)
    assert [row["name"] for row in node_table(graph)] == list(graph.network.nodes)
    assert len(edge_list(graph)) == graph.network.number_of_edges()


def test_a_node_says_what_it_is_and_where_it_comes_from():
    rows = {row["name"]: row for row in node_table(mlp(1))}
    assert rows["z0"] == {
        "name": "z0",
        "kind": "formula",
        "shape": "[batch, 16]",
        "dtype": "float",
        "equation": "z0[n, o] = sum[i] x[n, i] * h.0.linear.W[i, o]",
        "flops": "512 * batch",
        "layer": "h.0.linear",
        "from": "mlp.graph:4",
        "output": 0,
    }
    assert rows["s0_bar"]["from"] == "vjp of h0"
    assert rows["h.0.linear.W"]["kind"] == "param"
    assert rows["rate"]["kind"] == "scalar"
    assert [name for name, row in rows.items() if row["output"]] == ["loss"]


def test_an_edge_says_how_its_tensor_is_read():
    rows = edge_list(mlp(1))
    first = {"from": "x", "to": "z0", "slot": 1, "read": "x[n, i]", "shape": "[batch, 16]", "dtype": "float"}
    assert [row for row in rows if (row["from"], row["to"]) == ("x", "z0")] == [first | {"slot": rows[0]["slot"]}]


def test_rows_are_plain_data():
    graph = mlp(2)
    for rows in (node_table(graph), edge_list(graph)):
        assert json.loads(json.dumps(rows)) == rows
        assert len({tuple(row) for row in rows}) == 1


def test_types_read_as_in_the_language():
    batch = sp.Symbol("batch", integer=True, nonnegative=True)
    assert type_text(DType.FLOAT, (batch, sp.Integer(3))) == "float[batch, 3]"
    assert type_text(DType.INT, (batch,), sp.Integer(10)) == "index 10 [batch]"
    assert type_text(DType.FLOAT, ()) == "float"
