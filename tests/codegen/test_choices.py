"""The table decides how products are computed, where it may; whatever it says, the product is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import builds, integers, none, sampled_from

from chainrule.choices import Choice
from chainrule.codegen import choices
from chainrule.codegen.choices import Case, by_cost, candidates, choice_of, made, way_of
from chainrule.codegen.cpu import emit, printed
from chainrule.codegen.product import Operand, Shape
from chainrule.codegen.target import host
from chainrule.schedule import schedule
from tests.codegen.native_kernels import run, run_plain
from tests.codegen.running import drawn, run_compiled
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.codegen.test_product import PLAIN, close, matrix_product, operands
from tests.schedule import graphs

CASE = Case(Shape(64, 64, 64), "float32", *PLAIN)
TURNED = Operand("w", "k", "0", "64", ("1",))
EVERY = builds(
    Choice,
    method=sampled_from(["direct", "tile", "blas"]),
    rows=integers(1, 16),
    vectors=integers(1, 4),
    packed=sampled_from([False, True]),
    strip=sampled_from([False, True]),
    depth=none() | sampled_from([16, 32]),
)


def test_a_case_is_named_by_what_the_choice_depends_on():
    assert CASE.key == "float32 64x64x64 64,1 64,1 64"
    unknown = Operand("x", "k * M", "1", "0", ("M",))
    other = replace(CASE, shape=Shape(None, None, None, 8), left=unknown, accumulate=True)
    assert other.key == "float32 ~8x?x? 1,? 64,1 64 added"
    assert replace(CASE, element="float64").key != CASE.key != replace(CASE, right=TURNED).key
    renamed = (replace(o, view=o.view + "2", offset=f"block + {o.offset}") for o in PLAIN)
    assert Case(CASE.shape, "float32", *renamed).key == CASE.key  # nor the model's names


def test_the_table_goes_before_the_cost_model():
    chosen = Choice("tile", 3, 1)
    assert way_of(CASE, host(), {}) == by_cost(CASE, host())
    assert choice_of(way_of(CASE, host(), {CASE.key: chosen})) == chosen
    assert way_of(CASE, host(), {"float32 1x1x1 1,1 1,1 1": chosen}) == by_cost(CASE, host())


@pytest.mark.parametrize(
    ("case", "choice"),
    [
        (replace(CASE, right=TURNED), Choice("tile", 3, 1)),  # neighbours are not neighbours
        (replace(CASE, accumulate=True), Choice("tile", 3, 1, packed=True, depth=32)),
        (replace(CASE, into=replace(CASE.into, column="64")), Choice("tile", 3, 1)),
        (replace(CASE, left=replace(CASE.left, inner=("1", "3"))), Choice("blas")),
        (replace(CASE, loops=False), Choice("direct")),
    ],
)
def test_a_choice_that_would_be_wrong_is_not_taken(case, choice):
    assert made(case, choice, host()) is None
    assert way_of(case, host(), {case.key: choice}) == by_cost(case, host())
    assert choice not in candidates(case, host(), choice_of(by_cost(case, host())))


@pytest.mark.parametrize("kind", ["NN", "NT", "TN", "TT"])
@settings(max_examples=8, deadline=None)
@given(
    choice=EVERY, m=integers(0, 40), n=integers(0, 70), k=integers(0, 50), element=sampled_from(["float32", "float64"])
)
def test_every_choice_computes_the_same_product(kind, choice, m, n, k, element):
    def method(way):
        left, right, into = given_operands
        case = Case(Shape(None, None, None), element, left, right, into)
        found = made(case, choice, host())
        return way if found is None or found.method == "direct" else found

    given_operands = (
        Operand("x", "k", "K", "0", ("1",)) if kind[0] == "N" else Operand("x", "k * M", "1", "0", ("M",)),
        Operand("w", "k * N", "0", "1", ("N",)) if kind[1] == "N" else Operand("w", "k", "0", "K", ("1",)),
        Operand("z", "0", "N", "1"),
    )
    job = matrix_product(kind, ("M", "N", "K"), element, host(), method)
    arrays, want = operands(kind, m, n, k, element)
    sizes = {"M": m, "N": n, "K": k}
    close(run(job, arrays, sizes, 0, m)["z"], want)
    close(run_plain(job, arrays, sizes, 0, m)["z"], want)


@pytest.mark.parametrize("graph", [graphs.mlp(40, 48, 20), graphs.attention()], ids=["mlp", "attention"])
def test_a_program_by_any_table_agrees_with_the_reference(graph, monkeypatch):
    program = schedule(graph, training=True)
    cases = {case.key: (case, choice) for s in printed(program, "float32", host()) for case, choice in s.products}
    assert cases
    values = drawn(graph, {"batch": 5})
    want = wanted(graph, values, program)
    rng = np.random.default_rng(0)
    for _ in range(2):
        several = {key: candidates(case, host(), choice) for key, (case, choice) in cases.items()}
        table = {key: found[rng.integers(len(found))] for key, found in several.items()}
        executable, _, sources = emit(program, element="float32", choices=table)
        assert executable.products == tuple(sorted(cases))
        assert executable.tuned == table
        again = emit(program, element="float32", choices=table)
        assert (again[0], again[2]) == (executable, sources)  # the table decides, and nothing else
        monkeypatch.setattr(
            "tests.codegen.running.emit", lambda p, element, t=table: emit(p, element=element, choices=t)
        )
        monkeypatch.setattr("tests.codegen.running._programs", {})
        assert_agrees(run_compiled(program, {"batch": 5}, values, "float32"), want, "float32")


def test_a_choice_that_is_taken_unseen_is_noticed(monkeypatch):
    """Sabotage: without the look whether a way is right, a transposed operand is read as if it were none."""
    monkeypatch.setattr(choices, "made", lambda case, choice, target: replace(by_cost(CASE, target), panel=None))
    case = replace(CASE, right=TURNED)
    way = choices.way_of(case, host(), {case.key: Choice("tile", 8, 2)})
    job = matrix_product("NT", ("M", 64, 64), "float32", host(), lambda _: way)
    arrays, want = operands("NT", 9, 64, 64, "float32")
    with pytest.raises(AssertionError):
        close(run(job, arrays, {"M": 9}, 0, 9)["z"], want)
