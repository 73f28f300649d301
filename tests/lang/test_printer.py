"""What is printed parses to the same graph: for models, derived graphs, and expressions drawn at random."""

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from chainrule.derive import backward
from chainrule.ir.expression import FUNCTIONS, Select, index_symbol, quotient, remainder, slot
from chainrule.ir.formula import Access, DType, Formula, Index, Reduce
from chainrule.ir.graph import Dim, Graph, Init, Param, Scalar, State, Tensor, Update
from chainrule.ir.primitive import Primitive
from chainrule.lang import apply_optimizer, elaborate, parse, print_graph
from chainrule.optimize.eliminate import eliminate
from chainrule.optimize.expand_reductions import expand_reductions
from chainrule.optimize.specialize import specialize
from chainrule.optimize.stabilize import stabilize
from tests.lang.mutations import GOOD
from tests.lang.texts import graph

N = sp.Symbol("n", integer=True, nonnegative=True)
I, K = index_symbol("i"), index_symbol("k")


def again(made: Graph) -> Graph:
    return elaborate(parse(print_graph(made), "printed.graph"))


@pytest.mark.parametrize("name", GOOD)
def test_models_print_so_that_they_parse_back(name):
    made = graph(GOOD[name])
    assert again(made) == made
    assert print_graph(again(made)) == print_graph(made)


@pytest.mark.parametrize("name", ["perceptron", "image", "words"])
@pytest.mark.parametrize("training", [True, False])
def test_derived_graphs_print_so_that_they_parse_back(name, training):
    made = stabilize(specialize(graph(GOOD[name]), training=training))
    made = expand_reductions(made)
    derivation = backward(made, "loss", tuple(p.tensor.name for p in made.params))
    assert again(derivation.graph) == derivation.graph
    eliminated = eliminate(derivation.graph)
    assert again(eliminated) == eliminated
    joint = apply_optimizer(eliminated, derivation.gradients, "adamw", {"clip": 1.0})
    assert again(joint) == joint


def test_every_kind_of_thing_prints():
    x, w = Tensor("x", (N, sp.Integer(4))), Tensor("a.0.W", (sp.Integer(4),))
    label = Tensor("label", (N,), DType.INT, sp.Integer(4))
    flag = Tensor("flag", (N,), DType.BOOL)
    rows = sp.Symbol("a.rows", integer=True, nonnegative=True)
    y = Formula(
        "y", (Index(I, rows, "i"),), (), slot(0) + 1, (Access("x", (I + 1, sp.Integer(0)), sp.S.Zero),), stop=True
    )
    loss = Formula("total", (), (Index(I, N, "i"),), slot(0), (Access("u", (I,)),))
    mixed = Formula(
        "z", (Index(I, N, "i"),), (), slot(0) * slot(1, DType.INT.sort) + slot(2, DType.INT.sort),
        (Access("u", (I,)), Access("label", (I,)), Access("flag", (I,))),
        where=(sp.Eq(remainder(I, 2), 0, evaluate=False),),
    )  # fmt: skip
    made = Graph(
        "a_b",
        dims=(
            Dim("n", 2, 9),
            Dim("m", 0, 5),
            Dim("k", 3),
            Dim("a.rows", definition=quotient(N - 1, sp.Integer(2)) + 1),
        ),
        inputs=(x, label, flag),
        params=(Param(w, Init("orthogonal", (1.0, 2.0), 0)), Param(Tensor("b", ()), Init("normal", (0.1, 1e-30)))),
        states=(State(Tensor("a.0.m", (sp.Integer(4),)), -0.1), State(Tensor("s", ()), float("inf"))),
        scalars=(Scalar("step", 1.0), Scalar("rate", 1e-5)),
        nodes=(
            Primitive("uniform", "u", (N,), key="v.u"),
            y,
            loss,
            mixed,
            Primitive("gradient", "g", (), ("total", "b")),
        ),
        updates=(Update("s", "total"),),
        outputs=("total", "x"),
    )
    assert again(made) == made


@pytest.mark.parametrize("outputs", [(), ("b",), ("c", "b"), ("b", "c"), ("x",), ("loss", "c"), ("c", "loss")])
def test_outputs_keep_their_order(outputs):
    text = "model m:\n    dim n\n    input x[n]\n    b = x\n    loss = mean(x)\n    c = x\n"
    made = Graph(**{**vars_of(graph(text)), "outputs": outputs})
    assert again(made).outputs == outputs


def vars_of(made: Graph) -> dict[str, object]:
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


NUMBERS = st.one_of(
    st.integers(-9, 9).map(sp.Integer),
    st.fractions(-3, 3, max_denominator=12).map(lambda f: sp.Rational(f.numerator, f.denominator)),
)
LEAVES = st.one_of(NUMBERS, st.sampled_from([slot(0), slot(1), slot(2), I, K, N, sp.pi]))
PLAIN = [FUNCTIONS[name] for name in ("exp", "tanh", "sin", "erf", "floor", "sign", "expm1", "log1p", "atan")]
RELATIONS = [sp.Lt, sp.Le, sp.Gt, sp.Ge, sp.Eq, sp.Ne]


def claim(relation, left, right):
    if any(side.has(sp.nan, sp.zoo, sp.oo, -sp.oo) for side in (left, right)):
        return sp.true
    return relation(left, right) if left.is_number and right.is_number else relation(left, right, evaluate=False)


def larger(inner):
    claims = st.lists(st.builds(claim, st.sampled_from(RELATIONS), inner, inner), min_size=1, max_size=2)
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda xs: sp.Add(*xs)),
        st.lists(inner, min_size=2, max_size=3).map(lambda xs: sp.Mul(*xs)),
        st.builds(sp.Pow, inner, st.sampled_from([2, 3, -1, -2])),
        st.builds(lambda f, a: f(a), st.sampled_from(PLAIN), inner),
        st.builds(
            lambda word, cs, a, b: Select(word(*cs), a, b), st.sampled_from([sp.And, sp.Or]), claims, inner, inner
        ),
    )


@settings(max_examples=150, deadline=None)
@given(body=st.recursive(LEAVES, larger, max_leaves=8), reduce=st.sampled_from([None, Reduce.SUM, Reduce.MAX]))
def test_any_law_prints_so_that_it_parses_back(body, reduce):
    if body.has(sp.zoo, sp.nan, sp.oo, sp.I, sp.Abs):
        return
    over = () if reduce is None else (Index(K, sp.Integer(4), "k"),)
    axes = (Index(I, N, "i"),) if over else (Index(I, N, "i"), Index(K, sp.Integer(4), "k"))
    reads = tuple(Access(name, (I, K)) for name in "xyz")
    law = Formula("o", axes, over, body, reads, reduce=reduce or Reduce.SUM)
    inputs = tuple(Tensor(name, (N, sp.Integer(4))) for name in "xyz")
    made = Graph("m", dims=(Dim("n"),), inputs=inputs, nodes=(law,), outputs=("o",))
    assert again(made) == made, print_graph(made)


def test_the_mode_reads_as_in_a_text():
    laws = (
        "if training then x[n] else 0",
        "if not training then x[n] else 0",
        "if x[n] > 0 and training then 1 else 0",
    )
    for law in laws:
        g = elaborate(parse(f"model m:\n    dim n\n    input x[n]\n    y[n] = {law}\n", "m.graph"))
        assert f"= {law}\n" in print_graph(g)
        assert again(g) == g
