"""Objects: the ABI, what they hold and do not hold, and that equal kernels are equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from chainrule.codegen import objects
from chainrule.codegen.objects import (
    Array,
    CompileError,
    Job,
    Size,
    assembly,
    compile_object,
    symbol_of,
)
from chainrule.codegen.target import host
from tests.codegen.native_kernels import run, run_plain

HIDDEN = Job(
    '''def hidden(z, b, h, N, J, lo, hi):
    """h[n, j] = max(z[n, j] + b[j], 0)"""
    for n in range(lo, hi):
        for j in range(0, J):
            h[n, j] = maximum(z[n, j] + b[j], float32(0))  # graphs/mlp.graph:9
''',
    "hidden",
    (Array("float32", ("N", "J")), Array("float32", ("J",)), Array("float32", ("N", "J")), Size(), Size()),
)
RENAMED = replace(
    HIDDEN,
    entry="layer_2",
    source=HIDDEN.source.replace("hidden", "layer_2").replace("z", "u").replace("mlp.graph:9", "x.graph:1"),
)


def test_a_kernel_reads_its_table_and_does_only_its_part_of_the_range():
    rng = np.random.default_rng(0)
    z, b = rng.normal(size=(9, 37)).astype(np.float32), rng.normal(size=37).astype(np.float32)
    arrays = {"z": z, "b": b, "h": np.full((9, 37), 7, np.float32)}
    for how in (run, run_plain):
        h = how(HIDDEN, arrays, {"N": 9, "J": 37}, 2, 5)["h"]
        np.testing.assert_array_equal(h[2:5], np.maximum(z + b, 0)[2:5])
        assert (h[:2] == 7).all()
        assert (h[5:] == 7).all()


def test_a_plain_loop_becomes_vectors_of_the_full_width():
    assert "vmovaps\t(%rcx,%rdx,4), %ymm" in assembly(HIDDEN, host("avx2")) or "ymm" in assembly(HIDDEN, host("avx2"))
    if host().bits == 512:
        assert "zmm" in assembly(HIDDEN, host())


def test_views_never_overlap_so_a_loop_needs_no_check_of_addresses():
    # with possible overlap LLVM compares the pointers and keeps a scalar copy of the loop for that case
    fixed = replace(
        HIDDEN,
        parameters=(Array("float32", (8, 64)), Array("float32", (64,)), Array("float32", (8, 64)), Size(), Size()),
    )
    fixed = replace(fixed, source=fixed.source.replace("range(0, J)", "range(0, 64)"))
    assert "vaddss" not in assembly(fixed, host("avx2"))


def test_equal_kernels_under_other_names_are_the_same_bytes():
    assert compile_object(HIDDEN, host()) == compile_object(RENAMED, host())


def test_what_changes_the_code_changes_the_symbol():
    others = [
        replace(HIDDEN, source=HIDDEN.source.replace("float32(0)", "float32(1)")),
        replace(HIDDEN, parameters=(Array("float32", ("N", 37)), *HIDDEN.parameters[1:])),
        replace(HIDDEN, parameters=(Array("float64", ("N", "J")), *HIDDEN.parameters[1:])),
        replace(HIDDEN, parameters=(Array("float32", ("J", "N")), *HIDDEN.parameters[1:])),
    ]
    symbols = {symbol_of(job, host()) for job in (HIDDEN, *others)} | {symbol_of(HIDDEN, host("sse2"))}
    assert len(symbols) == len(others) + 2
    assert len({symbol_of(HIDDEN, replace(host(), cpu=cpu)) for cpu in ("a", "b")}) == 2


def test_another_process_makes_the_same_bytes():
    script = (
        "import hashlib; from tests.codegen.test_objects import HIDDEN; from chainrule.codegen.target import host;"
        "from chainrule.codegen.objects import compile_object;"
        "print(hashlib.sha256(compile_object(HIDDEN, host()).code).hexdigest())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**env, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_an_object_needs_nothing_but_bound_symbols():
    compiled = compile_object(HIDDEN, host())
    assert compiled.externals == objects.undefined_symbols(compiled.code) == ()
    calls = replace(HIDDEN, source=HIDDEN.source.replace("maximum(z[n, j] + b[j], float32(0))", "power(z[n, j], b[j])"))
    assert compile_object(calls, host()).externals == ("powf",)
    assert b"Py" not in compile_object(calls, host()).code


def test_an_object_with_a_symbol_outside_the_list_is_refused(monkeypatch):
    monkeypatch.setattr(objects, "BOUND", frozenset())
    calls = replace(HIDDEN, source=HIDDEN.source.replace("maximum(z[n, j] + b[j], float32(0))", "sin(z[n, j])"))
    with pytest.raises(CompileError, match=r"needs \['sinf'\]"):
        compile_object(calls, host())


@pytest.mark.parametrize("text", ["open('x')", "__import__('os')", "hidden.__globals__", "eval('1')"])
def test_source_can_name_nothing_but_our_own_functions(text):
    job = replace(HIDDEN, source=HIDDEN.source.replace("float32(0)", text))
    with pytest.raises(CompileError):
        compile_object(job, host())


def test_what_does_not_compile_is_shown_with_its_source():
    with pytest.raises(CompileError, match="graphs/mlp.graph:9"):
        compile_object(replace(HIDDEN, source=HIDDEN.source.replace("b[j]", "b[j, 0]")), host())


def test_scratch_arrays_lie_behind_each_other():
    source = """def kernel(x, row, count, y, n, lo, hi):
    for i in range(lo, hi):
        row[i] = x[i] + x[i]
        count[i, 1] = i
    for i in range(lo, hi):
        y[i] = row[i] + float64(count[i, 1])
