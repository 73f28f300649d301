"""How a program reads: its kernels as loops, with the buffers between them; for people, tests and golden files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import assert_never

import sympy as sp

from chainrule.ir.expression import OR, PRODUCT, SUM, expression_text, slot
from chainrule.ir.formula import DType, Reduce
from chainrule.ir.program import Block, Buffer, Kernel, Leaf, Loop, Product, Program, Range, Statement
from chainrule.ir.text import access_text

SHOWN = {Reduce.SUM: "+=", Reduce.PROD: "*=", Reduce.MAX: "max=", Reduce.MIN: "min=", Reduce.ARGMAX: "argmax="}


def program_text(program: Program) -> str:
    """Buffers that live between kernels, then the kernels in order."""
    arena = [buffer_text(b) for b in program.buffers if b.space == "arena"]
    derived = [f"{d.name} = {expression_text(d.definition, {})}" for d in program.dims if d.definition is not None]
    parts = [f"program {program.name}", *(f"dim {d}" for d in derived), *(f"arena {b}" for b in arena)]
    parts += ["\n" + kernel_text(kernel) for kernel in program.kernels]
    parts += ["", *(f"output {name}" + (f" in {of}" if of != name else "") for name, of in program.outputs)]
    return "\n".join(parts) + "\n"


def buffer_text(buffer: Buffer) -> str:
    shape = ", ".join(expression_text(e, {}) for e in buffer.shape)
    kind = "" if buffer.dtype is DType.FLOAT else f" : {buffer.dtype.value}"
    return f"{buffer.name}[{shape}]{kind}" if buffer.shape else f"{buffer.name}{kind}"


def kernel_text(kernel: Kernel) -> str:
    """The kernel's tree, one line a loop or leaf, with its scratch on top."""
    names: dict[sp.Basic, str] = {}
    when = "" if kernel.when == 1 else f" when {expression_text(kernel.when, {})} > 0"
    unless = "" if kernel.unless == 0 else f" unless {expression_text(kernel.unless, {})} > 0"
    lines = [f"kernel {kernel.name}{when}{unless}:"]
    if kernel.locals:
        lines.append("    local " + ", ".join(buffer_text(b) for b in kernel.locals))
    indent = "    "
    if kernel.block is not None:
        lines.append(indent + block_text(kernel.block, names))
        indent += "    "
    lines += [indent + line for line in body_lines(kernel.body, names)]
    return "\n".join(lines)


def block_text(block: Block, names: dict[sp.Basic, str]) -> str:
    name = _unique(block.pretty or "n", names)
    names |= {block.number: f"block_{name}", block.first: f"{name}0", block.last: f"{name}1"}
    extent = expression_text(block.extent, {})
    return f"for blocks [{name}0, {name}1) of {block.size} in {extent}:"


def body_lines(body: tuple[Leaf, ...], names: Mapping[sp.Basic, str]) -> Iterator[str]:
    for node in body:
        match node:
            case Loop():
                inside = _with(node.range, names)
                until = "" if node.until is None else f" until {access_text(node.until, inside)} > 0"
                yield f"for {_range_text(node.range, inside)}{until}:"
                yield from (f"    {line}" for line in body_lines(node.body, inside))
            case Statement():
                yield statement_text(node, names)
            case Product():
                yield product_text(node, names)
            case _:
                assert_never(node)


def statement_text(s: Statement, names: Mapping[sp.Basic, str]) -> str:
    shown = dict(names)
    for k, read in enumerate(s.reads):
        shown[slot(k)] = shown[slot(k, DType.INT.sort)] = access_text(read, shown)
    sign = "=" if s.reduce is None else SHOWN[s.reduce]
    place = "" if s.place is None else f" at {expression_text(s.place, shown)}"
    where = " and ".join(expression_text(c, shown, OR + 1) for c in s.where)
    text = f"{access_text(s.target, shown)} {sign} {expression_text(s.value, shown)}{place}"
    return f"{text}{f' where {where}' if where else ''}"


def product_text(p: Product, names: Mapping[sp.Basic, str]) -> str:
    shown = dict(names)
    ranges = (*p.batch, *p.rows, *p.columns, *p.inner)
    for r in ranges:
        shown = _with(r, shown)
    left, right = (access_text(a, shown) for a in (p.left, p.right))
    scale = "" if p.scale == 1 else f"{expression_text(p.scale, shown, PRODUCT + 1)} * "
    groups = "; ".join(
        f"{group} {', '.join(_range_text(r, shown) for r in part)}"
        for group, part in (("batch", p.batch), ("rows", p.rows), ("columns", p.columns), ("inner", p.inner))
        if part
    )
    sign = "+=" if p.accumulate else "="
    where = "".join(f" where {expression_text(c, shown)}" for c in p.where)
    return f"product {access_text(p.target, shown)} {sign} {scale}{left} * {right}{where}  ({groups})"


def _range_text(r: Range, names: Mapping[sp.Basic, str]) -> str:
    stop = expression_text(r.stop, names, SUM)
    if r.start == 0:
        return f"{names[r.symbol]} < {stop}"
    return f"{names[r.symbol]} in [{expression_text(r.start, names)}, {stop})"


def _with(r: Range, names: Mapping[sp.Basic, str]) -> dict[sp.Basic, str]:
    return {**names, r.symbol: _unique(r.pretty or "i", names)}


def _unique(name: str, names: Mapping[sp.Basic, str]) -> str:
    taken, k, found = set(names.values()), 2, name
    while found in taken:
        found, k = f"{name}{k}", k + 1
    return found
