"""What the compilers make of the standard forms: no float64 where none is meant, no spills, wide accesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda.emit import emit
from chainrule.codegen.cuda.functions import __all__ as functions
from chainrule.codegen.cuda.objects import compile_kernel, compile_kernels
from chainrule.codegen.cuda.toolkit import Figures, figures, resources
from chainrule.compiler import derive, program
from chainrule.executable import ONE
from chainrule.options import Options
from chainrule.source import read_source
from tests.codegen.cuda.kernels import ROWS, STANDARD, WIDE, at_each

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
CEILINGS = {"map": 40, "wide": 32, "rows": 48, "totals": 40}  # registers of a thread: 40 let 1536 threads live at once

READS = {"maximum": 2, "minimum": 2, "power": 2, "atan2": 2, "fma": 3}
OTHERS = {"inf", "nan", "accumulate", "float32", "float64", "int64", "uniform", "where"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def measured(request: pytest.FixtureRequest) -> dict[str, Figures]:
    compiled = compile_kernels(list(STANDARD.values()), request.param)
    return {name: figures(one.cubin) for name, one in zip(STANDARD, compiled, strict=True)}


def test_the_standard_forms_stay_in_registers(measured: dict[str, Figures]) -> None:
    for name, found in measured.items():
        assert found.local == 0, name
        assert 0 < found.registers <= CEILINGS[name], name


def test_the_standard_forms_compute_nothing_in_float64(measured: dict[str, Figures]) -> None:
    assert {name: found.doubles for name, found in measured.items()} == dict.fromkeys(STANDARD, 0)


def test_four_elements_are_one_access(measured: dict[str, Figures]) -> None:
    assert measured["wide"].loads == measured["wide"].stores == {128: 1}
    assert measured["rows"].loads == measured["rows"].stores == {128: 2}


def test_a_float_that_is_not_wrapped_is_seen_as_float64() -> None:
    job = replace(ROWS, source=ROWS.source.replace("float32(1.0) /", "1.0 /"))
    assert figures(compile_kernel(job, "sm_90").cubin).doubles > 0


def test_four_accesses_of_one_element_are_seen_as_narrow() -> None:
    narrow = WIDE.source.replace("load4(x, quad * 4)", "x[quad], x[quad + 1], x[quad + 2], x[quad + 3]")
    assert figures(compile_kernel(replace(WIDE, source=narrow), "sm_90").cubin).loads == {32: 4}


def test_no_function_of_float32_computes_in_float64() -> None:
    names = [name for name in functions if name not in OTHERS]
    jobs = [at_each(f"{name}({', '.join('abc'[: READS.get(name, 1)])})", READS.get(name, 1)) for name in names]
    found = [compiled.ptx for compiled in compile_kernels(jobs, "sm_90")]
    assert [name for name, ptx in zip(names, found, strict=True) if b".f64" in ptx or b".local" in ptx] == []


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_a_models_kernels_stay_in_registers_and_in_float32(name: str) -> None:
    options = Options("train", optimizer="sgd", target="cuda:sm_90")
    source = read_source(f"graphs/{name}.graph", {})
    executable, objects, _ = emit(program(derive(source, options), options), element="float32", arch="sm_90")
    names = {launch.kernel: launch.name if launch.when == ONE else "one block" for launch in executable.launches}
    for k, kernel in enumerate(executable.kernels):
        ptx, used = objects[kernel.ptx], resources(objects[kernel.object])
        assert used["STACK"] == used["LOCAL"] == 0, names[k]
        shared = names[k] in ("factors", "one block")  # what all threads share, computed once and exactly
        assert shared or b".f64" not in ptx, names[k]
