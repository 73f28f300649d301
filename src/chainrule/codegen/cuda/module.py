"""From a kernel's syntax tree to an LLVM module for a GPU: the CPU's translation, with loops and an entry of its own.

The translation (`codegen.translate`) emits each operation of the tree; nothing is inferred, so a kernel takes
milliseconds where numba-cuda's way from Python to PTX takes a tenth of a second, and its loops are plain: numba-cuda's
count down in 64 bits, for a step that may be negative.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types

from chainrule.codegen.cuda.functions import LIBRARY
from chainrule.codegen.cuda.loops import own_metadata, register_arrays, times, unrolling, with_own_metadata
from chainrule.codegen.cuda.toolkit import ir_version
from chainrule.codegen.native import fresh_context
from chainrule.codegen.translate import ONE, ZERO, Translation, Value

TRIPLE = "nvptx64-nvidia-cuda"
LAYOUT = (
    "e-p:64:64:64-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-f32:32:32-f64:64:64-"
    "v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64"
)


MOST = 32  # registers of an array that are asked one by one


def _depends_on_data(index: ast.expr) -> bool:
    return any(isinstance(node, ast.Subscript) for node in ast.walk(index))


@dataclass
class Kernel(Translation):
    """A kernel under construction, of blocks of `threads` threads; `arrays` of so many elements are to be registers."""

    threads: int = 0
    arrays: Mapping[str, int] = field(default_factory=dict)

    def expression(self, e: ast.expr) -> Value:
        """A register has no address: one that data choose, ``logits[label[n]]``, is asked for among all of them."""
        match e:
            case ast.Subscript(ast.Name(name) as array, index) if self.arrays.get(name, MOST + 1) <= MOST:
                if _depends_on_data(index):
                    return self.chosen(array, self.arrays[name], self.cast(self.expression(index), types.int64))
        return super().expression(e)

    def chosen(self, array: ast.expr, count: int, place: ir.Value) -> Value:
        """``array[place]`` without an address."""
        parts = [self.at(self.element(array, ast.Constant(k))) for k in range(count)]
        value = parts[0].value
        for k, part in enumerate(parts[1:], 1):
            value = self.builder.select(self.builder.icmp_signed("==", place, ONE.type(k)), part.value, value)
        return Value(parts[0].kind, value)

    def loop(self, name: str, bounds: Sequence[ast.expr], body: Sequence[ast.stmt]) -> None:
        """``for name in range(...)``; a step may be any positive number.

        Where each thread takes the loop equally often, that number is counted, so that libNVVM sees it.
        """
        b = self.builder
        values = [self.cast(self.expression(bound), types.int64) for bound in bounds]
        start, stop, step = values if len(values) == 3 else [*[ZERO, *values][-2:], ONE]
        known = times(bounds, self.threads)
        place = self.slot(ONE.type)
        b.store(start if known is None else ZERO, place)
        head, first, end = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        now = b.load(place)
        b.cbranch(b.icmp_signed("<", now, stop if known is None else ONE.type(known)), first, end)
        with self.inside(first):
            value = now if known is None else b.add(start, b.mul(now, step, flags=("nsw",)), flags=("nsw",))
            self.assign(name, Value(types.int64, value))
            self.statements(body)
            b.store(b.add(now, step if known is None else ONE, flags=("nsw",)), place)
            again = b.branch(head)
        b.position_at_end(end)
        wish, number = unrolling(bounds, body, self.threads, self.arrays)
        if wish:
            again.set_metadata("llvm.loop", own_metadata(b.module, wish, number))


@cache
def context() -> Any:
    """What emits operations: Numba's for numbers, and all that the GPU's functions have registered."""
    return fresh_context()


def module_of(
    tree: ast.FunctionDef,
    space: Mapping[str, Any],
    kinds: tuple[types.Type, ...],
    symbol: str,
    threads: int,
    blocks: int = 1,
) -> str:
    """The kernel as the text of an LLVM module that exports `symbol`.

    space: the functions that its source can name. kinds: its parameters' types; views never overlap. threads: of a
    block. blocks: so many are to fit a multiprocessor.

    Raises numba's errors, and TypeError, where the function does not compile.
    """
    within = context()
    library = within.codegen().create_library("kernel")
    module = library.create_ir_module("kernel")
    module.triple, module.data_layout, module.library = TRIPLE, LAYOUT, LIBRARY
    module.threads = threads
    packer = within.get_arg_packer(kinds)
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), packer.argument_types), symbol)
    apart = not passes_on(tree)
    for argument in body.args:
        if isinstance(argument.type, ir.PointerType) and apart:
            argument.add_attribute("noalias")
    with within.push_code_library(library):
        slots = ir.IRBuilder(body.append_basic_block("entry"))
        values = packer.from_arguments(slots, body.args)
        given = {a.arg: Value(kind, value) for a, kind, value in zip(tree.args.args, kinds, values, strict=True)}
        first = body.append_basic_block()
        kernel = Kernel(
            within, space, ir.IRBuilder(first), slots, given, threads=threads, arrays=register_arrays(tree.body)
        )
        kernel.statements(tree.body)
        kernel.builder.ret_void()
        slots.position_at_end(body.entry_basic_block)
        slots.branch(first)
    within.post_lowering(module, library)
    _annotate(module, body, threads, blocks)
    library.add_ir_module(module)
    main, *others = dict.fromkeys(library.everything())
    if others:
        raise TypeError(f"Numba would compile {[str(other.name) for other in others]} for the CPU")
    return with_own_metadata(str(main))


def passes_on(tree: ast.FunctionDef) -> bool:
    """Whether threads may pass values to each other through arrays: there are barriers, and what is written is read.

    LLVM takes an array that no other pointer reaches to be the thread's own, and would read it before a barrier.
    libNVVM goes further: of a written array and one that is only read, chosen by a condition, it makes one load
    through the cache of what is constant, if the latter is known to overlap with nothing.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    named = [(node.func.id, node) for node in calls if isinstance(node.func, ast.Name)]
    if not any(name.startswith(("sync", "block_")) for name, _ in named):
        return False
    stored = [n.value for n in ast.walk(tree) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    stored += [node.args[0] for name, node in named if name in ("store2", "store4")]
    loaded = [n.value for n in ast.walk(tree) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Load)]
    loaded += [node.args[0] for name, node in named if name in ("load2", "load4")]
    tails = [node.args[0] for name, node in named if name == "tail"]  # what is done to them has other names
    stored, loaded = stored + tails, loaded + tails
    loaded += [
        n.target.value for n in ast.walk(tree) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Subscript)
    ]
    return bool(_names_of(stored) & _names_of(loaded))


def _names_of(places: Sequence[ast.expr]) -> set[str]:
    return {place.id for place in places if isinstance(place, ast.Name)}


def _annotate(module: ir.Module, body: ir.Function, threads: int, blocks: int) -> None:
    """`body` is a kernel of blocks of just so many threads, of which `blocks` are to fit a multiprocessor."""
    i32 = ir.IntType(32)
    marks = module.add_named_metadata("nvvm.annotations")
    asked = [("minctasm", blocks)] if blocks > 1 else []
    for key, value in [("kernel", 1), ("reqntidx", threads), ("reqntidy", 1), ("reqntidz", 1), *asked]:
        marks.add(module.add_metadata([body, ir.MetaDataString(module, key), i32(value)]))
    version = module.add_metadata([i32(part) for part in ir_version()])
    module.add_named_metadata("nvvmir.version", version)