"""
    parameters = (
        Array("float64", ("n",)),
        Array("float64", ("n",), True),
        Array("int64", ("n", 2), True),
        Array("float64", ("n",)),
        Size(),
    )
    x = np.linspace(0, 1, 13)
    arrays = {"x": x, "y": np.zeros(13)}
    for how in (run, run_plain):
        found = how(Job(source, "kernel", parameters), arrays, {"n": 13}, 0, 13)
        np.testing.assert_allclose(found["y"], 2 * x + np.arange(13))


@pytest.mark.parametrize("rank", range(9))
def test_views_have_any_number_of_axes(rank):
    names = [f"i{k}" for k in range(rank)]
    loops = "".join("    " * (k + 1) + f"for {i} in range({k % 2 + 2}):\n" for k, i in enumerate(names))
    place = ", ".join(names) or "()"
    source = f"def kernel(x, y, lo, hi):\n{loops}" + "    " * (rank + 1) + f"y[{place}] = x[{place}] + 1.0\n"
    shape = tuple(k % 2 + 2 for k in range(rank))
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    job = Job(source, "kernel", (Array("float64", shape), Array("float64", shape)))
    for how in (run, run_plain):
        np.testing.assert_array_equal(how(job, {"x": x, "y": np.zeros_like(x)}, {}, 0, 1)["y"], x + 1)


def test_integers_booleans_and_conditions():
    source = """def kernel(x, keep, i, y, n, lo, hi):
    for k in range(lo, hi):
        keep[k] = (x[k] > 0.0) & (not (x[k] > 1.0)) | (i[k] % 3 == 1)
        y[k] = x[i[k] // 2] if keep[k] else -x[k]
        i[k] = min(max(i[k] - 3, 0), abs(k - 4))
"""
    parameters = (
        Array("float64", ("n",)),
        Array("bool", ("n",)),
        Array("int64", ("n",)),
        Array("float64", ("n",)),
        Size(),
    )
    x = np.array([0.5, -1.0, 2.0, 0.25, -3.0, np.nan])
    arrays = {"x": x, "keep": np.zeros(6, bool), "i": np.arange(6), "y": np.zeros(6)}
    job = Job(source, "kernel", parameters)
    compiled, plain = (how(job, arrays, {"n": 6}, 0, 6) for how in (run, run_plain))
    for name in arrays:
        np.testing.assert_array_equal(compiled[name], plain[name])
    assert compiled["keep"].tolist() == [True, True, False, True, True, False]


def test_division_by_zero_follows_ieee_and_raises_nothing():
    source = "def kernel(x, y, lo, hi):\n    for k in range(lo, hi):\n        y[k] = x[k] / x[k + 3]\n"
    job = Job(source, "kernel", (Array("float64", (6,)), Array("float64", (3,))))
    x = np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(run(job, {"x": x, "y": np.zeros(3)}, {}, 0, 3)["y"], x[:3] / x[3:])


def test_nan_infinities_and_signed_zeros_keep_their_meaning():
    source = (
        "def kernel(x, y, lo, hi):\n    for k in range(lo, hi):\n        y[k] = (x[k] - x[k]) + (x[k] + 0.0) * 0.0\n"
    )
    job = Job(source, "kernel", (Array("float64", (4,)), Array("float64", (4,))))
    found = run(job, {"x": np.array([np.inf, np.nan, -2.0, 3.0]), "y": np.zeros(4)}, {}, 0, 4)["y"]
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.0, 0.0])


def test_kernels_that_differ_in_names_are_read_as_trees_once(monkeypatch):
    trees = []
    plain = objects._renamed.__wrapped__
    monkeypatch.setattr(objects, "_renamed", cache(lambda *text: trees.append(text) or plain(*text)))
    jobs = [replace(HIDDEN, entry=f"f{k}", source=HIDDEN.source.replace("hidden", f"f{k}")) for k in range(5)]
    assert len({objects.canonical.__wrapped__(job)[0] for job in [*jobs, RENAMED]}) == len(trees) == 1
