"""Kernels for the GPU compute what the reference does, in float64 and float32, on the PTX interpreter."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.ir.graph import Graph
from chainrule.ir.machine import GPU
from chainrule.ir.program import Program
from chainrule.schedule import schedule
from tests.codegen.cuda.programs import run_on_gpu
from tests.codegen.graphs import GRAPHS
from tests.codegen.running import drawn
from tests.codegen.test_cpu_laws import assert_agrees, products, wanted
from tests.schedule.laws import values_of
from tests.schedule.strategies import graphs

MACHINES = {
    "grid": replace(GPU, kernel_ns=0.0),
    "one block": replace(GPU, kernel_ns=1e9),  # whose launches cost so much that every step is one kernel
    "blocks": replace(GPU, kernel_ns=0.0, serial_ns=0.0, tiny_ns=0.0),
}


@cache
def made(name: str, machine: str) -> tuple[Graph, Program]:
    graph = GRAPHS[name]()
    return graph, schedule(graph, training=True, machine=MACHINES[machine])


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("machine", ["grid", "one block"])
@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_agree_with_the_reference(name, machine, element):
    graph, program = made(name, machine)
    for batch in (0, 1, 3, 70):
        values = {k: v.astype(element).astype(v.dtype) for k, v in drawn(graph, {"batch": batch}, batch).items()}
        want = wanted(graph, values, program)
        assert_agrees(run_on_gpu(program, {"batch": batch}, values, element), want, element)


PRODUCTS = {name: schedule(products(), training=True, machine=MACHINES[name]) for name in ("grid", "one block")}


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (9, 17, 40), (70, 65, 130)])
def test_products_of_any_size_agree_with_the_reference(shape):
    sizes = dict(zip(("batch", "depth", "width"), shape, strict=True))
    graph = products()
    values = drawn(graph, sizes)
    for program in PRODUCTS.values():
        want = wanted(graph, values, program)
        for element in ("float64", "float32"):
            assert_agrees(run_on_gpu(program, sizes, values, element), want, element)


@settings(max_examples=25, deadline=None)
@given(
    graph=graphs(),
    n=st.integers(0, 40),
    m=st.integers(0, 40),
    planned=st.sampled_from([1, 64, 4096]),
    machine=st.sampled_from(list(MACHINES.values())),
    seed=st.integers(0, 99),
)
def test_random_graphs_keep_the_law(graph, n, m, planned, machine, seed):
    program = schedule(graph, training=True, sizes={"n": planned, "m": planned}, machine=machine)
    values = values_of(graph, {"n": n, "m": m}, seed)
    assert_agrees(run_on_gpu(program, {"n": n, "m": m}, values, "float64"), wanted(graph, values, program), "float64")
