"""One kernel of a program as readable Python: ``def hidden(z, b, h, n, lo, hi)``, a loop for a loop.

Parameters are the buffers that it touches, its scratch arrays, and the sizes that are known when inputs are; sizes
known now are numbers in the source. The range [lo, hi) counts blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy as sp

from chainrule.choices import Choice
from chainrule.codegen.choices import Case
from chainrule.codegen.expressions import Scope, Symbol, condition, integer
from chainrule.codegen.names import Names, plain
from chainrule.codegen.objects import NAMES as LIBRARY
from chainrule.codegen.objects import Array, Parameter, Size
from chainrule.errors import ChainruleError
from chainrule.ir.formula import Access, DType
from chainrule.ir.matrices import Multiplied
from chainrule.ir.program import Block, Buffer, Kernel, Loop, Range, greatest

Element = Literal["float32", "float64"]

STEP = "step"  # the scalar that the runtime counts
CLOCK = "_clock"  # no user's name starts with an underscore
DEEPEST = 16  # loops: CPython refuses 20 nested blocks


@dataclass(frozen=True)
class KernelSource:
    """A kernel's text, what compiles it, and what a launch must pass.

    buffers: by the program's names, in the order of the parameters; `CLOCK` is the clock. sizes: what each size
    stands for. draws: the random buffers whose keys follow the sizes, in two halves each, so that layers with draws of
    their own share a kernel. shapes: of the scratch arrays, over the dims. reads, writes: positions in `buffers`.
    """

    text: str
    job: Any  # what the target's compiler takes
    buffers: tuple[str, ...]
    sizes: tuple[sp.Expr, ...]
    scratch: tuple[tuple[str, tuple[sp.Expr, ...]], ...]  # element, shape
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    draws: tuple[str, ...] = ()
    products: tuple[tuple[Case, Choice], ...] = ()  # each with how it is computed
    grid: sp.Expr | None = None
    threads: int = 0
    region: sp.Expr = sp.S.Zero
    multiply: Multiplied | None = None


@dataclass
class Writer:
    """What is gathered while one kernel is written down: lines, names, parameters."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]  # the program's and the kernel's own
    dims: frozenset[sp.Symbol]
    element: Element
    names: Names = field(default_factory=lambda: Names({"lo", "hi", "kernel", *LIBRARY}))
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    symbols: dict[sp.Symbol, Symbol] = field(default_factory=dict)
    ranges: dict[sp.Symbol, Range] = field(default_factory=dict)
    whole: Mapping[sp.Symbol, Range] = field(default_factory=dict)  # of loops over a part, for proofs
    open: list[sp.Symbol] = field(default_factory=list)  # the loops around, from the outside
    views: dict[str, tuple[str, Array]] = field(default_factory=dict)  # by buffer: name and type
    variables: dict[str, str] = field(default_factory=dict)  # by rank-0 scratch buffer
    sizes: dict[sp.Expr, str] = field(default_factory=dict)
    draws: dict[str, tuple[str, str]] = field(default_factory=dict)  # by random buffer: the halves of its key
    used: set[str] = field(default_factory=set)  # the functions called
    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    stores: frozenset[str] = frozenset()  # what the whole kernel writes
    moved: dict[str, tuple[str, tuple[sp.Expr, ...]]] = field(default_factory=dict)  # where a panel of a tensor lies
    hoisted: dict[sp.Basic, tuple[str, str]] = field(default_factory=dict)  # names and texts, for its top

    # Text.

    def line(self, text: str, comment: str = "") -> None:
        self.lines.append("    " * self.depth + text + (f"  # {comment}" if comment else ""))

    @contextmanager
    def inside(self, head: str) -> Iterator[None]:
        """What is written under `head`, one level deeper."""
        self.line(head)
        self.depth += 1
        yield
        self.depth -= 1

    def call(self, function: str) -> str:
        """`function`, noted as used: saved source imports it."""
        self.used.add(function)
        return function

    # Names.

    def scope(self, more: Mapping[sp.Symbol, Symbol] | None = None) -> Scope:
        turning = [s for s in self.open if s not in self.whole]  # a strip's rows are one vector
        inner = turning[-1] if turning else None
        return Scope(self.with_dims({**self.symbols, **(more or {})}), self.element, inner, self.used)

    def with_dims(self, known: Mapping[sp.Symbol, Symbol]) -> Mapping[sp.Symbol, Symbol]:
        """`known`, and the dims, each of which becomes a size of the kernel when it is asked for."""
        return _Dims(self, known)

    def integer(self, e: sp.Expr, more: Mapping[sp.Symbol, Symbol] | None = None) -> str:
        return integer(e, self.scope(more)).text

    def size(self, e: sp.Expr) -> str:
        """The parameter that holds a size: a dim, or what is computed of dims when they are bound."""
        e = self.over_dims(e)
        if e not in self.sizes:
            self.sizes[e] = self.names.fresh(e.name if isinstance(e, sp.Symbol) else "size", never_had=True)
        return self.sizes[e]

    def over_dims(self, e: sp.Expr) -> sp.Expr:
        """`e` without the block's bounds, and as great as it becomes in loops: a block has at most `size` members."""
        block = self.kernel.block
        if block is not None and e.free_symbols & {block.first, block.last}:
            e = sp.expand(e.xreplace({block.last: block.first + block.size}))
        e = greatest(e, self.ranges)
        if e.free_symbols & set(self.symbols):
            raise ChainruleError(f"kernel {self.kernel.name}: the size {e} depends on a loop")
        return e

    def extent(self, e: sp.Expr) -> int | str:
        return int(e) if e.is_Integer else self.size(e)

    def buffer(self, name: str) -> Buffer:
        found = self.buffers.get(name)
        if found is None:
            raise ChainruleError(f"kernel {self.kernel.name} touches {name}, which is no buffer")
        return found

    def view(self, name: str) -> str:
        """The parameter that is the view of a buffer."""
        if name not in self.views:
            buffer = self.buffer(name)
            called = self.names.fresh(buffer.stands_for or buffer.name, never_had=True)  # a loop had it: an int
            shape = tuple(self.extent(self.over_dims(e)) for e in buffer.shape)
            array = Array(element_of(buffer.dtype, self.element), shape, buffer.space == "scratch")
            self.views[name] = called, array
        return self.views[name][0]

    def clock(self) -> str:
        """The parameter that holds (seed, step)."""
        self.read.add(CLOCK)
        if CLOCK not in self.views:
            self.views[CLOCK] = self.names.fresh(CLOCK), Array("int64", (2,))
        return self.views[CLOCK][0]

    def step(self) -> str:
        """The number of this step."""
        return f"{self.clock()}[1]"

    def key(self, buffer: Buffer) -> str:
        """What the counter of a draw is keyed by: 64 bits, which a launch passes in two halves."""
        if buffer.name not in self.draws:
            halves = [
                self.names.fresh(f"{buffer.stands_for or buffer.name}_{half}", never_had=True)
                for half in ("high", "low")
            ]
            self.draws[buffer.name] = halves[0], halves[1]
        high, low = self.draws[buffer.name]
        return f"{high} << 32 | {low}"

    def variable(self, name: str) -> str:
        """The local variable that a rank-0 scratch buffer is."""
        if name not in self.variables:
            buffer = self.buffer(name)
            self.variables[name] = self.names.fresh(buffer.stands_for or buffer.name, never_had=True)
        return self.variables[name]

    def is_variable(self, name: str) -> bool:
        buffer = self.buffer(name)
        return buffer.space == "scratch" and not buffer.shape

    def place(self, access: Access, slots: Mapping[sp.Symbol, Symbol]) -> str:
        """An element as source: ``h[n, j]``."""
        if self.is_variable(access.tensor):
            return self.variable(access.tensor)
        if access.tensor in self.moved:
            panel, first = self.moved[access.tensor]
            access = Access(panel, tuple(i - f for i, f in zip(access.indices, first, strict=True)))
        indices = ", ".join(self.integer(i, slots) for i in access.indices)
        if len(access.indices) < len(self.buffer(access.tensor).shape):
            return f"{self.call('flat')}({self.view(access.tensor)})[{indices}]"
        return f"{self.view(access.tensor)}[{indices or '()'}]"

    # Ranges.

    def is_inside(self, index: sp.Expr, extent: sp.Expr, buffer: Buffer) -> tuple[bool, bool]:
        """Whether the loops show that 0 <= index, and that index < extent."""
        if index.is_Integer:
            return bool(index >= 0), bool(extent.is_Integer and index < extent)
        block = self.kernel.block
        if block is not None and buffer.space == "scratch" and extent == block.size:
            counted = self.ranges.get(index + block.first)  # a block's slice is counted from its first
            if counted is not None and counted.start == block.first and counted.stop == block.last:
                return True, True
        r = self.ranges.get(index)
        if r is None:
            return index.is_nonnegative is True and not index.atoms(sp.Function), False
        stop = block.extent if block is not None and r.stop == block.last else greatest(r.stop, self.ranges)
        below = stop == extent or (stop.is_Integer and extent.is_Integer and stop <= extent)
        return r.start.is_nonnegative is True, bool(below)

    @contextmanager
    def loop(self, r: Range, part: tuple[str, str] | None = None) -> Iterator[None]:
        """What is written inside a loop over `r`, or over a part of it given as source."""
        start, stop = part or (self.integer(r.start), self.integer(r.stop))
        name = self.names.fresh(r.pretty or "i")
        self.symbols[r.symbol] = Symbol(name, "integer", frozenset({r.symbol}))
        self.ranges[r.symbol] = self.whole.get(r.symbol, r)
        self.open.append(r.symbol)
        with self.inside(f"for {name} in range({stop}):" if start == "0" else f"for {name} in range({start}, {stop}):"):
            yield
        self.open.pop()
        self.names.release(name)

    def open_block(self, block: Block, called: str = "block") -> tuple[str, list[str]]:
        """A name for the number of a block, and the lines that say where its part of the range begins and ends."""
        number, index = self.names.fresh(called), plain(block.pretty) or "block"
        first, last = self.names.fresh(f"{index}_first"), self.names.fresh(f"{index}_last")
        self.symbols |= {
            block.number: Symbol(number, "integer"),
            block.first: Symbol(first, "integer"),
            block.last: Symbol(last, "integer"),
        }
        whole = block.extent.is_Integer and int(block.extent) % block.size == 0
        end = f"{first} + {block.size}"
        least = end if whole else f"{self.call('minimum')}({end}, {self.integer(block.extent)})"
        return number, [f"{first} = {number} * {block.size}", f"{last} = {least}"]

    def holds(self, conditions: list[sp.Basic], slots: Mapping[sp.Symbol, Symbol]) -> str:
        """All of `conditions`, as source."""
        return condition(sp.And(*conditions, evaluate=False), self.scope(slots)).text if conditions else "True"


