"""What an object file defines and what it lacks: the symbol tables of ELF, Mach-O and COFF, read with bounds checked.

llvmlite shows an object's sections but not its symbols, and LLVM loads an object whose symbols nobody defines without
a word. So the cache and the loader read the tables themselves.
"""

from __future__ import annotations

import struct

import msgspec

LISTED = """scipy_cblas_sgemm scipy_cblas_dgemm scipy_cblas_sgemv scipy_cblas_dgemv
  memcpy memset memmove syscall sched_yield usleep Sleep SwitchToThread
    exp expf exp2 exp2f expm1 expm1f log logf log2 log2f log10 log10f log1p log1pf pow powf sqrt sqrtf cbrt cbrtf
    sin sinf cos cosf tan tanf asin asinf acos acosf atan atanf atan2 atan2f sincos sincosf
    sinh sinhf cosh coshf tanh tanhf asinh asinhf acosh acoshf atanh atanhf
    erf erff erfc erfcf tgamma tgammaf lgamma lgammaf fmod fmodf hypot hypotf fma fmaf
    floor floorf ceil ceilf round roundf rint rintf nearbyint nearbyintf trunc truncf ldexp ldexpf frexp frexpf
    fabs fabsf fmax fmaxf fmin fminf copysign copysignf
  chainrule_as_integer chainrule_integer chainrule_leave_python chainrule_enter_python chainrule_count
  chainrule_look_up"""
BOUND = frozenset(LISTED.split())
"""The undefined symbols that an object may have: BLAS, memory, libm, how threads wait, how the walker is called."""

HARMLESS = frozenset(("", "_GLOBAL_OFFSET_TABLE_"))  # made by the linker itself


class ObjectFileError(ValueError):
    """The bytes are not an object file that we understand."""


class Symbols(msgspec.Struct, frozen=True):
    """The names that an object file shows to others, and those that it needs from them."""

    defined: frozenset[str]
    undefined: frozenset[str]

    @property
    def foreign(self) -> frozenset[str]:
        """What it needs beyond the bound list: a reason to refuse it."""
        return self.undefined - BOUND


def symbols(data: bytes) -> Symbols:
    """The symbol table of an object file. Raises ObjectFileError where the bytes are none."""
    try:
        if data[:6] == b"\x7fELF\x02\x01":
            table = _elf(data)
        elif data[:4] == b"\xcf\xfa\xed\xfe":
            table = _mach_o(data)
        elif data[:2] in (b"\x64\x86", b"\x64\xaa"):
            table = _coff(data)
        else:
            raise ObjectFileError("no ELF, Mach-O or COFF object of 64 bits")
    except (struct.error, IndexError, UnicodeDecodeError) as damage:
        raise ObjectFileError(f"a damaged object file: {damage}") from None
    defined = frozenset(name for name, is_defined in table if is_defined)
    return Symbols(defined, frozenset(name for name, is_defined in table if not is_defined) - HARMLESS - defined)


def _text(data: bytes, start: int, end: int) -> str:
    stop = data.index(0, start, end) if data.find(0, start, end) >= 0 else end
    return data[start:stop].decode("ascii")


def _elf(data: bytes) -> list[tuple[str, bool]]:
    """Name and definedness of each global symbol: Elf64_Shdr and Elf64_Sym of the System V ABI."""
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + k * size) for k in range(count)]
    found = []
    for header in headers:
        if header[1] != 2:  # SHT_SYMTAB
            continue
        start, length, link = header[4], header[5], header[6]
        strings, strings_end = headers[link][4], headers[link][4] + headers[link][5]
        for at in range(start, start + length, 24):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            if info >> 4 and info & 15 != 3 and info & 15 != 4:  # not local, no section's or file's name
                found.append((_text(data, strings + name, strings_end), section != 0))
    return found


def _mach_o(data: bytes) -> list[tuple[str, bool]]:
    """The same of a Mach-O object: nlist_64 entries; names have one underscore before them."""
    (commands,) = struct.unpack_from("<I", data, 16)
    at, found = 32, []
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:  # LC_SYMTAB
            table, count, strings, length = struct.unpack_from("<IIII", data, at + 8)
            for k in range(count):
                name, kind = struct.unpack_from("<IB", data, table + 16 * k)
                if kind & 1 and not kind & 0xE0:  # N_EXT, not for a debugger
                    text = _text(data, strings + name, strings + length)
                    found.append((text.removeprefix("_"), kind & 0x0E != 0))
        at += max(size, 8)
    return found


def _coff(data: bytes) -> list[tuple[str, bool]]:
    """The same of a COFF object: 18 bytes a symbol, long names in the string table behind them."""
    table, count = struct.unpack_from("<II", data, 8)
    strings, found, skip = table + 18 * count, [], 0
    for k in range(count):
        if skip:
            skip -= 1
            continue
        at = table + 18 * k
        zeros, offset, value, section, _, storage, skip = struct.unpack_from("<IIIhHBB", data, at)
        if storage == 2:  # external
            name = _text(data, at, at + 8) if zeros else _text(data, strings + offset, len(data))
            found.append((name, section != 0 or value != 0))
    return found
