"""The tables of a launch that does several sets of arguments at a time: which set a CTA belongs to, and the sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chainrule.executable import SET, Launch, evaluate
from chainrule.runtime.cuda.arrays import Block, padded
from chainrule.runtime.cuda.device import Device

Words = NDArray[np.int64]


def tables_of(launch: Launch, addresses: Sequence[int], sizes: Mapping[str, int]) -> tuple[Words, Words]:
    """For each CTA the word of the second table with which its set begins; and there, for each set, its first CTA, how
    many it has, and its arguments. addresses: of the launch's buffers.
    """
    counts = np.array([evaluate(count, sizes) for count in launch.sets], np.int64)
    numbers = [evaluate(size, sizes) for size in launch.sizes]
    rows = np.empty((len(counts), SET + (len(addresses) + len(numbers)) // len(counts)), np.int64)
    rows[:, 0] = counts.cumsum() - counts
    rows[:, 1] = counts
    rows[:, SET:] = np.hstack([np.array(words, np.int64).reshape(len(counts), -1) for words in (addresses, numbers)])
    return np.repeat(np.arange(len(counts)) * rows.shape[1], counts), rows.reshape(-1)


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of all launches of some steps, on the device. at: by step and launch, where its two lie; of a launch
    of one set, none."""

    block: Block | None
    at: tuple[tuple[tuple[int, ...], ...], ...]

    @staticmethod
    def of(
        device: Device, launches: Sequence[Launch], places: Sequence[Sequence[int]], sizes: Mapping[str, int]
    ) -> Tables:
        """The tables of steps whose buffers lie at `places`, each written once, where several are equal. Raises
        DeviceMemoryError."""
        offsets: dict[bytes, int] = {}
        total, at = 0, list[tuple[tuple[int, ...], ...]]()
        for step in places:
            found = []
            for launch in launches:
                tables = tables_of(launch, [step[buffer] for buffer in launch.buffers], sizes) if launch.sets else ()
                for words in tables:
                    if (data := words.tobytes()) not in offsets:
                        offsets[data] = total
                        total += padded(len(data))
                found.append(tuple(offsets[words.tobytes()] for words in tables))
            at.append(tuple(found))
        if not total:
            return Tables(None, tuple(at))
        block, held = Block(device, total), np.zeros(total, np.uint8)
        for data, offset in offsets.items():
            held[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        device.write(block.address, held)
        return Tables(block, tuple(tuple(tuple(block.address + o for o in pair) for pair in found) for found in at))

    def places(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Of each launch."""
        return self.at[step]
