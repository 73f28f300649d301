"""A kernel decoded once: each instruction a closure ``operation(registers, lanes)`` over numbered registers.

A register file is a list: constants, parameters and addresses stand in it beside registers, so every operand is a
number. A value is an array with one element a lane, or a NumPy scalar while all lanes agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.cuda import access, bits, warp
from tests.cuda.flow import Block, Flow
from tests.cuda.memory import LOCAL, SHARED, UNWRITTEN
from tests.cuda.ptx import (
    BYTES,
    Address,
    Immediate,
    Instruction,
    Negated,
    Operand,
    PTXError,
    Register,
    Symbol,
    Vector,
    integer,
)
from tests.cuda.semantics import dtype_of, meaning

Operation = Callable[[list[Any], Any], None]
STORED = {1: np.int16, 2: np.int16, 4: np.int32, 8: np.int64}


def stored(kind: str) -> type:
    """What a register declared as `kind` holds: integers are signed in store, whatever reads them."""
    if kind in ("f32", "f64", "pred"):
        return dtype_of(kind)
    return STORED[BYTES[kind]]


@dataclass
class Code:
    """A block's operations and where its lanes go; registers by number."""

    operations: list[Operation]
    kind: str  # "jump", "branch", "table" or "barrier"
    condition: int | None
    negated: bool
    targets: tuple[int, ...]
    incoming: tuple[int, ...]
    outgoing: tuple[int, ...]
    together: bool
    end: Instruction | None


@dataclass
class Kernel:
    """`template`: the register file before a launch; `late`: what a launch fills in, by what it is."""

    name: str
    flow: Flow
    template: list[Any]
    late: dict[Hashable, int]
    blocks: list[Code] = field(default_factory=list)


def decode(flow: Flow) -> Kernel:
    decoder = Decoder(flow)
    blocks = [decoder.block(block) for block in flow.blocks]
    for name in flow.blocks[0].incoming:  # read on some path before any write: undefined
        kind = decoder.dtype(Register(name))
        decoder.values[decoder.register(Register(name))] = np.full(8, UNWRITTEN, np.uint8).view(kind)[0]
    return Kernel(flow.name, flow, decoder.values, decoder.late, blocks)


