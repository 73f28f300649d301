"""Rows in registers: which arrays may be, that nothing is missed and nothing shared; and what notices if it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sympy as sp

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import dealt as module
from chainrule.codegen.cuda import teams
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import compile_kernels
from chainrule.codegen.cuda.team import Deal, Plan, Spread, Team
from chainrule.codegen.cuda.toolkit import figures
from chainrule.ir.formula import Access, DType, slot
from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Buffer, Range, Statement
from chainrule.schedule import schedule
from tests.codegen.cuda.test_mapping import law
from tests.cuda.ptx import PTXError
from tests.schedule.graphs import cross_entropy, layer_norm


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize(
    ("graph", "k"), [(layer_norm, 32), (layer_norm, 96), (layer_norm, 100), (layer_norm, 512), (cross_entropy, 1024)]
)
def test_rows_in_registers_keep_the_law(graph: Callable[..., Graph], k: int, element: str) -> None:
    for batch in (1, 9, 33):
        law(graph(k=k), batch, element)


@pytest.mark.parametrize("k", [2048, 2080])
def test_a_block_s_row_is_in_the_registers_of_its_threads_where_it_divides(k: int) -> None:
    law(layer_norm(k=k), 3, "float32")


@pytest.mark.parametrize("k", [256, 512, 768, 1024, 2048])
def test_a_row_is_read_wide_and_needs_neither_shared_memory_nor_spills(k: int) -> None:
    program = schedule(layer_norm(k=k), training=True, sizes={"batch": 4096}, machine=GPU)
    row = printed(program, "float32")[1][0]
    assert "c = local_float32" in row.text and "c = shared" not in row.text
    found = figures(compile_kernels([row.job], "sm_90")[0].cubin)
    assert found.local == 0 and set(found.loads) == {128} and found.registers <= 168


def test_a_row_that_neighbours_read_stays_in_memory() -> None:
    """The label says which of a row is read: by a lane that may not have it."""
    program = schedule(cross_entropy(k=1024), training=True, sizes={"batch": 4096}, machine=GPU)
    plain = printed(program, "float32")[1][0].text
    assert "x[label[n]" in plain and "e = local_float32" in plain


def test_all_registers_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEALT", 40)
    program = schedule(layer_norm(k=512), training=True, sizes={"batch": 4096}, machine=GPU)
    text = printed(program, "float32")[1][0].text
    assert text.count("local_float32(16)") == 2 and text.count("shared_float32(4096)") == 3  # and the stage
    law(layer_norm(k=512), 5, "float32")


def test_registers_of_the_wrong_turn_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = teams.register
    monkeypatch.setattr(teams, "register", lambda deal, turn, k: wrong(deal, turn, 0))
    with pytest.raises((AssertionError, PTXError)):
        law(layer_norm(k=512), 9, "float32")


def test_a_row_that_is_not_dealt_whole_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deal, "rounds", property(lambda deal: max(deal.length // (deal.threads * deal.width) - 1, 1)))
    with pytest.raises((AssertionError, PTXError)):
        law(layer_norm(k=512), 9, "float32")


K = sp.Symbol("k", integer=True, nonnegative=True)
C, X = Access("c", (K,)), Access("x", (K,))
ROW = (Range(K, sp.S.Zero, sp.Integer(512)),)


@pytest.mark.parametrize(
    ("reading", "team", "found"),
    [
        (C, Team.BLOCK, True),
        (Access("c", (sp.Integer(511) - K,)), Team.BLOCK, False),  # another thread's
        (Access("c", (sp.S.Zero,)), Team.BLOCK, False),
        (replace(C, outside=sp.S.Zero), Team.BLOCK, False),
        (C, Team.WARP, False),  # each warp reads all of the block's
    ],
)
def test_only_what_each_thread_has_to_itself_is_dealt(reading: Access, team: Team, found: bool) -> None:
    first = Spread(ROW, Team.BLOCK, Team.THREAD, (Statement(C, slot(0), (X,)),))
    second = Spread(ROW, team, Team.THREAD, (Statement(X, slot(0), (reading,)),))
    buffers = {
        name: Buffer(name, (sp.Integer(512),), DType.FLOAT, space) for name, space in (("c", "scratch"), ("x", "arena"))
    }
    plan = Plan((first, second), None, 256, {"c": Team.BLOCK}, ())
    made = module.dealt(plan, buffers, 4)
    assert made.dealt == ({"c": Deal(256, 512, 1)} if found else {})
    assert all(isinstance(n, Spread) and (n.deal is not None) == found for n in made.body)
