"""NVIDIA's compilers, which are libraries: LLVM to PTX (libNVVM), PTX to machine code (nvJitLink), and back to text.

None of them needs a GPU or a driver. Versions are pinned by the extra `chainrule[cuda]`: PTX of a newer libNVVM is
refused by an older driver.

Flags, one by one: `fma` (a·b + c is one instruction: faster and closer to the exact value) holds everywhere, as
`contract` does on the CPU. Denormals are kept (`ftz=0`), division and square root follow IEEE (`prec-div`,
`prec-sqrt`); nothing lets NaN, infinities or signed zeros lose their meaning.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chainrule.errors import ChainruleError

try:
    from cuda import pathfinder
    from cuda.bindings import nvjitlink, nvvm
except ImportError:  # an optional package
    nvvm = None

FLAGS = ("-opt=3", "-ftz=0", "-prec-div=1", "-prec-sqrt=1", "-fma=1")


class ToolError(Exception):
    """What one of the compilers says against its input."""


def require() -> None:
    """Raise ChainruleError where the compilers are not installed."""
    if nvvm is None:
        raise ChainruleError(
            "compiling for a GPU needs NVIDIA's compilers, which are not installed\n"
            "  Way out: pip install 'chainrule[cuda]'; neither a GPU nor a driver is needed to compile"
        )


def ir_version() -> tuple[int, ...]:
    """The version of LLVM's text that libNVVM takes."""
    require()
    return tuple(nvvm.ir_version())


@cache
def _library() -> bytes:
    """libdevice, NVIDIA's mathematics as LLVM bitcode."""
    return Path(pathfinder.find_bitcode_lib("device")).read_bytes()


def ptx_of(text: str, arch: str) -> bytes:
    """The PTX of an LLVM module for ``arch``: ``"sm_90"``."""
    require()
    program = nvvm.create_program()
    flags = [f"-arch={arch.replace('sm_', 'compute_')}", *FLAGS]
    code = text.encode()
    try:
        nvvm.add_module_to_program(program, code, len(code), "kernel")
        nvvm.verify_program(program, len(flags), flags)
        library = _library()  # after the verifier, which knows less than the compiler
        nvvm.lazy_add_module_to_program(program, library, len(library), "libdevice")
        nvvm.compile_program(program, len(flags), flags)
        found = bytearray(nvvm.get_compiled_result_size(program))
        nvvm.get_compiled_result(program, found)
    except nvvm.nvvmError as error:
        log = bytearray(nvvm.get_program_log_size(program))
        nvvm.get_program_log(program, log)
        raise ToolError(f"{error}: {log.rstrip(bytes(1)).decode(errors='replace')}") from error
    finally:
        nvvm.destroy_program(program)
    return bytes(found).rstrip(b"\0").strip() + b"\n"


def cubin_of(ptx: bytes, arch: str) -> bytes:
    """The machine code of PTX."""
    require()
    options = [f"-arch={arch}", "-O3"]
    linker = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, ptx, len(ptx), "kernel")
        nvjitlink.complete(linker)
        found = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, found)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(linker))
        nvjitlink.get_error_log(linker, log)
        raise ToolError(f"{error}: {log.rstrip(bytes(1)).decode(errors='replace')}") from error
    finally:
        nvjitlink.destroy(linker)
    return bytes(found)


def disassembly(cubin: bytes) -> str:
    """The machine code (SASS) as text. Raises ChainruleError where nvdisasm is not installed."""
    return _told("nvdisasm", cubin, "-c")


@dataclass(frozen=True)
class Figures:
    """What a kernel's machine code costs.

    registers: of a thread. local: bytes of a thread's memory that are no registers: spills, or arrays indexed by what
    is not known. shared: bytes of a block, 1 KiB of the system's among them. doubles: instructions in float64. loads,
    stores: of memory that may be global, how many of each width in bits. instructions: in all.
    """

    registers: int
    local: int
    shared: int
    doubles: int
    loads: dict[int, int]
    stores: dict[int, int]
    instructions: int


def resources(cubin: bytes) -> dict[str, int]:
    """What the kernel of a cubin takes, by the names that cuobjdump has for it."""
    used = _told("cuobjdump", cubin, "--dump-resource-usage")
    return {name: _number(used, name) for name in ("REG", "STACK", "SHARED", "LOCAL")}


def figures(cubin: bytes) -> Figures:
    """The figures of a cubin with one kernel. Raises ChainruleError where the disassemblers are not installed."""
    used = resources(cubin)
    names = [found[1] for line in disassembly(cubin).splitlines() if (found := _INSTRUCTION.match(line))]
    return Figures(
        registers=used["REG"],
        local=used["STACK"] + used["LOCAL"],
        shared=used["SHARED"],
        doubles=sum(bool(_DOUBLE.match(name)) for name in names),
        loads=_widths(names, ("LDG", "LD")),
        stores=_widths(names, ("STG", "ST")),
        instructions=len(names) - names.count("NOP"),
    )


_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.\w*64|(F2F|F2I|I2F)\S*\.F64")
_WIDTH = re.compile(r"\.(8|16|32|64|128|256)\b|\.[US](8|16)\b")


def _widths(names: list[str], kinds: tuple[str, ...]) -> dict[int, int]:
    """How many of the accesses of these kinds have each width; one that names none has 32 bits."""
    found = Counter[int]()
    for name in names:
        if name.split(".")[0] in kinds:
            width = _WIDTH.search(name)
            found[int(width[1] or width[2]) if width else 32] += 1
    return dict(found)


def _number(text: str, name: str) -> int:
    """The largest of a kind among the kernel and what it calls."""
    return max(map(int, re.findall(rf"\b{name}:(\d+)", text)), default=0)


def _told(tool: str, cubin: bytes, option: str) -> str:
    """What one of NVIDIA's tools writes about a cubin; they read files alone."""
    require()
    path = pathfinder.find_nvidia_binary_utility(tool)
    if path is None:
        raise ChainruleError(
            f"to read machine code needs {tool}, which is not installed\n"
            f"  Way out: pip install nvidia-cuda-{tool} (it is part of the CUDA toolkit too)"
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], check=True, capture_output=True, text=True).stdout