class Decoder:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.values: list[Any] = []
        self.slots: dict[Hashable, int] = {}
        self.late: dict[Hashable, int] = {}
        self.operations: list[Operation] = []
        self.params = {p.name for p in flow.params}

    def slot(self, key: Hashable, value: Any = None) -> int:
        """The number of what `key` names, new with `value` if it has none."""
        found = self.slots.get(key)
        if found is None:
            found = self.slots[key] = len(self.values)
            self.values.append(value)
        return found

    def fresh(self) -> int:
        self.values.append(None)
        return len(self.values) - 1

    def late_slot(self, key: Hashable) -> int:
        return self.late.setdefault(key, self.slot(key))

    def register(self, register: Register) -> int:
        return self.slot(("register", register.name))

    def dtype(self, register: Register) -> type:
        kind = self.flow.registers.get(register.name)
        if kind is None:
            raise PTXError(f"register {register.name} is not declared")
        return stored(kind)

    def emit(self, f: Callable[..., Any], target: int, *sources: int) -> None:
        self.operations.append(applied(f, target, *sources))

    def source(self, operand: Operand, dtype: type, ins: Instruction) -> int:
        """The number of what holds `operand` as `dtype`."""
        match operand:
            case Immediate(text):
                value = constant(text, dtype)
                return self.slot(("constant", dtype, value.tobytes()), value)
            case Negated(register):
                target = self.fresh()
                self.emit(np.logical_not, target, self.register(register))
                return target
            case Register():
                return self.as_type(self.register(operand), self.dtype(operand), dtype, ins)
            case Symbol(name, offset) if name.startswith("%") or name == "WARP_SZ":
                wide = "64" in name or name == "%globaltimer"
                slot = self.late_slot(("special", name))
                return self.as_type(slot, np.int64 if wide else np.int32, dtype, ins)
            case Symbol(name, offset):
                return self.as_type(self.late_slot(("address", name, offset)), np.int64, dtype, ins)
        raise PTXError(f"an operand that this machine does not know here: {operand} in {ins.text}")

    def as_type(self, slot: int, have: type, want: type, ins: Instruction) -> int:
        """The bits of `slot` as `want`; of integers the low ones."""
        if have is want:
            return slot
        target = self.fresh()
        if np.dtype(have).itemsize == np.dtype(want).itemsize and np.bool_ not in (have, want):
            self.emit(lambda x: x.view(want), target, slot)
        elif np.issubdtype(have, np.integer) and np.issubdtype(want, np.integer):
            self.emit(lambda x: x.astype(want), target, slot)
        else:
            raise PTXError(f"a register of {np.dtype(have)} used as {np.dtype(want)}: {ins.text}")
        return target

    def target(self, operand: Operand, dtype: type, ins: Instruction) -> int:
        """A number to write a `dtype` to; `finish` moves it into the register."""
        if isinstance(operand, Register) and ins.guard is None and self.dtype(operand) is dtype:
            return self.register(operand)
        return self.fresh()

    def finish(self, slot: int, operand: Operand, dtype: type, ins: Instruction) -> None:
        if operand == Symbol("_"):
            return
        if not isinstance(operand, Register):
            raise PTXError(f"a result that goes to no register: {ins.text}")
        value = self.as_type(slot, dtype, self.dtype(operand), ins)
        home = self.register(operand)
        if ins.guard is not None:
            condition = self.guard(ins)
            self.operations.append(kept(home, value, condition))
        elif value != home:
            self.emit(lambda x: x, home, value)

    def guard(self, ins: Instruction) -> int | None:
        return None if ins.guard is None else self.source(ins.guard, np.bool_, ins)

    def block(self, block: Block) -> Code:
        self.operations = []
        for ins in block.body:
            try:
                self.instruction(ins)
            except (KeyError, IndexError, ValueError, StopIteration) as problem:
                raise PTXError(f"an instruction that this machine does not know: {ins.text} ({problem!r})") from problem
        kind, condition, negated, end = "jump", None, False, block.end
        if end is not None and end.opcode in ("bar", "barrier"):
            kind = "barrier"
            check_barrier(end)
        elif end is not None and end.opcode == "brx":
            kind, condition = "table", self.source(end.operands[0], np.int32, end)
        elif end is not None and end.guard is not None:
            negated = isinstance(end.guard, Negated)
            kind, condition = "branch", self.register(end.guard.register if negated else end.guard)
        names = (block.incoming, block.outgoing)
        incoming, outgoing = (tuple(self.slot(("register", name)) for name in each) for each in names)
        return Code(self.operations, kind, condition, negated, block.targets, incoming, outgoing, block.together, end)

    def instruction(self, ins: Instruction) -> None:
        special = SPECIAL.get(ins.opcode) or (carry if "cc" in ins.modifiers else None)
        if special is not None:
            special(self, ins)
            return
        f, kinds, result = meaning(ins)
        sources = [self.source(x, kind, ins) for x, kind in zip(ins.operands[1:], kinds, strict=True)]
        first, *rest = ins.operands[0].items if isinstance(ins.operands[0], Vector) else ins.operands[:1]
        slot = self.target(first, result, ins)
        self.emit(f, slot, *sources)
        self.finish(slot, first, result, ins)
        if rest:  # setp's p|q: q is the comparison's negation
            slot = self.target(rest[0], result, ins)
            self.emit(lambda *args: ~f(*args), slot, *sources)
            self.finish(slot, rest[0], result, ins)


def check_barrier(end: Instruction) -> None:
    plain = end.modifiers in (("sync",), ("sync", "aligned"), ("cta", "sync"), ("cta", "sync", "aligned"))
    if not plain or end.operands != (Immediate("0"),) or end.guard is not None:
        raise PTXError(f"a barrier that this machine does not know: {end.text}")


def constant(text: str, dtype: type) -> Any:
    if text[:2] in ("0f", "0F", "0d", "0D"):
        bits = int(text[2:], 16)
        value = np.uint32(bits).view(np.float32) if text[1] in "fF" else np.uint64(bits).view(np.float64)
        if np.issubdtype(dtype, np.floating):
            return value.astype(dtype)
        return value.view(f"u{value.dtype.itemsize}").astype(dtype)
    value = integer(text)
    if dtype is np.bool_:
        return np.bool_(value != 0)
    if np.issubdtype(dtype, np.floating):
        return dtype(value)
    size = np.dtype(dtype).itemsize
    return np.frombuffer((value % 2 ** (8 * size)).to_bytes(size, "little"), dtype)[0]


