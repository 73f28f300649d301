"""What a model looks like inside: sources that run as plain Python, and hold nothing of a user's but plain names."""

from __future__ import annotations

import ast
import importlib.util
import re

import numpy as np
import pytest

import chainrule as cr
from chainrule import build
from chainrule.errors import SourceError
from chainrule.options import Options
from chainrule.source import Source

# names and comments as someone would write them who wants code of his own to run
HOSTILE = '''# """ ; import os; os.system("touch stolen") \x0c
model exec(lambda_ = 3):
    dim range
    input import_os[range, 2]      # """\u2028raise SystemExit
    input __[range]
'''
NAMES = ("eval", "exec", "lambda", "import", "lo", "hi", "kernel", "range", "None", "minimum", "self", "class", "λ")


def text_of(name: str) -> str:
    return (
        "model m():   # \"\"\" ''' \\ \\N{BULLET} {name} %s\n"
        f'    dim batch\n    input {name}[batch, 3]   # """; raise SystemExit\n'
        f"    {name}_2 = tanh(linear({name}, 4))\n    loss = mean({name}_2^2)\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_generated_source_holds_plain_names_of_our_own(name):
    try:
        sources = build.sources(Source(text_of(name), '"""\n\u2028;evil.graph'), Options("train", optimizer="sgd"))
    except SourceError:  # a reserved word of the language
        return
    assert sources
    for file, text in sources.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*\.py", file)
        assert text.isascii()
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.Raise | ast.Import | ast.Global | ast.Lambda | ast.Attribute)
            if isinstance(node, ast.ImportFrom):
                assert node.module.startswith("chainrule.codegen.")
            if isinstance(node, ast.Name | ast.arg):
                assert re.fullmatch(r"[a-z][a-z0-9_]*", node.id if isinstance(node, ast.Name) else node.arg)
            if isinstance(node, ast.Call):
                assert isinstance(node.func, ast.Name)
                assert node.func.id not in {"eval", "exec", "compile", "open"}


def test_a_text_that_wants_to_run_is_refused_where_it_stands():
    with pytest.raises(SourceError) as error:
        build.sources(Source(HOSTILE, "hostile.graph"), Options("predict"))
    assert "hostile.graph:" in str(error.value)


@pytest.mark.parametrize("name", ["x[0]", "x\n", "x; y", "1x", "_x", 'x"', "x y", "", "x\u2028", "ｘ"])
def test_names_given_in_python_are_names(name):
    for make in (
        lambda: cr.input(name, [3]),
        lambda: cr.param(name, [3]),
        lambda: cr.dim(name),
        lambda: cr.tanh(cr.input("x", [3]), name=name),
        lambda: cr.Model(cr.mean(cr.input("x", [3])), name=name),
        lambda: cr.Model(cr.mean(cr.input("x", [3])), **{name: cr.input("y", [3])}),
    ):
        with pytest.raises(cr.ChainruleError, match="is no name"):
            make()


def test_saved_source_runs_as_plain_python(tmp_path):
    x = cr.input("x", [cr.dim("batch"), 3])
    y = cr.formula("y[n] = max[i] (x[n, i]^2 + 1)", x=x)
    model = cr.Model(y=y)
    (file, text), *others = build.sources(model.source, Options("predict")).items()
    assert not others
    (tmp_path / file).write_text(text)
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), tmp_path / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, file.removesuffix(".py"))
    at = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    given = {"x": at, "y": np.zeros(5, np.float32)}
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    kernel(*({**given, "lo": 0, "hi": 1}.get(name, 5) for name in names))
    assert np.allclose(given["y"], model.predict(x=at)["y"], rtol=1e-6)
