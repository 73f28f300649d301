"""How lanes flow through a kernel: device functions inlined, basic blocks, and the registers that outlive them.

Blocks keep the text's order, so that "run the lowest block that has lanes waiting" brings divergent lanes together
again. A register that lives only inside a block needs no care when lanes part: no other lane can want its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.cuda.ptx import (
    BYTES,
    Address,
    Function,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    PTXError,
    Register,
    Symbol,
    Variable,
    Vector,
)

ENDS = {"bra", "brx", "ret", "exit", "bar", "barrier"}
WARP = {"shfl", "vote", "match", "mma", "activemask", "redux", "ldmatrix"}  # what lanes do together
NO_TARGET = {"st", "red", "bra", "brx", "ret", "exit", "trap", "membar", "fence", "prefetch", "prefetchu", "barrier"}
NO_TARGET |= {"bar", "cp", "griddepcontrol", "nanosleep", "brkpt", "pmevent", "discard", "applypriority"}


@dataclass(frozen=True)
class Block:
    """`body` runs from top to bottom; `end` says where its lanes go: `after` is the next block in the text.

    incoming and outgoing: the registers that live on entry, and those that it sets and that live on after it.
    together: lanes of a warp act together in it, so it waits for a warp's other lanes.
    """

    body: tuple[Instruction, ...]
    end: Instruction | None
    targets: tuple[int, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    together: bool


@dataclass(frozen=True)
class Flow:
    """A kernel: its blocks, its registers' types, its variables."""

    name: str
    params: tuple[Variable, ...]
    registers: dict[str, str]
    variables: tuple[Variable, ...]
    blocks: tuple[Block, ...]
    required: int  # threads of a CTA, 0 for any number
    most: int


def flow(module: Module, name: str) -> Flow:
    """The entry `name` of `module`, ready to decode."""
    kernel = module.functions.get(name)
    if kernel is None or not kernel.entry:
        raise PTXError(f"no entry {name}: the module has {', '.join(module.functions) or 'none'}")
    inliner = Inliner(module)
    lines = inliner.lines(kernel, "", {})
    shared = tuple(v for v in module.variables if v.space == "shared")
    variables = (*shared, *inliner.variables)
    parts = blocks(lines, inliner.tables)
    return Flow(name, kernel.params, inliner.registers, variables, parts, kernel.required, kernel.most)


