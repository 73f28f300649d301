"""Compositions in kernels: found across local variables, weighed together, computed right."""

from __future__ import annotations

import ast
from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from chainrule import compiler
from chainrule.codegen import compose
from chainrule.codegen.behaviour import X
from chainrule.codegen.cpu import sources
from chainrule.codegen.direct import direct
from chainrule.codegen.target import host
from chainrule.ir.expression import slot
from chainrule.ir.formula import Access
from chainrule.ir.program import Program, Statement
from chainrule.options import Options
from chainrule.source import Source
from tests.codegen.laws import WON
from tests.codegen.running import run_compiled, run_plain

COUNT = 2048
FMA = host().fma

pytestmark = pytest.mark.skipif(not FMA, reason="polynomials win where a multiply-add is one instruction")


def program_of(line: str, mode: str = "gradient", accurate: bool = False, count: int = COUNT) -> Program:
    text = f"""model m():
    param x[{count}] ~ normal(1)
    input w[{count}]
    {line}
    loss = sum[n] w[n] * y[n]
    output y
"""
    options = Options("gradient") if mode == "gradient" else Options("predict", outputs=("y",))
    return compiler.program(compiler.derive(Source(text, "m.graph"), options), options)


def text_of(program: Program, **how) -> str:
    return "\n".join(k.text for k in sources(program, element=how.pop("element", "float32"), **how).values())


ACTIVATIONS = ["gelu", "silu", "mish", "softplus", "gelu_tanh", "logsigmoid", "elu", "selu", "tanhshrink"]
WRITTEN = ["y[n] = tanh(softplus(x[n]))", "y[n] = tanh(softplus(3 * x[n] - w[n]))", "y[n] = gelu(x[n] + w[n])"]
WRITTEN += ["y[n] = exp(-x[n]^2) * erf(x[n])", "y[n] = x[n] * erf(x[n]) + log(1 + exp(2 * x[n])) * w[n]"]


@pytest.mark.parametrize("line", [*(f"y = {name}(x)" for name in ACTIVATIONS), *WRITTEN])
def test_values_and_gradients_in_float32_are_those_of_float64(line):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=COUNT - 8) * 4, [0, -0.0, 30, -30, 80, -80, 1e-20, -1e-20]])
    given = {"x": x.astype(np.float32), "w": rng.normal(size=COUNT).astype(np.float32)}
    program = program_of(line)
    exact = run_compiled(program, {}, given, "float64")
    exact = {name: exact[name] for name in exact if not name.startswith(("_", "loss"))}
    for how in (run_compiled, run_plain):
        found = how(program, {}, given, "float32")
        for name in exact:
            np.testing.assert_allclose(found[name], exact[name], rtol=1e-5, atol=4e-6, err_msg=name)


def test_the_kernel_of_mish_reads_well(file_regression):
    program = program_of("y = mish(x)")
    file_regression.check(sources(program, element="float32")[program.kernels[0].name].text, extension=".txt")


def test_variables_that_nobody_needs_any_more_are_gone():
    text = text_of(program_of("y = mish(x)"))
    assert "mish_s =" not in text
    assert "y.mish.s[n] = " in text  # the equation stays on top


def test_a_factor_is_no_part_of_the_law():
    assert "x_bar[n] = w[n] * x_bar_direct(x[n])" in text_of(program_of("y = gelu(x)"))


def test_a_law_of_a_sum_is_a_law_of_its_name():
    assert "y_gelu_direct(y_gelu_x)" in text_of(program_of("y[n] = gelu(x[n] + w[n])"))


def test_what_shares_an_exponential_is_weighed_together():
    assert "_direct" not in text_of(program_of("y = silu(x)"))
    assert "_direct" not in text_of(program_of("y[n] = exp(-x[n]^2) * erf(x[n])"))


@pytest.mark.parametrize("how", [{"element": "float64"}, {"accurate": True}, {"target": host("sse2")}])
def test_float64_and_accurate_programs_and_cpus_without_fma_stay_composed(how):
    assert "_direct" not in text_of(program_of("y = mish(x)"), **how)


def test_few_elements_stay_composed():
    assert "_direct" not in text_of(program_of("y = mish(x)", count=64))


def test_kernels_that_compute_the_same_function_are_one_kernel():
    program = program_of("y[n] = mish(mish(x[n]))", "predict")
    text = text_of(program)
    assert text.count("def ") - len(program.kernels) == 1


def test_a_value_that_was_overwritten_is_not_taken_again():
    n = sp.Symbol("n", integer=True, nonnegative=True)
    x, y, s = Access("x", (n,)), Access("y", (n,)), Access("s", ())
    body = (
        Statement(s, sp.log(1 + sp.exp(slot(0))), (x,)),
        Statement(x, slot(0) * 2, (y,)),
        Statement(y, slot(0) * sp.tanh(slot(1)), (x, s)),
    )
    found = compose.Body(body, {"s"}, local=frozenset("s"))
    assert found.values[2].free_symbols == {found.places[x], found.places[s]}
    assert s not in found.valid[2]
    unchanged = replace(body[1], reads=(x,), target=Access("z", (n,)))
    assert s in compose.Body((body[0], unchanged, body[2]), {"s"}).valid[2]


def test_products_with_a_law_are_told_by_numbers():
    u, w = sp.Symbol("_a0000", real=True), sp.Symbol("_a0001", real=True)
    law = WON["gelu'"].xreplace({X: u})
    rest, found = compose._split(law * w, u)
    assert rest == w
    assert direct(found) is not None
    assert compose._split(sp.erf(u) + w, u) is None
    assert compose._split(sp.erf(u) * w**2, u) is None


def test_a_wrong_split_is_noticed(monkeypatch):
    right = compose._split

    def wrong(e, u):
        found = right(e, u)
        return None if found is None else (found[0], found[1] * sp.Rational(1001, 1000))

    monkeypatch.setattr(compose, "_split", wrong)
    with pytest.raises(AssertionError):
        test_values_and_gradients_in_float32_are_those_of_float64("y = gelu(x)")


def test_saved_source_imports_what_its_functions_call():
    for k in sources(program_of("y = gelu(x)"), element="float32").values():
        space: set[str] = {"range"}
        for node in ast.walk(ast.parse(k.text)):
            match node:
                case ast.ImportFrom(names=names):
                    space |= {a.name for a in names}
                case ast.FunctionDef(name=name):
                    space.add(name)
        called = {n.func.id for n in ast.walk(ast.parse(k.text)) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
        assert called <= space


ROWS = """model m():
    param x[4096, 10] ~ normal(1)
    input w[4096, 10]
    a[n, k] = {}(x[n, k])
    s[n] = sum[k] a[n, k]^2
    b[n] = {}(s[n])
    y[n, k] = a[n, k] * b[n]
    loss = sum[n, k] w[n, k] * y[n, k]
    output y
"""


@pytest.mark.parametrize("name", ["mish", "gelu", "softplus"])
def test_vectors_of_short_rows_compute_them_too(name):
    options = Options("gradient")
    compiled = compiler.derive(Source(ROWS.format(name, name), "m.graph"), options)
    program = compiler.program(compiled, options)
    assert "_direct(" in text_of(program)
    rng = np.random.default_rng(0)
    given = {k: rng.normal(size=(4096, 10)).astype(np.float32) for k in ("x", "w")}
    found, exact = (run_compiled(program, {}, given, element) for element in ("float32", "float64"))
    np.testing.assert_allclose(found["x_bar"], exact["x_bar"], rtol=2e-4, atol=2e-4)
