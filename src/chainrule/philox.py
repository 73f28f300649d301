"""Random numbers as a function of a counter: Philox4x32-10, in NumPy, as the kernels compute it too.

A draw depends on (seed, node, step, element, lane) alone: not on passes, threads, batch sizes or the order in which
elements are computed. Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
LOW = 0xFFFFFFFF

Words = npt.NDArray[np.uint64]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four words of 32 random bits (held in uint64) for a counter of four words under a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low, half = np.uint64(LOW), np.uint64(32)
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(WEYL[0])) & low, (k1 + np.uint64(WEYL[1])) & low
    return c0, c1, c2, c3


def key_of(seed: int, node: int) -> tuple[Words, Words]:
    """The key of a node's draws: the seed, its bits mixed (SplitMix64), against the hash of the node's path."""
    with np.errstate(over="ignore"):
        z = np.asarray([seed % 2**64], np.uint64) + np.uint64(MIX[0])
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX[1])
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX[2])
    z = z ^ (z >> np.uint64(31)) ^ np.uint64(node % 2**64)
    return z & np.uint64(LOW), z >> np.uint64(32)


def uniforms(seed: int, node: int, step: int, element: Any, lane: int = 0) -> npt.NDArray[np.float64]:
    """Uniform numbers in (0, 1), one for each of the integers `element`; lane: which of the four words, 0 to 3.

    They are (k + 1/2) / 2²³ for 0 <= k < 2²³, so float32 and float64 hold the same numbers exactly.
    """
    place = np.atleast_1d(np.asarray(element, np.int64)).astype(np.uint64)
    when = np.full_like(place, np.uint64(step % 2**64))
    low, half = np.uint64(LOW), np.uint64(32)
    words = philox((place & low, place >> half, when & low, when >> half), key_of(seed, node))
    drawn = ((words[lane] >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    return drawn.reshape(np.shape(element))
