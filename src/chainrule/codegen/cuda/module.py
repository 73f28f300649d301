"""From a kernel's syntax tree to an LLVM module for a GPU: the CPU's translation, with loops and an entry of its own.

The translation (`codegen.translate`) emits each operation of the tree; nothing is inferred, so a kernel takes
milliseconds where numba-cuda's way from Python to PTX takes a tenth of a second, and its loops are plain: numba-cuda's
count down in 64 bits, for a step that may be negative.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types

from chainrule.codegen.cuda.functions import LIBRARY
from chainrule.codegen.cuda.toolkit import ir_version
from chainrule.codegen.native import fresh_context
from chainrule.codegen.translate import ONE, ZERO, Translation, Value, literal

TRIPLE = "nvptx64-nvidia-cuda"
LAYOUT = (
    "e-p:64:64:64-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-f32:32:32-f64:64:64-"
    "v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64"
)


LONGEST, LARGEST = 32, 2048
"""Of a loop that is unrolled: how often it runs, and how many statements it becomes."""


class Kernel(Translation):
    """A kernel under construction. Its loops are plain, and say whether to unroll them: what they index in registers
    stays there only where each place is known.
    """

    def loop(self, name: str, bounds: Sequence[ast.expr], body: Sequence[ast.stmt]) -> None:
        """``for name in range(...)``; a step may be any positive number."""
        b = self.builder
        values = [self.cast(self.expression(bound), types.int64) for bound in bounds]
        start, stop, step = values if len(values) == 3 else [*[ZERO, *values][-2:], ONE]
        place = self.slot(ONE.type)
        b.store(start, place)
        head, first, end = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        now = b.load(place)
        b.cbranch(b.icmp_signed("<", now, stop), first, end)
        with self.inside(first):
            self.assign(name, Value(types.int64, now))
            self.statements(body)
            b.store(b.add(now, step, flags=("nsw",)), place)
            again = b.branch(head)
        b.position_at_end(end)
        if wish := _unrolling(bounds, body):
            again.set_metadata("llvm.loop", _loop(b.module, wish))


def _unrolling(bounds: Sequence[ast.expr], body: Sequence[ast.stmt]) -> str:
    """What a loop asks of libNVVM; empty: its own choice.

    A step that is known at run time alone makes a loop over the whole grid: most threads take it once, and unrolling
    it would begin with a division of 64 bits.
    """
    if len(bounds) == 3 and literal(bounds[2]) is None:
        return "llvm.loop.unroll.disable"
    times = _times(bounds)
    few = times is not None and times <= LONGEST and times * _statements(body) <= LARGEST
    return "llvm.loop.unroll.full" if few else ""


def _times(bounds: Sequence[ast.expr]) -> int | None:
    """How often a loop runs, if its bounds are written out."""
    numbers = [number for bound in bounds if isinstance(number := literal(bound), int)]
    return len(range(*numbers)) if len(numbers) == len(bounds) else None


def _statements(body: Sequence[ast.stmt]) -> int:
    """How many statements the body becomes with its short loops unrolled."""
    count = 0
    for s in body:
        match s:
            case ast.For(_, ast.Call(_, bounds, []), inner, []):
                times = _times(bounds)
                count += _statements(inner) * (times if times is not None and times <= LONGEST else 1)
            case ast.If(_, then, other):
                count += _statements(then) + _statements(other)
            case _:
                count += 1
    return count


def _loop(module: ir.Module, wish: str) -> Any:
    """A loop's own metadata, which has to begin with itself: `_named` sees to that, for no printer can."""
    number = len(module.metadata)
    return module.add_metadata(
        [ir.MetaDataString(module, f"loop {number}"), module.add_metadata([ir.MetaDataString(module, wish)])]
    )


def _named(text: str) -> str:
    return re.sub(r'^(!\d+) = !{ !"loop \d+", ', r"\1 = distinct !{ \1, ", text, flags=re.MULTILINE)


@cache
def context() -> Any:
    """What emits operations: Numba's for numbers, and all that the GPU's functions have registered."""
    return fresh_context()


def module_of(
    tree: ast.FunctionDef, space: Mapping[str, Any], kinds: tuple[types.Type, ...], symbol: str, threads: int
) -> str:
    """The kernel as the text of an LLVM module that exports `symbol`.

    space: the functions that its source can name. kinds: its parameters' types; views never overlap. threads: of a
    block.

    Raises numba's errors, and TypeError, where the function does not compile.
    """
    within = context()
    library = within.codegen().create_library("kernel")
    module = library.create_ir_module("kernel")
    module.triple, module.data_layout, module.library = TRIPLE, LAYOUT, LIBRARY
    packer = within.get_arg_packer(kinds)
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), packer.argument_types), symbol)
    for argument in body.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
    with within.push_code_library(library):
        slots = ir.IRBuilder(body.append_basic_block("entry"))
        values = packer.from_arguments(slots, body.args)
        given = {a.arg: Value(kind, value) for a, kind, value in zip(tree.args.args, kinds, values, strict=True)}
        first = body.append_basic_block()
        kernel = Kernel(within, space, ir.IRBuilder(first), slots, given)
        kernel.statements(tree.body)
        kernel.builder.ret_void()
        slots.position_at_end(body.entry_basic_block)
        slots.branch(first)
    within.post_lowering(module, library)
    _annotate(module, body, threads)
    library.add_ir_module(module)
    main, *others = dict.fromkeys(library.everything())
    if others:
        raise TypeError(f"Numba would compile {[str(other.name) for other in others]} for the CPU")
    return _named(str(main))


def _annotate(module: ir.Module, body: ir.Function, threads: int) -> None:
    """`body` is a kernel of blocks of just so many threads."""
    i32 = ir.IntType(32)
    marks = module.add_named_metadata("nvvm.annotations")
    for key, value in (("kernel", 1), ("reqntidx", threads), ("reqntidy", 1), ("reqntidz", 1)):
        marks.add(module.add_metadata([body, ir.MetaDataString(module, key), i32(value)]))
    version = module.add_metadata([i32(part) for part in ir_version()])
    module.add_named_metadata("nvvmir.version", version)
