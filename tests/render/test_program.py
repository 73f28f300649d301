"""The picture of a program: kernels with their loops, and what runs between them."""

import sympy as sp

from chainrule.ir.expression import dim_symbol, index_symbol, slot
from chainrule.ir.formula import Access, DType, Reduce
from chainrule.ir.graph import Tensor
from chainrule.ir.program import Buffer, Kernel, Loop, Program, Range, Statement
from chainrule.render.dot import draw
from chainrule.render.program import LINES, frames, program_picture, touched

N, n = dim_symbol("batch"), index_symbol("n")


def statement(target, source, own=None, reduce=None):
    return Statement(Access(target, (n,)), slot(0), (Access(source, (n,)),), reduce=reduce)


def over_rows(*leaves):
    return (Loop(Range(n, sp.Integer(0), N, "n"), leaves),)


def program():
    """y = x through a scratch, W = y in place."""
    first = Kernel(
        "first",
        over_rows(statement("s", "x"), statement("y", "s")),
        locals=(Buffer("s", (N,), DType.FLOAT, "scratch"),),
        formulas=("s", "y"),
    )
    second = Kernel("second", over_rows(statement("W", "y", reduce=Reduce.SUM)), formulas=("W_next",))
    spaces = {"x": "input", "W": "param", "y": "arena"}
    buffers = tuple(Buffer(name, (N,), DType.FLOAT, space) for name, space in spaces.items())
    return Program("p", True, (), buffers, (first, second), (("y", "y"),), (), ())


def test_a_kernel_touches_all_but_its_scratch():
    first, second = program().kernels
    assert touched(first) == (("x",), ("y",))
    assert touched(second) == (("y", "W"), ("W",))


def test_kernels_show_their_loops_and_edges_their_buffers():
    text = program_picture(program())
    assert "for n < batch:" in text
    assert 'label=" y: float[batch] "' in text
    assert "→ W" in text
    assert draw(text, "svg").startswith(b"<?xml")


def test_an_index_shows_its_range():
    buffers = (Buffer("label", (N,), DType.INT, "input"),)
    label = Tensor("label", (N,), DType.INT, sp.Integer(10))
    made = Program("p", True, (), buffers, (), (), (), ())
    assert "label\\nint[batch]" in program_picture(made)
    assert "label\\nindex 10 [batch]" in program_picture(made, {"label": label})


def test_a_frame_is_for_kernels_of_several_formulas():
    assert frames(program()) == {"s": "kernel first", "y": "kernel first"}


def test_endless_kernels_are_cut():
    body = over_rows(*(statement("y", "x") for _ in range(3 * LINES)))
    long = Program("p", True, (), program().buffers, (Kernel("k", body),), (), (), ())
    assert "more lines" in program_picture(long)
