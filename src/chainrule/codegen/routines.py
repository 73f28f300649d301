"""Functions of integers that call each other, translated into one LLVM module: so is the walker made.

To what kernels are made of, `Routine` adds what control needs: returns, `while`, `and`, `or`, calls of each other. By
Numba's own way the walker took 3.5 CPU seconds, more than the kernels of a small model.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types

from chainrule.codegen.instructions import Instruction
from chainrule.codegen.native import context, linked
from chainrule.codegen.translate import Translation, Value

KINDS: Mapping[str, types.Type] = {"int": types.int64, "bool": types.boolean, "None": types.none}
"""What an annotation stands for; all parameters are int64."""


@dataclass
class Routine(Translation):
    """One function under construction."""

    result: types.Type = types.none
    others: Mapping[str, tuple[ir.Function, types.Type]] = field(default_factory=dict)

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)
            if self.builder.block.is_terminated:
                return

    def statement(self, s: ast.stmt) -> None:
        match s:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                found = [self.expression(value) for value in values]
                for target, value in zip(targets, found, strict=True):
                    assert isinstance(target, ast.Name)
                    self.assign(target.id, value)
            case ast.While(test, body, []):
                self.repeat(test, body)
            case ast.Return(None):
                self.builder.ret_void()
            case ast.Return(ast.expr() as value):
                self.builder.ret(self.cast(self.expression(value), self.result))
            case _:
                super().statement(s)

    def repeat(self, test: ast.expr, body: Sequence[ast.stmt]) -> None:
        """``while test: body``."""
        b = self.builder
        head, first, end = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(self.truth(test), first, end)
        with self.inside(first):
            self.statements(body)
            self.go(b.block, head)
        b.position_at_end(end)

    def expression(self, e: ast.expr) -> Value:
        match e:
            case ast.BoolOp(ast.Or(), values):
                return self.expression(reduce(lambda b, a: ast.IfExp(a, ast.Constant(True), b), reversed(values)))
            case ast.BoolOp(ast.And(), values):
                return self.expression(reduce(lambda b, a: ast.IfExp(a, b, ast.Constant(False)), reversed(values)))
            case ast.Name(name) if isinstance(number := self.names.get(name), int):
                return self.constant(int(number))
            case ast.Call(ast.Name(name), arguments, []) if name in self.others:
                function, kind = self.others[name]
                given = [self.cast(self.expression(a), types.int64) for a in arguments]
                return Value(kind, self.builder.call(function, given))
            case ast.Call(ast.Name(name), arguments, []) if isinstance(word := self.names.get(name), Instruction):
                given = [self.cast(self.expression(a), types.int64) for a in arguments]
                return Value(types.int64, word.emit(self.context, self.builder, given))
            case _:
                return super().expression(e)


def module_of_routines(functions: Sequence[Callable[..., Any]], names: Mapping[str, Any]) -> llvm.ModuleRef:
    """`functions`, each after those that it calls, under their own names. names: what else their source can name."""
    within = context()
    library = within.codegen().create_library("routines")
    module = library.create_ir_module("routines")
    made: dict[str, tuple[ir.Function, types.Type]] = {}
    with within.push_code_library(library):
        for function in functions:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
            assert isinstance(tree, ast.FunctionDef)
            kind = KINDS[ast.unparse(tree.returns) if tree.returns is not None else "None"]
            result = ir.VoidType() if kind is types.none else within.get_value_type(kind)
            count = len(tree.args.args)
            into = ir.Function(module, ir.FunctionType(result, [ir.IntType(64)] * count), tree.name)
            _fill(within, into, tree, kind, names, made)
            made[tree.name] = into, kind
    library.add_ir_module(module)
    return linked(library)


def _fill(
    within: Any, into: ir.Function, tree: ast.FunctionDef, kind: types.Type, names: Mapping[str, Any], others: Any
) -> None:
    slots = ir.IRBuilder(into.append_basic_block("entry"))
    first = into.append_basic_block()
    given = {a.arg: Value(types.int64, value) for a, value in zip(tree.args.args, into.args, strict=True)}
    routine = Routine(within, names, ir.IRBuilder(first), slots, given, result=kind, others=others)
    routine.statements(tree.body[1:] if ast.get_docstring(tree) is not None else tree.body)
    if not routine.builder.block.is_terminated:
        if kind is types.none:
            routine.builder.ret_void()
        else:
            routine.builder.unreachable()
    slots.position_at_end(into.entry_basic_block)
    slots.branch(first)
