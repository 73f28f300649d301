"""The laws notice when a part of the language is broken."""

import pytest
import sympy as sp

from chainrule.errors import SourceError
from chainrule.ir import text
from chainrule.lang import bounds, elaborate, expressions, parse, print_graph, ranges, values
from tests.lang.mutations import GOOD
from tests.lang.texts import graph, model


def round_trips(source):
    made = elaborate(parse(source, "m.graph"))
    try:
        return elaborate(parse(print_graph(made), "printed.graph")) == made
    except SourceError:
        return False


def test_a_printer_that_forgets_what_is_outside_is_noticed(monkeypatch):
    original = text.access_text
    monkeypatch.setattr(
        text, "access_text", lambda access, names: original(access, names).split(";")[0].rstrip("]") + "]"
    )
    assert not round_trips(GOOD["everything"])


def test_a_printer_that_mixes_int_and_float_is_noticed(monkeypatch):
    monkeypatch.setattr(text, "is_slot", lambda symbol: False)
    assert not round_trips(model("y[i] = x[i, 0] * float(label[i])"))


def test_a_prover_that_believes_everything_is_noticed(monkeypatch):
    monkeypatch.setattr(bounds.Facts, "proves", lambda self, goal: True)
    with pytest.raises(pytest.fail.Exception):
        fails_to_prove()


def fails_to_prove():
    with pytest.raises(SourceError):
        graph(model("y[i < n] = x[i + 1, 0]"))


def test_a_prover_that_learns_no_conditions_is_noticed(monkeypatch):
    monkeypatch.setattr(bounds.Facts, "assume", lambda self, condition, holds=True: None)
    with pytest.raises(SourceError, match="could be negative"):
        graph(
            GOOD["nodes"].replace("y[*, p // stride] where", "y[*, p // stride - 1; 0] where")
            + "    q[i < nodes] = x[i - 1, 0] where i > 0\n"
        )


def test_ranges_that_do_not_agree_are_noticed(monkeypatch):
    monkeypatch.setattr(ranges.Ranges, "_agreed", lambda self, var: var.meets[0][0])
    with pytest.raises(Exception, match=r"reach|extent"):
        graph(model("param W[3] ~ zeros\ny[i] = sum[k] x[i, k] * W[k]"))


def test_a_tie_that_goes_to_one_side_is_noticed(monkeypatch):
    def one_sided(a, b, up):
        return values.Select(values.relation(">" if up else "<", a, b), a, b)

    monkeypatch.setattr(values, "greater", one_sided)
    body = elaborate(parse(model("y[i] = max(x[i, 0], x[i, 1])"), "m.graph")).nodes[-1].body
    slots = sorted(body.free_symbols, key=str)
    assert body.diff(slots[0]).subs(dict.fromkeys(slots, 3)) != sp.Rational(1, 2)


def test_hoisted_parts_without_their_conditions_are_noticed(monkeypatch):
    monkeypatch.setattr(
        expressions.Expressions, "body_under", lambda self, inside, outer, axes: expressions.Body(inside)
    )
    with pytest.raises(SourceError, match="could be negative"):
        graph(model("y[i < n] = 1 + sum[k] x[i - 1, k] where i > 0"))
