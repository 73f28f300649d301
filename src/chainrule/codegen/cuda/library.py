"""Which kernels a library may do instead: products of matrices, with what that can make of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.codegen.cuda.mapping import ended_product, unblocked
from chainrule.ir.formula import DType
from chainrule.ir.matrices import Multiplied, multiplied
from chainrule.ir.program import Buffer, Kernel, Leaf, Loop, Range


def library_product(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Multiplied | None:
    """The product that all of a kernel is, with what follows it, if a library can do that."""
    whole = kernel if kernel.block is None else unblocked(kernel)
    around: list[Range] = []
    body: Sequence[Leaf] = () if whole is None else whole.body
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].until is None:
        around.append(body[0].range)
        body = body[0].body
    ended = ended_product(body) if body else None
    in_memory = {
        b.name: b.shape
        for b in buffers.values()
        if b.dtype is DType.FLOAT and b.space not in ("scratch", "random", "scalar")
    }
    return None if ended is None else multiplied(ended[0], tuple(around), ended[1], in_memory)
