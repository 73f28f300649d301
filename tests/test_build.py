"""The door: what is in the cache is taken from it, whatever happened to it, and what is asked makes the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chainrule import build
from chainrule.api.model import Model
from chainrule.codegen.workers import Crew
from chainrule.errors import ChainruleWarning, Span
from chainrule.options import Options
from chainrule.runtime.cache import digest
from chainrule.source import Source, read_source

TEXT = """model tiny(width = 3):
    dim batch
    input x[batch, 2]
    input t[batch, 1]
    h    = tanh(linear(x, width))
    y    = linear(h, 1)
    loss = mean(mean_squared_error(y, t))
"""
X, T = np.array([[0.5, -1.0], [2.0, 0.25]]), np.array([[1.0], [-1.0]])
SOURCE = Source(TEXT, "tiny.graph", "tiny")
GRADIENT, TRAIN = Options("gradient"), Options("train", optimizer="sgd")


def enter(monkeypatch, folder: Path) -> None:
    """As a new process would: with a cache of its own to open."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(folder))
    for known in (build.cache, build.walker, build._versions):
        known.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache of this test; the session's is opened again after it."""
    folder = tmp_path / "cache"
    enter(monkeypatch, folder)
    yield folder
    monkeypatch.undo()
    for known in (build.cache, build.walker, build._versions):
        known.cache_clear()


def loss(source: Source = SOURCE) -> float:
    return float(Model(source).gradients(x=X, t=T)[0])


# ---------------------------------------------------------------- warm and cold processes

PROCESS = """
import json, sys
import chainrule as cr
model = cr.load(sys.argv[1], width=4)
batch = {"x": [[0.5, -1.0], [2.0, 0.25]], "t": [[1.0], [-1.0]]}
step = model.compile("adam", rate=0.01, seed=0)
losses = [float(step(**batch)) for _ in range(3)]
if sys.argv[2] == "train":
    print(losses)
    sys.exit()
y = step.predict(outputs=["y"], x=batch["x"])["y"].tolist()
loss, gradients = model.gradients(wrt=["x"], **batch)
heavy = sorted({"numba", "sympy", "networkx", "lark", "graphviz"} & set(sys.modules))
print(json.dumps([[losses, y, float(loss), gradients["x"].tolist()], heavy]))
"""


