"""numba.cuda compiles the same generated source: importing this module teaches it what a kernel can name.

    h_bar = runpy.run_path("build/gpu/h_bar.py")["h_bar"]  # saved by `chainrule compile --target cuda --out build/gpu`
    cuda.jit(h_bar)[grid, 256](logits_bar, w, h_bar, batch, 0)

Programs are compiled by `objects`, in a tenth of the time and with plainer loops; this is a second opinion on what
their source means. Elementwise functions are traced from the same sources; where a thread is and what it draws are
written with numba.cuda's own means. Parameters are pointers (`CPointer`) or arrays of one axis, indexed flat.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from chainrule.codegen.cuda import fragments, reductions
from chainrule.codegen.cuda.functions import LIBRARY
from chainrule.codegen.cuda.intrinsics import (
    GLOBAL,
    I32,
    I64,
    WARP,
    load_neighbours,
    meeting,
    near_address,
    shared_array,
    store_neighbours,
)
from chainrule.codegen.cuda.objects import NAMES, Compiled, CompileError, Job, Pointer, symbol_of
from chainrule.codegen.cuda.toolkit import ToolError, cubin_of
from chainrule.codegen.lowering import TRACED, Traced, call_traced
from chainrule.codegen.native import ITEM
from chainrule.codegen.objects import plain
from chainrule.errors import ChainruleError
from chainrule.philox import LOW, MIX, MULTIPLIERS, ROUNDS, WEYL

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it when it first compiles; NumPy 2.5 has it no more
    np.row_stack = np.vstack

try:
    import numba_cuda  # without it, numba.cuda is an older one
    from numba import cuda
    from numba.cuda import libdevice, types
    from numba.cuda.core.errors import NumbaError
    from numba.cuda.core.imputils import lower_builtin
    from numba.cuda.typing.templates import AbstractTemplate, infer_global, signature
except ImportError:  # an optional package
    numba_cuda = None

ELEMENTS = ("float32", "float64", "int64", "bool")


def require() -> None:
    """Raise ChainruleError where numba-cuda is not installed."""
    if numba_cuda is None:
        raise ChainruleError(
            "compiling by numba.cuda needs numba-cuda, which is not installed\n"
            "  Way out: pip install 'chainrule[cuda]'; neither a GPU nor a driver is needed to compile"
        )


def compile_with_numba(job: Job, arch: str) -> Compiled:
    """The code that numba.cuda makes of a kernel for an architecture, such as ``"sm_90"``; its threads are a bound.

    Raises ChainruleError where numba-cuda is not installed.
    """
    require()
    kernel = plain(job.source, job.entry, {**NAMES, "__builtins__": {"range": range}})
    number = int(arch.removeprefix("sm_"))
    options = {"device": False, "abi": "numba", "launch_bounds": (job.threads, job.blocks)}
    try:
        ptx, _ = cuda.compile(kernel, signature_of(job), cc=divmod(number, 10), **options)
        (entry,), symbol = _ENTRY.findall(ptx), symbol_of(job, arch)
        text = ptx.replace(entry, symbol).encode()
        return Compiled(symbol, text, cubin_of(text, arch))
    except (NumbaError, ToolError) as error:
        raise CompileError(f"{error}\n# written as\n{job.source}") from error


_ENTRY = re.compile(r"\.visible \.entry ([\w$]+)\(")


def signature_of(job: Job) -> Any:
    """The types of a kernel's parameters as numba.cuda has them: pointers, then int64."""
    require()
    kinds = [types.CPointer(_element(p.element)) if isinstance(p, Pointer) else types.int64 for p in job.parameters]
    return types.void(*kinds)


def _element(name: str) -> Any:
    return types.boolean if name == "bool" else getattr(types, name)


def _name(kind: Any) -> str | None:
    """``"float32"`` for a number's type; None for what is none."""
    if isinstance(kind, types.Boolean):
        return "bool"
    if isinstance(kind, (types.Float, types.Integer)):
        return str(kind) if isinstance(kind, types.Float) else "int64"
    return None


def _emitted(function: Any, typer: Callable[..., Any], emitter: Callable[..., Any]) -> None:
    """`lowering.lowered` for numba.cuda, whose types and registries are its own."""

    class Template(AbstractTemplate):
        key = function

        def generic(self, args: Sequence[Any], kws: Any) -> Any:
            found = None if kws else typer(*args)
            return None if found is None else signature(*found)

    infer_global(function, types.Function(Template))
    lower_builtin(function, types.VarArg(types.Any))(emitter)


# Elementwise functions: their sources, traced.


def _elementwise(function: Any, source: Callable[..., Any], integers: bool) -> None:
    def typer(*kinds: Any) -> Any:
        elements = [_name(kind) for kind in kinds]
        if None in elements:
            return None
        floats = [e for e in elements if e in ("float32", "float64")]
        element = _element(max(floats) if floats else "int64" if integers else "float64")
        return element, *[element] * len(kinds)

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        builder.module.library = LIBRARY
        values = [Traced(builder, value, str(_name(sig.return_type))) for value in args]
        chosen = LIBRARY.sources.get((function.__name__, values[0].element), source)
        return call_traced(function.__name__, chosen, builder, values).value

    _emitted(function, typer, emitter)


