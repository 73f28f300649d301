"""No text of a user's reaches generated code raw: hostile names and texts stay names and comments."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chainrule.codegen.cpu import sources
from chainrule.codegen.names import Names, identifier, plain
from chainrule.codegen.objects import NAMES
from chainrule.errors import Span
from chainrule.ir.formula import Access, Origin
from chainrule.ir.program import Buffer, Leaf, Loop, Product, Program, Range, Statement
from chainrule.schedule import schedule
from tests.codegen.graphs import GRAPHS

HOSTILE = [
    '"""\nimport os\n"""', "a\rimport os", "x\\", "\\\n", "\x00", "'", '"', "#", "def", "lambda", "None", "λ",
    "__import__",
    "exec", "float32", "lo", "hi", "range", "match", "print", "\u2028import os", "\x0cimport os", "é", "Ａ", "", " ",
    "1", "_",
    "a" * 500, "a; import os", "h.linear.W", "{}", "%s", "\N{RIGHT-TO-LEFT OVERRIDE}", "\ud800", "h\u0131",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))


@given(text=TEXTS)
def test_an_identifier_is_lower_case_ascii(text):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", identifier(text))


@given(texts=st.lists(TEXTS, max_size=20))
def test_names_are_unique_and_no_words_of_python_or_of_ours(texts):
    names = Names(NAMES)
    given_out = [names.fresh(text) for text in texts]
    assert len(set(given_out)) == len(given_out)
    assert not any(keyword.iskeyword(n) or keyword.issoftkeyword(n) or n in NAMES for n in given_out)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in given_out)


@given(text=TEXTS)
@example("\n")
def test_a_comment_or_docstring_cannot_be_ended_from_inside(text):
    shown = plain(text)
    assert re.fullmatch(r"[ -~]*", shown)
    assert '"' not in shown
    assert "\\" not in shown


def renamed(program: Program, texts: list[str]) -> Program:
    """`program` with hostile names for buffers, kernels and indices, and hostile texts as equations and origins."""
    names = [*(b.name for b in program.buffers), *(b.name for k in program.kernels for b in k.locals)]
    new = {name: f"{texts[k % len(texts)]}{k}" for k, name in enumerate(dict.fromkeys(names))}

    def buffer(b: Buffer, k: int) -> Buffer:
        return replace(b, name=new[b.name], stands_for=texts[k % len(texts)])

    def access(a: Access) -> Access:
        return replace(a, tensor=new[a.tensor])

    def index(r: Range) -> Range:
        return replace(r, pretty=texts[len(r.symbol.name) % len(texts)])

    def leaf(node: Leaf) -> Leaf:
        origin = Origin(span=Span(texts[0], 1), rule=texts[-1], formula=texts[0])
        match node:
            case Loop():
                return replace(node, range=index(node.range), body=tuple(map(leaf, node.body)))
            case Statement():
                companion = None if node.companion is None else new[node.companion]
                reads = tuple(map(access, node.reads))
                text = "".join(texts)
                return replace(
                    node, target=access(node.target), reads=reads, companion=companion, origin=origin, text=text
                )
            case Product():
                sides = {side: access(getattr(node, side)) for side in ("target", "left", "right")}
                return replace(node, **sides, origin=Origin(span=Span(texts[-1], 1)), text="\n".join(texts))

    kernels = []
    for k, kernel in enumerate(program.kernels):
        body, own = tuple(map(leaf, kernel.body)), tuple(buffer(b, j) for j, b in enumerate(kernel.locals))
        block = None if kernel.block is None else replace(kernel.block, pretty=texts[0])
        kernels.append(replace(kernel, name=f"{texts[k % len(texts)]}{k}", body=body, locals=own, block=block))
    buffers = tuple(buffer(b, k) for k, b in enumerate(program.buffers))
    return replace(program, buffers=buffers, kernels=tuple(kernels), outputs=(), inits=(), values=(), bounds=())


ALLOWED = {
    ast.Module, ast.ImportFrom, ast.alias, ast.FunctionDef, ast.arguments, ast.arg, ast.Expr, ast.Constant, ast.For,
    ast.If, ast.While, ast.Pass, ast.Assign, ast.AugAssign, ast.Call, ast.Name, ast.Load, ast.Store, ast.Subscript,
    ast.Tuple,
    ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.BitAnd, ast.BitOr, ast.USub, ast.Not, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
}  # fmt: skip


BUILTINS = {"range", "min", "max"}


def assert_harmless(text: str, entry: str) -> None:
    """Only loops and arithmetic, calls of our functions alone, one docstring and no other string."""
    tree = ast.parse(text)
    assert {type(node) for node in ast.walk(tree)} <= ALLOWED
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert function.name == entry
    for node in tree.body:
        assert node is function or (isinstance(node, ast.ImportFrom) and node.module.startswith("chainrule.codegen."))
    assert not function.decorator_list
    assert not function.args.defaults
    bound = {a.arg for a in function.args.args}
    bound |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not bound & set(NAMES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id in bound or node.id in NAMES or node.id in BUILTINS
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            assert node.func.id in NAMES or node.func.id in BUILTINS
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert strings == [function.body[0].value]
    lines = text.split("\n")
    assert all(re.fullmatch(r"[ -~]*", line) for line in lines)
    assert max(t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline)) <= len(lines)


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_are_loops_and_arithmetic_over_our_own_functions(name):
    program = schedule(GRAPHS[name](), training=True)
    for source in sources(program, element="float32").values():
        assert_harmless(source.text, source.job.entry)


PROGRAMS = [schedule(GRAPHS[name](), training=True) for name in ("odd_ends", "embedding", "cross_entropy")]


@settings(max_examples=40, deadline=None)
@given(which=st.sampled_from(range(len(PROGRAMS))), texts=st.lists(TEXTS, min_size=1, max_size=6))
@example(which=0, texts=HOSTILE)
@example(which=1, texts=HOSTILE[::-1])
def test_hostile_names_and_texts_stay_names_and_comments(which, texts):
    program = PROGRAMS[which]
    written = list(sources(renamed(program, texts), element="float32").values())
    for source, honest in zip(written, sources(program, element="float32").values(), strict=True):
        assert_harmless(source.text, source.job.entry)
        assert len(source.buffers) == len(honest.buffers)
