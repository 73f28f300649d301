"""From a kernel's generated source to its native object, and nothing that the object should not hold.

`compile_object` lets Numba read and type the function, then optimises and emits its LLVM module itself: no NRT, no
CPython, no pickles, one exported symbol with the fixed ABI of `chainrule.executable`,

    void kernel(int64 *table, int8 *scratch, int64 lo, int64 hi)

The table holds the buffers' addresses, then the sizes. Scratch arrays lie behind each other in order, each rounded
up to 64 bytes (`scratch_bytes`). Source that differs only in names, comments and docstrings gives the same bytes
under the same symbol.

This is the one place where generated text is executed, in a namespace of our own functions.

Flags, one by one: `contract` (a·b + c may be fused: faster and closer to the exact value) holds everywhere;
`reassoc` only inside `accumulate`, whose order of summation is the vectors'; never `nnan`, `ninf`, `nsz`, `arcp`
or `afn`: NaN, infinities and signed zeros keep their meaning. Division follows IEEE (`error_model="numpy"`).
"""

from __future__ import annotations

import ast
import hashlib
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import codegen, compiler, cpu, typed_passes, types, untyped_passes
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.errors import NumbaError
from numba.core.registry import cpu_target

from chainrule.codegen import functions, vector
from chainrule.codegen.target import Target
from chainrule.codegen.view import ELEMENTS, View

I64, I8 = ir.IntType(64), ir.IntType(8)

FORMAT = 1  # part of every symbol: change it with anything here that changes the code of equal sources

LIBM = frozenset(
    f"{name}{suffix}"
    for name in "exp exp2 expm1 log log2 log10 log1p pow sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh "
    "atanh erf erfc tgamma lgamma cbrt hypot fmod fma floor ceil trunc rint round".split()
    for suffix in ("", "f")
)
BOUND = LIBM | {"memcpy", "memset", "memmove", "scipy_cblas_sgemm", "scipy_cblas_dgemm"}
"""The undefined symbols that an object may have; the run side binds each from libm, libc or OpenBLAS."""

NAMES: dict[str, Any] = {
    **{name: getattr(functions, name) for name in functions.__all__},
    **{name: getattr(vector, name) for name in vector.__all__},
    # Numba's own min, max and abs are compiled functions; ours are an instruction or two
    "min": functions.minimum,
    "max": functions.maximum,
    "abs": functions.absolute,
    "__builtins__": {"range": range},
}
"""All that generated source can name."""


@dataclass(frozen=True)
class Array:
    """A kernel's parameter that is a view. An extent is an integer, or the name of a `Size` parameter."""

    element: Literal["float32", "float64", "int64", "bool"]
    shape: tuple[int | str, ...]
    scratch: bool = False  # private memory instead of a buffer of the table


@dataclass(frozen=True)
class Size:
    """A kernel's parameter that is an int64 of the table."""


Parameter = Array | Size


@dataclass(frozen=True)
class Job:
    """A kernel to compile: ``def entry(<one parameter for each of `parameters`>, lo, hi)`` in `source`."""

    source: str
    entry: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Compiled:
    """A native object, the one symbol that it exports, and those it needs (all in `BOUND`)."""

    symbol: str
    code: bytes
    externals: tuple[str, ...]


class CompileError(Exception):
    """Generated source that does not compile: a fault of ours, shown with the source."""


def compile_object(job: Job, target: Target) -> Compiled:
    """The native object of a kernel for `target`; the same source gives the same bytes."""
    text, names = canonical(job)
    symbol = symbol_of(job, target)
    with global_compiler_lock:
        machine = _machine(target)
        module = _module(text, names, job, symbol)
        _optimise(module, machine, symbol)
        code = bytes(machine.emit_object(module))
    externals = undefined_symbols(code)
    if foreign := set(externals) - BOUND:
        raise CompileError(f"the object of {job.entry} needs {sorted(foreign)}\n{job.source}")
    return Compiled(symbol, code, externals)


def assembly(job: Job, target: Target) -> str:
    """The same as text, for people and for tests that look for vectors."""
    text, names = canonical(job)
    with global_compiler_lock:
        machine = _machine(target)
        module = _module(text, names, job, "kernel")
        _optimise(module, machine, "kernel")
        return str(machine.emit_assembly(module))


def plain(source: str, entry: str) -> Callable[..., None]:
    """The kernel as a plain Python function of NumPy arrays: slow, for debugging."""
    return _define(source, entry)