def applied(f: Callable[..., Any], d: int, *sources: int) -> Operation:
    """``registers[d] = f(registers[sources])``."""
    match sources:
        case (a,):

            def one(R: list[Any], lanes: Any) -> None:
                R[d] = f(R[a])

            return one
        case (a, b):

            def two(R: list[Any], lanes: Any) -> None:
                R[d] = f(R[a], R[b])

            return two
        case (a, b, c):

            def three(R: list[Any], lanes: Any) -> None:
                R[d] = f(R[a], R[b], R[c])

            return three

    def many(R: list[Any], lanes: Any) -> None:
        R[d] = f(*(R[s] for s in sources))

    return many


def kept(d: int, value: int, condition: int) -> Operation:
    """``registers[d]`` becomes `value` where `condition` holds."""

    def run(R: list[Any], lanes: Any) -> None:
        p, new, old = R[condition], R[value], R[d]
        if old is None:
            R[d] = new
        elif p.ndim == 0:
            R[d] = new if p else old
        else:
            R[d] = np.where(p, new, old)

    return run


def move(decoder: Decoder, ins: Instruction) -> None:
    """mov: between registers of one width, and to and from their halves."""
    target, source = ins.operands
    if isinstance(source, Vector):
        width = 8 * BYTES[ins.type] // len(source.items)
        part, whole = np.dtype(f"uint{width}").type, np.dtype(f"uint{8 * BYTES[ins.type]}").type
        slots = [decoder.source(x, part, ins) for x in source.items]

        def pack(*parts: Any) -> Any:
            found = parts[0].astype(whole)
            for k, x in enumerate(parts[1:], 1):
                found = found | (x.astype(whole) << whole(k * width))
            return found

        slot = decoder.target(target, whole, ins)
        decoder.emit(pack, slot, *slots)
        decoder.finish(slot, target, whole, ins)
    elif isinstance(target, Vector):
        width = 8 * BYTES[ins.type] // len(target.items)
        part, whole = np.dtype(f"uint{width}").type, np.dtype(f"uint{8 * BYTES[ins.type]}").type
        slot = decoder.source(source, whole, ins)
        parts = []
        for k in range(len(target.items)):
            parts.append(decoder.fresh())
            decoder.emit(lambda x, k=k: (x >> whole(k * width)).astype(part), parts[-1], slot)
        for item, made in zip(target.items, parts, strict=True):
            decoder.finish(made, item, part, ins)
    else:
        kind = decoder.dtype(target)
        decoder.finish(decoder.source(source, kind, ins), target, kind, ins)


WINDOWS = {"global": 0, "const": 0, "param": 0, "shared": SHARED, "local": LOCAL}


def change_space(decoder: Decoder, ins: Instruction) -> None:
    """cvta: between generic addresses and those of a space."""
    to = ins.modifiers[0] == "to"
    window = np.int64(WINDOWS[ins.modifiers[1 if to else 0].removesuffix("::cta")])
    slot = decoder.fresh()
    decoder.emit(
        (lambda x: x - window) if to else (lambda x: x + window), slot, decoder.source(ins.operands[1], np.int64, ins)
    )
    decoder.finish(slot, ins.operands[0], np.int64, ins)


def load(decoder: Decoder, ins: Instruction) -> None:
    where = ins.operands[1]
    items = ins.operands[0].items if isinstance(ins.operands[0], Vector) else ins.operands[:1]
    kind = dtype_of(ins.type)
    if isinstance(where.base, Symbol) and where.base.name in decoder.params:
        slots = [decoder.late_slot(("param", where.base.name, where.offset, ins.type))]
    else:
        slots = [decoder.fresh() for _ in items]
        decoder.operations.append(access.load(ins, kind, *place(decoder, where, ins), slots, decoder.guard(ins)))
    for slot, item in zip(slots, items, strict=True):
        decoder.finish(slot, item, kind, ins)