class _Dims(dict[sp.Symbol, Symbol]):
    """The symbols of a scope; a dim among them becomes a size of the kernel."""

    def __init__(self, writer: Writer, known: Mapping[sp.Symbol, Symbol]) -> None:
        super().__init__(known)
        self.writer = writer

    def get(self, key: sp.Symbol, default: Symbol | None = None) -> Symbol | None:  # type: ignore[override]
        if key in self:
            return self[key]
        if key not in self.writer.dims:
            return default
        return Symbol(self.writer.size(key), "integer")


def element_of(dtype: DType, element: Element) -> Literal["float32", "float64", "int64", "bool"]:
    """How a tensor of `dtype` is stored."""
    match dtype:
        case DType.FLOAT:
            return element
        case DType.INT:
            return "int64"
        case DType.BOOL:
            return "bool"


def nest_of(loop: Loop) -> list[Loop]:
    """`loop` and the loops that nest perfectly in it, whose bounds its index does not change."""
    nest = [loop]
    while len(nest[-1].body) == 1 and isinstance(inner := nest[-1].body[0], Loop) and inner.until is None:
        if (inner.range.start.free_symbols | inner.range.stop.free_symbols) & {n.range.symbol for n in nest}:
            break
        nest.append(inner)
    return nest


def height(node: object) -> int:
    """How many loops nest at `node`, itself included."""
    return 1 + max((height(child) for child in node.body), default=0) if isinstance(node, Loop) else 0


def parameters_of(writer: Writer) -> tuple[list[str], list[str], list[str], tuple[Parameter, ...]]:
    """Buffers, scratch arrays, sizes and keys by the program's names, and their types, in the signature's order."""
    own = [name for name, (_, array) in writer.views.items() if array.scratch]
    given = [name for name in writer.views if name not in own]
    numbers = [*writer.sizes.values(), *(half for halves in writer.draws.values() for half in halves)]
    names = [writer.views[name][0] for name in (*given, *own)] + numbers
    types = [writer.views[name][1] for name in (*given, *own)]
    return given, own, names, (*types, *(Size() for _ in numbers))


def docstring(texts: list[str]) -> list[str]:
    """The equations that a kernel computes, each once."""
    shown = [plain(text) for text in dict.fromkeys(texts) if text]
    if len(shown) > 24:
        shown = [*shown[:23], f"... and {len(shown) - 23} more"]
    if len(shown) < 2:
        return [f'    """{(shown or ["nothing but loops"])[0]}"""']
    return [f'    """{shown[0]}', *(f"    {text}" for text in shown[1:]), '    """']
