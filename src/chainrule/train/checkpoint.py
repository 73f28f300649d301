"""Checkpoints: a run's folder, from which it goes on where it was killed.

    RUN/run.json                      what is trained, how, how far; names of the two files below and their SHA-256
    RUN/parameters-0007.safetensors   after epoch 7, under the parameters' names
    RUN/states-0007.safetensors       the model's states and the optimizer's

Everything is written to a temporary file, flushed to the disk and renamed, run.json last: at any moment it names
complete files. Nothing that is read can run code. Tensors have to be what their SHA-256 says before they are used.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import safetensors
import safetensors.numpy as safetensors_numpy
from numpy.typing import NDArray

from chainrule.errors import ChainruleError
from chainrule.train.recipe import Recipe

Array = NDArray[Any]

FORMAT = 1
RECORD = "run.json"
KINDS = ("parameters", "states")


class Epoch(msgspec.Struct, frozen=True):
    """A point of the curves: after `epoch` (from 1), mean losses and the metric on the test samples."""

    epoch: int
    train_loss: float
    test_loss: float | None = None
    value: float | None = None


class Record(msgspec.Struct, frozen=True):
    """A run as JSON: the whole text of the model, so that it needs no other file to be understood.

    steps: so many have been done. seed: of the initial parameters and of every draw.
    """

    model: str
    file: str
    arguments: dict[str, bool | int | float]
    recipe: Recipe
    seed: int
    steps: int = 0
    curve: tuple[Epoch, ...] = ()
    files: dict[str, tuple[str, str]] = {}  # kind: (file, SHA-256)
    dtype: Literal["float32", "float64"] = "float32"  # the program's float
    tuned: dict[str, str] = {}  # how products are computed, where that was measured (`chainrule tune`)
    format: int = FORMAT

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.curve)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run at the end of an epoch."""

    record: Record
    parameters: Mapping[str, Array]
    states: Mapping[str, Array]


def exists(run: Path) -> bool:
    """Whether the folder holds a run."""
    return (run / RECORD).is_file()


def save(run: Path, checkpoint: Checkpoint) -> Record:
    """Write `checkpoint` into the folder `run`, then remove the tensors of the epoch before; the record written."""
    run.mkdir(parents=True, exist_ok=True)
    files = {}
    for kind, tensors in zip(KINDS, (checkpoint.parameters, checkpoint.states), strict=True):
        # safetensors writes a strided view's memory as it lies: it must lie in order
        content = safetensors_numpy.save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
        name = f"{kind}-{checkpoint.record.epoch:04}.safetensors"
        write(run / name, content)
        files[kind] = (name, hashlib.sha256(content).hexdigest())
    record = msgspec.structs.replace(checkpoint.record, files=files)
    write(run / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2))
    kept = {name for name, _ in files.values()}
    for kind in KINDS:
        for old in run.glob(f"{kind}-*.safetensors"):
            if old.name not in kept:
                old.unlink(missing_ok=True)
    return record


def load(run: Path) -> Checkpoint:
    """The checkpoint in the folder `run`. Raises ChainruleError if there is none or it is damaged."""
    path = run / RECORD
    if not path.is_file():
        raise ChainruleError(f"{run} holds no run\n  Way out: give the folder that train wrote with --out")
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as failure:
        raise damaged(path, str(failure)) from None
    if record.format != FORMAT:
        problem = f"{path} is of format {record.format}, this Chainrule reads format {FORMAT}"
        raise ChainruleError(f"{problem}\n  Way out: use the version that wrote it, or train anew")
    parameters, states = (tensors(run, record, kind) for kind in KINDS)
    return Checkpoint(record, parameters, states)


def tensors(run: Path, record: Record, kind: str) -> dict[str, Array]:
    """The tensors of a kind, whose file is the one that was written."""
    name, digest = record.files.get(kind, ("", ""))
    path = run / name
    if not name or Path(name).name != name:
        raise damaged(run / RECORD, f"it names no file of {kind} in its folder")
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise damaged(path, str(problem.strerror)) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, "its SHA-256 is not the one in run.json")
    try:
        return safetensors_numpy.load(content)
    except safetensors.SafetensorError as problem:
        raise damaged(path, str(problem)) from None


def damaged(path: Path, problem: str) -> ChainruleError:
    """What to say of a file that cannot be trusted."""
    return ChainruleError(f"{path} is damaged: {problem}\n  Way out: restore it from a copy, or train anew")


def write(path: Path, content: bytes) -> None:
    """Make `content` the file at `path`, wholly or not at all, even if the machine stops."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