class Inliner:
    """Calls replaced by the called functions' text, parameters by registers."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.registers: dict[str, str] = {}
        self.variables: list[Variable] = []
        self.tables: dict[str, tuple[str, ...]] = {}
        self.calls = 0

    def lines(self, f: Function, prefix: str, bound: dict[str, str]) -> list[Instruction | Label]:
        """`f`'s text with its names behind `prefix`; `bound`: parameter -> the caller's variable."""
        if prefix.count("/") > 20:
            raise PTXError(f"{f.name} calls itself: recursion is not interpreted")
        self.registers.update({prefix + name: kind for name, kind in f.registers.items()})
        own = {v.name for v in f.variables}
        self.variables += [replace(v, name=prefix + v.name) for v in f.variables if v.space != "param"]
        self.tables.update({prefix + k: tuple(prefix + x for x in v) for k, v in f.tables.items()})
        names = {name: prefix + name for name in own} | bound
        labels = {x.name for x in f.body if isinstance(x, Label)} | set(f.tables)
        found: list[Instruction | Label] = []
        for line in f.body:
            if isinstance(line, Label):
                found.append(Label(prefix + line.name))
                continue
            ins = renamed(line, labels, prefix, names) if prefix else line
            if ins.opcode == "call":
                found += self.call(ins, prefix)
            elif prefix and ins.opcode == "ret":
                back = (Symbol(f"{prefix}return"),)
                found.append(replace(ins, opcode="bra", modifiers=(), operands=back))
            elif ins.opcode in ("ld", "st") and ins.modifiers[0] == "param" and not self.is_kernels(ins, f):
                found += self.parameter(ins)
            else:
                found.append(ins)
        return found

    def is_kernels(self, ins: Instruction, f: Function) -> bool:
        where = next(x for x in ins.operands if isinstance(x, Address))
        return f.entry and where.base in {Symbol(p.name) for p in f.params}

    def parameter(self, ins: Instruction) -> Iterator[Instruction]:
        """ld.param and st.param of a call as moves from and to registers named after the place."""
        target, source = ins.operands
        where, other = (source, target) if ins.opcode == "ld" else (target, source)
        size, items = BYTES[ins.type], other.items if isinstance(other, Vector) else (other,)
        for k, item in enumerate(items):
            place = Register(f"{where.base.name}+{where.offset + k * size}")
            self.registers.setdefault(place.name, f"b{8 * size}")
            operands = (item, place) if ins.opcode == "ld" else (place, item)
            yield replace(ins, opcode="mov", modifiers=(ins.type,), operands=operands)

    def call(self, ins: Instruction, prefix: str) -> list[Instruction | Label]:
        if ins.guard is not None:
            raise PTXError(f"a call under a predicate is not interpreted: {ins.text}")
        lists = [x.items for x in ins.operands if isinstance(x, Vector)]
        name = next(x.name for x in ins.operands if isinstance(x, Symbol)).removeprefix(prefix)
        callee = self.module.functions.get(name)
        if callee is None:
            raise PTXError(f"a call of {name}, which the module does not define: {ins.text}")
        results = lists[0] if callee.results else ()
        args = lists[-1] if callee.params else ()
        pairs = zip((*callee.results, *callee.params), (*results, *args), strict=True)
        self.calls += 1
        inner = f"{prefix}{name}#{self.calls}/"
        bound = {formal.name: actual.name for formal, actual in pairs}
        return [*self.lines(callee, inner, bound), Label(f"{inner}return")]


def renamed(ins: Instruction, labels: set[str], prefix: str, names: dict[str, str]) -> Instruction:
    """`ins` with registers, `labels` and variables (`names`: old -> new) behind `prefix`."""

    def new(x: Operand) -> Operand:
        match x:
            case Register(name):
                return Register(prefix + name)
            case Negated(register):
                return Negated(Register(prefix + register.name))
            case Symbol(name, offset):
                return Symbol(prefix + name if name in labels else names.get(name, name), offset)
            case Address(base, offset):
                return Address(new(base), offset)
            case Vector(items):
                return Vector(tuple(map(new, items)))
        return x

    return replace(ins, operands=tuple(map(new, ins.operands)), guard=new(ins.guard) if ins.guard else None)


def is_end(ins: Instruction) -> bool:
    return ins.opcode in ENDS and ins.modifiers[:1] != ("warp",)


def blocks(lines: list[Instruction | Label], tables: dict[str, tuple[str, ...]]) -> tuple[Block, ...]:
    """The basic blocks of `lines`; block number len(blocks) is the exit."""
    bodies: list[list[Instruction]] = [[]]
    ends: list[Instruction | None] = [None]
    labels: dict[str, int] = {}
    for line in lines:
        if isinstance(line, Label):
            if bodies[-1]:
                bodies.append([])
                ends.append(None)
            labels[line.name] = len(bodies) - 1
        elif is_end(line):
            ends[-1] = line
            bodies.append([])
            ends.append(None)
        else:
            bodies[-1].append(line)
    targets = [successors(k, end, labels, tables, len(bodies)) for k, end in enumerate(ends)]
    incoming = liveness(bodies, ends, targets)
    incoming.append(frozenset())
    return tuple(
        Block(
            tuple(body),
            end,
            onward,
            tuple(sorted(incoming[k])),
            tuple(sorted(set().union(*(incoming[t] for t in onward)) & set().union(*map(written, body)))),
            any(ins.opcode in WARP or ins.modifiers[:1] == ("warp",) for ins in body),
        )
        for k, (body, end, onward) in enumerate(zip(bodies, ends, targets, strict=True))
    )


def successors(k: int, end: Instruction | None, labels: dict, tables: dict, count: int) -> tuple[int, ...]:
    """For a branch under a predicate: (taken, not taken)."""
    if end is None or end.opcode in ("bar", "barrier"):
        return (k + 1,)
    if end.opcode == "brx":
        return tuple(labels[name] for name in tables[end.operands[-1].name])
    target = labels[end.operands[-1].name] if end.opcode == "bra" else count
    return (target,) if end.guard is None else (target, k + 1)


def registers_in(x: Operand | None) -> Iterator[str]:
    match x:
        case Register(name) | Negated(Register(name)):
            yield name
        case Address(base, _):
            yield from registers_in(base)
        case Vector(items):
            for item in items:
                yield from registers_in(item)


def written(ins: Instruction) -> set[str]:
    return set() if ins.opcode in NO_TARGET or not ins.operands else set(registers_in(ins.operands[0]))


def read(ins: Instruction) -> set[str]:
    """A target under a predicate is read too: it may keep its value."""
    sources = ins.operands if ins.opcode in NO_TARGET or ins.guard is not None else ins.operands[1:]
    return set(registers_in(ins.guard)).union(*map(registers_in, sources))


def liveness(bodies: list, ends: list, targets: list) -> list[frozenset[str]]:
    """The registers that live on entry to each block: a backward fixed point."""
    uses, defines = [], []
    for body, end in zip(bodies, ends, strict=True):
        live: set[str] = read(end) if end else set()
        gone: set[str] = set()
        for ins in reversed(body):
            live = (live - written(ins)) | read(ins)
            gone |= written(ins) if ins.guard is None else set()
        uses.append(frozenset(live))
        defines.append(frozenset(gone))
    live_in = [*uses, frozenset()]
    changed = True
    while changed:
        changed = False
        for k in reversed(range(len(bodies))):
            onward = frozenset().union(*(live_in[t] for t in targets[k]))
            found = uses[k] | (onward - defines[k])
            changed |= found != live_in[k]
            live_in[k] = found
    return live_in[:-1]
