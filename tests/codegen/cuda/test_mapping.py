"""How loops are mapped to teams of threads, as generated source; and what notices when that is wrong."""

from __future__ import annotations

import re

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from chainrule.codegen.cuda import mapping, scatter, teams
from chainrule.codegen.cuda.emit import printed
from chainrule.codegen.cuda.objects import compile_kernels, symbol_of
from chainrule.codegen.cuda.toolkit import figures
from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program, alternatives
from chainrule.schedule import schedule
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.running import drawn
from tests.codegen.test_cpu_laws import assert_agrees, wanted
from tests.cuda.ptx import PTXError
from tests.schedule.graphs import attention, convolution, cross_entropy, embedding, layer_norm, mlp

PROGRAMS: dict[str, tuple[Graph, int]] = {
    "mlp_small": (mlp(2, 16, 16, 2), 1),
    "mlp_large": (mlp(784, 256, 128, 10), 64),
    "cross_entropy": (cross_entropy(k=1024), 4096),
    "cross_entropy_narrow": (cross_entropy(k=10), 4096),
    "layer_norm": (layer_norm(k=512), 4096),
    "embedding": (embedding(v=1000, j=64), 1024),
    "convolution": (convolution(c=16, o=16, h=14), 64),
}


def program_of(name: str) -> Program:
    graph, batch = PROGRAMS[name]
    return schedule(graph, training=True, sizes={"batch": batch}, machine=GPU)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_source_of(name: str, file_regression: FileRegressionFixture) -> None:
    _, written = printed(program_of(name), "float32")
    shown = {
        source.text: f"# {source.threads} threads, blocks: {source.grid}, bytes of memory for each: {source.region}"
        for source in written
    }
    file_regression.check(
        "\n".join(f"{text}{launch}\n" for text, launch in shown.items()), basename=name, extension=".txt"
    )


def test_a_small_network_s_step_is_one_kernel() -> None:
    """Its factors and what passes between its parts too; where sizes are known only when inputs are, for small ones."""
    program, written = printed(program_of("mlp_small"), "float32")
    (one,), others = alternatives(program.kernels)
    assert one is program.kernels[0] and written[0].grid == 1 and len(others) > 5
    assert "near_float32" in written[0].text and "factor" in written[0].text


@pytest.mark.parametrize("name", [*PROGRAMS, "attention"])
def test_machine_code_has_no_doubles_no_spills_and_wide_accesses(name: str) -> None:
    if name == "attention":
        program = schedule(attention(h=4, t=64, d=32), training=True, sizes={"batch": 16}, machine=GPU)
    else:
        program = program_of(name)
    program, written = printed(program, "float32")
    sources = {symbol_of(s.job, "sm_90"): s for s in written}
    made = compile_kernels([s.job for s in sources.values()], "sm_90")
    for source, compiled in zip(sources.values(), made, strict=True):
        found = figures(compiled.cubin)
        assert found.doubles == 0 or doubles_by_one_thread(source.text), source.text
        if not re.search(r"(?<!_ahead) = local_", source.text):
            assert found.local == 0, source.text
        if re.search(r"load4\((?!\w+_panel)", source.text):
            assert found.loads.get(128), source.text
        if re.search(r"store4\((?!\w+_panel)", source.text):
            assert found.stores.get(128), source.text
        assert found.registers * source.threads <= 65536, source.text


def doubles_by_one_thread(source: str) -> bool:
    """Whether what a kernel computes in float64 is computed by one thread, once."""
    lines = source.splitlines()
    double = [k for k, line in enumerate(lines) if "float64(" in line]
    return bool(double) and all(lines[k - 1].strip() == "if thread() == 0:" for k in double)


def law(graph: Graph, batch: int, element: str = "float64", planned: int = 4096) -> None:
    """The law that a sabotaged mapping breaks: one step agrees with the reference. planned: for which batch."""
    program = schedule(graph, training=True, sizes={"batch": planned}, machine=GPU)
    values = drawn(graph, {"batch": batch})
    assert_agrees(run_on_gpu(program, {"batch": batch}, values, element), wanted(graph, values, program), element)


def test_turns_that_are_taken_to_be_independent_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    law(layer_norm(k=96), 9)
    monkeypatch.setattr(mapping, "carried_by", lambda loop, tree, beside=(): ())
    with pytest.raises((AssertionError, PTXError)):
        law(layer_norm(k=96), 9)


def test_a_missing_barrier_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams.Since, "barrier", lambda since, w: since.clear())
    with pytest.raises((AssertionError, PTXError)):
        law(mlp(2, 16, 16, 2), 5, planned=5)


def test_a_part_that_is_not_joined_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "join", lambda c, part, spread, w: None)
    with pytest.raises((AssertionError, PTXError)):
        law(layer_norm(k=96), 9)


def test_a_member_s_array_that_is_not_added_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    law(cross_entropy(k=10), 70)
    monkeypatch.setattr(teams, "join_array", lambda k, spread, w: None)
    monkeypatch.setattr(teams, "join", lambda c, part, spread, w: None)
    with pytest.raises((AssertionError, PTXError)):
        law(cross_entropy(k=10), 70)


def test_groups_of_neighbours_that_begin_at_each_element_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    law(layer_norm(k=1024), 3, "float32")
    monkeypatch.setattr(teams, "narrowed", lambda spread, count: spread.ranges)
    with pytest.raises((AssertionError, PTXError)):
        law(layer_norm(k=1024), 3, "float32")


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_sums_into_computed_places_are_added_by_owners_in_the_written_order(rows: int) -> None:
    """Twice the same, to the bit, wherever the terms go."""
    graph = embedding(v=rows, j=12)
    program = schedule(graph, training=True, sizes={"batch": 4096}, machine=GPU)
    assert any("owner" in source.text for source in printed(program, "float32")[1])
    values = drawn(graph, {"batch": 90})
    assert_agrees(run_on_gpu(program, {"batch": 90}, values, "float64"), wanted(graph, values, program), "float64")


def test_places_without_an_owner_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "owners", lambda places, beside: 4)
    law(embedding(v=9, j=12), 70)
    monkeypatch.setattr(scatter, "remainder", lambda place, many: scatter.OWNER)  # all are everyone's
    with pytest.raises((AssertionError, PTXError)):
        law(embedding(v=9, j=12), 70)


def test_factors_that_are_not_rounded_from_float64_would_show() -> None:
    """What stands still is computed in float64, once: by the first kernel alone."""
    program, written = printed(program_of("mlp_large"), "float32")
    kernels = zip(program.kernels, written, strict=True)
    assert all("float64(" not in s.text for k, s in kernels if k.name != "factors" and k.when == 1)