def place(decoder: Decoder, where: Operand, ins: Instruction) -> tuple[int, Any]:
    if not isinstance(where, Address):
        raise PTXError(f"an address was expected: {ins.text}")
    return decoder.source(where.base, np.int64, ins), np.int64(where.offset)


def store(decoder: Decoder, ins: Instruction) -> None:
    where, value = ins.operands
    items = value.items if isinstance(value, Vector) else (value,)
    kind = dtype_of(ins.type)
    slots = [decoder.source(item, kind, ins) for item in items]
    decoder.operations.append(access.store(ins, kind, *place(decoder, where, ins), slots, decoder.guard(ins)))


def update(decoder: Decoder, ins: Instruction) -> None:
    """atom and red."""
    kind = dtype_of(ins.type)
    if ins.type[0] == "b":
        kind = np.dtype(f"uint{8 * BYTES[ins.type]}").type
    operands = ins.operands if ins.opcode == "red" else ins.operands[1:]
    slots = [decoder.source(x, kind, ins) for x in operands[1:]]
    result = None if ins.opcode == "red" else decoder.fresh()
    decoder.operations.append(
        access.update(ins, kind, *place(decoder, operands[0], ins), slots, result, decoder.guard(ins))
    )
    if result is not None:
        decoder.finish(result, ins.operands[0], kind, ins)


def together(decoder: Decoder, ins: Instruction) -> None:
    """What a warp's lanes do together: `warp` knows it."""
    f, kinds, results = warp.meaning(ins)
    if ins.guard is not None:
        raise PTXError(f"under a predicate this machine does not know: {ins.text}")
    first = ins.operands[0]
    targets = (first.items if isinstance(first, Vector) else (first,)) if results else ()
    operands = ins.operands[1:] if results else ins.operands
    flat = [x for operand in operands for x in (operand.items if isinstance(operand, Vector) else (operand,))]
    sources = [decoder.source(x, kind, ins) for x, kind in zip(flat, kinds, strict=True)]
    slots = [decoder.fresh() for _ in targets]

    def run(R: list[Any], lanes: Any) -> None:
        found = f(lanes, ins, *(R[s] for s in sources))
        for slot, value in zip(slots, found, strict=False):
            R[slot] = value

    decoder.operations.append(run)
    for slot, item, kind in zip(slots, targets, results, strict=False):
        decoder.finish(slot, item, kind, ins)


def carry(decoder: Decoder, ins: Instruction) -> None:
    """add.cc, addc and their like: the carry is a register without a name, used within a block."""
    f, kinds, kind = bits.carried(ins)
    flag, none = decoder.slot("carry"), decoder.slot("no carry", np.bool_(False))
    sources = [decoder.source(x, kind, ins) for x, kind in zip(ins.operands[1:], kinds, strict=True)]
    sources.append(flag if ins.opcode.endswith("c") else none)
    slot = decoder.fresh()

    def run(R: list[Any], lanes: Any) -> None:
        R[slot], carried = f(*(R[s] for s in sources))
        if "cc" in ins.modifiers:
            R[flag] = carried

    decoder.operations.append(run)
    decoder.finish(slot, ins.operands[0], kind, ins)


def trap(decoder: Decoder, ins: Instruction) -> None:
    guard = decoder.guard(ins)

    def run(R: list[Any], lanes: Any) -> None:
        reached = lanes.narrowed(None if guard is None else R[guard])
        if len(reached):
            lanes.reach.fail(ins, lanes.ids[reached[0]], "the kernel stopped itself")

    decoder.operations.append(run)


def nothing(decoder: Decoder, ins: Instruction) -> None:
    """Fences and hints: this machine runs every access at once, in order."""


SPECIAL: dict[str, Callable[[Decoder, Instruction], None]] = {
    "mov": move,
    "cvta": change_space,
    "ld": load,
    "ldu": load,
    "st": store,
    "atom": update,
    "red": update,
    "trap": trap,
    **dict.fromkeys(("addc", "subc", "madc"), carry),
    **dict.fromkeys(("bar", "shfl", "vote", "match", "activemask", "redux", "mma"), together),
    **dict.fromkeys(("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard"), nothing),
}
