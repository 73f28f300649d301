"""What a step returns: small results are copied out of the arena, large ones are written where the caller keeps them.

To copy a result costs as much as many a kernel takes to compute it, and so does memory that the system has to clear.
So the memory of a result is used again, as soon as nobody holds an array over it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from chainrule.runtime.buffers import LINE, Shape, address
from chainrule.runtime.tape import Uses
from chainrule.runtime.values import Array

BLOCKS = 2  # the caller often holds the last result while the next is made


@dataclass(eq=False)
class Block:
    """Memory for one result. `owner` is the array that has it; whatever lies over it refers to `owner`."""

    owner: Array
    array: Array
    place: int

    @classmethod
    def of(cls, shape: Shape, dtype: np.dtype[np.generic]) -> Block:
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        owner = np.empty(count + LINE, np.uint8)
        start = -address(owner) % LINE
        array = owner[start : start + count].view(dtype).reshape(shape)
        return cls(owner, array, address(array))


def _holders(block: Block) -> int:
    return sys.getrefcount(block.owner)


def _least() -> int | None:
    """What `_holders` says of a block that nobody else holds; None where Python does not count so."""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    block = Block.of((2, 2), np.dtype(np.float32))
    alone, held = _holders(block), block.array[:1]
    return alone if _holders(block) == alone + 1 and held.base is block.owner else None


ALONE = _least()


class Lent:
    """An output that the kernels write straight into an array for the caller to keep."""

    def __init__(self, name: str, shape: Shape, dtype: np.dtype[np.generic]) -> None:
        self.name, self._shape, self._dtype = name, shape, dtype
        self._blocks = [Block.of(shape, dtype)]
        self._uses: Uses
        self._now: Block | None = self._blocks[0]

    @property
    def array(self) -> Array:
        """Where the kernels write at first."""
        return self._blocks[0].array

    def bind(self, uses: Uses) -> None:
        """The tables that name it: they hold the first block's address."""
        self._uses = uses

    def next(self) -> Array:
        """An array that nobody else holds; the kernels write there from now on."""
        now = self._now
        if now is None or _holders(now) != ALONE:
            now = self._now = next((b for b in self._blocks if _holders(b) == ALONE), None) or self._more()
            self._uses.point_to(now.place)
        return now.array.view()

    def into(self, given: Array) -> Array:
        """`given`, C-contiguous and of this shape and dtype: the kernels write there until the next `next`."""
        self._now = None
        self._uses.point_to(address(given))
        return given

    def _more(self) -> Block:
        self._blocks = [*self._blocks[1 - BLOCKS :], Block.of(self._shape, self._dtype)]
        return self._blocks[-1]

    def forget(self) -> None:
        """Keep no memory but that in use: another binding's step comes next."""
        self._blocks = self._blocks[:1]
        self._now = None