# Arrays: every one is a pointer.


def _array(function: Any, element: str, shared: bool) -> None:
    kind = types.CPointer(_element(element))

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        data, count = context.get_data_type(kind.dtype), sig.args[0].literal_value
        if shared:
            return builder.addrspacecast(shared_array(builder, data, count), data.as_pointer())
        with builder.goto_entry_block():
            array = builder.alloca(ir.ArrayType(data, count))
            array.align = 16
        return builder.gep(array, [I32(0), I32(0)], inbounds=True)

    _emitted(function, lambda count: (kind, count) if isinstance(count, types.IntegerLiteral) else None, emitter)


def _view(function: Any, element: str) -> None:
    kind = types.CPointer(_element(element))

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        data = context.get_data_type(kind.dtype)
        address = builder.inttoptr(builder.add(*args), ir.PointerType(data, GLOBAL))
        return builder.addrspacecast(address, data.as_pointer())

    _emitted(function, lambda scratch, offset: (kind, types.int64, types.int64), emitter)


def _tail(function: Any) -> None:
    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.gep(args[0], [args[1]])

    _emitted(function, lambda pointer, at: (pointer, pointer, types.int64), emitter)


def _near(function: Any, element: str) -> None:
    kind = types.CPointer(_element(element))

    def typer(room: Any, *kinds: Any) -> Any:
        return (kind, room, *[types.int64] * 3) if isinstance(room, types.IntegerLiteral) else None

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return near_address(builder, context.get_data_type(kind.dtype), sig.args[0].literal_value, args[1:])

    _emitted(function, typer, emitter)


