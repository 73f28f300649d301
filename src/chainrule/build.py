"""The one door from the run side to the compiler: what is asked comes from the cache, else from the compiler.

A key is made from texts, without parsing them: every text that the model depends on, its arguments, the options, the
target and the versions. The imports inside these functions are the door: a process whose programs are all in the
cache passes it never, and imports neither sympy nor numba.

A program for a GPU depends on no CPU, and its key on the contents of our files instead of their times: what one machine
compiled serves on others, which need no compiler then.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache as once
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lazy_loader
import llvmlite

import chainrule
from chainrule.choices import Choices, encode
from chainrule.errors import ChainruleError
from chainrule.executable import FORMAT, TAPE_FORMAT, WALKER_SYMBOL
from chainrule.options import Options
from chainrule.runtime.cache import Cache, Compiled, digest, key
from chainrule.runtime.cuda import present
from chainrule.source import Source, texts

markup = lazy_loader.load("html")
subprocess = lazy_loader.load("subprocess")

WALKER = "walker"
ARCHITECTURE = "sm_90"  # of a GPU, where none is present and none is named
NVVM = "13.0.88"  # what compiled a GPU's programs, where NVIDIA's compilers are not installed
PATIENCE = 60.0  # seconds that the process which makes the walker may take

_begun: list[Any] = []  # that process, until the walker is asked for


@once
def cache() -> Cache:
    """The cache of this process."""
    from chainrule.codegen.target import host

    return Cache(cpu=host().cpu)


def executable(source: Source, options: Options) -> Compiled:
    """The program that `options` ask of `source`, with its objects. Raises SourceError where the text is wrong."""
    asked, measured = name_of(source, options), choices() if options.arch is None else {}
    products = cache().find_products(asked) if measured else ()
    found = None if products is None else cache().find(_chosen_name(asked, measured, products))
    if found is not None:
        return found
    if options.arch is None:
        _begin_walker()
    elif find_spec("cuda") is None:
        raise ChainruleError(
            "programs for a GPU are compiled by NVIDIA's compilers, which are not installed"
            "\n  Way out: pip install 'chainrule[cuda]'"
        )
    from chainrule.compiler import compile_source

    made = Compiled(*compile_source(source, options, _kept(), measured))
    products = made.executable.products
    if options.arch is None:
        cache().keep_products(asked, products)
    cache().keep(_chosen_name(asked, measured, products), made.executable, made.objects)
    return made


def name_of(source: Source, options: Options) -> str:
    """The key of what `options` ask of `source`: made of all that decides it but measured choices, and of no parse."""
    versions = _versions() if options.arch is None else _gpu_versions()
    return key([*versions, *_asked(source, options)])


def target_of(name: str, arch: str | None = None) -> str:
    """What Options call a target: "cpu", or "cuda:sm_90" with the architecture that is named, present, or usual.

    Raises ChainruleError where there is no such target or architecture.
    """
    if name not in ("cpu", "cuda"):
        raise ChainruleError(f"there is no target {name!r}\n  Way out: target='cpu' or 'cuda'")
    if name == "cpu":
        if arch is not None:
            raise ChainruleError(f"arch={arch!r} is a GPU's, and the target is the CPU\n  Way out: target='cuda'")
        return name
    chosen = arch or present.architecture() or ARCHITECTURE
    if not re.fullmatch(r"sm_[0-9]{2,3}[af]?", chosen):
        raise ChainruleError(
            f"there is no architecture {chosen!r}\n  Way out: as in 'sm_90', for compute capability 9.0"
        )
    return f"cuda:{chosen}"


def _chosen_name(asked: str, measured: Choices, products: Sequence[str]) -> str:
    """The key of the program itself: tuned and untuned ones never mix, and what others tuned changes nothing here."""
    own = {name: measured[name] for name in products if name in measured}
    return key([asked, encode(own)]) if own else asked


def choices() -> Choices:
    """What was measured for this CPU, by `chainrule tune`."""
    return cache().find_choices(_machine())


def keep_choices(found: Choices) -> None:
    """Let programs that are compiled from now on, in any process, be made with these."""
    cache().keep_choices(_machine(), found)


def _machine() -> str:
    """The name of this CPU's table of choices."""
    from chainrule.codegen.target import host

    return key(["choices", f"{FORMAT} {TAPE_FORMAT}", chainrule.__version__, str(host())])


def trials(source: Source, options: Options) -> Any:
    """The program that `options` ask of `source`, derived and scheduled once, to be compiled with many choices."""
    from chainrule.trials import Trials

    return Trials(source, options, _kept())


def _kept() -> Any:
    """The kernels of the cache, as emitters ask for them."""
    from chainrule.codegen import Kept, KeptModules

    return Kept(_find_kernel, _keep_kernel, KeptModules(_find_module, _keep_module))


def _find_kernel(symbol: str) -> bytes | None:
    """The object of a kernel that was compiled before; its symbol is a hash of its source."""
    found = cache().find_kernel(key([*_versions(), symbol]))
    return found[1] if found is not None and found[0] == symbol else None


def _keep_kernel(symbol: str, data: bytes) -> None:
    cache().keep_kernel(key([*_versions(), symbol]), symbol, data)


def _find_module(name: str) -> tuple[str, bytes, bytes] | None:
    return cache().find_module(key([*_gpu_versions(), name]))


def _keep_module(name: str, symbol: str, cubin: bytes, ptx: bytes) -> None:
    cache().keep_module(key([*_gpu_versions(), name]), symbol, cubin, ptx)


@once
def walker() -> bytes:
    """The object file of the interpreter of tapes, compiled once for all programs."""
    found = _find_walker()
    while found is None and _begun:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _begun.pop().wait(timeout=PATIENCE)
        found = _find_walker()
    return make_walker() if found is None else found


