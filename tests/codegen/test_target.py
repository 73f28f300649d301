"""One program for every vector width: AVX-512, AVX2 and SSE2 run here, NEON is compiled and its assembly read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import llvmlite.binding as llvm
import pytest

from chainrule.codegen.cpu import emit, printed
from chainrule.codegen.objects import Array, Job, assembly, compile_object, symbol_of
from chainrule.codegen.product import Shape, choose
from chainrule.codegen.target import NEEDS, host
from chainrule.codegen.workers import Crew, Worker
from chainrule.errors import ChainruleError
from chainrule.schedule import schedule
from chainrule.symbols import symbols
from tests.codegen.graphs import GRAPHS
from tests.codegen.native_kernels import run, run_plain
from tests.codegen.running import drawn, run_compiled
from tests.codegen.test_cpu_laws import assert_agrees, made, wanted
from tests.codegen.test_functions import kernel_of
from tests.codegen.test_product import PLAIN, close, matrix_product, operands

ELEMENTS = ("float32", "float64")
FEATURES = llvm.get_host_cpu_features()
RUNS = [level for level, needs in NEEDS.items() if all(FEATURES.get(feature) for feature in needs)]


def inner_loop(text: str) -> list[str]:
    """The loop around the first fused multiply-add: from its label to the jump back."""
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("\tfmla"))
    start = next(k for k in range(first, -1, -1) if lines[k].endswith(":") or ":" in lines[k].split("#")[0])
    end = next(k for k in range(first, len(lines)) if re.match(r"\t(b\.\w+|cbn?z|tbn?z|j\w+)\t", lines[k]))
    return lines[start : end + 1]


@pytest.mark.parametrize(
    ("level", "lanes", "doubles", "registers"),
    [("avx512", 16, 8, 32), ("avx2", 8, 4, 16), ("sse2", 4, 2, 16), ("neon", 4, 2, 32), ("apple", 4, 2, 32)],
)
def test_a_target_says_how_wide_its_vectors_are_and_how_many(level, lanes, doubles, registers):
    target = host(level)
    assert (target.lanes("float32"), target.lanes("float64"), target.registers) == (lanes, doubles, registers)
    assert target.fma == (level != "sse2")
    assert target.scales == (level == "avx512")


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon", "apple"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_tile_of_any_size_stays_in_registers(level, element):
    target = host(level)
    for rows in (None, *range(1, 70)):
        for columns in (None, 1, 7, 20, 64):
            way = choose(Shape(rows, columns, 64), element, target, *PLAIN)
            if way.method == "tile":
                assert way.rows * way.vectors + way.vectors + 1 <= target.registers
                assert way.lanes == target.lanes(element)


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for level in RUNS for name in (GRAPHS if level == "avx2" else ("mlp", "odd_ends"))],
)
def test_a_program_of_restricted_width_agrees_with_the_reference(name, level, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CPU", level)
    graph, _ = made(name)
    program = schedule(graph, training=True)  # anew: what runs compiled programs knows them by identity
    for element in ELEMENTS:
        values = drawn(graph, {"batch": 5})
        got = run_compiled(program, {"batch": 5}, values, element)
        assert_agrees(got, wanted(graph, values, program), element)


@pytest.mark.skipif("avx2" not in RUNS, reason="needs AVX2")
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_kernel_for_avx2_has_no_wider_register(element):
    program = made("mlp")[1]
    text = "".join(assembly(source.job, host("avx2")) for source in printed(program, element, host("avx2")))
    assert "ymm" in text
    assert not re.search(r"zmm|[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]", text)


@pytest.mark.parametrize(("element", "suffix"), [("float32", "4s"), ("float64", "2d")])
@pytest.mark.parametrize("level", ["neon", "apple"])
@pytest.mark.parametrize("rows", [9, 64, None])
def test_a_tile_for_neon_is_multiply_adds_in_registers(level, rows, element, suffix):
    target = host(level)
    way = choose(Shape(rows, 96, 128), element, target, *PLAIN)
    body = inner_loop(assembly(matrix_product("NN", ("M", 96, 128), element, target, lambda _: way), target))
    multiplied = [line for line in body if line.startswith("\tfmla")]
    assert len(multiplied) == way.rows * way.vectors >= 24
    assert all(f".{suffix}" in line for line in multiplied)
    assert not [line for line in body if "[sp" in line]  # nothing is spilled
    used = {number for line in body for number in re.findall(r"\b[vqds](\d+)", line)}
    assert len(used) >= len(multiplied) + way.vectors + 1


def test_the_tallest_tile_for_neon_uses_every_register():
    text = assembly(matrix_product("NN", ("M", 96, 128), "float32", host("neon"), tall), host("neon"))
    body = inner_loop(text)
    assert {int(n) for line in body for n in re.findall(r"\b[vqs](\d+)", line)} == set(range(32))
    assert sum(line.startswith("\tfmla") for line in body) == 28


def tall(way):
    return replace(way, rows=14, vectors=2, panel=None)


@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_tiles_three_vectors_wide_are_numpys(kind):
    """What NEON's description makes of a product, in the registers of any x86-64."""
    wide = replace(host("sse2"), registers=32, widest=3) if "sse2" in RUNS else host("neon")
    for shape in ((20, 12, 33), (9, 29, 40), (1, 100, 16), (0, 24, 64)):
        job = matrix_product(kind, ("M", *shape[1:]), "float32", wide)
        arrays, want = operands(kind, *shape, "float32")
        for found in (
            run(job, arrays, {"M": shape[0]}, 0, shape[0], wide),
            run_plain(job, arrays, {"M": shape[0]}, 0, shape[0]),
        ):
            close(found["z"], want)


