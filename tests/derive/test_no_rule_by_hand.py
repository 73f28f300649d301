"""No operation has a gradient written by hand: what states a derivative is this list, which a reader sees at once.

One rule of reverse mode (`derive.vjp`) differentiates every formula by sympy. Beside it stand the rule of the one
primitive that has any (`derive.primitives`), the derivatives of the scalar functions that sympy has not, and, in the
library's text, the shifts that no gradient may go through.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

import chainrule
from chainrule import compiler
from chainrule.derive import primitives
from chainrule.ir.formula import Formula
from chainrule.ir.primitive import Kind, Primitive
from chainrule.lang import syntax as s
from chainrule.lang.library import library
from chainrule.lang.parser import parse
from chainrule.options import Options
from chainrule.source import read_source
from chainrule.train import recipe

SOURCES = Path(chainrule.__file__).parent
GRAPHS = Path(__file__).parents[2] / "graphs"

PRIMITIVES = {
    "uniform": None,  # draws: nothing they depend on has a gradient
    "gradient": None,  # becomes formulas before anything is derived
    "fixed_point": "adjoint",
}
"""Every node that is no formula, with the function that states its rule."""

SCALARS = {
    ("ir/expression.py", "Select", "_eval_derivative"),  # if c then a' else b'
    ("ir/expression.py", "erfc", "fdiff"),  # sympy's own, whose erfc loses bits
    ("ir/expression.py", "LocallyConstant", "fdiff"),  # 0: floor, ceil, round, sign, quotient, remainder
}
"""Where the derivative of a scalar function is stated: (file, class, method)."""

STOPS = {
    "hypot": {"m"},  # the larger leg, which is divided out and multiplied in again
    "segment_softmax": {"m"},  # the shift of each softmax
    "ctc": {"stay", "move", "m"},  # the shift of each log-sum-exp
}
"""Statements of the library that no gradient goes through: all are shifts on which the value does not depend."""

STATED = ("_eval_derivative", "fdiff", "_eval_diff", "diff", "_diff_wrt")
RULES = {"seed", "vjp", "other terms", "accumulate", "zero"}
EQUAL = {"stabilize", "expand", "gradient", "settle"}  # another form of the same value, before or after derivation


def stated(text, file):
    """The methods in `text` by which a sympy function would say its derivative, with their classes."""
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return {
        (file, c.name, name)
        for c in classes
        for member in c.body
        for name in named(member)
        if name in STATED
    }  # fmt: skip


def named(member):
    if isinstance(member, ast.FunctionDef):
        return [member.name]
    targets = member.targets if isinstance(member, ast.Assign) else [getattr(member, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def walk(tree):
    """Every node of a syntax tree of the language."""
    if isinstance(tree, tuple):
        for part in tree:
            yield from walk(part)
    elif is_dataclass(tree):
        yield tree
        for field in fields(tree):
            yield from walk(getattr(tree, field.name))


def stops(definition):
    return {node.left.name for node in walk(definition) if isinstance(node, s.Define) and node.stop}


def test_the_primitives_are_three_and_one_has_a_rule():
    assert set(get_args(Kind)) == set(PRIMITIVES)
    here = {
        name for name, f in inspect.getmembers(primitives, inspect.isfunction) if f.__module__ == primitives.__name__
    }
    assert here == set(filter(None, PRIMITIVES.values()))


def test_scalar_derivatives_are_stated_for_what_sympy_has_not_alone():
    found = [stated(path.read_text("utf-8"), str(path.relative_to(SOURCES))) for path in SOURCES.rglob("*.py")]
    assert set().union(*found) == SCALARS


def test_one_function_differentiates_and_it_asks_sympy():
    """``sp.diff`` stands in `ir.calculus.derivative`; ``.diff`` of an argument in Select's own rule."""
    places = []
    for path in SOURCES.rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        names = [f.attr for f in calls if isinstance(f, ast.Attribute)]
        places += [str(path.relative_to(SOURCES))] * sum(name in ("diff", "Derivative") for name in names)
    assert sorted(places) == ["ir/calculus.py", "ir/expression.py", "ir/expression.py"]


def test_the_language_has_no_statement_that_could_give_a_gradient():
    assert {kind.__name__.removesuffix("Statement") for kind in get_args(s.Statement)} == {
        *("Dim", "Input", "Param", "State", "Scalar", "Random", "Let"),
        *("Define", "Update", "Repeat", "Output", "FixedPoint"),
    }
    assert {kind.__name__ for kind in get_args(s.AnyDefinition)} == {"Definition", "Initialiser", "Law"}


def test_the_library_stops_gradients_at_shifts_alone_and_never_takes_one():
    table = {name: library()[name] for name in library()}
    assert {name: found for name, definition in table.items() if (found := stops(definition))} == STOPS
    asked = {name for name, d in table.items() for n in walk(d) if isinstance(n, s.Call) and n.function == "gradient"}
    assert not asked


def test_no_stage_after_the_language_knows_a_layer_by_its_name():
    """Not even in a comparison: what a pass knows are formulas. Names that are scalar functions too are left out."""
    layers = {name for name in library() if ":" not in name and library()[name].kind == "layer"}
    assert len(layers) > 40
    found = set()
    for stage in ("ir", "derive", "optimize", "schedule", "codegen", "runtime"):
        for path in (SOURCES / stage).rglob("*.py"):
            constants = [n.value for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant)]
            found |= {(path.name, c) for c in constants if isinstance(c, str) and c in layers}
    assert not found


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.graph")), ids=lambda path: path.stem)
def test_every_node_of_a_model_s_backward_pass_was_derived_by_a_listed_rule(path):
    how = recipe.shortened(recipe.beside(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = compiler.derive(read_source(str(path), how.set), Options("gradient"))
    rules = {node.origin.rule for node in compiled.derived.nodes} - {None}
    assert {"seed", "vjp"} <= rules <= RULES | EQUAL
    primitive = {node.kind for node in compiled.derived.nodes if isinstance(node, Primitive)}
    assert primitive <= {"uniform", "fixed_point"}
    for step in compiled.trace:
        if step.rule == "vjp":  # of a formula, and of nothing else
            assert step.before and all(isinstance(f, Formula) for f in (*step.before, *step.after))


def test_a_rule_by_hand_would_be_seen():
    text = "import sympy as sp\nclass gelu(sp.Function):\n    def fdiff(self, argindex=1):\n        return 1\n"
    assert stated(text, "gelu.py") == {("gelu.py", "gelu", "fdiff")}
    assert stated("class gelu:\n    fdiff = lambda self: 1\n", "gelu.py") == {("gelu.py", "gelu", "fdiff")}
    (definition,) = parse(
        "fn shy(x[*, k]):\n    stop m[*] = max[k] x[*, k]\n    y[*, k] = x[*, k] - m[*]\n"
    ).definitions
    assert stops(definition) == {"m"}
