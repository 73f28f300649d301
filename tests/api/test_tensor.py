"""Symbolic tensors record statements of the language, and nothing is parsed before it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

import chainrule as cr
from chainrule.api.model import Model
from chainrule.api.tensor import caller, name_all, recorded


def text_of(model: Model) -> list[str]:
    return [line.strip() for line in model.source.text.splitlines()]


def test_each_operation_is_one_statement_at_its_callers_place():
    batch = cr.dim("batch")
    x = cr.input("x", [batch, 3])
    y = cr.input("y", [batch, 3])
    here = caller()
    loss = cr.mean((x - y) ** 2 / 2)
    model = cr.Model(loss)
    assert text_of(model) == [
        "model network:",
        "dim batch",
        "input x[batch, 3]",
        "input y[batch, 3]",
        "t = x - y",
        "t_2 = t ^ (2)",
        "t_3 = t_2 / (2)",
        "loss = mean(t_3)",
        "output loss",
    ]
    assert {place.file for place in model.source.places} == {__file__}
    assert [place.line - here.line for place in model.source.places[4:8]] == [1, 1, 1, 1]
    assert model.source.places[7].text.strip() == "loss = cr.mean((x - y) ** 2 / 2)"


def test_names_depend_on_the_model_alone_and_not_on_what_was_made_before():
    def network():
        x = cr.input("x", [cr.dim("batch"), 3])
        return cr.Model(cr.mean(cr.formula("y[n, i] = x[n, i]^2", x=x)))

    assert network().source.text == network().source.text


def test_a_formula_reads_its_tensors_under_the_names_that_the_model_gives_them():
    x = cr.input("x", [cr.dim("batch"), 3])
    W = cr.param("W", [3, 2], "glorot_uniform")
    first = cr.formula("y[n, o] = sum[i] a[n, i] * M[i, o]", a=x, M=W)
    second = cr.formula("y[n, o] = 2 * a[n, o]", a=first)
    names = name_all(recorded([second]))
    assert first.statement(names) == "y[n, o] = sum[i] x[n, i] * W[i, o]"
    assert second.statement(names) == "y_2[n, o] = 2 * y[n, o]"


def test_dims_show_what_is_checked_of_them():
    time = cr.dim("time", minimum=1, maximum=256)
    model = cr.Model(cr.mean(cr.input("x", [time])))
    assert "dim 1 <= time <= 256" in text_of(model)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: cr.input("x; import os", [3]), "'x; import os' is no name"),
        (lambda: cr.input("_x", [3]), "'_x' is no name"),
        (lambda: cr.param("W", [3], "zeros\n    evil"), "is no initialiser"),
        (lambda: cr.formula("y = 1\nz = 2"), "a formula is one line"),
        (lambda: cr.formula("1 + 2"), "defines no tensor"),
        (lambda: cr.input("x", [3]) + "1 + evil", "'1 + evil' is no name"),
        (lambda: cr.input("x", [3]) * object(), "is neither a tensor nor a number"),
        (lambda: bool(cr.input("x", [3]) > 0), "has no truth value"),
        (lambda: cr.Model(cr.input("x", [3]) + cr.input("x", [4])), "two inputs or params are named x"),
        (lambda: cr.Model(cr.mean(cr.input("x", [cr.dim("n")]) + cr.input("y", [cr.dim("n", 2)]))), "two dims"),
    ],
)
def test_what_cannot_be_recorded_is_refused_where_it_is_written(make, problem):
    with pytest.raises(cr.ChainruleError) as error:
        make()
    assert problem in str(error.value)


def test_an_unknown_function_says_what_there_is():
    with pytest.raises(AttributeError, match="chainrule has no 'meen'.*mean"):
        cr.meen(1)


def test_recording_a_model_imports_neither_sympy_nor_numba():
    code = (
        "import sys, chainrule as cr\n"
        "x = cr.input('x', [cr.dim('batch'), 3])\n"
        "cr.Model(cr.mean(x * x))\n"
        "print(sorted({'sympy', 'numba', 'networkx', 'lark'} & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert found.stdout.strip() == "[]"
