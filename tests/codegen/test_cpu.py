"""From a program to source and an executable: what is printed, shared, vectorised, and laid out."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from chainrule import executable as ex
from chainrule.codegen.cpu import emit, saved, sources
from chainrule.codegen.layout import Sizes
from chainrule.codegen.objects import assembly
from chainrule.codegen.target import host
from chainrule.errors import ChainruleError, Span
from chainrule.ir.expression import dim_symbol, index_symbol, quotient, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Origin, Reduce
from chainrule.ir.graph import Dim, Graph, Init, Param, Scalar, State, Tensor, Update
from chainrule.ir.primitive import Primitive
from chainrule.ir.program import Block, Buffer, Kernel, Loop, Product, Program, Range, Statement
from chainrule.reference import evaluate, updated
from chainrule.schedule import schedule
from tests.codegen.graphs import GRAPHS
from tests.codegen.running import run_compiled, run_plain
from tests.schedule import graphs

N, n, j = dim_symbol("batch"), index_symbol("n"), index_symbol("j")
X = slot(0)


def text_of(program: Program, element: str = "float32") -> str:
    return "\n\n".join(s.text for s in sources(program, element=element, target=host("avx2")).values())


def kernel(*body, buffers, block=None, own=()) -> Program:
    """A program of one kernel."""
    made = Kernel("only", body, own, block)
    return Program("one", True, (Dim("batch"),), tuple(buffers), (made,), (), (), ())


def floats(name: str, *shape, space="arena") -> Buffer:
    return Buffer(name, tuple(map(sp.sympify, shape)), DType.FLOAT, space)


# Text.


def perceptron() -> Program:
    """Two kernels by hand: a layer in blocks of rows, and the softmax of its rows with their greatest places."""
    f, l, b, k = *(sp.Symbol(s, integer=True) for s in ("_first", "_last", "_number")), index_symbol("k")
    at = [Origin(Span("graphs/mlp.graph", line)) for line in range(12)]
    rows, columns = Range(n, f, l, "n"), Range(j, sp.S.Zero, sp.Integer(128), "j")
    z = Access("z", (n - f, j))
    multiply = Product(
        z, Access("x", (n, k)), Access("h.W", (k, j)), (rows,), (columns,), (Range(k, sp.S.Zero, sp.Integer(64), "i"),),
        origin=at[8], text="z[n, j] = sum[i] x[n, i] * h.W[i, j]",
    )  # fmt: skip
    rows, columns = (replace(r, symbol=index_symbol(f"{r.pretty}_")) for r in (rows, columns))
    here = (rows.symbol, columns.symbol)
    inside = (Access("z", (here[0] - f, here[1])), Access("h.b", (here[1],)))
    squash = Statement(
        Access("h", here), sp.tanh(X + slot(1)), inside, origin=at[9], text="h[n, j] = tanh(z[n, j] + h.b[j])"
    )
    hidden = Kernel(
        "hidden",
        (multiply, Loop(rows, (Loop(columns, (squash,)),))),
        (floats("z", 32, 128, space="scratch"),),
        Block(b, f, l, N, 32, "n"),
    )
    inits = tuple((name, Init("constant", (0.0,))) for name in ("h.W", "h.b"))
    return replace(kernel(buffers=()), kernels=(hidden, softmax(at)), inits=inits, buffers=(
        floats("x", N, 64, space="input"), floats("h.W", 64, 128, space="param"), floats("h.b", 128, space="param"),
        floats("h", N, 128), floats("p", N, 128), Buffer("a", (N,), DType.INT, "arena"),
    ))  # fmt: skip


def softmax(at: list[Origin]) -> Kernel:
    h, own = Access("h", (n, j)), {name: Access(name, ()) for name in ("m", "l", "a_place", "a_most")}
    e = Access("e", (j,))
    columns = Range(j, sp.S.Zero, sp.Integer(128), "j")
    clear = [
        Statement(own["m"], -sp.oo),
        Statement(own["l"], sp.S.Zero),
        Statement(own["a_place"], sp.Integer(128)),
        Statement(own["a_most"], -sp.oo),
    ]
    greatest = Statement(own["m"], X, (h,), (), Reduce.MAX, origin=at[10], text="m[n] = max[j] h[n, j]")
    place = Statement(own["a_place"], X, (h,), (), Reduce.ARGMAX, "a_most", j, at[11], "a[n] = argmax[j] h[n, j]")
    shifted = Statement(e, sp.exp(X - slot(1)), (h, own["m"]), origin=at[10], text="e[n, j] = exp(h[n, j] - m[n])")
    add = Statement(own["l"], X, (e,), (), Reduce.SUM, origin=at[10], text="l[n] = sum[j] e[n, j]")
    share = Statement(Access("p", (n, j)), X / slot(1), (e, own["l"]), origin=at[10], text="p[n, j] = e[n, j] / l[n]")
    keep = Statement(Access("a", (n,)), slot(0, DType.INT.sort), (own["a_place"],), origin=at[11])
    loops = [Loop(columns, body) for body in ((greatest, place), (shifted, add), (share,))]
    local = [Buffer(name, (), DType.INT if name == "a_place" else DType.FLOAT, "scratch") for name in own]
    body = Loop(Range(n, sp.S.Zero, N, "n"), (*clear, *loops, keep))
    return Kernel("softmax", (body,), (*local, floats("e", 128, space="scratch")))


def test_the_source_of_a_perceptron(file_regression):
    golden = Path(__file__).parent.parent / "golden" / "kernels_perceptron.txt"
    file_regression.check(text_of(perceptron()), fullpath=golden)


@pytest.mark.parametrize("run", [run_plain, run_compiled])
def test_a_perceptron_by_hand(run):
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((70, 64)), "h.W": rng.standard_normal((64, 128)), "h.b": rng.standard_normal(128)}
    got = run(perceptron(), {"batch": 70}, given, "float64")
    h = np.tanh(given["x"] @ given["h.W"] + given["h.b"])
    e = np.exp(h - h.max(1, keepdims=True))
    np.testing.assert_allclose(got["h"], h, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got["p"], e / e.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(got["a"], h.argmax(1))


@pytest.mark.parametrize("run", [run_plain, run_compiled])
def test_argmax_finds_the_first_of_equals_and_of_nans(run):
    h = np.zeros((4, 128))
    h[0, 5], h[1], h[2, 7], h[2, 9], h[3, [3, 6]] = 1, -np.inf, np.nan, np.nan, 2
    program = replace(perceptron(), kernels=perceptron().kernels[1:])
    np.testing.assert_array_equal(run(program, {"batch": 4}, {"h": h}, "float32")["a"], [5, 0, 7, 3])


def test_saved_source_imports_what_it_calls():
    for name in GRAPHS:
        for text in saved(sources(schedule(GRAPHS[name](), training=True), element="float32")).values():
            tree = ast.parse(text)
            called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)} - {"range", "max", "min"}
            imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
            assert called <= imported
            for node in tree.body:
                if isinstance(node, ast.ImportFrom):
                    assert all(hasattr(import_module(node.module), a.name) for a in node.names)


def test_a_block_covers_its_part_of_the_range():
    f, l, b = (sp.Symbol(s, integer=True) for s in ("_first", "_last", "_number"))
    store = Statement(Access("y", (n,)), X, (Access("x", (n,)),))
    block = Block(b, f, l, N, 4, "n")
    program = kernel(Loop(Range(n, f, l, "n"), (store,)), buffers=(floats("x", N), floats("y", N)), block=block)
    assert "n_last = minimum(n_first + 4, batch)" in text_of(program)
    executable, _, _ = emit(program, element="float32")
    extents = [
        ex.evaluate(executable.launches[0].extent, ex.derived_sizes(executable.dims, {"batch": size}))
        for size in (0, 1, 4, 5, 9)
    ]
    assert extents == [0, 1, 1, 2, 3]
    x = np.arange(9.0)
    for run in (run_plain, run_compiled):
        np.testing.assert_array_equal(run(program, {"batch": 9}, {"x": x}, "float32")["y"], x)


def test_more_loops_than_python_nests_become_one():
    count = 23
    symbols = [index_symbol(f"i{k}") for k in range(count)]
    shape = [2 if k % 8 == 0 else 1 for k in range(count)]
    value = sum(s * 10**k for k, s in enumerate(symbols[::8]))
    node = Statement(Access("y", tuple(symbols)), value)
    for s, extent in reversed(list(zip(symbols, shape, strict=True))):
        node = Loop(Range(s, sp.S.Zero, sp.Integer(extent), "i"), (node,))
    program = kernel(node, buffers=(floats("y", *shape),))
    want = np.fromfunction(lambda a, b, c: a + 10 * b + 100 * c, (2, 2, 2))
    for run in (run_plain, run_compiled):
        np.testing.assert_array_equal(run(program, {"batch": 0}, {}, "float64")["y"].reshape(2, 2, 2), want)


def test_a_loop_that_no_one_can_collapse_is_refused():
    symbols = [index_symbol(f"i{k}") for k in range(22)]
    node = Statement(Access("y", ()), sp.S.One, reduce=Reduce.SUM)
    for k, s in reversed(list(enumerate(symbols))):
        node = Loop(Range(s, sp.S.Zero, symbols[k - 1] if k else sp.S.One, "i"), (node,))
    with pytest.raises(ChainruleError, match="nests more than"):
        text_of(kernel(node, buffers=(floats("y"),)))


# Objects.


def test_kernels_that_differ_in_names_share_an_object():
    layers = []
    for k in range(3):
        store = Statement(Access(f"y{k}", (n,)), sp.tanh(X), (Access(f"x{k}", (n,)),), text=f"y{k}[n] = tanh(x{k}[n])")
        layers.append(Kernel(f"layer{k}", (Loop(Range(n, sp.S.Zero, N, "n"), (store,)),)))
    buffers = tuple(floats(f"{c}{k}", N) for c in "xy" for k in range(3))
    program = Program("deep", True, (Dim("batch"),), buffers, tuple(layers), (), (), ())
    executable, objects, texts = emit(program, element="float32")
    assert len(executable.kernels) == len(objects) == 1
    assert [launch.kernel for launch in executable.launches] == [0, 0, 0]
    assert len(set(texts.values())) == 1  # printed once
    assert len({source.text for source in sources(program, element="float32").values()}) == 3


@pytest.mark.parametrize(
    ("value", "reduce"),
    [(sp.tanh(X) + slot(1), None), (sp.exp(X), Reduce.SUM), (X * slot(1), Reduce.MAX), (X * slot(1), Reduce.SUM)],
)
def test_loops_become_vectors(value, reduce):
    reads = (Access("x", (n, j)), Access("w", (j,)))
    target = Access("y", (n, j)) if reduce is None else Access("s", ())
    inner = Loop(Range(j, sp.S.Zero, dim_symbol("width"), "j"), (Statement(target, value, reads, reduce=reduce),))
    after = () if reduce is None else (Statement(Access("y", (n, sp.S.Zero)), X, (Access("s", ()),)),)
    clear = () if reduce is None else (Statement(Access("s", ()), sp.S.Zero),)
    body = Loop(Range(n, sp.S.Zero, N, "n"), (*clear, inner, *after))
    width = dim_symbol("width")
    made = Kernel("only", (body,), (floats("s", space="scratch"),))
    buffers = (floats("x", N, width), floats("w", width), floats("y", N, width))
    program = Program("one", True, (Dim("batch"), Dim("width")), buffers, (made,), (), (), ())
    (source,) = sources(program, element="float32", target=host("avx2")).values()
    text = assembly(source.job, host("avx2"))
    packed = {None: "vaddps", Reduce.SUM: "vaddps|vfmadd...ps", Reduce.MAX: "vmaxps"}[reduce]
    assert re.search(rf"\b({packed})\b.*%ymm|\b({packed})\s.*ymm", text)


# Executables.


def test_an_executable_survives_json():
    executable, _, _ = emit(schedule(GRAPHS["mlp"](), training=True), element="float32")
    assert ex.decode(ex.encode(executable)) == executable


def test_lifetimes_reach_from_the_first_use_to_the_last():
    first = Statement(Access("a", (n,)), X, (Access("x", (n,)),))
    second = Statement(Access("b", (n,)), X, (Access("a", (n,)),))
    third = Statement(Access("c", (n,)), X, (Access("b", (n,)),))
    kernels = tuple(
        Kernel(f"k{k}", (Loop(Range(n, sp.S.Zero, N, "n"), (s,)),)) for k, s in enumerate((first, second, third))
    )
    buffers = (floats("x", N, space="input"), floats("a", N), floats("b", N), floats("c", N))
    program = Program("chain", True, (Dim("batch"),), buffers, kernels, (("early", "a"),), (), ())
    executable, _, _ = emit(program, element="float32")
    lives = {b.name: (b.first, b.last) for b in executable.buffers}
    assert lives == {"x": (0, 0), "a": (0, 2), "b": (1, 2), "c": (2, 2)}
    assert [(launch.reads, launch.writes) for launch in executable.launches] == [((1,), (0,))] * 3 or all(
        len(launch.reads) == len(launch.writes) == 1 for launch in executable.launches
    )


def test_sizes_are_polynomials_and_quotients_are_dims():
    h = dim_symbol("h")
    sizes = Sizes([ex.Dim("h")])
    wanted = {
        2 * h**2 + 3: lambda h: 2 * h * h + 3,
        quotient(h - 1, sp.Integer(2)) + 1: lambda h: (h - 1) // 2 + 1,
        h * quotient(quotient(h, sp.Integer(2)), sp.Integer(3)): lambda h: h * (h // 2 // 3),
        h / 3: lambda h: h // 3,
    }
    found = {e: sizes.polynomial(e) for e in wanted}
    for size in (0, 3, 12, 30):
        known = ex.derived_sizes(tuple(sizes.dims), {"h": size})
        for e, f in wanted.items():
            assert ex.evaluate(found[e], known) == f(size)


def test_draws_and_the_step_come_from_the_clock():
    axes = (Index(n, sp.Integer(50), "n"),)
    draw = Primitive("uniform", "u", (sp.Integer(50),), key="drop.u")
    read = (Access("u", (n,)), Access("step", ()), Access("m", (n,)))
    f = Formula("y", axes, (), slot(0) + slot(1) * slot(2), read)
    state = State(Tensor("m", (sp.Integer(50),)), 0.5)
    graph = Graph(
        "noise", states=(state,), scalars=(Scalar("step", 1.0),), nodes=(draw, f),
        updates=(Update("m", "y"),), outputs=("y",),
    )  # fmt: skip
    program = schedule(graph, training=True)
    executable, _, texts = emit(program, element="float32")
    assert executable.clock is not None
    assert executable.buffers[executable.clock].space == "clock"
    assert not executable.scalars
    assert all("uniform(clock[0], " in text for text in texts.values() if "uniform" in text)
    plain, compiled = (run(program, {"batch": 50}, {}, "float32", step=3)["m"] for run in (run_plain, run_compiled))
    np.testing.assert_array_equal(plain, compiled)
    want = evaluate(graph, {"m": np.full(50, 0.5)}, seed=0, step=3)["y"]
    np.testing.assert_array_equal(plain, want.astype(np.float32))
    assert np.all((plain > 1.5) & (plain < 2.5))
    assert len(set(plain.tolist())) > 40


def test_a_kernel_that_touches_no_buffer_of_the_program_is_refused():
    store = Statement(Access("nowhere", (n,)), sp.S.One)
    with pytest.raises(ChainruleError, match="nowhere"):
        text_of(kernel(Loop(Range(n, sp.S.Zero, N), (store,)), buffers=()))


def test_initial_values_are_kept():
    graph = graphs.mlp(2, 3)
    executable, _, _ = emit(schedule(graph, training=True), element="float64")
    assert {p.name: p.init for p in executable.params} == {
        p.tensor.name: ex.Init(p.init.law, p.init.numbers) for p in graph.params
    }
    assert isinstance(graph.params[0].init, Init)
    assert [(s.name, s.default) for s in executable.scalars] == [("rate", 0.1)]


def adam() -> Graph:
    """One parameter's update, with the bias corrections of the step."""
    size, s = sp.Integer(300), [slot(k) for k in range(5)]
    axes = (Index(n, size, "n"),)
    b1, b2, eps = sp.Rational(9, 10), sp.Rational(999, 1000), sp.Rational(1, 10**8)

    def at(*names: str) -> tuple[Access, ...]:
        return tuple(Access(name, () if name in ("rate", "step") else (n,)) for name in names)

    step = s[1] * (s[2] / (1 - b1 ** s[4])) / (sp.sqrt(s[3] / (1 - b2 ** s[4])) + eps)
    nodes = (
        Formula("m_new", axes, (), b1 * s[0] + (1 - b1) * s[1], at("m", "g")),
        Formula("v_new", axes, (), b2 * s[0] + (1 - b2) * s[1] ** 2, at("v", "g")),
        Formula("w_new", axes, (), s[0] - step, at("w", "rate", "m_new", "v_new", "step")),
    )
    states = (State(Tensor("m", (size,)), 0.0), State(Tensor("v", (size,)), 0.0))
    updates = tuple(Update(name, f"{name}_new") for name in "mvw")
    param = Param(Tensor("w", (size,)), Init("constant", (0.0,)))
    scalars = (Scalar("rate", 1e-3), Scalar("step", 1.0))
    return Graph("adam", (), (Tensor("g", (size,)),), (param,), states, scalars, nodes, updates, ())


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_what_stands_still_is_computed_once_and_exactly(element):
    graph = adam()
    program = schedule(graph, training=True)
    (source,) = sources(program, element=element).values()
    loop = source.text.index("for ")
    assert source.text.index("power(") < loop
    assert "power(" not in source.text[loop:]
    rng = np.random.default_rng(0)
    given = {name: abs(rng.standard_normal(300)) for name in "gmvw"}
    want = updated(graph, evaluate(graph, given, step=1000))
    for run in (run_plain, run_compiled):
        got = run(program, {}, given, element, step=1000)
        for name, right in want.items():
            np.testing.assert_allclose(got[name], right, rtol=1e-12 if element == "float64" else 3e-7)
