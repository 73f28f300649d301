"""Data by name, from .npz and from .csv: arrays under the names of a model's inputs, in a fixed split.

Loaders read the files of installed packages without importing these (scikit-learn's import alone takes longer than
the training that needs its digits), and check their SHA-256: changed data are an error, never a changed figure.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule.errors import ChainruleError, SourceError, Span, nearest

Array = NDArray[Any]
Arrays = Mapping[str, Array]

HELD_OUT = "test/"
"""What an .npz puts before the name of an input that holds test samples."""


@dataclass(frozen=True, eq=False)
class Data:
    """Samples to learn from and samples to judge by; axis 0 of every array counts the samples.

    classes: the names of a text label's values, in the order of their numbers.
    """

    name: str
    train: Arrays
    test: Arrays
    classes: tuple[str, ...] = ()


def load(source: str, label: str = "label") -> Data:
    """The data called `source`: a built-in name, else a path to an .npz or a .csv.

    label: the column of a .csv that becomes the input ``label``; the others become ``x``, in order.
    Raises ChainruleError, with a way out, where there are no such data or they are not as they should be.
    """
    if source in BUILT_IN:
        return BUILT_IN[source]()
    path = Path(source)
    readers = {".npz": lambda: read_npz(path), ".csv": lambda: read_csv(path, label)}
    if path.suffix not in readers:
        known = nearest(source, BUILT_IN)
        raise complaint(
            f"no data called '{source}'; {known}", "give a built-in name, or a path to an .npz or .csv file"
        )
    if not path.is_file():
        raise complaint(f"there is no file {source}", "check the path; it is taken from the current folder")
    return readers[path.suffix]()


def batches(arrays: Arrays, size: int, order: Array | None = None) -> Iterator[dict[str, Array]]:
    """The samples in batches of `size`, the last one as small as it comes; `order`: which sample when."""
    count = samples(arrays)
    for start in range(0, count, size):
        chosen = slice(start, start + size) if order is None else order[start : start + size]
        yield {name: array[chosen] for name, array in arrays.items()}


def shuffled(arrays: Arrays, seed: int, epoch: int) -> Array:
    """The order of the samples in `epoch`: the same for the same seed, whatever came before."""
    return np.random.default_rng((seed, epoch)).permutation(samples(arrays))


def samples(arrays: Arrays) -> int:
    """How many samples there are."""
    return len(next(iter(arrays.values())))


def digits() -> Data:
    """1797 hand-written digits of 8 × 8, in 0 … 1; 360 of them held out, each class in proportion.

    The split is that of scikit-learn's ``train_test_split(test_size=360, random_state=0, stratify=label)``.
    """
    digest = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    raw = package_file("sklearn", "datasets/data/digits.csv.gz", digest, "scikit-learn", "examples")
    table = np.loadtxt(gzip.decompress(raw).decode().splitlines(), np.float32, delimiter=",")
    arrays = {"x": table[:, :-1] / np.float32(16), "label": table[:, -1].astype(np.int64)}
    train, test = stratified(arrays["label"], 360, 0)
    return Data("digits", take(arrays, train), take(arrays, test))


BUILT_IN: Mapping[str, Callable[[], Data]] = {"digits": digits}


def package_file(package: str, inside: str, digest: str, distribution: str, extra: str) -> bytes:
    """The bytes of a file inside an installed package, which is found and not imported."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], inside) if folders else None
    if path is None or not path.is_file():
        way_out = f"pip install 'chainrule[{extra}]', or pip install {distribution}"
        raise complaint(f"these data are in the package {distribution}, which is not installed here", way_out)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        problem = f"{path} is not the file that Chainrule's figures were made with (its SHA-256 differs)"
        raise complaint(problem, f"pip install --force-reinstall {distribution}, or pass your own data as .npz")
    return content


def read_npz(path: Path) -> Data:
    """Arrays under the names of the inputs; those under ``test/NAME`` are the test set, else a fifth is held out."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as failure:
        way_out = "write it with numpy.savez(path, x=…, label=…), of numbers only"
        raise complaint(f"{path} cannot be read as an .npz of plain arrays: {failure}", way_out) from None
    test = {name.removeprefix(HELD_OUT): a for name, a in arrays.items() if name.startswith(HELD_OUT)}
    train = {name: a for name, a in arrays.items() if not name.startswith(HELD_OUT)}
    check_samples(path, train)
    if not test:
        return held_out(path.name, train)
    check_samples(path, test)
    if test.keys() != train.keys():
        problem = f"{path} has {', '.join(sorted(train))} to train with but {', '.join(sorted(test))} to test with"
        raise complaint(problem, f"give every input both as NAME and as {HELD_OUT}NAME, or leave the latter out")
    return Data(path.name, train, test)


def check_samples(path: Path, arrays: Arrays) -> None:
    """Every array has the same number of samples, and at least one."""
    shapes = "; ".join(f"{name} is {list(array.shape)}" for name, array in arrays.items()) or "it holds no arrays"
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise complaint(f"{path} has no samples: {shapes}", "give every input an array whose axis 0 counts the samples")
    if len({len(array) for array in arrays.values()}) > 1:
        raise complaint(f"{path} has unequal numbers of samples: {shapes}", "axis 0 counts the samples in every array")
    if samples(arrays) == 0:
        raise complaint(f"{path} has no samples: {shapes}", "give it at least one")


def read_csv(path: Path, label: str) -> Data:
    """Columns under a header line: `label` becomes ``label``, the others ``x[samples, columns]``, in order.

    Labels that are all whole numbers stay so, other numbers are a target, and words become the numbers of their
    sorted list.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as failure:
        raise complaint(f"{path} cannot be read as CSV: {failure}", "save it as UTF-8, with commas") from None
    if label not in header:
        problem = f"{path} has no column '{label}'; {nearest(label, header)}"
        raise complaint(problem, "name the label's column with --label, in a file whose first line has the names")
    if not rows:
        raise complaint(f"{path} has a header and no samples", "give it at least one line of values")
    target = header.index(label)
    for line, row in rows:
        if len(row) != len(header):
            problem = f"{len(row)} values where the header names {len(header)} columns"
            raise SourceError(Span(str(path), line), problem, way_out="quote values that hold a comma")
    x = np.array([[number(path, header, line, row, k) for k in range(len(row)) if k != target] for line, row in rows])
    labels, classes = as_labels([row[target].strip() for _, row in rows])
    return held_out(path.name, {"x": x, "label": labels}, classes)


def number(path: Path, header: list[str], line: int, row: list[str], column: int) -> float:
    """The value of a cell; a SourceError that names its place if it is no number."""
    try:
        return float(row[column])
    except ValueError:
        problem = f"column '{header[column]}' holds '{row[column]}', which is no number"
        way_out = "only the label may be text: turn other categories into numbers, and fill what is missing"
        raise SourceError(Span(str(path), line), problem, way_out=way_out) from None


def as_labels(cells: list[str]) -> tuple[Array, tuple[str, ...]]:
    """Labels as numbers, and the names of their classes if they were words."""
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        names, numbers = np.unique(cells, return_inverse=True)
        return numbers.astype(np.int64), tuple(str(name) for name in names)
    whole = bool(np.all(np.isfinite(values)) and np.all(values == np.rint(values)))
    return (values.astype(np.int64) if whole else values), ()


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


def complaint(problem: str, way_out: str) -> ChainruleError:
    """An error about something other than a text, in the words of all our errors."""
    return ChainruleError(f"{problem}\n  Way out: {way_out}")
