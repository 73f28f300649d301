"""The picture of a program: kernels as boxes that show their loop trees, the buffers between them as edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.graph import Tensor
from chainrule.ir.program import Buffer, Kernel, Program, accesses, leaves
from chainrule.ir.program_text import kernel_text
from chainrule.ir.tables import type_text
from chainrule.render.layout import plain
from chainrule.render.picture import Box, Kind, Picture, Wire

LINES, WIDTH = 40, 96
"""How much of a kernel's tree a box shows; the generated source shows all of it."""

STORES: dict[str, Kind] = {"input": "input", "param": "param", "state": "state"}


def program_picture(program: Program, tensors: Mapping[str, Tensor] | None = None, notes: Sequence[str] = ()) -> str:
    """DOT of `program`, an edge says that a kernel reads what another wrote, or an input, parameter or state.

    tensors: of the graph that it was made of; their types say more than a buffer's. notes: what is to be said of each
    kernel, such as its time.
    A kernel that overwrites a parameter or state in place says so in its last line.
    """
    stored = {b.name: STORES[b.space] for b in program.buffers if b.space in STORES}
    types = {b.name: _type(b, tensors or {}) for b in program.buffers}
    last: dict[str, str] = {name: name for name in stored}
    results = {buffer for _, buffer in program.outputs}
    boxes = [Box(name, f"{name}\n{types[name]}", kind) for name, kind in stored.items()]
    wires: dict[tuple[str, str, str], Wire] = {}
    for k, kernel in enumerate(program.kernels):
        key = f"kernel {k}"
        reads, writes = touched(kernel)
        for name in reads:
            if name in last and last[name] != key:
                wires[last[name], key, name] = Wire(last[name], key, f"{name}: {types[name]}")
        updated = [name for name in writes if name in stored]
        note = notes[k] if k < len(notes) else ""
        boxes.append(_box(key, kernel, updated, bool(results & set(writes)), note))
        last |= {name: key for name in writes if name in types}
    return plain(Picture(program.name, tuple(boxes), tuple(wires.values())))


def _type(buffer: Buffer, tensors: Mapping[str, Tensor]) -> str:
    tensor = tensors.get(buffer.stands_for or buffer.name)
    # a buffer knows no range: it stores an index as any integer
    bound = tensor.bound if tensor is not None and tensor.shape == buffer.shape else None
    return type_text(buffer.dtype, buffer.shape, bound)


def touched(kernel: Kernel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The buffers between kernels that `kernel` reads, and those that it writes."""
    own = {buffer.name for buffer in kernel.locals}
    reads: dict[str, None] = {}
    writes: dict[str, None] = {}
    for leaf in leaves(kernel.body):
        read, written = accesses(leaf)
        reads |= {access.tensor: None for access in read if access.tensor not in own}
        writes |= {written.tensor: None} if written.tensor not in own else {}
    return tuple(reads), tuple(writes)


def frames(program: Program) -> dict[str, str]:
    """Each formula's kernel, as a frame for the pictures of the graph; a kernel of one formula needs none."""
    return {
        formula: f"kernel {kernel.name}"
        for kernel in program.kernels
        if len(kernel.formulas) > 1
        for formula in kernel.formulas
    }


def _box(key: str, kernel: Kernel, updated: list[str], output: bool, note: str) -> Box:
    rows = [row if len(row) <= WIDTH else row[: WIDTH - 1] + "…" for row in kernel_text(kernel).split("\n")]
    if len(rows) > LINES:
        rows = [*rows[:LINES], f"    … and {len(rows) - LINES} more lines"]
    rows += [f"→ {name}" for name in updated]
    rows += [note] if note else []
    return Box(key, "\n".join(rows), "kernel", tip=", ".join(kernel.formulas), output=output)
