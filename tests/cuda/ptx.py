"""PTX text as data: a module of variables and functions, each function a list of instructions.

Only the shape of the text is known here (declarations, scopes, operands); what an instruction means is
`semantics.py`'s, how lanes flow through a function `flow.py`'s. Source: PTX ISA 9.0, chapters 4 to 6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass


class PTXError(Exception):
    """The program is wrong, or uses what this machine does not know; the text names the place and the facts."""


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    text: str


@dataclass(frozen=True)
class Symbol:
    """The address of a variable or, as a branch's operand, a label; `%tid.x` and its like are symbols too."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b}``, ``(a, b)`` or ``a|b``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    """``!p``."""

    register: Register


Operand = Register | Immediate | Symbol | Address | Vector | Negated


@dataclass(frozen=True)
class Instruction:
    """``@guard opcode.modifiers operands;``"""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str

    @property
    def type(self) -> str:
        return self.modifiers[-1]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Variable:
    """``.space .align align .type name[count] = {values}``, of `size` bytes."""

    space: str
    type: str
    name: str
    align: int
    size: int
    data: bytes = b""


@dataclass(frozen=True)
class Function:
    name: str
    entry: bool
    results: tuple[Variable, ...]
    params: tuple[Variable, ...]
    registers: dict[str, str]  # name -> type
    variables: tuple[Variable, ...]  # .shared, .local, .param within
    tables: dict[str, tuple[str, ...]]  # .branchtargets
    body: tuple[Instruction | Label, ...]
    required: int = 0  # threads of a CTA (.reqntid); 0: any number
    most: int = 1024  # (.maxntid)


@dataclass(frozen=True)
class Module:
    variables: tuple[Variable, ...]
    functions: dict[str, Function]


BYTES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
BYTES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f16x2": 4, "bf16x2": 4}
BYTES |= {"tf32": 4, "b128": 16}

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
DECLARATION = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>shared|local|global|const|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?"
    r"(?P<name>[\w$%.]+)(?P<dims>(?:\s*\[\s*\d*\s*\])*)\s*(?:=\s*(?P<values>.+))?$",
    re.S,
)
HEADER = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\))?\s*(?P<name>[\w$%]+)"
    r"\s*(?:\((?P<params>[^)]*)\))?(?P<rest>.*)$",
    re.S,
)
INSTRUCTION = re.compile(r"(?:@(!?)([\w$%.]+)\s+)?([a-z]\w*)((?:\.[\w:]+)*)\s*(.*)$", re.S)
NUMBER = re.compile(r"-?(?:0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0x[0-9a-fA-F]+U?|\d+U?)$")


def integer(text: str) -> int:
    text = text.rstrip("U") if not text.startswith(("0f", "0d")) else text
    return int(text, 0) if not re.match(r"-?0\d+$", text) else int(text, 8)


def split(text: str, separator: str = ",") -> list[str]:
    """`text` at separators that stand in no bracket."""
    if not any(bracket in text for bracket in "{[("):
        return [part.strip() for part in text.split(separator) if part.strip()]
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def constant_bytes(kind: str, values: str) -> bytes:
    """An initialiser's bytes, little-endian."""
    found = b""
    for value in split(values.strip().removeprefix("{").removesuffix("}")):
        if value.startswith("{"):
            found += constant_bytes(kind, value)
        elif value[:2] in ("0f", "0F", "0d", "0D"):
            found += int(value[2:], 16).to_bytes(BYTES[kind], "little")
        else:
            found += (integer(value) % 2 ** (8 * BYTES[kind])).to_bytes(BYTES[kind], "little")
    return found


def variable(text: str) -> Variable | None:
    found = DECLARATION.match(text.strip())
    if not found:
        return None
    kind, values = found["type"], found["values"]
    data = constant_bytes(kind, values) if values else b""
    count = 1
    for extent in re.findall(r"\[\s*(\d*)\s*\]", found["dims"] or ""):
        count *= int(extent) if extent else len(data) // BYTES[kind]
    align = int(found["align"] or BYTES[kind])
    return Variable(found["space"], kind, found["name"], align, count * BYTES[kind], data)


def parse(text: str) -> Module:
    """The module that `text` is; raises PTXError for what is no PTX that we know."""
    variables: list[Variable] = []
    functions: dict[str, Function] = {}
    for head, body in toplevel(COMMENT.sub(" ", text)):
        if body is not None:
            function = parse_function(head, body)
            functions[function.name] = function
        elif declared := variable(head):
            variables.append(declared)
    return Module(tuple(variables), functions)


def toplevel(text: str) -> Iterator[tuple[str, str | None]]:
    """(text of a declaration, None) and (a function's head, its body)."""
    at = 0
    while found := re.compile(r"[;{]|\n\s*\.(?:version|target|address_size)[^\n]*").search(text, at):
        if found[0] == ";":
            yield text[at : found.start()].strip(), None
        elif found[0] == "{" and not text[at : found.start()].rstrip().endswith("="):
            close = closing(text, found.start())
            yield text[at : found.start()].strip(), text[found.end() : close]
            at = close + 1
            continue
        elif found[0] == "{":
            end = text.index(";", closing(text, found.start()))
            yield text[at:end].strip(), None
            at = end + 1
            continue
        at = found.end()