def make_walker() -> bytes:
    """Compile the walker, and keep it."""
    from chainrule.codegen.walker import compile_walker

    data = compile_walker()
    cache().keep_kernel(key([*_versions(), WALKER]), WALKER_SYMBOL, data)
    return data


def _find_walker() -> bytes | None:
    found = cache().find_kernel(key([*_versions(), WALKER]))
    return None if found is None else found[1]


def _begin_walker() -> None:
    """Where the cache lacks the walker, let another process make it while this one compiles a program.

    It takes as long as the kernels of a small model. What comes of it comes through the cache; if nothing does, the
    walker is made here.
    """
    from chainrule.runtime.threads import available_cores

    folder = cache().directory
    if folder is None or _begun or len(available_cores()) < 2 or _find_walker() is not None:
        return
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from chainrule import build; build.make_walker()"]
    nothing, environment = subprocess.DEVNULL, {**os.environ, "CHAINRULE_CACHE": str(folder), "PYTHONPATH": path}
    with contextlib.suppress(OSError):  # no other process can be had
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, env=environment)
        _begun.append(process)
        atexit.register(_end, process)


def _end(process: Any) -> None:
    """No process of ours outlives us: where the model was wrong, nobody waits for the walker."""
    process.kill()
    process.wait()


def summary(source: Source, options: Options) -> Mapping[str, int | str]:
    """Formulas, kernels, parameters, FLOPs and bytes as polynomials in the dims."""
    return executable(source, options).executable.summary


def sources(source: Source, options: Options, cpu: Any = None) -> Mapping[str, str | bytes]:
    """The generated kernels, as files of Python; with their assembly where a `cpu` is named (`target.Level`).

    Of a GPU's kernels also the PTX and the cubins; and executable.json, which says how they make a program.
    """
    if options.arch is not None:
        from chainrule import views

        return views.gpu_files(source, options, executable(source, options))
    from chainrule import views

    return views.sources(source, options, cpu)


def picture(
    source: Source,
    options: Options,
    kind: str,
    format: Literal["svg", "pdf", "png", "dot"] = "svg",
    depth: int | None = None,
    notes: Sequence[str] = (),
) -> bytes:
    """A picture: ``forward``, ``backward``, ``both`` or ``program``; format svg, pdf, png or dot.

    depth: collapse layers so deep in their paths, 0: never; None: where the picture would be illegible. notes: what
    to say of each kernel of the program.
    """
    from chainrule import views

    return views.picture(source, options, kind, format, depth, notes)


def html(source: Source, options: Options, kind: str) -> str:
    """A picture for a notebook; where it cannot be drawn, why."""
    try:
        drawn = picture(source, options, kind).decode()
    except ChainruleError as error:
        return f"<pre>{markup.escape(str(error))}</pre>"
    return drawn[drawn.index("<svg") :]  # without the XML declaration, which HTML does not have


def tables(source: Source, options: Options) -> dict[str, Any]:
    """The node table and the edge list of the derived graph."""
    from chainrule import views

    return views.tables(source, options)


def explain(source: Source, options: Options) -> str:
    """How each formula was derived, step by step, as Markdown."""
    from chainrule import views

    return views.explain(source, options)


def steps(source: Source, options: Options) -> list[dict[str, Any]]:
    """The trace of the derivation: rule, formulas before, formulas after."""
    from chainrule import views

    return views.steps(source, options)


def check(source: Source, options: Options, **settings: Any) -> Any:
    """Gradients against finite differences, in float64."""
    from chainrule import views

    return views.check(source, options, **settings)


def _asked(source: Source, options: Options) -> list[bytes | str]:
    asked: list[bytes | str] = [f"{name}\0{text}" for name, text in texts(source).items()]
    places = [(place.file, place.line) for place in source.places]  # they are in the kernels' comments and errors
    # repr tells 4 from 4.0 and True, and inf from NaN, which JSON does not have
    return [*asked, source.model or "", repr((source.arguments, places)), repr(options)]


@once
def _versions() -> tuple[str, ...]:
    """What the code of a kernel depends on besides its model. Of numba, the file: importing it takes half a second."""
    from chainrule.codegen.target import host

    spec = find_spec("numba")
    numba = Path(spec.origin).parent / "_version.py" if spec and spec.origin else Path()
    compiler = digest(repr(_stamps(Path(__file__).parent)).encode())
    generator = digest(numba.read_bytes()) if numba.is_file() else ""
    return (f"{FORMAT} {TAPE_FORMAT}", chainrule.__version__, compiler, llvmlite.__version__, generator, str(host()))


@once
def _gpu_versions() -> tuple[str, ...]:
    """The same for a GPU's kernels, and equal on every machine that has these versions: no CPU, no file's time."""
    found = hashlib.sha256()
    folder = Path(__file__).parent
    for name, _, _ in _stamps(folder):
        found.update(f"{name}\0{digest((folder / name).read_bytes())}\0".encode())
    return (str(FORMAT), chainrule.__version__, found.hexdigest(), _gpu_compiler())


@once
def _gpu_compiler() -> str:
    """The version of NVIDIA's compilers, without importing anything: where packages are, each says its own."""
    spec = find_spec("cuda")
    folders = [Path(path).parent for path in (spec.submodule_search_locations or ())] if spec else []
    found = [told.name.split("-")[1] for folder in folders for told in folder.glob("nvidia_nvvm-*.dist-info")]
    return found[0].removesuffix(".dist") if found else NVVM


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Size and time of each source file of ours: an edited compiler compiles anew."""
    found = []
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.endswith((".py", ".lark")):
                about = os.stat(os.path.join(place, name))
                found.append((os.path.relpath(os.path.join(place, name), folder), about.st_size, about.st_mtime_ns))
    return found
