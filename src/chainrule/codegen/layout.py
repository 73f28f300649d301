"""A program's kernels, compiled, as the plain data of `chainrule.executable`: dims, buffers, lifetimes, launches.

Sizes become polynomials in the dims. A quotient in one, such as the number of blocks ``(n + B - 1) // B``, becomes a
dim of its own, which the run side evaluates when a batch size is bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import sympy as sp

from chainrule import executable as ex
from chainrule.codegen.kernel import CLOCK, STEP, Element, KernelSource, element_of
from chainrule.codegen.objects import ITEM
from chainrule.errors import ChainruleError
from chainrule.ir.expression import dim_symbol, floor, quotient
from chainrule.ir.graph import Init
from chainrule.ir.matrices import Matrices, Multiplied
from chainrule.ir.primitive import hash_of
from chainrule.ir.program import Buffer, Kernel, Program

STORED = ("input", "param", "state", "scalar", "clock", "constant", "arena")


@dataclass
class Sizes:
    """The dims of an executable, while polynomials add to them."""

    dims: list[ex.Dim] = field(default_factory=list)
    quotients: dict[sp.Basic, str] = field(default_factory=dict)
    known: dict[sp.Basic, ex.Polynomial] = field(default_factory=dict)

    def polynomial(self, e: sp.Expr) -> ex.Polynomial:
        """`e` over the dims, exactly: what is no polynomial with whole coefficients gets a dim."""
        if e not in self.known:
            self.known[e] = self._polynomial(e)
        return self.known[e]

    def _polynomial(self, e: sp.Expr) -> ex.Polynomial:
        above, below = sp.fraction(sp.together(sp.expand(self._plain(e))))
        if below == 1:
            return self.terms(above)
        return ((1.0, (self._derived(above, below, e),)),)

    def terms(self, e: sp.Expr) -> ex.Polynomial:
        """The terms of a polynomial in the dims; coefficients may be fractions, as in a cost."""
        found = []
        for term in sp.Add.make_args(sp.expand(self._plain(e))):
            coefficient, factors = term.as_coeff_mul()
            names: list[str] = []
            for factor in factors:
                base, times = factor.as_base_exp()
                if not isinstance(base, sp.Symbol) or not times.is_Integer or times < 1:
                    raise ChainruleError(f"the size {e} is no polynomial in the dims: {factor}")
                names += [base.name] * int(times)
            if coefficient != 0:
                found.append((float(coefficient), tuple(sorted(names))))
        return tuple(found)

    def _plain(self, e: sp.Expr) -> sp.Expr:
        """`e` with a dim for each quotient in it, the innermost first."""
        for part in sp.postorder_traversal(e):
            if isinstance(part, quotient | floor | sp.floor):
                inner = part.args[0]
                divided = part.args if isinstance(part, quotient) else sp.fraction(sp.together(inner))
                name = self._derived(divided[0], divided[1], part)
                return self._plain(e.xreplace({part: dim_symbol(name)}))
        return e

    def _derived(self, above: sp.Expr, below: sp.Expr, e: sp.Basic) -> str:
        if e not in self.quotients:
            numerator, denominator = self.terms(above), self.terms(below)
            self.quotients[e] = name = f"_size{len(self.quotients)}"
            self.dims.append(ex.Dim(name, numerator=numerator, denominator=denominator))
        return self.quotients[e]


def executable_of(
    program: Program,
    sources: Sequence[KernelSource],
    which: Sequence[int],
    element: Element,
    target: str,
    batches: Sequence[tuple[str, int]] = (),
) -> ex.Executable:
    """The executable whose launch k is of the kernel ``which[k]``, generated as ``sources[k]``; without the kernels.

    batches: the launches' names, and how many in a row each does at a time, where some do several.
    """
    sizes = Sizes()
    for dim in program.dims:
        _add_dim(dim.name, dim.minimum, dim.maximum, dim.definition, sizes)
    reads_clock = any(CLOCK in source.buffers for source in sources)
    stored = [b for b in program.buffers if b.space in STORED and not _is_step(b) and b.space != "clock"]
    places = {buffer.name: k for k, buffer in enumerate(stored)}
    if reads_clock:
        places[CLOCK] = len(stored)
    keys = {b.name: halves_of(hash_of(b.key or b.name)) for b in program.buffers if b.space == "random"}
    launches = tuple(
        _launch(kernel, source, which[k], places, keys, sizes)
        for k, (kernel, source) in enumerate(zip(program.kernels, sources, strict=True))
    )
    if batches:
        rest = iter(launches)
        launches = tuple(_together(name, list(islice(rest, count))) for name, count in batches)
    lives = _lives(launches, [places[name] for _, name in program.outputs])
    values = dict(program.values)
    buffers = [_buffer(b, lives.get(places[b.name], (0, 0)), values, element, sizes) for b in stored]
    if reads_clock:
        buffers.append(ex.Buffer(CLOCK, "int64", ((((2.0, ())),),), "clock", 0, max(len(launches) - 1, 0)))
    bounds = dict(program.bounds)
    inits = dict(program.inits)
    named = {space: [b.name for b in stored if b.space == space] for space in STORED}
    return ex.Executable(
        name=program.name,
        format=ex.FORMAT,
        target=target,
        element=element,
        training=program.training,
        inputs=tuple(
            ex.Input(n, places[n], sizes.polynomial(bounds[n]) if n in bounds else None) for n in named["input"]
        ),
        params=tuple(ex.Param(n, places[n], _init(inits[n])) for n in named["param"]),
        states=tuple(ex.State(n, places[n], values.get(n, 0.0)) for n in named["state"]),
        scalars=tuple(ex.Scalar(n, places[n], values.get(n, 0.0)) for n in named["scalar"]),
        outputs=tuple(ex.Output(name, places[buffer]) for name, buffer in program.outputs),
        buffers=tuple(buffers),
        dims=tuple(sizes.dims),  # last: what stands above may have added some
        kernels=(),
        launches=launches,
        clock=places.get(CLOCK),
    )


def _init(init: Init) -> ex.Init:
    match init.law:
        case "uniform" | "normal" | "constant" | "orthogonal" as law:
            return ex.Init(law, init.numbers, init.each)
        case _:
            raise ChainruleError(f"{init.law} is no law that a parameter starts by")


def _add_dim(name: str, minimum: int, maximum: int | None, definition: sp.Expr | None, sizes: Sizes) -> None:
    if definition is None:
        sizes.dims.append(ex.Dim(name, minimum, maximum))
        return
    above, below = sp.fraction(sp.together(sp.expand(sizes._plain(definition))))
    numerator, denominator = sizes.terms(above), sizes.terms(below)
    sizes.dims.append(ex.Dim(name, minimum, maximum, numerator, denominator))


def _is_step(buffer: Buffer) -> bool:
    return buffer.space == "scalar" and buffer.name == STEP


def _launch(
    kernel: Kernel,
    source: KernelSource,
    which: int,
    places: Mapping[str, int],
    keys: Mapping[str, tuple[int, int]],
    sizes: Sizes,
) -> ex.Launch:
    return ex.Launch(
        kernel=which,
        name=kernel.name,
        buffers=tuple(places[name] for name in source.buffers),
        sizes=(
            *(sizes.polynomial(e) for e in source.sizes),
            *(sizes.polynomial(sp.Integer(half)) for name in source.draws for half in keys[name]),
        ),
        extent=sizes.polynomial(blocks(kernel) if source.grid is None else source.grid),
        scratch=scratch_bytes(source, sizes),
        cost=sizes.terms(sp.nsimplify(kernel.cost, rational=True)),
        reads=source.reads,
        writes=source.writes,
        flops=sizes.terms(kernel.flops),
        threads=source.threads,
        multiply=None if source.multiply is None else _multiply(source.multiply, source.buffers, sizes),
        when=sizes.terms(kernel.when),
        unless=sizes.terms(kernel.unless),
    )


def _together(name: str, several: Sequence[ex.Launch]) -> ex.Launch:
    """Launches of one kernel as one over a table of their arguments."""
    first = several[0]
    if len(several) == 1:
        return first
    at = range(0, len(several) * len(first.buffers), len(first.buffers))
    return ex.Launch(
        kernel=first.kernel,
        name=name,
        when=first.when,
        unless=first.unless,
        buffers=tuple(buffer for one in several for buffer in one.buffers),
        sizes=tuple(size for one in several for size in one.sizes),
        extent=_total(one.extent for one in several),
        scratch=first.scratch,
        cost=_total(one.cost for one in several),
        reads=tuple(start + k for start, one in zip(at, several, strict=True) for k in one.reads),
        writes=tuple(start + k for start, one in zip(at, several, strict=True) for k in one.writes),
        flops=_total(one.flops for one in several),
        threads=first.threads,
        sets=tuple(one.extent for one in several),
    )


def _total(several: Iterable[ex.Polynomial]) -> ex.Polynomial:
    found: dict[tuple[str, ...], float] = {}
    for coefficient, names in (term for polynomial in several for term in polynomial):
        found[names] = found.get(names, 0.0) + coefficient
    return tuple((coefficient, names) for names, coefficient in found.items())


def _multiply(m: Multiplied, buffers: Sequence[str], sizes: Sizes) -> ex.Multiply:
    def matrix(of: Matrices) -> ex.Matrix:
        steps = (sizes.polynomial(e) for e in (of.offset, of.down, of.across, of.batch))
        return ex.Matrix(buffers.index(of.buffer), *steps)

    rows, columns, inner, batch = (sizes.polynomial(e) for e in (m.rows, m.columns, m.inner, m.batch))
    left, right, target = map(matrix, (m.left, m.right, m.target))
    added, bias = (None if one is None else matrix(one) for one in (m.added, m.bias))
    return ex.Multiply(
        rows, columns, inner, left, right, target, batch, float(m.scale), m.precision, added, float(m.beta), bias,
        m.activation,
    )  # fmt: skip


def halves_of(key: int) -> tuple[int, int]:
    """64 bits as ``high << 32 | low``, an int64; a size is a float, which holds each of them exactly."""
    high, low = divmod(key, 2**32)
    return high - 2**32 if high >= 2**31 else high, low


def blocks(kernel: Kernel) -> sp.Expr:
    """How many blocks a kernel's range has; one without a block runs once."""
    if kernel.block is None:
        return sp.S.One
    return quotient(kernel.block.extent + kernel.block.size - 1, sp.Integer(kernel.block.size))


