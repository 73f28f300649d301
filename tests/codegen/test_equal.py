"""Kernels that are found equal before they are printed are those whose sources are equal."""

from __future__ import annotations

import pytest

from chainrule import compiler
from chainrule.codegen import equal
from chainrule.codegen.cpu import printed, sources
from chainrule.codegen.equal import form_of
from chainrule.codegen.objects import symbol_of
from chainrule.codegen.target import host
from chainrule.ir.expression import dim_symbol
from chainrule.ir.program import Program
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
MODELS = {"tiny layers": DEEP.format(layer="tanh(linear(h, 16))"), "blocks": WIDE}
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
        for field in ("buffers", "sizes", "scratch", "reads", "writes"):
            assert getattr(mine, field) == getattr(theirs, field), field


def test_draws_taken_for_each_others_are_noticed(monkeypatch):
    program = program_of(DEEP.format(layer="dropout(tanh(linear(h, 16)))"))
    alone = [symbol_of(s.job, TARGET) for s in sources(program, element="float32", target=TARGET).values()]
    assert [symbol_of(s.job, TARGET) for s in printed(program, "float32", TARGET)] == alone
    monkeypatch.setattr(equal, "SPECIAL", ())
    assert [symbol_of(s.job, TARGET) for s in printed(program, "float32", TARGET)] != alone


def test_more_equal_layers_make_no_more_distinct_kernels():
    distinct = []
    for layers in (48, 72):
        program = program_of(DEEP.format(layer="tanh(linear(h, 16))").replace("24", str(layers)))
        buffers = {buffer.name: buffer for buffer in program.buffers}
        dims = frozenset(dim_symbol(dim.name) for dim in program.dims)
        distinct.append(len({form_of(kernel, buffers, dims).key for kernel in program.kernels}))
    assert distinct[1] <= distinct[0] <= 12