def _wide(load: Any, store: Any, count: int) -> None:
    """`count` elements of a pointer, or of an array of one axis, in one access."""

    def address(context: Any, builder: ir.IRBuilder, kind: Any, data: ir.Value, at: ir.Value) -> tuple[ir.Value, int]:
        if isinstance(kind, types.Array):
            data = context.make_array(kind)(context, builder, data).data
        whole = ir.VectorType(data.type.pointee, count).as_pointer()
        return builder.bitcast(builder.gep(data, [at]), whole), count * ITEM[str(_name(kind.dtype))]

    def emit_load(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        place, align = address(context, builder, sig.args[0], *args)
        return load_neighbours(context, builder, sig.return_type, place, align)

    def emit_store(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        place, align = address(context, builder, sig.args[0], *args[:2])
        return store_neighbours(context, builder, sig.args[2], args[2:], place, align)

    _emitted(load, lambda p, at: (types.UniTuple(p.dtype, count), p, types.int64), emit_load)
    _emitted(store, lambda p, at, *values: (types.none, p, types.int64, *[p.dtype] * count), emit_store)


def _bytes_as_booleans() -> None:
    """numba.cuda reads the byte behind a pointer to booleans as if it were a bit already."""
    pointer = types.CPointer(types.boolean)

    def emit_get(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        model = context.data_model_manager[types.boolean]
        return model.from_data(builder, builder.load(builder.gep(args[0], [args[1]])))

    def emit_set(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        model = context.data_model_manager[types.boolean]
        value = context.cast(builder, args[2], sig.args[2], types.boolean)
        builder.store(model.as_data(builder, value), builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    lower_builtin(operator.getitem, pointer, types.Integer)(emit_get)
    lower_builtin(operator.setitem, pointer, types.Integer, types.Any)(emit_set)


# Places and scalars: in Python, as numba.cuda's users write.


def _written(name: str, typer: Callable[..., Any], way: Callable[..., Any]) -> None:
    """`way` is what the function does, in Python; numba.cuda's `overload` would ask for a GPU to compile it for."""

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return context.compile_internal(builder, way, sig, args)

    _emitted(NAMES[name], typer, emitter)


PLACES: dict[str, Callable[..., Any]] = {
    "thread": lambda: np.int64(cuda.threadIdx.x),
    "block": lambda: np.int64(cuda.blockIdx.x),
    "blocks": lambda: np.int64(cuda.gridDim.x),
    "lane": lambda: np.int64(cuda.laneid),
    "warp": lambda: np.int64(cuda.threadIdx.x) >> 5,
    "divide": lambda a, b: np.int64(np.uint32(a) // np.uint32(b)),
    "modulo": lambda a, b: np.int64(np.uint32(a) % np.uint32(b)),
}
"""What has an int64, of int64."""


CUTS: dict[str, Callable[..., Any]] = {
    "float32": lambda x: 0 if x != x else libdevice.float2ll_rz(x),
    "float64": lambda x: 0 if x != x else libdevice.double2ll_rz(x),
}
"""int64 of floats: the GPU's conversion keeps what does not fit at the ends; NaN it sends to the least."""


def _emit_integer(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    return context.compile_internal(builder, CUTS.get(str(sig.args[0]), lambda x: np.int64(x)), sig, args)


GOLDEN, ONE, TWO = (word - 2**64 if word >= 2**63 else word for word in MIX)  # the int64 of the same bits
LEFT, RIGHT = MULTIPLIERS
MORE, MOST = WEYL


def _uniform(seed: int, node: int, step: int, element: int, lane: int) -> Any:
    """`philox.uniforms` in int64, whose products keep the low 64 bits."""
    z = seed + GOLDEN
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * ONE
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * TWO
    z = z ^ ((z >> 31) & 0x1FFFFFFFF) ^ node
    c0, c1, c2, c3 = element & LOW, (element >> 32) & LOW, step & LOW, (step >> 32) & LOW
    k0, k1 = z & LOW, (z >> 32) & LOW
    for _ in range(ROUNDS):
        p0, p1 = c0 * LEFT, c2 * RIGHT
        c0, c1, c2, c3 = ((p1 >> 32) & LOW) ^ c1 ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + MORE) & LOW, (k1 + MOST) & LOW
    word = c0 if lane == 0 else c1 if lane == 1 else c2 if lane == 2 else c3
    return (np.float32(word >> 9) + np.float32(0.5)) * np.float32(2.0**-23)


def _emit_uniform(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
    whole = signature(types.float32, *[types.int64] * 5)
    return context.compile_internal(builder, _uniform, whole, [*args, I64(0)][:5])  # lane: 0 if none is given


def _reduction(name: str, across_block: bool) -> None:
    """Emitted, as barriers are: a function of Python's that shuffles, numba.cuda does not mark as convergent, and LLVM
    gives lanes that skip a loop a call of their own, to which the others never come."""
    combine, neutral = reductions.REDUCTIONS[name]

    def typer(x: Any, *count: Any) -> Any:
        literal = all(isinstance(c, types.IntegerLiteral) for c in count)
        kind = types.unliteral(x)
        return (kind, kind, *count) if literal and len(count) <= 1 else None

    def emitter(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        x, counts = Traced(builder, args[0], str(_name(sig.return_type))), [c.literal_value for c in sig.args[1:]]
        if across_block:
            return reductions.across(context, x, combine, f"row_{x.element}", counts[0], neutral(x)).value
        return reductions.within(x, combine, *(counts or [WARP])).value

    _emitted(NAMES[f"{'block' if across_block else 'warp'}_{name}"], typer, emitter)


def _fragments() -> None:
    """Products of fragments: instructions, emitted as for ours."""
    single = types.float32
    four, eight = (types.UniTuple(single, count) for count in (4, 8))
    _emitted(NAMES["to_tf32"], lambda x: (single, single), fragments.emit_tf32)
    _emitted(NAMES["to_bf16"], lambda x, y: (single, single, single), fragments.emit_bf16)
    _emitted(NAMES["swizzled"], lambda at: (types.int64, types.int64), fragments.emit_swizzled)
    for function, emitter in fragments.PARTS.items():
        _emitted(function, lambda *kinds: (eight, four, four, eight), emitter)


def _chosen(condition: Any, a: Any, b: Any) -> Any:
    """The type of a choice, and its arguments'."""
    kind = _element(min((str(_name(k)) for k in (a, b)), key=("float64", "float32", "int64", "bool").index))
    return kind, types.boolean, kind, kind


def _register() -> None:
    """Teach numba.cuda every function that generated source can name."""
    whole, single, double = types.int64, types.float32, types.float64
    for function in {f for f in NAMES.values() if callable(f) and f in TRACED}:
        _elementwise(function, *TRACED[function])
    for element in ELEMENTS:
        _array(NAMES[f"shared_{element}"], element, shared=True)
        _array(NAMES[f"local_{element}"], element, shared=False)
        _view(NAMES[f"view_{element}"], element)
        _near(NAMES[f"near_{element}"], element)
    for count in (2, 4):
        _wide(NAMES[f"load{count}"], NAMES[f"store{count}"], count)
    _tail(NAMES["tail"])
    _bytes_as_booleans()
    _emitted(NAMES["sync"], lambda: (types.none,), meeting("llvm.nvvm.barrier0"))
    _emitted(NAMES["sync_warp"], lambda: (types.none,), meeting("llvm.nvvm.bar.warp.sync", -1))
    for name in reductions.REDUCTIONS:
        _reduction(name, across_block=False)
        _reduction(name, across_block=True)
    _fragments()
    for name, way in PLACES.items():
        _written(name, lambda *kinds: (whole, *[whole] * len(kinds)), way)
    _written("where", _chosen, lambda condition, a, b: a if condition else b)
    _written("accumulate", lambda total, term: (total, total, total), lambda total, term: total + term)
    _written("float32", lambda x: (single, types.unliteral(x)), lambda x: np.float32(x))
    _written("float64", lambda x: (double, types.unliteral(x)), lambda x: np.float64(x))
    _emitted(NAMES["int64"], lambda x: (whole, types.unliteral(x)), _emit_integer)
    _emitted(NAMES["uniform"], lambda *kinds: (single, *[whole] * len(kinds)), _emit_uniform)


if numba_cuda is not None:
    _register()
