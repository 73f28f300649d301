"""From a kernel's syntax tree to an optimised LLVM module: Numba types and emits each operation, the rest is ours.

Nothing of Numba's runtime comes along: no reference counts, no CPython wrappers, no dispatchers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import callconv, codegen, cpu, optional, types, typing
from numba.core.typing import templates
from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj

from chainrule.codegen import functions, gamma, vector
from chainrule.codegen.target import Target
from chainrule.codegen.translate import Translation, Value
from chainrule.codegen.view import ELEMENTS, View

I64, I8 = ir.IntType(64), ir.IntType(8)

LOWERED = (builtins, mathimpl, numbers, optional, rangeobj, tupleobj, functions, gamma, vector)
"""The parts of Python that kernels use, and ours: importing them tells Numba how to emit them, before it is asked."""


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

ITEM = {"float32": 4, "float64": 8, "int64": 8, "bool": 1}  # bytes


class _Library(codegen.JITCodeLibrary):
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
        """Nothing is loaded."""

    def everything(self) -> Iterator[ir.Module]:
        yield from self.modules
        for library in self.linked:
            yield from library.everything()


class _Codegen(codegen.JITCPUCodegen):
    _library_class = _Library


class _Context(cpu.CPUContext):
    """Numba's CPU without its runtime, and with only what loops and numbers need: it starts in half the time."""

    def init(self) -> None:
        self.is32bit = False
        self._internal_codegen = _Codegen("chainrule")

    def load_additional_registries(self) -> None:
        """None: what kernels need is in `LOWERED`."""

    def post_lowering(self, module: ir.Module, library: Any) -> None:
        if self.fastmath:
            cpu.fastmathpass.rewrite_module(module, self.fastmath)


class _Typing(typing.Context):
    """Numba's types of operators and of our functions alone.

    NumPy's would make each `+` a search through a dozen ufuncs; attributes, of which kernels have none, would import
    SciPy and take a second to set up.
    """

    def _load_builtins(self) -> None:
        lean = templates.Registry()
        lean.functions, lean.globals = templates.builtin_registry.functions, templates.builtin_registry.globals
        self.install_registry(lean)

    def load_additional_registries(self) -> None:
        """None."""


@cache
def context() -> Any:
    """What emits operations."""
    return fresh_context()


def fresh_context() -> Any:
    """One that knows what is `lowered` by now: `contract` everywhere, and division as IEEE has it."""
    made = _Context(_Typing())
    made.refresh()
    made.typing_context.refresh()
    model = callconv.create_error_model("numpy", made)
    return made.subtarget(fastmath=cpu.FastMathOptions({"contract"}), error_model=model)


@cache
def machine_for(target: Target) -> llvm.TargetMachine:
    """LLVM's code generator. Static, large code model: an object may be loaded anywhere in memory."""
    codegen.initialize_llvm()
    if target.triple:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    triple = llvm.Target.from_triple(target.triple or llvm.get_process_triple())
    return triple.create_target_machine(
        opt=3, cpu=target.cpu, features=target.features, reloc="static", codemodel="jitdefault", jit=True
    )


def module_of(
    tree: ast.FunctionDef,
    space: Mapping[str, Any],
    names: tuple[str, ...],
    parameters: tuple[Parameter, ...],
    symbol: str,
    target: Target,
) -> llvm.ModuleRef:
    """The kernel as an LLVM module with its exported wrapper.

    space: the functions that its source can name. names: of its parameters, as the arrays' extents mention them.

    Raises numba's errors, and TypeError, where the function does not compile.
    """
    within = context()
    library = within.codegen().create_library("kernel")
    module = library.create_ir_module("kernel")
    module.scales = target.scales  # for `functions`
    kinds = (*map(_type, parameters), types.int64, types.int64)
    packer = within.get_arg_packer(kinds)
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), packer.argument_types), "body")
    body.linkage = "internal"
    body.attributes.add("noinline")  # its parameters are noalias, which inlining would weaken
    body.attributes.add("nounwind")
    for argument in body.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")  # and aligned as its elements are: an input lies where the caller has it
    with within.push_code_library(library):
        _fill(within, body, packer, kinds, tree, space)
    within.post_lowering(module, library)
    library.add_ir_module(module)
    _wrap(module, body, dict(zip(names, parameters, strict=False)), symbol)
    return linked(library)


def linked(library: _Library) -> llvm.ModuleRef:
    """All that Numba built for a library's first module, as one."""
    main, *others = dict.fromkeys(library.everything())
    module = llvm.parse_assembly(str(main))
    for other in others:
        module.link_in(llvm.parse_assembly(str(other)))
    return module


def _fill(
    context: Any, body: ir.Function, packer: Any, kinds: tuple[types.Type, ...], tree: ast.FunctionDef, space: Any
) -> None:
    """The instructions of `tree` into `body`."""
    slots = ir.IRBuilder(body.append_basic_block("entry"))
    values = packer.from_arguments(slots, body.args)
    given = {a.arg: Value(kind, value) for a, kind, value in zip(tree.args.args, kinds, values, strict=True)}
    first = body.append_basic_block()
    kernel = Translation(context, space, ir.IRBuilder(first), slots, given)
    kernel.statements(tree.body)
    kernel.builder.ret_void()
    slots.position_at_end(body.entry_basic_block)
    slots.branch(first)


def _type(parameter: Parameter) -> types.Type:
    if isinstance(parameter, Size):
        return types.int64
    shape = tuple(n if isinstance(n, int) else None for n in parameter.shape)
    return View(ELEMENTS[parameter.element], shape)


def _wrap(module: ir.Module, body: ir.Function, parameters: dict[str, Parameter], symbol: str) -> None:
    """The function of the fixed ABI, which takes the table apart and calls `body`."""
    kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I8.as_pointer(), I64, I64])
    wrapper = ir.Function(module, kind, symbol)
    wrapper.attributes.add("nounwind")
    table, scratch, lo, hi = wrapper.args
    builder = ir.IRBuilder(wrapper.append_basic_block("entry"))

    def entry(k: int) -> ir.Value:
        return builder.load(builder.gep(table, [ir.Constant(I64, k)]))

    buffers = [name for name, p in parameters.items() if isinstance(p, Array) and not p.scratch]
    sizes = [name for name, p in parameters.items() if isinstance(p, Size)]
    size = {name: entry(len(buffers) + k) for k, name in enumerate(sizes)}
    offset: ir.Value = ir.Constant(I64, 0)
    pointers = iter([a.type for a in body.args if isinstance(a.type, ir.PointerType)])
    arguments: list[ir.Value] = []
    for name, parameter in parameters.items():
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
        inner = list(zip(extents, parameter.shape, strict=True))[1:]
        arguments += [extent for extent, n in inner if isinstance(n, str)]
    builder.call(body, [*arguments, lo, hi])
    builder.ret_void()


def optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine, symbol: str) -> None:
    """LLVM's passes at -O3, twice, with all but `symbol` private to the module.

    First without unrolling: LLVM unrolls loops of known length before it looks for vectors, and then finds few (an
    update of 64 rows of 32 columns takes 1.3 µs instead of 0.07). Short loops of vectors are unrolled after.
    """
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    for unroll in (False, True):
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.slp_vectorization = True
        options.loop_unrolling = unroll
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
