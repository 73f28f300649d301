"""Where data files are: inside installed packages, which are found and not imported, or in a folder of the user's.

Every file is checked by its SHA-256 before it is used: changed data are an error, never a changed figure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from chainrule.errors import ChainruleError


@dataclass(frozen=True)
class Ask:
    """What is asked of a loader beside the name: `folder`, a place of the user's with data files; `window`, how many
    steps of a series or characters of a text a sample has (None: the set's own)."""

    folder: Path | None = None
    window: int | None = None


@dataclass(frozen=True)
class Kept:
    """A file that a package carries: `inside` its folder, with its digest; `get` is how one comes by the package.

    package: the name to import; an absolute path where it is no Python package.
    """

    package: str
    inside: str
    digest: str
    distribution: str
    get: str = ""

    @property
    def way_out(self) -> str:
        """How to get the file."""
        return self.get or f"pip install {self.distribution}"


def find(kept: Kept, folder: Path | None = None) -> Path:
    """The file in `folder` (under its bare name) if it is there, else in its package. Raises ChainruleError."""
    if folder is not None and (own := folder / Path(kept.inside).name).is_file():
        path = own
    elif (inside := in_package(kept)) is not None:
        path = inside
    else:
        problem = f"these data are in the package {kept.distribution}, which is not installed here"
        raise complaint(problem, f"{kept.way_out}; or --data-dir DIR with {Path(kept.inside).name} in it")
    if digest_of(path) != kept.digest:
        problem = f"{path} is not the file that Chainrule's figures were made with (its SHA-256 differs)"
        raise complaint(problem, f"get it anew ({kept.way_out}), or pass your own data as .npz")
    return path


def in_package(kept: Kept) -> Path | None:
    """The file inside its installed package."""
    if kept.package.startswith("/"):
        path = Path(kept.package, kept.inside)
        return path if path.is_file() else None
    spec = find_spec(kept.package)
    folders = spec.submodule_search_locations if spec else None
    paths = [path for folder in folders or () if (path := Path(folder, kept.inside)).is_file()]
    return paths[0] if paths else None


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def complaint(problem: str, way_out: str) -> ChainruleError:
    """An error about something other than a text, in the words of all our errors."""
    return ChainruleError(f"{problem}\n  Way out: {way_out}")
