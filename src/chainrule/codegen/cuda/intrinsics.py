"""What a GPU's threads can do that no CPU's can: know their place, meet, exchange registers, share memory.

Every function here is an instruction or a few, emitted where it is called. In plain Python one thread stands alone:
its lane, warp and block are 0, and a reduction over threads is its own value.

A pointer is a `View` of one axis: generic, for LLVM infers whether it is global, shared or a register, and indexed
flat by int64 that are never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from chainrule.codegen.cuda.device import ACCESS
from chainrule.codegen.lowering import declare, element_name, lowered
from chainrule.codegen.native import ITEM
from chainrule.codegen.view import ELEMENTS, View

__all__ = [
    "thread", "block", "blocks", "lane", "warp", "sync", "sync_warp",
    "shared_float32", "shared_float64", "shared_int64", "shared_bool",
    "local_float32", "local_float64", "local_int64", "local_bool",
    "view_float32", "view_float64", "view_int64", "view_bool",
    "near_float32", "near_float64", "near_int64", "near_bool",
    "load2", "load4", "store2", "store4", "tail", "divide", "modulo",
]  # fmt: skip

WARP = 32
MOST_THREADS = 1024  # of a block
GLOBAL, SHARED = 1, 3  # LLVM's numbers of the address spaces
I32, I64 = ir.IntType(32), ir.IntType(64)

Emitter = Callable[..., ir.Value]


def thread() -> int:
    """This thread's number in its block."""
    return 0


def block() -> int:
    """This block's number in the grid."""
    return 0


def blocks() -> int:
    """How many blocks there are."""
    return 1


def lane() -> int:
    """This thread's number in its warp, 0 to 31."""
    return 0


def warp() -> int:
    """This warp's number in its block."""
    return 0


def sync() -> None:
    """All threads of the block meet; what each wrote before is seen by all after."""


def sync_warp() -> None:
    """All threads of the warp meet."""


def divide(a: int, b: int) -> int:
    """a // b for 0 <= a < 2^32 and 0 < b < 2^32: a division of 32 bits, a fifth of one of 64."""
    return a // b


def modulo(a: int, b: int) -> int:
    """a % b for 0 <= a < 2^32 and 0 < b < 2^32."""
    return a % b


def load2(pointer: Any, at: int) -> tuple[Any, ...]:
    """Elements at, at + 1 in one access; `at` is a multiple of 2."""
    return tuple(pointer[at : at + 2])


def load4(pointer: Any, at: int) -> tuple[Any, ...]:
    """Elements at to at + 3 in one access; `at` is a multiple of 4."""
    return tuple(pointer[at : at + 4])


def store2(pointer: Any, at: int, a: Any, b: Any) -> None:
    """Write two elements in one access; `at` is a multiple of 2."""
    pointer[at : at + 2] = a, b


def store4(pointer: Any, at: int, a: Any, b: Any, c: Any, d: Any) -> None:
    """Write four elements in one access; `at` is a multiple of 4."""
    pointer[at : at + 4] = a, b, c, d


def tail(pointer: Any, at: int) -> Any:
    """The elements from `at` on, as a pointer of their own."""
    return pointer[at:]


# Where a thread is.


def register(builder: ir.IRBuilder, name: str, below: int) -> ir.Value:
    """A special register as int64; it is below `below`."""
    call = builder.call(declare(builder.module, f"llvm.nvvm.read.ptx.sreg.{name}", I32, []), [])
    call.set_metadata("range", builder.module.add_metadata([I32(0), I32(below)]))
    return builder.zext(call, I64)


def _place(name: str, below: int) -> Emitter:
    return lambda context, builder, sig, args: register(builder, name, below)


