"""Programs made by hand, with kernels written in LLVM IR: the run side is tested without the compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
from llvmlite import ir

from chainrule.codegen.walker import compile_walker
from chainrule.executable import FORMAT, Buffer, Dim, Executable, Init, Input, Kernel, Launch, Output, Param, Scalar
from chainrule.executable import State as StateOf
from chainrule.runtime.cache import digest

I8, I64, F32 = ir.IntType(8), ir.IntType(64), ir.FloatType()
KERNEL = ir.FunctionType(ir.VoidType(), (I64.as_pointer(), I8.as_pointer(), I64, I64))
BATCH = ((1.0, ("batch",)),)
ONE = ((1.0, ()),)

Element = Callable[[ir.IRBuilder, Sequence[ir.Value], ir.Value], None]


def fixed(value: float):
    return ((float(value), ()),)


walker = functools.cache(compile_walker)


def object_of(module: ir.Module, reloc: str = "static") -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(opt=2, reloc=reloc, jit=True)
    return machine.emit_object(llvm.parse_assembly(str(module)))


def kernel(symbol: str, words: int, each: Element) -> bytes:
    """An object whose function runs `each(builder, table words, i)` for i in [lo, hi)."""
    module = ir.Module(symbol)
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, KERNEL, symbol)
    table, _, lo, hi = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    values = [builder.load(builder.gep(table, [ir.Constant(I64, k)])) for k in range(words)]
    loop(builder, lo, hi, lambda b, i: each(b, values, i))
    builder.ret_void()
    return object_of(module)


def loop(builder: ir.IRBuilder, lo: ir.Value, hi: ir.Value, body: Callable[[ir.IRBuilder, ir.Value], None]) -> None:
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(lo, before)
    builder.cbranch(builder.icmp_signed("<", i, hi), inside, after)
    builder.position_at_end(inside)
    body(builder, i)
    i.add_incoming(builder.add(i, ir.Constant(I64, 1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)


def place(builder: ir.IRBuilder, base: ir.Value, i: ir.Value, element: ir.Type = F32) -> ir.Value:
    return builder.gep(builder.inttoptr(base, element.as_pointer()), [i])


def read(builder: ir.IRBuilder, base: ir.Value, i: ir.Value, element: ir.Type = F32) -> ir.Value:
    return builder.load(place(builder, base, i, element))


ZERO = ir.Constant(I64, 0)


def _axpy(b, t, i):
    """out[i] = a * x[i] + y[i]; table x, y, a, out"""
    product = b.fmul(read(b, t[2], ZERO), read(b, t[0], i))
    b.store(b.fadd(product, read(b, t[1], i)), place(b, t[3], i))


def _times(b, t, i):
    """out[i] = x[i] * y[i]; table x, y, out"""
    b.store(b.fmul(read(b, t[0], i), read(b, t[1], i)), place(b, t[2], i))


def _minus(b, t, i):
    """out[i] = x[i] - y[i]; table x, y, out"""
    b.store(b.fsub(read(b, t[0], i), read(b, t[1], i)), place(b, t[2], i))


def _row_sum(b, t, i):
    """out[i] = sum[j] x[i, j]; table x, out, columns"""
    b.store(ir.Constant(F32, 0.0), place(b, t[1], i))

    def add(b, j):
        at = place(b, t[1], i)
        b.store(b.fadd(b.load(at), read(b, t[0], b.add(b.mul(i, t[2]), j))), at)

    loop(b, ZERO, t[2], add)


def _gather(b, t, i):
    """out[i] = table[index[i]]; table table, index, out"""
    b.store(read(b, t[0], read(b, t[1], i, I64)), place(b, t[2], i))


def _update(b, t, i):
    """w[i] = w[i] - rate * g[i]; table w, g, rate"""
    step = b.fmul(read(b, t[2], ZERO), read(b, t[1], i))
    b.store(b.fsub(read(b, t[0], i), step), place(b, t[0], i))


def _clock(b, t, i):
    """out[i] = float(step); table clock, out"""
    b.store(b.sitofp(read(b, t[0], ir.Constant(I64, 1), I64), F32), place(b, t[1], i))


def _nothing(b, t, i):
    """Nothing; table x, y, out"""


BODIES = {
    "nothing": (3, _nothing),
    "axpy": (4, _axpy),
    "times": (3, _times),
    "minus": (3, _minus),
    "row_sum": (3, _row_sum),
    "gather": (3, _gather),
    "update": (3, _update),
    "clock": (2, _clock),
}


@functools.cache
def compiled(name: str) -> bytes:
    words, body = BODIES[name]
    return kernel(name, words, body)


def objects_of(names: Sequence[str]) -> tuple[tuple[Kernel, ...], dict[str, bytes]]:
    kernels = tuple(Kernel(name, digest(compiled(name))) for name in names)
    return kernels, {digest(compiled(name)): compiled(name) for name in names}


def launch(kernels, name, buffers, extent, reads, writes, cost=((1.0, ()),), sizes=(), scratch=()):
    position = next(k for k, one in enumerate(kernels) if one.symbol == name)
    return Launch(position, name, tuple(buffers), tuple(sizes), extent, scratch, cost, tuple(reads), tuple(writes))


def regression(cost: float = 1.0, width: int = 3) -> tuple[Executable, dict[str, bytes]]:
    """A training step: p = x * w (by element), d = p - y, s[n] = sum d[n, :], g = d * x of row 0, w -= rate * g.

    x, y: [batch, width]; w: [batch-independent width] is used on row 0 alone, so that updates have fixed shape.
    Outputs: s [batch] and the loss l = sum of s over batch. `cost` is per element.
    """
    kernels, objects = objects_of(["times", "minus", "row_sum", "update", "clock"])
    matrix, flat = (BATCH, fixed(width)), ((float(width), ("batch",)),)
    buffers = (
        Buffer("x", "float32", matrix, "input"),
        Buffer("y", "float32", matrix, "input"),
        Buffer("w", "float32", (fixed(width),), "param"),
        Buffer("rate", "float32", (), "scalar"),
        Buffer("d", "float32", matrix, "arena", 0, 3),
        Buffer("s", "float32", (BATCH,), "arena", 1, 2),
        Buffer("loss", "float32", (), "arena", 2, 2),
        Buffer("g", "float32", (fixed(width),), "arena", 3, 4),
        Buffer("clock", "int64", (fixed(2),), "clock"),
        Buffer("count", "float32", (), "arena", 5, 5),
        Buffer("speed", "float32", (fixed(width),), "state"),
    )
    each = ((cost * width, ("batch",)),)
    launches = (
        launch(kernels, "minus", (0, 1, 4), flat, (0, 1), (2,), each),
        launch(kernels, "row_sum", (4, 5), BATCH, (0,), (1,), each, (fixed(width),)),
        launch(kernels, "row_sum", (5, 6), ONE, (0,), (1,), ((cost, ("batch",)),), (BATCH,)),
        launch(kernels, "times", (4, 2, 7), fixed(width), (0, 1), (2,)),
        launch(kernels, "update", (2, 7, 3), fixed(width), (0, 1, 2), (0,)),
        launch(kernels, "clock", (8, 9), ONE, (0,), (1,)),
    )
    executable = Executable(
        name="regression",
        format=FORMAT,
        target="test",
        element="float32",
        training=True,
        dims=(Dim("batch"),),
        buffers=buffers,
        inputs=(Input("x", 0), Input("y", 1)),
        params=(Param("w", 2, Init("uniform", (-1.0, 1.0))),),
        states=(StateOf("speed", 10, 0.5),),
        scalars=(Scalar("rate", 3, 0.125),),
        outputs=(Output("s", 5), Output("loss", 6), Output("count", 9)),
        kernels=kernels,
        launches=launches,
        clock=8,
    )
    return executable, objects


def lookup(rows: int = 5, length=BATCH) -> tuple[Executable, dict[str, bytes]]:
    """out[n] = table[index[n]], where 0 <= index < rows; no training."""
    kernels, objects = objects_of(["gather"])
    buffers = (
        Buffer("table", "float32", (fixed(rows),), "param"),
        Buffer("index", "int64", (length,), "input"),
        Buffer("out", "float32", (length,), "arena", 0, 0),
    )
    executable = Executable(
        name="lookup",
        format=FORMAT,
        target="test",
        element="float32",
        training=False,
        dims=(Dim("batch", maximum=1000),),
        buffers=buffers,
        inputs=(Input("index", 1, fixed(rows)),),
        params=(Param("table", 0, Init("normal", (0.0, 1.0))),),
        states=(),
        scalars=(),
        outputs=(Output("out", 2),),
        kernels=kernels,
        launches=(launch(kernels, "gather", (0, 1, 2), length, (0, 1), (2,), ((1.0, ("batch",)),)),),
    )
    return executable, objects


def chain(links: int, width: int, cost: float, divided: bool = True) -> tuple[Executable, dict[str, bytes]]:
    """a <- 0.5 a + x, `links` times between two arena buffers, every launch waiting for the one before.

    Each launch reads the other buffer turned by nothing, yet the *row sums* between would be wrong if a thread ran
    ahead: link k reads all that link k - 1 wrote, through a row sum over pairs of rows.
    """
    kernels, objects = objects_of(["axpy", "row_sum"])
    n = fixed(width)
    buffers = (
        Buffer("x", "float32", (n,), "input"),
        Buffer("half", "float32", (), "scalar"),
        Buffer("a", "float32", (n,), "arena", 0, links),
        Buffer("b", "float32", (n,), "arena", 0, links),
        Buffer("total", "float32", (fixed(links),), "arena", 0, links),
    )
    price = fixed(cost)
    extent = n if divided else ONE
    launches = [launch(kernels, "axpy", (0, 0, 1, 2), n, (0, 1, 2), (3,), price)]
    for k in range(links):
        source, target = (2, 3) if k % 2 == 0 else (3, 2)
        launches.append(launch(kernels, "axpy", (source, 0, 1, target), extent, (0, 1, 2), (3,), price))
    executable = Executable(
        name="chain",
        format=FORMAT,
        target="test",
        element="float32",
        training=False,
        dims=(),
        buffers=buffers[:4],
        inputs=(Input("x", 0),),
        params=(),
        states=(),
        scalars=(Scalar("half", 1, 0.5),),
        outputs=(Output("a", 2), Output("b", 3)),
        kernels=kernels,
        launches=tuple(launches),
    )
    return executable, objects
