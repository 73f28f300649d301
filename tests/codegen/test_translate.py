"""Kernels' statements: what they mean in LLVM, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.codegen.objects import Array, CompileError, Job, Size, compile_object
from chainrule.codegen.target import host
from tests.codegen.native_kernels import run, run_plain


def job(body: str) -> Job:
    lines = "\n".join(f"    {line}" for line in body.strip("\n").split("\n"))
    return Job(
        f"def kernel(x, y, n, lo, hi):\n{lines}\n",
        "kernel",
        (Array("float64", ("n",)), Array("float64", ("n",)), Size()),
    )


MEANT = {
    "ranges of one, two and three bounds": """
for i in range(n):
    y[i] = 0.0
for i in range(2, n, 3):
    y[i] += x[i]
for i in range(5, 2):
    y[0] = -1.0
for i in range(n - 7, n):
    y[i] = y[i] - float64(i)
""",
    "choices, nested and without an else": """
for i in range(lo, hi):
    y[i] = 1.0 if x[i] > 0.0 else (2.0 if x[i] < -0.5 else 3.0)
    if x[i] > 0.5:
        if i % 2 == 0:
            y[i] = x[i]
    else:
        y[i] *= 2.0
""",
    "a name that is another variable in the next loop": """
for i in range(lo, hi):
    for k in range(3):
        s = x[i] * float64(k)
        y[i] = s
    for k in range(3):
        s = i // 2 + k
        y[i] = y[i] + float64(s)
    s = x[i]
    y[i] = y[i] + s
""",
    "a value that goes around a loop": """
s = 0.0
for i in range(lo, hi):
    before = s
    s = before + x[i]
    y[i] = before
""",
    "conditions that are combined": """
for i in range(lo, hi):
    y[i] = x[i] if (x[i] > -0.5) & (i < 9) else -x[i]
""",
}


@pytest.mark.parametrize("body", MEANT.values(), ids=MEANT)
def test_a_kernel_computes_what_its_source_computes_as_python(body):
    arrays = {"x": np.random.default_rng(1).normal(size=11), "y": np.ones(11)}
    compiled, python = (how(job(body), arrays, {"n": 11}, 0, 11)["y"] for how in (run, run_plain))
    np.testing.assert_array_equal(compiled, python)


REFUSED = {
    "a value of one type that could reach a place of another": """
s = 0
for i in range(lo, hi):
    y[i] = float64(s)
    s = x[i]
""",
    "a variable that a branch made another one": """
s = 0
if lo < hi:
    s = x[0]
y[0] = float64(s)
""",
    "a name before it has a value": "y[0] = s",
    "a parameter that is assigned to": "n = 3",
    "a comparison of three": "y[0] = 1.0 if 0 < n < 3 else 2.0",
    "a loop over anything but a range": "for i in x:\n    pass",
    "a step that is not known": "for i in range(0, 9, n):\n    y[i] = 0.0",
    "a function that is passed on": "y[0] = exp(exp)",
    "an attribute": "y[0] = x.size",
    "an import": "import os",
    "a while loop": "while lo < hi:\n    pass",
    "a function of its own": "def f():\n    pass",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_no_kernel_holds_is_refused_with_its_source(body):
    with pytest.raises(CompileError, match="def kernel"):
        compile_object(job(body), host())


def test_to_compile_runs_no_text(monkeypatch):
    monkeypatch.setattr("builtins.exec", lambda *_: pytest.fail("text was executed"))
    compile_object(job("y[lo] = x[lo] + 12.5"), host())