def own_thread(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    """Below the block's threads, if the module says how many it has: what is always so need not be asked."""
    return register(builder, "tid.x", getattr(builder.module, "threads", MOST_THREADS))


def own_warp(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return builder.lshr(own_thread(context, builder, sig, args), I64(5))


def meeting(name: str, *arguments: int) -> Emitter:
    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        known = declare(builder.module, name, ir.VoidType(), [I32] * len(arguments))
        builder.call(known, [I32(a) for a in arguments])
        return context.get_dummy_value()

    return emitter


for _function, _emitter in (
    (thread, own_thread),
    (block, _place("ctaid.x", 2**31 - 1)),
    (blocks, _place("nctaid.x", 2**31 - 1)),
    (lane, _place("laneid", WARP)),
    (warp, own_warp),
):
    lowered(_function, lambda: (types.int64,), _emitter)
lowered(sync, lambda: (types.none,), meeting("llvm.nvvm.barrier0"))
lowered(sync_warp, lambda: (types.none,), meeting("llvm.nvvm.bar.warp.sync", -1))


# Short divisions.


def _short(build: str) -> Emitter:
    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.zext(getattr(builder, build)(*(builder.trunc(a, I32) for a in args)), I64)

    return emitter


def _two_integers(*kinds: types.Type) -> Any:
    whole = len(kinds) == 2 and all(isinstance(kind, types.Integer) for kind in kinds)
    return (types.int64, types.int64, types.int64) if whole else None


lowered(divide, _two_integers, _short("udiv"))
lowered(modulo, _two_integers, _short("urem"))


# Several elements in one access.


def _pointer(kind: types.Type) -> bool:
    return isinstance(kind, View) and len(kind.extents) == 1


def _wide_address(builder: ir.IRBuilder, view: Any, value: ir.Value, at: ir.Value, count: int) -> tuple[Any, int]:
    """The address of `count` elements from `at`, as that of a vector, and its alignment."""
    address = builder.gep(builder.extract_value(value, 0), [at], inbounds=True)
    kind = ir.VectorType(address.type.pointee, count)
    return builder.bitcast(address, kind.as_pointer()), count * ITEM[str(element_name(view.element))]


def load_neighbours(context: Any, builder: ir.IRBuilder, kind: Any, address: ir.Value, align: int) -> ir.Value:
    """The elements of the vector at `address`, as a tuple of type `kind`."""
    model, read = context.data_model_manager[kind.dtype], builder.load(address, align=align)
    parts = [model.from_data(builder, builder.extract_element(read, I32(k))) for k in range(kind.count)]
    return context.make_tuple(builder, kind, parts)


def store_neighbours(
    context: Any, builder: ir.IRBuilder, kind: Any, values: Sequence[ir.Value], address: ir.Value, align: int
) -> ir.Value:
    """`values`, of type `kind`, as the vector at `address`."""
    model = context.data_model_manager[kind]
    written: ir.Value = ir.Constant(address.type.pointee, ir.Undefined)
    for k, value in enumerate(values):
        written = builder.insert_element(written, model.as_data(builder, value), I32(k))
    builder.store(written, address, align=align)
    return context.get_dummy_value()


def _wide(count: int, load: Any, store: Any) -> None:
    """`load` and `store` of `count` elements."""

    def load_type(pointer: types.Type, at: types.Type) -> Any:
        if not _pointer(pointer) or not isinstance(at, types.Integer):
            return None
        return types.UniTuple(pointer.element, count), pointer, types.int64  # type: ignore[attr-defined]

    def store_type(pointer: types.Type, at: types.Type, *values: types.Type) -> Any:
        if not _pointer(pointer) or not isinstance(at, types.Integer) or len(values) != count:
            return None
        return types.none, pointer, types.int64, *[pointer.element] * count  # type: ignore[attr-defined]

    def emit_load(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        address, align = _wide_address(builder, sig.args[0], args[0], args[1], count)
        return load_neighbours(context, builder, sig.return_type, address, align)

    def emit_store(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        address, align = _wide_address(builder, sig.args[0], args[0], args[1], count)
        return store_neighbours(context, builder, sig.args[2], args[2:], address, align)

    lowered(load, load_type, emit_load)
    lowered(store, store_type, emit_store)


_wide(2, load2, store2)
_wide(4, load4, store4)


# Memory.


def _as_view(context: Any, builder: ir.IRBuilder, view: View, address: ir.Value) -> ir.Value:
    """The view of what lies at `address`, which becomes generic."""
    kind = context.get_value_type(view)
    pointer = kind.elements[0]
    if address.type != pointer:
        address = builder.addrspacecast(address, pointer)
    return builder.insert_value(ir.Constant(kind, ir.Undefined), address, 0)


def shared_array(builder: ir.IRBuilder, element: ir.Type, count: int, name: str = "shared") -> ir.Value:
    """The address of an array that all threads of the block see.

    It is a whole number of 16 bytes long: libNVVM reads neighbours together, and all of 16 aligned bytes for 12.
    """
    module = builder.module
    bits = element.width if isinstance(element, ir.IntType) else 32 if isinstance(element, ir.FloatType) else 64
    wide = 8 * ACCESS // bits
    kind = ir.ArrayType(element, -(-count // wide) * wide)
    array = ir.GlobalVariable(module, kind, module.get_unique_name(name), addrspace=SHARED)
    array.linkage, array.align, array.initializer = "internal", 16, ir.Constant(kind, ir.Undefined)
    return builder.gep(array, [I32(0), I32(0)], inbounds=True)


def _emit_shared(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    view = sig.return_type
    element = context.get_data_type(view.element)
    return _as_view(context, builder, view, shared_array(builder, element, sig.args[0].literal_value))


def _emit_local(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    view = sig.return_type
    kind = ir.ArrayType(context.get_data_type(view.element), sig.args[0].literal_value)
    with builder.goto_entry_block():
        array = builder.alloca(kind)
        array.align = 16
    return _as_view(context, builder, view, builder.gep(array, [I32(0), I32(0)], inbounds=True))


def _emit_view(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    view = sig.return_type
    kind = ir.PointerType(context.get_data_type(view.element), GLOBAL)
    return _as_view(context, builder, view, builder.inttoptr(builder.add(*args), kind))


def _tail_type(pointer: types.Type, at: types.Type) -> Any:
    return (pointer, pointer, types.int64) if _pointer(pointer) and isinstance(at, types.Integer) else None


def _emit_tail(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    address = builder.gep(builder.extract_value(args[0], 0), [args[1]], inbounds=True)
    return builder.insert_value(args[0], address, 0)


lowered(tail, _tail_type, _emit_tail)


def near_address(builder: ir.IRBuilder, element: ir.Type, room: int, args: Sequence[ir.Value]) -> ir.Value:
    """The generic address of elements in the block's pool of `room` bytes, or in scratch: see `near_float32`."""
    first, last, scratch = args
    pool = builder.module.globals.get("pool")
    byte = ir.IntType(8)
    if pool is None:
        start = shared_array(builder, byte, room, "pool")
    else:
        start = builder.gep(pool, [I32(0), I32(0)], inbounds=True)
    shared = builder.addrspacecast(builder.gep(start, [first]), byte.as_pointer())
    elsewhere = builder.inttoptr(builder.add(scratch, first), ir.PointerType(byte, GLOBAL))
    chosen = builder.select(
        builder.icmp_signed("<=", last, I64(room)), shared, builder.addrspacecast(elsewhere, byte.as_pointer())
    )
    return builder.bitcast(chosen, element.as_pointer())


def _emit_near(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    view = sig.return_type
    element = context.get_data_type(view.element)
    address = near_address(builder, element, sig.args[0].literal_value, args[1:])
    return _as_view(context, builder, view, address)


def _array(kind: str, element: str, emitter: Emitter) -> Any:
    """The function that makes an array of shared memory, or of registers."""

    def make(count: int) -> Any:
        return np.zeros(count, element)

    def typer(count: types.Type) -> Any:
        literal = isinstance(count, types.IntegerLiteral)
        return (View(ELEMENTS[element], (None,)), count) if literal else None

    make.__name__ = f"{kind}_{element}"
    where = "that all threads of the block see" if kind == "shared" else "of this thread alone, in registers"
    make.__doc__ = f"An array of `count` {element} {where}; what it holds first is not known. count: a literal."
    lowered(make, typer, emitter)
    return make


def _view(element: str) -> Any:
    """The function that finds an array in scratch memory."""

    def make(scratch: Any, offset: int) -> Any:
        return scratch[offset:].view(element)

    def typer(*kinds: types.Type) -> Any:
        whole = _two_integers(*kinds)
        return (View(ELEMENTS[element], (None,)), *whole[1:]) if whole else None

    make.__name__ = f"view_{element}"
    make.__doc__ = f"The {element} that begin `offset` bytes behind the address `scratch`."
    lowered(make, typer, _emit_view)
    return make


def _near(element: str) -> Any:
    """The function that finds an array in shared memory, if it fits there when sizes are known."""

    def make(room: int, first: int, last: int, scratch: Any) -> Any:
        return scratch[first:last].view(element)

    def typer(room: types.Type, *kinds: types.Type) -> Any:
        literal = isinstance(room, types.IntegerLiteral) and len(kinds) == 3
        return (View(ELEMENTS[element], (None,)), room, *[types.int64] * 3) if literal else None

    make.__name__ = f"near_{element}"
    make.__doc__ = (
        f"The {element} from byte `first` to `last` of `room` bytes that all threads of the block share, a literal, or "
        "where they have no room there, of the memory at the address `scratch`."
    )
    lowered(make, typer, _emit_near)
    return make


shared_float32, shared_float64, shared_int64, shared_bool = (_array("shared", e, _emit_shared) for e in ELEMENTS)
local_float32, local_float64, local_int64, local_bool = (_array("local", e, _emit_local) for e in ELEMENTS)
view_float32, view_float64, view_int64, view_bool = map(_view, ELEMENTS)
near_float32, near_float64, near_int64, near_bool = map(_near, ELEMENTS)