def symbol_of(job: Job, target: Target) -> str:
    """The name under which the object exports a kernel: a hash of what its code depends on."""
    text, names = canonical(job)
    places = dict(zip(names, range(len(names)), strict=True))
    shapes = [
        (p.element, [places[n] if isinstance(n, str) else -n for n in p.shape], p.scratch) if isinstance(p, Array) else 0
        for p in job.parameters
    ]
    of = repr((FORMAT, text, shapes, str(target)))
    return "kernel_" + hashlib.sha256(of.encode()).hexdigest()[:24]


def scratch_bytes(parameters: tuple[Parameter, ...], sizes: dict[str, int]) -> int:
    """How much scratch memory a launch needs: each scratch array rounded up to 64 bytes."""
    total = 0
    for parameter in parameters:
        if isinstance(parameter, Array) and parameter.scratch:
            count = ITEM[parameter.element]
            for n in parameter.shape:
                count *= sizes[n] if isinstance(n, str) else n
            total += -(-count // 64) * 64
    return total


ITEM = {"float32": 4, "float64": 8, "int64": 8, "bool": 1}


class _Rename(ast.NodeTransformer):
    """Names that the source itself binds become v0, v1, ... by first appearance; docstrings and imports go."""

    def __init__(self, bound: set[str]) -> None:
        self.bound, self.new = bound, dict[str, str]()

    def fresh(self, name: str) -> str:
        return self.new.setdefault(name, f"v{len(self.new)}") if name in self.bound else name

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.name = "kernel"
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(self.fresh(node.arg))

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.fresh(node.id), node.ctx)


@cache
def canonical(job: Job) -> tuple[str, tuple[str, ...]]:
    """The kernel's source without names of its own, comments and docstrings; and its parameters' names as written."""
    tree = ast.parse(job.source)
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == job.entry]
    if len(found) != 1:
        raise CompileError(f"the source defines {job.entry} {len(found)} times\n{job.source}")
    function = found[0]
    names = tuple(a.arg for a in function.args.args)
    if len(names) != len(job.parameters) + 2:
        raise CompileError(f"{job.entry} takes {names}, of which {len(job.parameters)} are described, and lo, hi")
    bound = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    renamed = _Rename(bound | set(names)).visit(function)
    return ast.unparse(ast.fix_missing_locations(ast.Module([renamed], []))), names


def _define(source: str, entry: str) -> Callable[..., None]:
    """Run generated text that defines a function, in a namespace that holds our own functions only."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    space = dict(NAMES)
    exec(compile(tree, f"<{entry}>", "exec"), space)  # noqa: S102
    function: Callable[..., None] = space[entry]
    return function


# Numba, from source to LLVM's text.


class _Library(codegen.JITCodeLibrary):  # type: ignore[misc]
    """Keeps the modules that Numba builds instead of optimising and loading them."""

    def __init__(self, generator: Any, name: str) -> None:
        codegen.CodeLibrary.__init__(self, generator, name)
        self.modules: list[ir.Module] = []
        self.linked: list[_Library] = []

    def add_ir_module(self, module: ir.Module) -> None:
        self.modules.append(module)

    def add_linking_library(self, library: Any) -> None:
        self.linked.append(library)

    def finalize(self) -> None:
        pass

    def everything(self) -> Iterator[ir.Module]:
        yield from self.modules
        for library in self.linked:
            yield from library.everything()


class _Codegen(codegen.JITCPUCodegen):  # type: ignore[misc]
    _library_class = _Library


class _Context(cpu.CPUContext):  # type: ignore[misc]
    """Numba's CPU without its runtime, and with only what loops and numbers need: it starts in half the time."""

    def init(self) -> None:
        self.is32bit = False
        self._internal_codegen = _Codegen("chainrule")

    def load_additional_registries(self) -> None:
        from numba.core import optional  # noqa: F401, PLC0415
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401, PLC0415

    def post_lowering(self, module: ir.Module, library: Any) -> None:
        if self.fastmath:
            cpu.fastmathpass.rewrite_module(module, self.fastmath)


class _Pipeline(compiler.CompilerBase):  # type: ignore[misc]
    """The passes of Numba that a kernel needs: no rewrites, no inlining, no closures."""

    def define_pipelines(self) -> list[PassManager]:
        manager = PassManager("kernel")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            manager.add_pass(step, step.__name__)
        manager.finalize()
        return [manager]


@cache
def _context() -> _Context:
    return _Context(cpu_target.typing_context)


@cache
def _machine(target: Target) -> llvm.TargetMachine:
    """LLVM's code generator. Static, large code model: an object may be loaded anywhere in memory."""
    codegen.initialize_llvm()
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(
        opt=3, cpu=target.cpu, features=target.features, reloc="static", codemodel="jitdefault", jit=True
    )


def _flags() -> compiler.Flags:
    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.nrt = False
    flags.error_model = "numpy"
    flags.fastmath = cpu.FastMathOptions({"contract"})
    return flags


