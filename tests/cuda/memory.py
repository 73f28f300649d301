"""Byte-addressed memory that refuses what a GPU's memory checker finds.

A space is one array of bytes with pieces handed out: an access must lie in one piece and be aligned. Bytes that nobody
wrote are 0xff: NaN as a float, -1 as an integer.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx import PTXError, Variable

GLOBAL = 0x7F00_0000_0000  # where the spaces lie among generic addresses
SHARED = 0x6F00_0000_0000
LOCAL = 0x5F00_0000_0000
WINDOW = 0x0100_0000_0000  # bytes that each may fill
GAP = 256  # between two pieces: an access just beyond one must not hit another
UNWRITTEN = 0xFF
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's; Python names it since 3.13


def reserved(count: int) -> np.ndarray:
    """`count` bytes of address space, zero, that take memory only where they are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, max(count, mmap.PAGESIZE), flags=flags), np.uint8)


class Space:
    """Pieces of memory: `data`, the address of its first byte, and where pieces start and end, in order."""

    def __init__(self, name: str, data: np.ndarray, base: int) -> None:
        self.name, self.data, self.base = name, data, base
        self.views: dict[type, np.ndarray] = {}
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.freed: list[tuple[int, int]] = []
        self.top = base

    def view(self, dtype: type) -> np.ndarray:
        """The memory as an array of `dtype`."""
        found = self.views.get(dtype)
        if found is None:
            found = self.views[dtype] = self.data.view(dtype)
        return found

    def allocate(self, count: int, align: int = 256) -> int:
        """A new piece's address; addresses are used once, so that a piece once freed stays known as such."""
        start = -(-self.top // align) * align
        if start + count + GAP > self.base + len(self.data):
            raise MemoryError(f"{self.name} memory: {count} bytes asked for, {len(self.data)} in all")
        at = bisect.bisect(self.starts, start)
        self.starts.insert(at, start)
        self.ends.insert(at, start + count)
        self.top = start + count + GAP
        self.data[start - self.base : start - self.base + count] = UNWRITTEN
        return start

    def free(self, address: int) -> None:
        at = bisect.bisect_left(self.starts, address)
        if at == len(self.starts) or self.starts[at] != address:
            raise PTXError(f"free of {address:#x}, which no allocation starts at")
        self.freed.append((self.starts.pop(at), self.ends.pop(at)))

    def index(self, address: Any, size: int, item: int, fail: Callable[[int, str], None]) -> Any:
        """The elements, of `item` bytes, at `address` (one, or one a lane); `size` bytes each are about to be used.

        fail(position among the lanes, problem) reports and raises.
        """
        scalar = address.ndim == 0
        low, high = (address, address) if scalar else (address.min(), address.max())
        joined = address if scalar else np.bitwise_or.reduce(address)
        if joined & (size - 1):
            at = 0 if scalar else int(np.flatnonzero(address & (size - 1))[0])
            fail(at, f"address {self.text(address, at)} is not a multiple of {size}")
        piece = bisect.bisect_right(self.starts, low) - 1
        if piece < 0 or high + size > self.ends[piece]:
            self.check_each(np.atleast_1d(address), size, fail)
        return (address - self.base) // item

    def check_each(self, address: np.ndarray, size: int, fail: Callable[[int, str], None]) -> None:
        if not self.starts:
            fail(0, self.problem(int(address[0])))
        piece = np.searchsorted(np.array(self.starts), address, side="right") - 1
        bad = np.flatnonzero((piece < 0) | (address + size > np.array(self.ends)[piece]))
        if len(bad):
            at = int(bad[0])
            fail(at, self.problem(int(address[at])))

    def problem(self, address: int) -> str:
        """What is wrong with an access at `address`."""
        for start, end in self.freed:
            if start <= address < end:
                return f"address {address:#x} was freed: byte {address - start} of {end - start}"
        piece = bisect.bisect_right(self.starts, address) - 1
        if piece < 0:
            return f"address {address:#x} lies before all {self.name} memory"
        start, end = self.starts[piece], self.ends[piece]
        return f"address {address:#x} is byte {address - start} of {self.name} memory of {end - start} bytes"

    def text(self, address: Any, at: int) -> str:
        return f"{int(np.atleast_1d(address)[at]):#x}"


def layout(variables: list[Variable], base: int, name: str) -> tuple[Space, dict[str, int], int]:
    """A space without bytes, of the pieces `variables`: the space, each one's address, and its bytes."""
    space = Space(name, np.empty(0, np.uint8), base)
    addresses: dict[str, int] = {}
    top = base
    for v in variables:
        start = -(-top // max(v.align, 16)) * max(v.align, 16)
        space.starts.append(start)
        space.ends.append(start + v.size)
        addresses[v.name] = start
        top = start + v.size + GAP
    return space, addresses, -(-(top - base) // 256) * 256
