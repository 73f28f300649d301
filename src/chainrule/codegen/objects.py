"""From a kernel's generated source to its native object, and nothing that the object should not hold.

`compile_object` translates the source's tree, operation by operation as Numba types and emits them, then optimises the
LLVM module and emits it: no NRT, no CPython, no pickles, one exported symbol with the fixed ABI of
`chainrule.executable`,

    void kernel(int64 *table, int8 *scratch, int64 lo, int64 hi)

The table holds the buffers' addresses, then the sizes. Scratch arrays lie behind each other in order, each rounded
up to 64 bytes (`scratch_bytes`). Source that differs only in names, comments and docstrings gives the same bytes
under the same symbol.

To compile executes no text. `plain` does, the only place, in a namespace of our own functions.

Flags, one by one: `contract` (a·b + c may be fused: faster and closer to the exact value) holds everywhere;
`reassoc` only inside `accumulate`, whose order of summation is the vectors'; never `nnan`, `ninf`, `nsz`, `arcp`
or `afn`: NaN, infinities and signed zeros keep their meaning. Division follows IEEE (`error_model="numpy"`).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import llvmlite.binding as llvm
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaError

from chainrule.codegen import functions, gamma, vector
from chainrule.codegen.native import ITEM, Array, Parameter, Size, machine_for, module_of, optimise
from chainrule.codegen.target import Target
from chainrule.symbols import ObjectFileError, symbols

__all__ = [
    "BOUND",
    "ITEM",
    "NAMES",
    "Array",
    "CompileError",
    "Compiled",
    "Job",
    "Parameter",
    "Size",
    "assembly",
]
__all__ += ["bare", "compile_object", "plain", "scratch_bytes", "symbol_of", "undefined_symbols"]

FORMAT = 6  # part of every symbol: change it with anything here that changes the code of equal sources

LIBM = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "sin", "cos", "tan", "asin", "acos", "atan",
    "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "tgamma", "lgamma", "cbrt", "hypot",
    "fmod", "fma", "floor", "ceil", "trunc", "rint", "round",
})  # fmt: skip
BOUND = LIBM | {name + "f" for name in LIBM} | {"memcpy", "memset", "memmove", "scipy_cblas_sgemm", "scipy_cblas_dgemm"}
"""The undefined symbols that an object may have; the run side binds each from libm, libc or OpenBLAS."""

NAMES: dict[str, Any] = {
    **{name: getattr(functions, name) for name in functions.__all__},
    **{name: getattr(gamma, name) for name in gamma.__all__},
    **{name: getattr(vector, name) for name in vector.__all__},
    # Numba's own min, max and abs are compiled functions; ours are an instruction or two
    "min": functions.minimum,
    "max": functions.maximum,
    "abs": functions.absolute,
    "__builtins__": {"range": range},
}
"""All that generated source can name."""


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
    symbol = symbol_of(job, target)
    with global_compiler_lock:
        machine = machine_for(target)
        module = _module(job, symbol, target)
        optimise(module, machine, symbol)
        code = bytes(machine.emit_object(module))
    externals = undefined_symbols(code)
    if foreign := set(externals) - BOUND:
        raise CompileError(f"the object of {job.entry} needs {sorted(foreign)}\n{job.source}")
    return Compiled(symbol, code, externals)


def assembly(job: Job, target: Target) -> str:
    """The same as text, for people and for tests that look for vectors."""
    with global_compiler_lock:
        machine = machine_for(target)
        module = _module(job, "kernel", target)
        optimise(module, machine, "kernel")
        return str(machine.emit_assembly(module))


def plain(source: str, entry: str, names: Mapping[str, Any] = NAMES) -> Callable[..., None]:
    """The kernel as a plain Python function of NumPy arrays: slow, for debugging. names: all that it can name."""
    return _define(source, entry, names)


def symbol_of(job: Job, target: Target) -> str:
    """The name under which the object exports a kernel: a hash of what its code depends on."""
    text, names = canonical(job)
    places = dict(zip(names, range(len(names)), strict=True))
    shapes = [
        (p.element, [places[n] if isinstance(n, str) else -n for n in p.shape], p.scratch)
        if isinstance(p, Array)
        else 0
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


class _Rename(ast.NodeTransformer):
    """Names that the source itself binds become v0, v1, ... by first appearance; docstrings and imports go."""

    def __init__(self, bound: set[str]) -> None:
        self.bound, self.new = bound, dict[str, str]()

    def fresh(self, name: str) -> str:
        return self.new.setdefault(name, f"v{len(self.new)}") if name in self.bound else name

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.name = self.fresh(node.name) if node.name in self.bound else "kernel"
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
    text, names = bare(job.source, job.entry)
    if len(names) != len(job.parameters) + 2:
        raise CompileError(f"{job.entry} takes {names}, of which {len(job.parameters)} are described, and lo, hi")
    return text, names


@cache
def bare(source: str, entry: str) -> tuple[str, tuple[str, ...]]:
    """What `canonical` says of the function `entry` in `source`, whatever its parameters are."""
    said = _COMMENT.sub("", _DOCSTRING.sub("", source))
    heads = _HEAD.findall(said)
    if not heads or heads[-1][0] != entry or '"' in said or "'" in said:
        return _renamed(source, entry)
    bound = {word for name, given in heads for word in (name, *given.split(", "))}
    bound |= {a or b for a, b in _BOUND.findall(said)}
    return _renamed(*_placed(said, bound, entry))[0], tuple(heads[-1][1].split(", "))


_DOCSTRING, _COMMENT, _WORD = re.compile(r'"""[^"\\]*"""'), re.compile("#.*"), re.compile(r"\b[A-Za-z_]\w*")
_HEAD = re.compile(r"^def (\w+)\((\w+(?:, \w+)*)\):$", re.MULTILINE)
_BOUND = re.compile(r"^ *(?:for (\w+) in |(\w+) (?:=|\W?\W=) )", re.MULTILINE)


def _placed(source: str, bound: set[str], entry: str) -> tuple[str, str]:
    """`source` with the names in `bound` called by their first place, and what `entry` is called then.

    Equal kernels of a deep network become equal texts, in a tenth of the time that their trees take.
    """
    first: dict[str, str] = {}

    def placed(word: re.Match[str]) -> str:
        name = word[0]
        return first.setdefault(name, f"_{len(first)}") if name in bound else name

    text = _WORD.sub(placed, source[source.index("def ") :])
    return text, first[entry]


@lru_cache(maxsize=4096)
def _renamed(source: str, entry: str) -> tuple[str, tuple[str, ...]]:
    """What `canonical` makes of `source`, by its tree: the kernel last, after the functions that it calls."""
    tree = ast.parse(source)
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    if [f.name for f in functions if f.name == entry] != [entry] or functions[-1].name != entry:
        raise CompileError(f"the source does not define {entry} once, and last\n{source}")
    names = tuple(a.arg for a in functions[-1].args.args)
    bound = {f.name for f in functions[:-1]}
    for function in functions:
        bound |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {a.arg for a in function.args.args}
    renaming = _Rename(bound)
    renamed: list[ast.stmt] = [renaming.visit(function) for function in functions]
    return ast.unparse(ast.fix_missing_locations(ast.Module(renamed, []))), names


def _define(source: str, entry: str, names: Mapping[str, Any]) -> Callable[..., None]:
    """Run generated text that defines a function, in a namespace that holds our own functions only."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    space = dict(names)
    exec(compile(tree, f"<{entry}>", "exec"), space)
    function: Callable[..., None] = space[entry]
    return function


def _module(job: Job, symbol: str, target: Target) -> llvm.ModuleRef:
    text, names = canonical(job)
    try:
        *own, tree = ast.parse(text).body
        assert isinstance(tree, ast.FunctionDef)
        space = NAMES | {f.name: f for f in own if isinstance(f, ast.FunctionDef)}
        return module_of(tree, space, names, job.parameters, symbol, target)
    except (NumbaError, TypeError) as error:
        raise CompileError(f"{error}\n{text}\n# written as\n{job.source}") from error


def undefined_symbols(code: bytes) -> tuple[str, ...]:
    """The names that an object file needs from elsewhere, sorted."""
    try:
        return tuple(sorted(symbols(code).undefined))
    except ObjectFileError as error:
        raise CompileError(str(error)) from None
