"""Data by name, from .npz and from .csv: arrays under the names of a model's inputs, in a fixed split."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from chainrule.errors import SourceError, Span, nearest
from chainrule.train import graphs, molecules, pictures, sequences
from chainrule.train.files import Ask, complaint
from chainrule.train.samples import Array, Arrays, Data, batches, held_out, samples, shuffled, stratified, take

__all__ = ["BUILT_IN", "Array", "Arrays", "Ask", "Data", "batches", "load", "samples", "shuffled", "stratified", "take"]

HELD_OUT = "test/"
"""What an .npz puts before the name of an input that holds test samples."""

BUILT_IN: Mapping[str, Callable[[Ask], Data]] = {
    "digits": pictures.digits,
    "mnist5k": pictures.mnist5k,
    "mnist": pictures.mnist,
    "fashion_mnist": pictures.fashion_mnist,
    "camera": pictures.camera,
    "kjv": sequences.kjv,
    "sunspots": sequences.sunspots,
    "japanese_vowels": sequences.japanese_vowels,
    "proof": sequences.proof,
    "karate": graphs.karate,
    "digits_graph": graphs.digits_graph,
    "solubility": molecules.solubility,
}
"""The named sets: what each holds, docs/data.md says."""


def load(source: str, label: str = "label", ask: Ask = Ask()) -> Data:  # noqa: B008
    """The data called `source`: a built-in name, else a path to an .npz or a .csv.

    label: the column of a .csv that becomes the input ``label``; the others become ``x``, in order. ask: where files
    of built-in sets may be, and how long a window of a series or a text is.
    Raises ChainruleError, with a way out, where there are no such data or they are not as they should be.
    """
    if source in BUILT_IN:
        return BUILT_IN[source](ask)
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
