"""From source to PTX and cubin: deterministic, equal for equal kernels, and clear where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("cuda.bindings", reason="needs chainrule[cuda]")

from chainrule.codegen.cuda import toolkit
from chainrule.codegen.cuda.objects import CompileError, compile_kernel, compile_kernels, symbol_of
from chainrule.errors import ChainruleError
from tests.codegen.cuda.kernels import MAP, ROWS, at_each


def test_the_same_source_gives_the_same_bytes_under_the_same_symbol() -> None:
    first, second = compile_kernel(MAP, "sm_90"), compile_kernel(MAP, "sm_90")
    assert first == second
    assert f".visible .entry {first.symbol}(".encode() in first.ptx
    assert first.cubin.startswith(b"\x7fELF")


def test_names_comments_and_docstrings_do_not_matter() -> None:
    source = MAP.source.replace("hidden", "layer").replace("flat", "place").replace("graphs", "models")
    assert compile_kernel(replace(MAP, source=source, entry="layer"), "sm_90") == compile_kernel(MAP, "sm_90")


def test_what_changes_the_code_changes_the_symbol() -> None:
    others = [
        symbol_of(MAP, "sm_80"),
        symbol_of(replace(MAP, threads=128), "sm_90"),
        symbol_of(replace(MAP, parameters=ROWS.parameters[:1] * 3 + ROWS.parameters[2:]), "sm_90"),
        symbol_of(replace(MAP, source=MAP.source.replace("64", "32")), "sm_90"),
    ]
    assert len({*others, symbol_of(MAP, "sm_90")}) == 4  # the third is the same kernel


def test_many_kernels_are_what_each_is_alone() -> None:
    together = compile_kernels([MAP, ROWS, MAP], "sm_90")
    assert together == [compile_kernel(job, "sm_90") for job in (MAP, ROWS, MAP)]


def test_the_block_has_the_threads_that_were_asked_for() -> None:
    assert b".reqntid 64, 1, 1" in compile_kernel(replace(MAP, threads=64), "sm_90").ptx


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def k(x, y, n, scratch):\n    y[0] = open(x)\n", "no function of ours"),
        ("def k(x, y, n, scratch):\n    y[0] = x.data\n", "no kernel has"),
        ("def k(x, y, n):\n    y[0] = x[0]\n", "and 4 are described"),
        ("def k(x, y, n, scratch):\n    a, b = load4(x, 0)\n", "2 names for the 4 parts"),
        ("def k(x, y, n, scratch):\n    row = shared_float32(n)\n    y[0] = row[0]\n", "shared_float32"),
    ],
)
def test_source_that_no_kernel_has_is_refused_with_the_source(source: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem) as raised:
        compile_kernel(replace(at_each("a"), source=source, entry="k"), "sm_90")
    assert "def k(" in str(raised.value)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CompileError, match="compute_13"):
        compile_kernel(MAP, "sm_13")


def test_without_the_compilers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "nvvm", None)
    with pytest.raises(ChainruleError, match=r"pip install 'chainrule\[cuda\]'"):
        compile_kernel(MAP, "sm_90")
