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
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
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
__all__ += ["compile_object", "compile_objects", "plain", "scratch_bytes", "symbol_of", "undefined_symbols"]

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


def plain(source: str, entry: str) -> Callable[..., None]:
    """The kernel as a plain Python function of NumPy arrays: slow, for debugging."""
    return _define(source, entry)


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
    bare = _COMMENT.sub("", _DOCSTRING.sub("", job.source, count=1))
    head = _HEAD.findall(bare)
    if len(head) == 1 and head[0][0] == job.entry and '"' not in bare and "'" not in bare:
        names = tuple(head[0][1].split(", "))
        text = _renamed(*_placed(bare, {job.entry, *names, *(a or b for a, b in _BOUND.findall(bare))}))[0]
    else:
        text, names = _renamed(job.source, job.entry)
    if len(names) != len(job.parameters) + 2:
        raise CompileError(f"{job.entry} takes {names}, of which {len(job.parameters)} are described, and lo, hi")
    return text, names


_DOCSTRING, _COMMENT, _WORD = re.compile(r'"""[^"\\]*"""'), re.compile("#.*"), re.compile(r"\b[A-Za-z_]\w*")
_HEAD = re.compile(r"^def (\w+)\((\w+(?:, \w+)*)\):$", re.MULTILINE)
_BOUND = re.compile(r"^ *(?:for (\w+) in |(\w+) (?:=|\W?\W=) )", re.MULTILINE)


def _placed(source: str, bound: set[str]) -> tuple[str, str]:
    """`source` with the names in `bound` called by their first place, and what its function is called then.

    Equal kernels of a deep network become equal texts, in a tenth of the time that their trees take.
    """
    first: dict[str, str] = {}

    def placed(word: re.Match[str]) -> str:
        name = word[0]
        return first.setdefault(name, f"_{len(first)}") if name in bound else name

    text = _WORD.sub(placed, source[source.index("def ") :])
    return text, "_0"


@lru_cache(maxsize=4096)
def _renamed(source: str, entry: str) -> tuple[str, tuple[str, ...]]:
    """What `canonical` makes of `source`, by its tree."""
    tree = ast.parse(source)
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry]
    if len(found) != 1:
        raise CompileError(f"the source defines {entry} {len(found)} times\n{source}")
    function = found[0]
    names = tuple(a.arg for a in function.args.args)
    bound = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    renamed = _Rename(bound | set(names)).visit(function)
    return ast.unparse(ast.fix_missing_locations(ast.Module([renamed], []))), names


def _define(source: str, entry: str) -> Callable[..., None]:
    """Run generated text that defines a function, in a namespace that holds our own functions only."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    space = dict(NAMES)
    exec(compile(tree, f"<{entry}>", "exec"), space)
    function: Callable[..., None] = space[entry]
    return function


def _module(job: Job, symbol: str, target: Target) -> llvm.ModuleRef:
    text, names = canonical(job)
    try:
        (tree,) = ast.parse(text).body
        assert isinstance(tree, ast.FunctionDef)
        return module_of(tree, NAMES, names, job.parameters, symbol, target)
    except (NumbaError, TypeError) as error:
        raise CompileError(f"{error}\n{text}\n# written as\n{job.source}") from error


def undefined_symbols(code: bytes) -> tuple[str, ...]:
    """The names that an object file needs from elsewhere, sorted."""
    try:
        return tuple(sorted(symbols(code).undefined))
    except ObjectFileError as error:
        raise CompileError(str(error)) from None


# Many cold kernels at once: Numba holds a global lock, so by other processes. A worker is this module run by itself,
# one JSON line in and one out for each kernel. It imports nothing of the caller's, so scripts without a `__main__`
# guard, notebooks and tests are safe; where no worker starts, or one dies, its share is compiled here.

WORTH_A_WORKER = 12000
"""Characters of source: a worker needs a second to start, in which so much is compiled here."""


def compile_objects(jobs: Sequence[Job], target: Target, workers: int | None = None) -> list[Compiled]:
    """The objects of all `jobs`, in order; equal kernels are compiled once. workers: processes, this one included."""
    symbols = [symbol_of(job, target) for job in jobs]
    distinct = dict(zip(symbols, jobs, strict=True))
    work = sum(len(canonical(job)[0]) for job in distinct.values())
    count = min(_cores() if workers is None else workers, 1 + work // WORTH_A_WORKER) if workers != 1 else 1
    shares = _shares(distinct, max(count, 1) if sys.executable else 1)
    found: dict[str, Compiled] = {}
    threads = [threading.Thread(target=_by_worker, args=(share, target, found)) for share in shares[1:]]
    for thread in threads:
        thread.start()
    try:
        for symbol, job in shares[0].items():
            found[symbol] = compile_object(job, target)
    finally:
        for thread in threads:
            thread.join()
    for symbol, job in distinct.items():
        if symbol not in found:  # a worker that could not start, or died
            found[symbol] = compile_object(job, target)
    return [found[symbol] for symbol in symbols]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shares(jobs: dict[str, Job], count: int) -> list[dict[str, Job]]:
    """Shares of about equal work, the longest sources dealt out first, the first share having a head start."""
    shares: list[dict[str, Job]] = [{} for _ in range(count)]
    load = [0] + [WORTH_A_WORKER // 2] * (count - 1)
    for symbol, job in sorted(jobs.items(), key=lambda item: -len(canonical(item[1])[0])):
        k = load.index(min(load))
        shares[k][symbol] = job
        load[k] += len(canonical(job)[0])
    return shares


def _by_worker(share: dict[str, Job], target: Target, found: dict[str, Compiled]) -> None:
    """Let a process compile `share`; what it answers goes to `found`, what it does not is left to the caller."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    lines = [json.dumps({"target": asdict(target)})]
    for job in share.values():
        described = [_described(p) for p in job.parameters]
        lines.append(json.dumps({"source": job.source, "entry": job.entry, "parameters": described}))
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "chainrule.codegen.objects"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env={**os.environ, "PYTHONPATH": path},
        )
    except (OSError, subprocess.SubprocessError):
        return
    for line in answer.stdout.splitlines():
        try:
            told = json.loads(line)
            compiled = Compiled(told["symbol"], base64.b64decode(told["code"]), tuple(told["externals"]))
        except (ValueError, KeyError, TypeError):
            continue
        if compiled.symbol in share:
            found[compiled.symbol] = compiled


def _described(parameter: Parameter) -> Any:
    return asdict(parameter) if isinstance(parameter, Array) else None


def _read(told: Any) -> Job:
    parameters: tuple[Parameter, ...] = tuple(
        Size() if p is None else Array(p["element"], tuple(p["shape"]), p["scratch"]) for p in told["parameters"]
    )
    return Job(told["source"], told["entry"], parameters)


def main() -> None:
    """A worker: the target on the first line of the input, then a kernel on each; an object for each."""
    target = Target(**json.loads(sys.stdin.readline())["target"])
    for line in sys.stdin:
        compiled = compile_object(_read(json.loads(line)), target)
        code = base64.b64encode(compiled.code).decode()
        answer = {"symbol": compiled.symbol, "code": code, "externals": compiled.externals}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