def closing(text: str, at: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    raise PTXError("a brace is never closed")


class Scope:
    """Names declared between braces, made unique: two inline assembly blocks may both declare `p`."""

    def __init__(self) -> None:
        self.names: list[dict[str, str]] = [{}]
        self.count = 0
        self.read: dict[str, Operand] = {}  # operands seen outside all braces, by their text

    def open(self) -> None:
        self.names.append({})
        self.count += 1

    def close(self) -> None:
        self.names.pop()

    def declare(self, name: str) -> str:
        unique = name if len(self.names) == 1 else f"{name}@{self.count}"
        self.names[-1][name] = unique
        return unique

    def unique(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.names) if name in scope), name)


def parse_function(head: str, body: str) -> Function:
    found = HEADER.match(head)
    if not found:
        raise PTXError(f"no function's head: {head[:200]}")
    results = tuple(filter(None, map(variable, split(found["results"] or ""))))
    params = tuple(filter(None, map(variable, split(found["params"] or ""))))
    scope, registers, variables = Scope(), {}, []
    tables: dict[str, tuple[str, ...]] = {}
    lines: list[Instruction | Label] = []
    for text in statements(body):
        if text == "{":
            scope.open()
        elif text == "}":
            scope.close()
        elif text.endswith(":"):
            lines.append(Label(text[:-1]))
        elif text.startswith(".reg"):
            declare_registers(text, scope, registers)
        elif table := re.match(r"([\w$]+):\s*\.branchtargets\s+(.*)$", text, re.S):
            tables[table[1]] = tuple(split(table[2]))
        elif text.startswith((".pragma", ".loc ", ".loc\t", ".file")):
            continue
        elif text.startswith("."):
            declared = variable(text)
            if declared is None:
                raise PTXError(f"a declaration that this parser does not know: {text}")
            unique = scope.declare(declared.name)
            variables.append(Variable(declared.space, declared.type, unique, declared.align, declared.size))
        else:
            lines.append(instruction(text, scope, registers))
    entry = found["kind"] == "entry"
    required, most = (threads_in(found["rest"], name) for name in ("reqntid", "maxntid"))
    declared = (registers, tuple(variables), tables)
    return Function(found["name"], entry, results, params, *declared, tuple(lines), required or 0, most or 1024)


def threads_in(text: str, directive: str) -> int | None:
    """The threads of a CTA that a performance directive names."""
    found = re.search(rf"\.{directive}\s+([\d\s,]+)", text)
    return math.prod(int(x) for x in found[1].split(",")) if found else None


def statements(body: str) -> Iterator[str]:
    """Instructions and declarations without their semicolon, labels with their colon, braces of scopes."""
    at = 0
    token = re.compile(r"\s*(?:(?P<label>[\w$]+):(?!:)(?!\s*\.branchtargets)|(?P<brace>[{}])|(?P<text>[^;]+);)", re.S)
    while found := token.match(body, at):
        yield found["brace"] or (found["text"] or f"{found['label']}:").strip()
        at = found.end()
    if body[at:].strip():
        raise PTXError(f"text that is no statement: {body[at:].strip()[:100]}")


def declare_registers(text: str, scope: Scope, registers: dict[str, str]) -> None:
    kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text, re.S).groups()
    for name in split(names):
        if many := re.match(r"(.+)<(\d+)>$", name):
            registers.update((scope.declare(f"{many[1]}{k}"), kind) for k in range(int(many[2])))
        else:
            registers[scope.declare(name)] = kind


def instruction(text: str, scope: Scope, registers: dict[str, str]) -> Instruction:
    found = INSTRUCTION.match(text)
    if not found:
        raise PTXError(f"no instruction: {text}")
    negated, guard, opcode, modifiers, rest = found.groups()
    condition = Register(scope.unique(guard)) if guard else None
    return Instruction(
        opcode,
        tuple(modifiers.split(".")[1:]),
        tuple(remembered(part, scope, registers) for part in split(rest)),
        Negated(condition) if condition and negated else condition,
        " ".join(text.split()),
    )


def remembered(text: str, scope: Scope, registers: dict[str, str]) -> Operand:
    """`operand`, read once for each text where no braces give names another meaning."""
    if len(scope.names) > 1:
        return operand(text, scope, registers)
    found = scope.read.get(text)
    if found is None:
        found = scope.read[text] = operand(text, scope, registers)
    return found


def operand(text: str, scope: Scope, registers: dict[str, str]) -> Operand:
    text = text.strip()
    if text[0] in "{(":
        return Vector(tuple(operand(part, scope, registers) for part in split(text[1:-1])))
    if text[0] == "[":
        base, _, offset = (part.strip() for part in re.sub(r"\+\s*-", "-", text[1:-1]).partition("+"))
        if not offset and (found := re.match(r"(.+?)\s*(-\d+)$", base)):
            base, offset = found.groups()
        return Address(operand(base, scope, registers), integer(offset) if offset else 0)
    if text[0] == "!":
        return Negated(Register(scope.unique(text[1:].strip())))
    if "|" in text:
        return Vector(tuple(operand(part, scope, registers) for part in text.split("|")))
    if NUMBER.match(text):
        return Immediate(text)
    name, _, offset = text.partition("+")
    unique = scope.unique(name.strip())
    return Register(unique) if unique in registers else Symbol(unique, integer(offset) if offset else 0)
