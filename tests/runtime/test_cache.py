"""The cache believes no file, and many processes share it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import msgspec
import pytest

from chainrule.choices import Choice
from chainrule.errors import ChainruleError, ChainruleWarning
from chainrule.executable import encode
from chainrule.runtime.cache import Cache, default_limit, digest, key
from tests.runtime.programs import compiled, kernel, lookup, regression

KEY = key(["a model"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def stored(folder: Path) -> Cache:
    cache = Cache(folder)
    cache.keep(KEY, *regression())
    return cache


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"*.{kind}"))


def find_quietly_but_once(folder: Path) -> None:
    """A damaged program is not found, with exactly one warning, and is good again once it is stored."""
    cache = Cache(folder)
    with pytest.warns(ChainruleWarning) as heard:
        assert cache.find(KEY) is None
    assert len(heard) == 1
    cache.keep(KEY, *regression())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Cache(folder).find(KEY)
    assert found is not None and found.executable == regression()[0] and found.objects == regression()[1]


def test_what_is_kept_is_found(folder):
    cache = stored(folder)
    found = cache.find(KEY)
    assert found is not None
    assert (found.executable, dict(found.objects)) == regression()
    assert cache.find(key(["another"])) is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*.object"))


def test_a_kernel_is_found_by_the_key_of_its_source(folder):
    Cache(folder).keep_kernel(key(["source"]), "axpy", compiled("axpy"))
    assert Cache(folder).find_kernel(key(["source"])) == ("axpy", compiled("axpy"))
    assert Cache(folder).find_kernel(key(["other"])) is None


def test_choices_are_added_to_and_never_evicted(folder):
    name = key(["this machine"])
    cache = Cache(folder, limit=0)
    assert cache.find_choices(name) == {}
    cache.keep_choices(name, {"a": Choice("blas"), "b": Choice("tile", 8, 2, packed=True, depth=64)})
    cache.keep_choices(name, {"a": Choice("direct")})
    assert Cache(folder).find_choices(name) == {"a": Choice("direct"), "b": Choice("tile", 8, 2, packed=True, depth=64)}
    cache.keep_products(name, ("a", "c"))
    assert [path.suffix for path in folder.iterdir() if path.name != "lock"] == [".choices"]


@pytest.mark.parametrize("data", [b"{", b'{"a": {"method": "magic"}}', b'{"a": {"method": "tile", "rows": 0}}', b"[]"])
def test_choices_that_are_no_table_are_none_with_one_warning(folder, data):
    name = key(["this machine"])
    cache = Cache(folder)
    cache._store([cache._file("choices", name, data)])  # as its checksum says
    with pytest.warns(ChainruleWarning) as heard:
        assert [Cache(folder).find_choices(name), Cache(folder).find_choices(name)] == [{}, {}]
    assert len(heard) == 1
    Cache(folder).keep_choices(name, {"a": Choice("blas")})
    (path,) = files(folder, "choices")
    path.write_bytes(path.read_bytes().replace(b"blas", b"tile"))
    with pytest.warns(ChainruleWarning, match="truncated or altered"):
        assert Cache(folder).find_choices(name) == {}


def test_keys_do_not_run_together():
    lists = (["ab", "c"], ["a", "bc"], ["abc"], [b"ab", "c"], ["ab", "c", ""], [])
    assert len({key(parts) for parts in lists}) == len(lists)


@pytest.mark.parametrize("kind", ["manifest", "object"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_counts_as_missing_with_one_warning(folder, kind, part):
    stored(folder)
    path = files(folder, kind)[0]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    find_quietly_but_once(folder)


@pytest.mark.parametrize("kind", ["manifest", "object"])
def test_no_flipped_bit_goes_unnoticed(folder, kind):
    stored(folder)
    path = files(folder, kind)[0]
    content = path.read_bytes()
    for at in range(0, 8 * len(content), max(1, 8 * len(content) // 60)):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        with pytest.warns(ChainruleWarning) as heard:
            assert Cache(folder).find(KEY) is None
        assert len(heard) == 1
        path.write_bytes(content)
    assert Cache(folder).find(KEY) is not None


def test_many_damaged_files_are_one_warning(folder):
    stored(folder)
    for path in files(folder, "object"):
        path.write_bytes(b"junk")
    find_quietly_but_once(folder)


def test_a_file_of_other_versions_is_not_used(folder):
    Cache(folder, versions="chainrule 0").keep(KEY, *regression())
    find_quietly_but_once(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_file_that_others_may_write_is_not_used(folder):
    stored(folder)
    files(folder, "object")[0].chmod(0o666)
    find_quietly_but_once(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_anothers_file_is_not_used(folder):
    stored(folder)
    os.chown(files(folder, "manifest")[0], 12345, 12345)
    find_quietly_but_once(folder)


def test_a_link_is_not_followed(folder, tmp_path):
    stored(folder)
    path = files(folder, "object")[0]
    elsewhere = tmp_path / "planted"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    find_quietly_but_once(folder)
    assert elsewhere.exists()


def test_a_manifest_leads_to_no_file_outside(folder, tmp_path):
    executable, _ = lookup()
    planted = tmp_path / "evil.object"
    planted.write_bytes(b"precious")
    bad = msgspec.structs.replace(
        executable, kernels=(msgspec.structs.replace(executable.kernels[0], object="../evil"),)
    )
    cache = stored(folder)
    cache._store([cache._file("manifest", KEY, encode(bad))])
    find_quietly_but_once(folder)
    assert planted.read_bytes() == b"precious"


def test_a_manifest_that_refers_to_nothing_is_not_used(folder):
    executable, objects = lookup()
    launch = msgspec.structs.replace(executable.launches[0], kernel=7)
    Cache(folder).keep(KEY, msgspec.structs.replace(executable, launches=(launch,)), objects)
    find_quietly_but_once(folder)


def test_an_object_with_a_foreign_symbol_is_not_used(folder):
    from llvmlite import ir  # noqa: PLC0415

    def calls_system(b, t, i):
        system = ir.Function(b.module, ir.FunctionType(ir.VoidType(), ()), "PyErr_Clear")
        b.call(system, ())

    data = kernel("bad", 1, calls_system)
    Cache(folder).keep_kernel(KEY, "bad", data)
    with pytest.warns(ChainruleWarning, match="PyErr_Clear"):
        assert Cache(folder).find_kernel(KEY) is None


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
@pytest.mark.parametrize("attack", ["link", "open to all", "a file"])
def test_a_directory_that_is_not_ours_alone_means_memory_and_one_loud_line(tmp_path, attack):
    folder = tmp_path / "cache"
    if attack == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    elif attack == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    with pytest.warns(ChainruleWarning, match="stays in memory") as heard:
        cache = Cache(folder)
    assert len(heard) == 1
    cache.keep(KEY, *regression())
    assert cache.find(KEY) is not None and cache.usage().directory is None
    assert not list((tmp_path / "real").glob("*")) if attack == "link" else True


def test_the_least_recently_used_files_go_first(folder):
    cache = Cache(folder, limit=10**9)
    cache.keep_kernel(key(["old"]), "axpy", compiled("axpy"))
    for path in folder.glob("*.*"):
        os.utime(path, (1, 1))
    cache.keep_kernel(key(["used"]), "times", compiled("times"))
    size = cache.usage().bytes
    tight = Cache(folder, limit=size)
    tight.keep_kernel(key(["new"]), "minus", compiled("minus"))
    assert tight.find_kernel(key(["old"])) is None
    assert tight.find_kernel(key(["new"])) is not None
    assert tight.usage().bytes <= size


def test_clearing_leaves_nothing(folder):
    cache = stored(folder)
    used = cache.usage()
    assert used.files == 6 and used.bytes > 0 and used.directory == folder
    assert cache.clear() == used.bytes
    assert cache.usage().files == 0 and cache.find(KEY) is None


def test_the_limit_reads_like_a_size(monkeypatch):
    for text, size in {"": 10**9, "500": 500, "2GB": 2 * 10**9, "10 mb": 10**7, "1k": 1000}.items():
        monkeypatch.setenv("CHAINRULE_CACHE_LIMIT", text)
        assert default_limit() == size
    monkeypatch.setenv("CHAINRULE_CACHE_LIMIT", "lots")
    with pytest.raises(ChainruleError, match="Way out"):
        default_limit()


PROCESS = """
import sys, time, warnings
sys.path[:0] = [{root!r}, {source!r}]
warnings.simplefilter("error")
from chainrule.executable import decode
from chainrule.runtime.cache import Cache, key
from pathlib import Path
executable = decode(Path({folder!r}, "executable.json").read_bytes())
objects = {{k.object: Path({folder!r}, k.object).read_bytes() for k in executable.kernels}}
while time.time() < {start}:
    pass
cache = Cache(Path({folder!r}) / "cache")
for turn in range(12):
    name = key([str(turn % 3)])
    found = cache.find(name)
    if found is None:
        cache.keep(name, executable, objects)
        found = cache.find(name)
    assert found is not None and found.executable == executable and found.objects == objects, turn
"""


def test_eight_processes_at_once_all_find_the_right_thing(tmp_path):
    executable, objects = regression()
    (tmp_path / "executable.json").write_bytes(encode(executable))
    for name, data in objects.items():
        (tmp_path / name).write_bytes(data)
    source = str(Path(__file__).parents[2] / "src")
    text = PROCESS.format(root=".", source=source, folder=str(tmp_path), start=time.time() + 1.5)
    running = [subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE) for _ in range(8)]
    errors = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 8, errors
    assert digest(compiled("times")) in {path.stem for path in files(tmp_path / "cache", "object")}
    assert not list((tmp_path / "cache").glob("aside-*"))
