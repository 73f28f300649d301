"""The cache: compiled programs on disk, as a JSON manifest and object files named by the SHA-256 of their bytes.

Each file is one line of JSON (what it is, for whom, the SHA-256 of the rest) and then its bytes. Nothing in it is
believed: a file that is truncated, altered, another user's or of other versions is removed and counts as missing, with
one warning. The directory is the user's alone; if it is not, the cache stays in memory.

Readers take no lock, since a file appears whole (written aside, synced, renamed) or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import lazy_loader
import msgspec

from chainrule.choices import Choice, Choices
from chainrule.choices import encode as encode_choices
from chainrule.errors import ChainruleError, ChainruleWarning
from chainrule.executable import FORMAT, TAPE_FORMAT, Executable, decode, encode, faults
from chainrule.symbols import ObjectFileError, symbols

filelock = lazy_loader.load("filelock")  # only writers need it
platformdirs = lazy_loader.load("platformdirs")

Kind = Literal["manifest", "object", "module", "kernel", "products", "choices"]
VERSIONS = f"chainrule {FORMAT}.{TAPE_FORMAT}"
LIMIT = 10**9  # bytes
PATIENCE = 20.0  # seconds that a writer waits for others; then it does without storing
NAME = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a file: its kind and name, and the SHA-256 and length of what follows."""

    kind: Kind
    name: str
    sha256: str
    length: int
    versions: str
    symbol: str = ""  # the function of a kernel's object
    cpu: str = ""
    flags: str = ""


class KernelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the key of a kernel's source leads to; `ptx` of a GPU's only."""

    symbol: str
    object: str
    ptx: str = ""


class Compiled(msgspec.Struct, frozen=True):
    """An executable with its object files, by the SHA-256 of their bytes."""

    executable: Executable
    objects: Mapping[str, bytes]


class Usage(msgspec.Struct, frozen=True):
    """Where the cache is, and how large. directory: None where it stays in memory."""

    directory: Path | None
    files: int
    bytes: int
    limit: int


class Damage(Exception):
    """A file that is there and cannot be trusted: its path and why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path.name}: {why}")
        self.path = path


def key(parts: Sequence[bytes | str]) -> str:
    """A name for what `parts` (texts, arguments, versions …) lead to; nothing is parsed, no two lists run together."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{'s' if isinstance(part, str) else 'b'}{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def digest(data: bytes) -> str:
    """The name of an object file: the SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


def default_directory() -> Path:
    """CHAINRULE_CACHE, else the user's cache directory of this system."""
    given = os.environ.get("CHAINRULE_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("chainrule", appauthor=False))


def default_limit() -> int:
    """CHAINRULE_CACHE_LIMIT in bytes (``500MB`` and ``2GB`` are understood), else 1 GB."""
    text = os.environ.get("CHAINRULE_CACHE_LIMIT", "")
    if not text.strip():
        return LIMIT
    return bytes_of("CHAINRULE_CACHE_LIMIT", text)


def bytes_of(name: str, text: str) -> int:
    """The bytes that ``500MB`` or ``2 GB`` stand for. Raises ChainruleError, which calls them `name`."""
    match = re.fullmatch(r"\s*(\d{1,15})\s*([KMGT]?B?)\s*", text, re.IGNORECASE | re.ASCII)
    unit = match and (match[2].upper() if not match[2] or match[2].upper().endswith("B") else match[2].upper() + "B")
    if match is None or unit not in UNITS:
        raise ChainruleError(f"{name} is {text!r}, which is no size\n  Way out: bytes, or a number with KB, MB or GB")
    return int(match[1]) * UNITS[unit]


@dataclass(eq=False)
class Cache:
    """Compiled programs and kernels, on disk where that is safe, else in memory.

    directory: default CHAINRULE_CACHE or the user's cache directory. limit: bytes; the least recently used files go
    first. cpu, flags: written into each file for people; the keys hold them already.
    """

    directory: Path | None = None
    limit: int | None = None
    versions: str = VERSIONS
    cpu: str = ""
    flags: str = ""
    _memory: dict[tuple[Kind, str], tuple[Header, bytes]] = field(default_factory=dict)
    _warned: bool = False

    def __post_init__(self) -> None:
        self.limit = default_limit() if self.limit is None else self.limit
        wanted = default_directory() if self.directory is None else Path(self.directory)
        try:
            self.directory = _own_directory(wanted)
        except OSError as problem:
            self.directory = None
            message = (
                f"the cache stays in memory, every process compiles anew: {problem}"
                f"\n  Way out: make {wanted} a directory of yours alone (chmod 700), or set CHAINRULE_CACHE to one"
            )
            warnings.warn(message, ChainruleWarning, stacklevel=3)

    def find(self, name: str) -> Compiled | None:
        """The program stored under the key `name`, verified, or None. Damage: one warning, and None."""
        found: Compiled | None = None
        damages: list[Damage] = []
        try:
            found = self._find_program(name, damages)
        except Damage as damage:
            damages.append(damage)
        self._report(damages)
        return None if damages else found

    def keep(self, name: str, executable: Executable, objects: Mapping[str, bytes]) -> None:
        """Store a program under the key `name`."""
        symbol = {name: kernel.symbol for kernel in executable.kernels for name in kernel.files}
        files = [self._file(_kind_of(executable), name, objects[name], symbol[name]) for name in symbol]
        self._store([*files, self._file("manifest", name, encode(executable))])

    def find_kernel(self, name: str) -> tuple[str, bytes] | None:
        """Symbol and object of the kernel whose source has the key `name`, or None. Damage: as in `find`."""
        try:
            entry = self._read("kernel", name)
            if entry is None:
                return None
            record = self._record(name, entry[1])
            data = self._find_object(record.object)
            return None if data is None else (record.symbol, data)
        except Damage as damage:
            self._report([damage])
            return None

    def keep_kernel(self, name: str, symbol: str, data: bytes) -> None:
        """Store the object of one kernel under the key of its source."""
        record = msgspec.json.encode(KernelRecord(symbol, digest(data)))
        self._store([self._file("object", digest(data), data, symbol), self._file("kernel", name, record)])

    def find_module(self, name: str) -> tuple[str, bytes, bytes] | None:
        """Symbol, cubin and PTX of the GPU's kernel under the key `name`, or None. Damage: as in `find`."""
        try:
            entry = self._read("kernel", name)
            if entry is None:
                return None
            record = self._record(name, entry[1], ptx=True)
            cubin, ptx = self._find_object(record.object, "module"), self._find_object(record.ptx, "module")
            return None if cubin is None or ptx is None else (record.symbol, cubin, ptx)
        except Damage as damage:
            self._report([damage])
            return None

    def keep_module(self, name: str, symbol: str, cubin: bytes, ptx: bytes) -> None:
        """Store a GPU's kernel, for the driver and for people, under the key of its source."""
        record = msgspec.json.encode(KernelRecord(symbol, digest(cubin), digest(ptx)))
        files = [self._file("module", digest(data), data, symbol) for data in (cubin, ptx)]
        self._store([*files, self._file("kernel", name, record)])

    def find_products(self, name: str) -> tuple[str, ...] | None:
        """The products of the program that was asked for under the key `name`, or None. Damage: as in `find`."""
        try:
            entry = self._read("products", name)
            return None if entry is None else self._strictly("products", name, entry[1], tuple[str, ...])
        except Damage as damage:
            self._report([damage])
            return None

    def keep_products(self, name: str, products: tuple[str, ...]) -> None:
        """Store which products a program has: which choices its key depends on."""
        self._store([self._file("products", name, msgspec.json.encode(products))])

    def find_choices(self, name: str) -> dict[str, Choice]:
        """The choices that were measured on the machine `name`; of damage, one warning and none."""
        try:
            entry = self._read("choices", name)
            return {} if entry is None else self._strictly("choices", name, entry[1], dict[str, Choice])
        except Damage as damage:
            self._report([damage])
            return {}

    def keep_choices(self, name: str, found: Choices) -> None:
        """Add `found` to the choices of the machine `name`."""
        self._store([self._file("choices", name, encode_choices(self.find_choices(name) | dict(found)))])

    def _strictly(self, kind: Kind, name: str, data: bytes, form: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damage(self._path(kind, name), str(error)) from None

    def usage(self) -> Usage:
        """Where, how many files, how many bytes."""
        if self.directory is None:
            held = [len(data) for _, data in self._memory.values()]
            return Usage(None, len(held), sum(held), self.limit or 0)
        sizes = [size for _, size, _ in _files(self.directory)]
        return Usage(self.directory, len(sizes), sum(sizes), self.limit or 0)

    def clear(self) -> int:
        """Remove everything; how many bytes that were."""
        before = self.usage().bytes
        self._memory.clear()
        if self.directory is not None:
            with filelock.FileLock(self.directory / "lock", timeout=PATIENCE):
                for _, _, path in _files(self.directory):
                    path.unlink(missing_ok=True)
        return before

    def _find_program(self, name: str, damages: list[Damage]) -> Compiled | None:
        entry = self._read("manifest", name)
        if entry is None:
            return None
        try:
            executable = decode(entry[1])
            # a name leads to a file of the directory, and nowhere else
            named = [name for kernel in executable.kernels for name in kernel.files]
            wrong = faults(executable) + [f"{name!r} names no object" for name in named if not _is_name(name)]
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            wrong = [str(error)]
        if wrong:
            raise Damage(self._path("manifest", name), wrong[0])
        objects: dict[str, bytes] = {}
        for file in dict.fromkeys(named):  # all of them, so that one warning speaks of all
            try:
                data = self._find_object(file, _kind_of(executable))
            except Damage as damage:
                damages.append(damage)
                continue
            if data is None:
                return None
            objects[file] = data
        return Compiled(executable, objects)

    def _find_object(self, name: str, kind: Kind = "object") -> bytes | None:
        entry = self._read(kind, name)
        if entry is None:
            return None
        header, data = entry
        path = self._path(kind, name)
        if header.sha256 != name:
            raise Damage(path, "not the bytes that it is named by")
        if kind == "module":  # what it needs, the driver resolves within the device
            return data
        try:
            foreign = symbols(data).foreign
        except ObjectFileError as error:
            raise Damage(path, str(error)) from None
        if foreign:
            raise Damage(path, f"needs symbols outside the list: {', '.join(sorted(foreign))}")
        return data

    def _record(self, name: str, data: bytes, ptx: bool = False) -> KernelRecord:
        record = self._strictly("kernel", name, data, KernelRecord)
        for file in (record.object, record.ptx) if ptx else (record.object,):
            if not _is_name(file):
                raise Damage(self._path("kernel", name), f"{file!r} names no object")
        return record

    def _file(self, kind: Kind, name: str, data: bytes, symbol: str = "") -> tuple[Header, bytes]:
        return Header(kind, name, digest(data), len(data), self.versions, symbol, self.cpu, self.flags), data

    def _path(self, kind: Kind, name: str) -> Path:
        return (self.directory or Path()) / f"{name}.{kind}"

    def _read(self, kind: Kind, name: str) -> tuple[Header, bytes] | None:
        """Header and bytes of a file, verified; None where there is none. Raises Damage."""
        if self.directory is None:
            return self._memory.get((kind, name))
        if not _is_name(name):
            raise ValueError(f"{name!r} is no key: use `key` or `digest`")
        path = self._path(kind, name)
        content = _read_own(path)
        if content is None:
            return None
        line, _, data = content.partition(b"\n")
        try:
            header = msgspec.json.decode(line, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damage(path, f"its first line is no header ({error})") from None
        if header.versions != self.versions:
            raise Damage(path, f"made by {header.versions!r}, this is {self.versions!r}")
        if (header.kind, header.name) != (kind, name):
            raise Damage(path, "another file's content")
        if header.length != len(data) or header.sha256 != digest(data):
            raise Damage(path, "truncated or altered")
        return header, data

    def _store(self, files: Sequence[tuple[Header, bytes]]) -> None:
        if self.directory is None:
            self._memory.update({(header.kind, header.name): (header, data) for header, data in files})
            return
        try:
            with filelock.FileLock(self.directory / "lock", timeout=PATIENCE):
                for header, data in files:
                    path = self._path(header.kind, header.name)
                    if header.kind in ("object", "module") and self._is_there(header.kind, header.name):
                        continue  # named by its bytes: whoever was first wrote the same
                    _write(path, msgspec.json.encode(header) + b"\n" + data)
                self._evict(self.directory)
        except (OSError, filelock.Timeout) as problem:  # a full disk costs time, not the result
            self._complain(
                f"the cache could not store a program: {problem}\n  Way out: free space, or another CHAINRULE_CACHE"
            )

    def _is_there(self, kind: Kind, name: str) -> bool:
        try:
            return self._read(kind, name) is not None
        except Damage:
            return False

    def _evict(self, directory: Path) -> None:
        """The least recently used files go until the cache is within its limit."""
        files = sorted(file for file in _files(directory) if file[2].suffix != ".choices")  # minutes of measuring
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= (self.limit or 0):
                break
            path.unlink(missing_ok=True)
            total -= size

    def _report(self, damages: Sequence[Damage]) -> None:
        """Remove damaged files, and say so once; what was in them is compiled anew."""
        for damage in damages:
            with contextlib.suppress(OSError):  # what cannot be removed is replaced, or passed over again
                damage.path.unlink(missing_ok=True)
        if damages:
            more = f" (and {len(damages) - 1} more)" if len(damages) > 1 else ""
            self._complain(
                f"a file of the cache is not used: {damages[0]}{more}; its program is compiled anew"
                f"\n  Way out: nothing to do; if it comes again, who else writes to {self.directory}?"
            )

    def _complain(self, message: str) -> None:
        """One warning a process: a cache that is damaged in many places is one piece of news."""
        if not self._warned:
            self._warned = True
            warnings.warn(message, ChainruleWarning, stacklevel=4)


def _kind_of(executable: Executable) -> Kind:
    """Of its files."""
    return "module" if executable.on_gpu else "object"


def _is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def _own_directory(path: Path) -> Path:
    """`path`, which exists now and is this user's alone. Raises OSError where that cannot be."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{path} is a link, not a directory")
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            raise OSError(f"{path} belongs to another user")
        if found.st_mode & 0o022:
            raise OSError(f"others may write to {path}")
        if found.st_mode & 0o055:
            os.chmod(path, 0o700)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise OSError(f"{path} cannot be written")
    return path


def _read_own(path: Path) -> bytes | None:
    """The bytes of a plain file of ours, or None. Raises Damage for links, others' files, files others may write."""
    careful = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        handle = os.open(path, os.O_RDONLY | careful)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damage(path, f"cannot be read ({error.strerror})") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise Damage(path, "not a plain file")
        if sys.platform != "win32" and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            raise Damage(path, "belongs to another user, or others may write to it")
        content = file.read()
    with contextlib.suppress(OSError):
        os.utime(path)  # used just now: evicted last
    return content


def _write(path: Path, content: bytes) -> None:
    """`path` with `content`, whole or not at all."""
    aside = path.with_name(f"aside-{os.getpid()}-{time.time_ns()}")  # the module tempfile takes 10 ms to import
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(aside, create, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _files(directory: Path) -> list[tuple[float, int, Path]]:
    """Last use, bytes and path of every file of the cache; files that a dead writer left aside too."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name != "lock":
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(about.st_mode):
                    found.append((about.st_mtime, about.st_size, Path(entry.path)))
    return found
