"""Kernels that are found equal before they are printed are those whose sources are equal."""

from __future__ import annotations

import pytest
import sympy as sp

from chainrule import compiler
from chainrule.codegen import equal
from chainrule.codegen.cpu import printed, sources
from chainrule.codegen.equal import form_of
from chainrule.codegen.objects import symbol_of
from chainrule.codegen.target import host
from chainrule.ir.expression import dim_symbol, index_symbol, slot
from chainrule.ir.formula import Access, DType
from chainrule.ir.program import Buffer, Kernel, Loop, Program, Range, Statement
from chainrule.options import Options
from chainrule.source import Source

DEEP = """model deep():
    dim batch
    input x[batch, 16]
    h = tanh(linear(x, 16))
    repeat 24:
        h = {layer}
    loss = mean[n, k] h[n, k]
"""
WIDE = """model wide():
    dim batch
    input x[batch, 64]
    h = linear(x, 200)
    repeat 5:
        h = relu(layer_norm(linear(h, 200)))
    loss = mean[n, k] h[n, k]
"""
MODELS = {
    "tiny layers": DEEP.format(layer="tanh(linear(h, 16))"),
    "draws": DEEP.format(layer="dropout(tanh(linear(h, 16)))"),
    "blocks": WIDE,
}
TARGET = host("avx2")


def program_of(text: str) -> Program:
    options = Options("train", optimizer="sgd")
    return compiler.program(compiler.derive(Source(text, "model.graph"), options), options)


@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS)
def test_a_shared_source_is_what_each_kernel_would_print_alone(text):
    program = program_of(text)
    alone = list(sources(program, element="float32", target=TARGET).values())
    shared = printed(program, "float32", TARGET)
    assert len({id(source.job) for source in shared}) < len(alone)  # some are shared
    for mine, theirs in zip(alone, shared, strict=True):
        assert symbol_of(mine.job, TARGET) == symbol_of(theirs.job, TARGET)
        for field in ("buffers", "sizes", "scratch", "reads", "writes", "draws"):
            assert getattr(mine, field) == getattr(theirs, field), field


def test_kernels_taken_for_equal_that_are_not_are_noticed(monkeypatch):
    n, read = index_symbol("n"), (Access("x", (index_symbol("n"),)),)
    kernels = tuple(
        Kernel(f"k{e}", (Loop(Range(n, sp.S.Zero, sp.Integer(e)), (Statement(Access("y", (n,)), slot(0), read),)),))
        for e in (3, 4)
    )
    buffers = tuple(Buffer(name, (sp.Integer(4),), DType.FLOAT, "param") for name in "xy")
    program = Program("two", True, (), buffers, kernels, (), (), ())
    assert len({source.text for source in printed(program, "float32", TARGET)}) == 2
    monkeypatch.setattr(equal.Form, "expression", lambda form, e: sp.S.Zero)
    assert len({source.text for source in printed(program, "float32", TARGET)}) == 1


def test_layers_that_draw_share_a_kernel_and_no_draw():
    program = program_of(MODELS["draws"])
    drawing = [source for source in printed(program, "float32", TARGET) if source.draws]
    forward = [source for source in drawing if source.job is drawing[1].job]
    draws = [name for source in forward for name in source.draws]
    assert len(forward) > 2
    assert len(set(draws)) == len(draws)


def test_more_equal_layers_make_no_more_distinct_kernels():
    distinct = []
    for layers in (48, 72):
        program = program_of(DEEP.format(layer="tanh(linear(h, 16))").replace("24", str(layers)))
        buffers = {buffer.name: buffer for buffer in program.buffers}
        dims = frozenset(dim_symbol(dim.name) for dim in program.dims)
        distinct.append(len({form_of(kernel, buffers, dims).key for kernel in program.kernels}))
    assert distinct[1] <= distinct[0] <= 12
