"""Samples to learn from and samples to judge by: arrays under the names of a model's inputs, batches, fixed splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Data:
    """Samples to learn from and samples to judge by; axis 0 of every array counts the samples.

    classes: the names of a text label's values, or the symbols of a text, in the order of their numbers.
    whole: the arrays are one sample, such as a graph; axis 0 then counts nodes or edges, and nothing is cut in batches.
    """

    name: str
    train: Arrays
    test: Arrays
    classes: tuple[str, ...] = ()
    whole: bool = False

    def cut(self, size: int) -> int | None:
        """The size of a batch, as `batches` takes it: None for data that are whole."""
        return None if self.whole else size


def batches(arrays: Arrays, size: int | None, order: Array | None = None) -> Iterator[Arrays]:
    """Samples in batches of `size`, the last one as small as it comes; `order`: which when.

    size: None for arrays that are one sample, which come as they are.
    """
    if size is None:
        yield arrays
        return
    for start in range(0, samples(arrays), size):
        yield part(arrays, order, start, start + size)


def part(arrays: Arrays, order: Array | None, start: int, stop: int) -> Arrays:
    """The samples from `start` to `stop`, where `order` says which comes when."""
    chosen = slice(start, stop) if order is None else order[start:stop]
    return {name: array[chosen] for name, array in arrays.items()}


def first(data: Data, limit: int | None) -> Data:
    """`data` with so many samples of each part at most; what is whole stays so."""
    if limit is None or data.whole:
        return data
    return replace(
        data,
        train={name: array[:limit] for name, array in data.train.items()},
        test={name: array[:limit] for name, array in data.test.items()},
    )


def shuffled(arrays: Arrays, seed: int, epoch: int) -> Array:
    """The order of the samples in `epoch`: the same for the same seed, whatever came before."""
    return np.random.default_rng((seed, epoch)).permutation(samples(arrays))


def samples(arrays: Arrays) -> int:
    """How many samples there are."""
    return len(next(iter(arrays.values())))


def held_out(name: str, arrays: Arrays, classes: tuple[str, ...] = ()) -> Data:
    """`arrays` with every fifth sample of a fixed permutation held out."""
    order = np.random.RandomState(0).permutation(samples(arrays))
    count = len(order) // 5
    return Data(name, take(arrays, order[count:]), take(arrays, order[:count]), classes)


def take(arrays: Arrays, chosen: Array) -> Arrays:
    """The chosen samples."""
    return {name: array[chosen] for name, array in arrays.items()}


def stratified(label: Array, held: int, seed: int) -> tuple[Array, Array]:
    """Indices to train and to test with, `held` of the latter, in each class in proportion to its samples.

    The very split of scikit-learn's train_test_split with ``stratify=label``: the same draws in the same order.
    Source: StratifiedShuffleSplit in sklearn/model_selection/_split.py.
    """
    rng = np.random.RandomState(seed)
    _, numbers, counts = np.unique(label, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
    kept = proportional(counts, len(label) - held, rng)
    out = proportional(counts - kept, held, rng)
    train: list[Array] = []
    test: list[Array] = []
    for member, k, o in zip(members, kept, out, strict=True):
        drawn = member[rng.permutation(len(member))]
        train.append(drawn[:k])
        test.append(drawn[k : k + o])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def proportional(counts: Array, total: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    """`total` shared out in proportion to `counts`: whole parts first, then by the largest remainders, ties drawn."""
    exact = counts / counts.sum() * total
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = total - int(shares.sum())
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        chosen = rng.choice(tied, size=min(len(tied), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares
