"""The house as its plan has it: short files and functions, modules that say why they are there, imports on top."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "src").rglob("*.py"))
PYTHON = MODULES + sorted((ROOT / "tests").rglob("*.py"))
RUNS_TEXT = ROOT / "src/chainrule/codegen/objects.py"
"""The one module that compiles text, which our own printer made."""


def name(path):
    return str(path.relative_to(ROOT))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(module):
    return [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_files_stay_under_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 500


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_functions_stay_under_60_lines(path):
    long = [f.name for f in functions(tree(path)) if f.end_lineno - f.lineno + 1 >= 60]
    assert not long


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_every_module_says_why_it_is_there(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or not text.strip()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_the_door_to_the_compiler_imports_inside_a_function(path):
    inside = [f.name for f in functions(tree(path)) for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert path.name == "build.py" or not inside


@pytest.mark.parametrize("path", [path for path in MODULES if path != RUNS_TEXT], ids=name)
def test_nothing_can_run_a_text(path):
    """Beyond the linter's list: ``S("…")``, compile, __import__, and loading arrays with pickles in them."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bS\(\s*['\"f]|\b__import__\(|allow_pickle\s*=\s*True|\bnp\.load\((?!.*allow_pickle)", text)
    called = {n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "sympify", "lambdify", "parse_expr"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_left_for_later(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", ["chainrule", "chainrule.executable", "chainrule.errors", "chainrule.train"])
def test_the_run_side_imports_nothing_heavy(module):
    heavy = "{'sympy', 'numba', 'networkx', 'lark', 'sklearn', 'matplotlib', 'scipy', 'pandas', 'torch', 'jax'}"
    script = f"import sys, {module}; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_files_that_the_package_carries_exist():
    for pattern in ("src/chainrule/py.typed", "src/chainrule/library/*.graph", "src/chainrule/lang/grammar.lark"):
        assert list(ROOT.glob(pattern)), pattern