def scratch_bytes(source: KernelSource, sizes: Sizes) -> ex.Polynomial:
    """Bytes of scratch: each array rounded up to 64, as `objects.scratch_bytes` has it, or a little more."""
    total: sp.Expr = source.region
    for element, shape in source.scratch:
        count = sp.Mul(ITEM[element], *shape)
        total += math.ceil(int(count) / 64) * 64 if count.is_Integer else count + 63
    return sizes.polynomial(total)


def _lives(launches: Sequence[ex.Launch], outputs: Sequence[int]) -> dict[int, tuple[int, int]]:
    """From which launch to which each buffer is used; what is copied out lives to the end."""
    lives: dict[int, tuple[int, int]] = {}
    for k, launch in enumerate(launches):
        for buffer in launch.buffers:
            lives[buffer] = (lives.get(buffer, (k, k))[0], k)
    for buffer in outputs:
        lives[buffer] = (lives.get(buffer, (0, 0))[0], max(len(launches) - 1, 0))
    return lives


def _buffer(
    buffer: Buffer, life: tuple[int, int], values: Mapping[str, float], element: Element, sizes: Sizes
) -> ex.Buffer:
    kind = element_of(buffer.dtype, element)
    shape = tuple(sizes.polynomial(e) for e in buffer.shape)
    if buffer.space == "random" or buffer.space == "scratch":
        raise ChainruleError(f"{buffer.name} is {buffer.space}, which has no storage between kernels")
    data = None
    if buffer.space == "constant":
        if not all(e.is_Integer for e in buffer.shape):
            raise ChainruleError(f"the constant {buffer.name} has no size until inputs are known")
        data = np.full([int(e) for e in buffer.shape], values.get(buffer.name, 0.0), kind).tobytes()
    return ex.Buffer(buffer.name, kind, shape, buffer.space, *life, data)