def start(path: Path, folder: Path, what: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CHAINRULE_CACHE": str(folder)}
    command = [sys.executable, "-c", PROCESS, str(path), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_eight_cold_processes_at_once_get_one_result(tmp_path):
    path, folder = tmp_path / "tiny.graph", tmp_path / "cache"
    path.write_text(TEXT)
    processes = [start(path, folder, "train") for _ in range(8)]
    told = [process.communicate(timeout=170) for process in processes]
    assert [error for _, error in told] == [""] * 8
    assert len({out for out, _ in told}) == 1


def test_a_warm_process_imports_no_compiler(tmp_path):
    path, folder = tmp_path / "tiny.graph", tmp_path / "cache"
    path.write_text(TEXT)
    cold, imported = json.loads(start(path, folder, "all").communicate(timeout=90)[0])
    warm, nothing = json.loads(start(path, folder, "all").communicate(timeout=60)[0])
    assert warm == cold
    assert imported and not nothing


def test_a_kernel_of_another_model_is_not_compiled_again(folder, monkeypatch):
    compiled: set[str] = set()
    give = Crew.give
    monkeypatch.setattr(Crew, "give", lambda crew, symbol, job: compiled.add(symbol) or give(crew, symbol, job))
    loss()
    first = len(compiled)
    assert first
    loss(Source(TEXT.replace("h  ", "g  ").replace("(h,", "(g,"), "other.graph", "tiny"))
    assert len(compiled) == first
    loss(Source(TEXT.replace("tanh", "sigmoid"), "other.graph", "tiny"))
    assert len(compiled) > first


def test_a_new_batch_size_and_a_new_rate_compile_nothing(folder, monkeypatch):
    model = Model(SOURCE)
    step = model.compile("adam", rate=0.1)
    step(x=X, t=T)
    monkeypatch.setattr(build, "executable", None)
    for size in (0, 1, 5, 300):
        step.scalars["rate"] = 0.1 / (size + 1)
        step(x=np.ones((size, 2)), t=np.ones((size, 1)))
    assert step.steps == 5


def test_another_process_makes_the_walker_meanwhile(folder, monkeypatch):
    here = build.make_walker
    monkeypatch.setattr(build, "make_walker", None)
    monkeypatch.setattr("chainrule.runtime.threads.available_cores", lambda: [0, 1])
    assert np.isfinite(loss())
    assert not build._begun
    monkeypatch.setattr(build, "make_walker", here)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_where_no_other_process_can_be_had_the_walker_is_made_here(folder, monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    assert np.isfinite(loss())


# ---------------------------------------------------------------- files that are not as they were

KINDS = ("manifest", "object", "kernel")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)


def of_other_versions(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"versions":"chainrule', b'"versions":"chainrule 0.', 1))


def open_to_others(path: Path) -> None:
    path.chmod(0o666)


def planted(path: Path) -> None:
    """What is inside is consistent, and calls what no kernel calls."""
    line, _, _ = path.read_bytes().partition(b"\n")
    data = build.walker() if path.suffix != ".object" else b"\x7fELF\x02\x01" + bytes(200)
    header = {**json.loads(line), "length": len(data), "sha256": digest(data)}
    path.write_bytes(json.dumps(header).encode() + b"\n" + data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [truncate, flip, of_other_versions, open_to_others, planted])
def test_a_damaged_cache_gives_the_right_result_and_one_warning(folder, monkeypatch, damage, kind):
    right = loss()
    for path in folder.glob(f"*.{kind}"):
        damage(path)
    if kind == "kernel":  # looked at where the program is not known
        for path in folder.glob("*.manifest"):
            path.unlink()
    enter(monkeypatch, folder)
    with pytest.warns(ChainruleWarning) as heard:
        assert loss() == right
    assert len(heard) == 1
    enter(monkeypatch, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss() == right


def test_a_directory_that_others_may_write_is_not_used(folder, monkeypatch):
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    enter(monkeypatch, folder)
    with pytest.warns(ChainruleWarning, match="the cache stays in memory") as heard:
        assert np.isfinite(loss())
    assert len(heard) == 1
    assert not list(folder.iterdir())


# ---------------------------------------------------------------- keys


def test_whatever_decides_a_program_makes_its_key(tmp_path):
    (tmp_path / "blocks.graph").write_text("fn act(x) = tanh(x)\n")
    path = tmp_path / "tiny.graph"
    path.write_text('use "blocks.graph"\n' + TEXT.replace("tanh", "act"))

    def name(source=None, options=TRAIN):
        return build.name_of(read_source(str(path), {}) if source is None else source, options)

    first = name()
    assert name() == first
    there = read_source(str(path), {})
    others = [
        name(replace(there, arguments=(("width", 4),))),
        name(replace(there, arguments=(("width", 4.0),))),
        name(replace(there, model="tiny")),
        name(replace(there, places=(Span("a.py", 3),))),
        name(options=replace(TRAIN, dtype="float64")),
        name(options=replace(TRAIN, accurate=True)),
        name(options=replace(TRAIN, outputs=("y",))),
        name(options=replace(TRAIN, arguments=(("rate", 0.5),))),
        name(options=replace(TRAIN, optimizer="adam")),
        name(options=GRADIENT),
        name(options=replace(GRADIENT, wrt=("x",))),
        name(options=Options("predict")),
    ]
    (tmp_path / "blocks.graph").write_text("fn act(x) = sigmoid(x)\n")
    others.append(name())
    path.write_text(path.read_text().replace("linear(h, 1)", "linear(h, 1) * 2"))
    others.append(name())
    assert len({first, *others}) == 1 + len(others)


def test_a_file_that_use_may_not_name_is_not_read_for_the_key(tmp_path):
    outside = tmp_path / "outside.graph"
    outside.write_text("fn a(x) = x\n")
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "m.graph"
    path.write_text('use "../outside.graph"\n' + TEXT)
    before = build.name_of(read_source(str(path), {}), TRAIN)
    outside.write_text("fn a(x) = 2 * x\n")
    assert build.name_of(read_source(str(path), {}), TRAIN) == before


def test_what_went_wrong_in_the_compiler_leaves_nothing_in_the_cache(folder):
    with pytest.raises(Exception, match="unknown"):
        loss(Source(TEXT.replace("linear(x, width)", "liner(x, width)"), "tiny.graph", "tiny"))
    assert not list(folder.glob("*.manifest"))
