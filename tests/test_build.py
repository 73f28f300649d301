"""The door: what is in the cache is taken from it, whatever happened to it, and what is asked makes the key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chainrule import build, compiler
from chainrule.api.model import Model
from chainrule.codegen.workers import Crew
from chainrule.errors import ChainruleError, ChainruleWarning, Span
from chainrule.executable import FORMAT, ONE, Executable, Kernel, Launch
from chainrule.options import Options
from chainrule.runtime.cache import digest
from chainrule.runtime.cuda import present
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


def test_the_key_of_a_gpus_program_says_its_architecture_and_precision_and_nothing_of_this_machine(monkeypatch):
    cuda = replace(TRAIN, target="cuda:sm_90")
    first = build.name_of(SOURCE, cuda)
    others = [build.name_of(SOURCE, TRAIN)]
    others += [build.name_of(SOURCE, replace(cuda, target="cuda:sm_80"))]
    others += [build.name_of(SOURCE, replace(cuda, precision=precision)) for precision in ("tf32", "bf16")]
    assert len({first, *others}) == 1 + len(others)

    build._gpu_versions.cache_clear()
    stamps = [(name, size, time + 1) for name, size, time in build._stamps(Path(build.__file__).parent)]
    monkeypatch.setattr(build, "_stamps", lambda folder: stamps)
    monkeypatch.setattr("chainrule.codegen.target.host", None)  # to ask for the CPU would fail
    assert build.name_of(SOURCE, cuda) == first

    build._gpu_versions.cache_clear()
    monkeypatch.setattr(build, "_gpu_compiler", lambda: "13.0.89")
    assert build.name_of(SOURCE, cuda) != first
    monkeypatch.undo()
    build._gpu_versions.cache_clear()


def test_a_target_is_named_once_for_all_that_ask_for_it(monkeypatch):
    assert build.target_of("cpu") == "cpu"
    assert build.target_of("cuda", "sm_80") == "cuda:sm_80"
    monkeypatch.setattr(present, "architecture", lambda: None)
    assert build.target_of("cuda") == "cuda:sm_90"
    monkeypatch.setattr(present, "architecture", lambda: "sm_120")
    assert build.target_of("cuda") == "cuda:sm_120"
    for name, arch, said in [
        ("gpu", None, "there is no target 'gpu'"),
        ("cpu", "sm_90", "arch='sm_90' is a GPU's, and the target is the CPU"),
        ("cuda", "hopper", "there is no architecture 'hopper'"),
    ]:
        with pytest.raises(ChainruleError, match=re.escape(said)):
            build.target_of(name, arch)


# ---------------------------------------------------------------- programs for a GPU, by an emitter that makes believe

CUDA = Options("gradient", target="cuda:sm_90")
CUBIN, PTX = b"\x7fELF a cubin", b".version 9.0\n.visible .entry loss()"


@pytest.fixture
def emitted(folder, monkeypatch):
    """How often kernels were compiled; each program is one kernel of a launch."""
    compiled: list[str] = []

    def emit(program, *, element, arch, precision, kept, sizes, memory):
        found = kept.find(f"loss {arch} {precision}")
        if found is None:
            compiled.append(precision)
            found = "loss", CUBIN, PTX
            kept.keep(f"loss {arch} {precision}", *found)
        symbol, cubin, ptx = found
        made = Executable(
            program.name, FORMAT, f"cuda {arch}", element, True, (), (), (), (), (), (), (),
            (Kernel(symbol, digest(cubin), ptx=digest(ptx)),),
            (Launch(0, "loss", (), (), ONE, (), ONE, (), (), threads=32),),
        )  # fmt: skip
        return made, {digest(cubin): cubin, digest(ptx): ptx}, {"loss": "def loss(): ..."}

    monkeypatch.setattr(compiler, "cuda", SimpleNamespace(emit=emit))
    yield compiled
    monkeypatch.undo()


def test_a_gpus_program_is_compiled_once_and_comes_from_the_cache_with_its_ptx(folder, emitted, monkeypatch):
    first = build.executable(SOURCE, CUDA)
    assert emitted == ["float32"] and sorted(first.objects.values()) == sorted([CUBIN, PTX])
    enter(monkeypatch, folder)
    assert build.executable(SOURCE, CUDA) == first and len(emitted) == 1
    assert not list(folder.glob("*.object")) and len(list(folder.glob("*.module"))) == 2  # no walker, no CPU's kernel
    build.executable(SOURCE, replace(CUDA, precision="tf32"))
    assert emitted == ["float32", "tf32"]


def test_a_gpus_kernel_of_another_model_is_not_compiled_again(folder, emitted):
    build.executable(SOURCE, CUDA)
    build.executable(replace(SOURCE, file="other.graph"), CUDA)
    assert emitted == ["float32"]


@pytest.mark.parametrize("kind", ["manifest", "module", "kernel"])
@pytest.mark.parametrize("damage", [truncate, flip, of_other_versions, open_to_others])
def test_a_damaged_cache_of_gpus_programs_is_compiled_anew(folder, emitted, monkeypatch, damage, kind):
    right = build.executable(SOURCE, CUDA)
    for path in folder.glob(f"*.{kind}"):
        damage(path)
    if kind == "kernel":
        for path in folder.glob("*.manifest"):
            path.unlink()
    enter(monkeypatch, folder)
    with pytest.warns(ChainruleWarning) as heard:
        assert build.executable(SOURCE, CUDA) == right
    assert len(heard) == 1
    assert emitted == ["float32"] * (1 if kind == "manifest" else 2)


def test_without_the_gpus_compilers_the_way_out_is_the_extra(folder, monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(ChainruleError, match=re.escape("pip install 'chainrule[cuda]'")):
        build.executable(SOURCE, CUDA)


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