def _module(text: str, names: tuple[str, ...], job: Job, symbol: str) -> llvm.ModuleRef:
    """The kernel as an LLVM module, with its exported wrapper; only that is visible outside."""
    arguments = [_type(parameter) for parameter in job.parameters] + [types.int64, types.int64]
    function = _define(text, "kernel")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = compiler.compile_extra(
                cpu_target.typing_context,
                _context(),
                function,
                tuple(arguments),
                types.none,
                _flags(),
                {},
                pipeline_class=_Pipeline,
            )
    except (NumbaError, TypeError) as error:
        raise CompileError(f"{error}\n{text}\n# written as\n{job.source}") from error
    main, *others = dict.fromkeys(result.library.everything())
    mangled = result.fndesc.mangled_name
    body = main.get_global(mangled)
    body.attributes.add("noinline")  # its parameters are noalias, which inlining would weaken
    body.attributes.add("nounwind")
    for argument in body.args[2:]:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
            argument.attributes.align = 64
    _wrap(main, body, names, job, symbol)
    linked = llvm.parse_assembly(_text(main, mangled))
    for other in others:
        linked.link_in(llvm.parse_assembly(_text(other, mangled)))
    return linked


def _text(module: ir.Module, mangled: str) -> str:
    """A module's text. Numba's names count what was compiled before, which must not show in the object."""
    module.name = "kernel"
    return str(module).replace(mangled, "body").replace("common global", "internal global")


def _type(parameter: Parameter) -> types.Type:
    if isinstance(parameter, Size):
        return types.int64
    shape = tuple(n if isinstance(n, int) else None for n in parameter.shape)
    return View(ELEMENTS[parameter.element], shape)


def _wrap(module: ir.Module, body: ir.Function, names: tuple[str, ...], job: Job, symbol: str) -> None:
    """The function of the fixed ABI, which takes the table apart and calls `body`."""
    kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I8.as_pointer(), I64, I64])
    wrapper = ir.Function(module, kind, symbol)
    wrapper.attributes.add("nounwind")
    table, scratch, lo, hi = wrapper.args
    builder = ir.IRBuilder(wrapper.append_basic_block("entry"))

    def entry(k: int) -> ir.Value:
        return builder.load(builder.gep(table, [ir.Constant(I64, k)]))

    described = list(zip(names, job.parameters, strict=False))
    buffers = [name for name, p in described if isinstance(p, Array) and not p.scratch]
    sizes = [name for name, p in described if isinstance(p, Size)]
    size = {name: entry(len(buffers) + k) for k, name in enumerate(sizes)}
    offset: ir.Value = ir.Constant(I64, 0)
    pointers = iter([a.type for a in body.args[2:] if isinstance(a.type, ir.PointerType)])
    arguments = [builder.alloca(a.type.pointee) for a in body.args[:2]]
    for name, parameter in described:
        if isinstance(parameter, Size):
            arguments.append(size[name])
            continue
        extents = [size[n] if isinstance(n, str) else ir.Constant(I64, n) for n in parameter.shape]
        pointer = next(pointers)
        if parameter.scratch:
            arguments.append(builder.bitcast(builder.gep(scratch, [offset]), pointer))
            count: ir.Value = ir.Constant(I64, ITEM[parameter.element])
            for extent in extents:
                count = builder.mul(count, extent)
            rounded = builder.and_(builder.add(count, ir.Constant(I64, 63)), ir.Constant(I64, -64))
            offset = builder.add(offset, rounded)
        else:
            arguments.append(builder.inttoptr(entry(buffers.index(name)), pointer))
        arguments += [e for k, (e, n) in enumerate(zip(extents, parameter.shape, strict=True)) if k and isinstance(n, str)]
    builder.call(body, [*arguments, lo, hi])
    builder.ret_void()


def _optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine, symbol: str) -> None:
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def undefined_symbols(code: bytes) -> tuple[str, ...]:
    """The names that an object file (ELF, 64 bits, little-endian) needs from elsewhere, sorted."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise CompileError(f"not an ELF object for a 64-bit little-endian machine, on {sys.platform}")
    (sections,), (count,) = struct.unpack_from("<Q", code, 0x28), struct.unpack_from("<H", code, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, sections + 64 * k) for k in range(count)]
    found = set()
    for kind, start, size, link in ((h[1], h[4], h[5], h[6]) for h in headers):
        if kind == 2:  # a symbol table; `link` is the section of its names
            for at in range(start + 24, start + size, 24):
                name, _, _, section = struct.unpack_from("<IBBH", code, at)
                if section == 0:
                    first = headers[link][4] + name
                    found.add(code[first : code.index(b"\0", first)].decode())
    return tuple(sorted(found))