def test_scaling_by_a_power_of_two_is_one_instruction_where_there_is_one_and_never_a_call():
    for name in ("exp", "sigmoid"):
        for element in ELEMENTS:
            job = kernel_of(name, element)
            found = {level: assembly(job, host(level)) for level in ("avx512", "avx2", "neon", "apple")}
            assert [level for level, text in found.items() if "vscalef" in text] == ["avx512"]
            assert not [level for level, text in found.items() if "ldexp" in text]
            assert compile_object(job, host("neon")).externals == ()


def test_a_program_is_compiled_whole_for_other_machines():
    for level in ("neon", "apple"):
        executable, found, _ = emit(
            schedule(GRAPHS["attention"](), training=True), element="float32", target=host(level)
        )
        assert executable.target == str(host(level))
        for kernel in executable.kernels:
            assert symbols(found[kernel.object]).defined >= {kernel.symbol}
            assert not symbols(found[kernel.object]).foreign


def test_a_worker_compiles_for_the_target_that_it_is_told():
    line = "def k(x, lo, hi):\n    for i in range(lo, hi):\n        x[i] = x[i] * 2.0 + {}.0\n"
    jobs = [Job(line.format(n), "k", (Array("float32", (64,)),)) for n in range(4)]
    expected = {symbol_of(job, host("neon")): compile_object(job, host("neon")) for job in jobs}
    with Crew(host("neon"), [Worker.start()], workers=2) as crew:
        for symbol, job in zip(expected, jobs, strict=True):
            crew.give(symbol, job)
        until = time.monotonic() + 60
        while crew.found != expected and time.monotonic() < until:  # the caller compiles none of them
            time.sleep(0.01)
        assert crew.found == expected


def test_the_environment_restricts_a_process(monkeypatch):
    monkeypatch.setenv("CHAINRULE_CPU", RUNS[-1])
    assert host() == host(RUNS[-1])
    for wrong, text in (("avx3", "did you mean"), ("apple", "cannot run")):
        monkeypatch.setenv("CHAINRULE_CPU", wrong)
        with pytest.raises(ChainruleError, match=text):
            host()
    monkeypatch.setenv("CHAINRULE_CPU", "")
    assert host() == host("native")


def test_what_is_compiled_for_one_width_is_not_found_for_another():
    keys = {}
    for level in ("native", *RUNS):
        script = "from chainrule import build; print(build._versions()[-1])"
        answer = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "CHAINRULE_CPU": level}, capture_output=True
        )
        keys[level] = answer.stdout
    assert len(set(keys.values())) == len(keys)


def test_a_target_that_takes_neon_for_wider_is_noticed():
    """Sabotage: with more sums than registers the inner loop spills."""
    job = matrix_product("NN", ("M", 96, 128), "float32", host("neon"), lambda way: replace(way, rows=14, vectors=3))
    body = inner_loop(assembly(job, host("neon")))
    assert [line for line in body if "[sp" in line]
