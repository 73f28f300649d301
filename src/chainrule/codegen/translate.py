"""From a kernel's syntax tree to LLVM instructions: statements here, each operation as Numba types and emits it.

A kernel's source is loops over ranges, assignments, choices, operators and calls of our own functions: its tree needs
one walk. Numba's way to the same instructions (bytecode, static single assignment, inference to a fixed point,
liveness four times) takes ten times as long. A variable has the type of its first value; each operator and function
is typed once for each row of argument types.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

from llvmlite import ir
from numba.core import types

from chainrule.codegen.view import View, element_at

I64 = ir.IntType(64)
PLACES = ir.LiteralStructType([I64.as_pointer(), I64.as_pointer()])
ZERO, ONE = ir.Constant(I64, 0), ir.Constant(I64, 1)

plain, tuple_of = types.unliteral, types.Tuple  # type: ignore[attr-defined]
literal_of = lru_cache(4096, typed=True)(types.literal)  # type: ignore[attr-defined]

Operator = Callable[..., Any]

BINARY: dict[type[ast.operator], Operator] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
UNARY: dict[type[ast.unaryop], Operator] = {ast.USub: operator.neg, ast.Not: operator.not_, ast.Invert: operator.invert}
COMPARE: dict[type[ast.cmpop], Operator] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Untranslatable(TypeError):
    """A construct or a combination of types that no kernel has."""


@dataclass(frozen=True)
class Value:
    """A value in LLVM with its Numba type."""

    kind: types.Type
    value: Any


@dataclass
class Block:
    """Variables that a loop's body or a branch assigns, and those that it reads as they were before it."""

    assigned: set[str] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)


@dataclass
class Translation:
    """One kernel under construction."""

    context: Any  # Numba's, which knows how operations are emitted
    names: Mapping[str, Any]  # what source can name beside its own variables, its own functions too
    builder: ir.IRBuilder
    slots: ir.IRBuilder  # at the end of the entry block: one slot for each variable
    given: dict[str, Value]
    variables: dict[str, Value] = field(default_factory=dict)  # the value is the slot's address
    blocks: list[Block] = field(default_factory=list)  # those that are open, of loops and branches

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, s: ast.stmt) -> None:
        match s:
            case ast.Assign([ast.Name(name)], value):
                self.assign(name, self.expression(value))
            case ast.Assign([ast.Tuple(names)], value):
                self.unpack(names, self.expression(value))
            case ast.Assign([ast.Subscript(target, index)], value):
                stored = self.expression(value)
                self.write(self.element(target, index), stored)
            case ast.AugAssign(ast.Name(name) as target, op, value):
                read = self.expression(ast.Name(target.id, ast.Load()))
                self.assign(name, self.apply(BINARY[type(op)], read, self.expression(value)))
            case ast.AugAssign(ast.Subscript(target, index), op, value):
                place = self.element(target, index)
                self.write(place, self.apply(BINARY[type(op)], self.at(place), self.expression(value)))
            case ast.For(ast.Name(name), ast.Call(ast.Name("range"), bounds, []), body, []):
                self.loop(name, bounds, body)
            case ast.If(test, body, other):
                self.choose(test, body, other)
            case ast.Expr(ast.Call() as call):
                self.expression(call)
            case ast.Pass():
                pass
            case _:
                raise Untranslatable(f"no kernel has a statement such as: {ast.unparse(s)}")

    def expression(self, e: ast.expr) -> Value:
        if (number := literal(e)) is not None:
            return self.constant(number)
        match e:
            case ast.Name(name):
                return self.read(name)
            case ast.BinOp(left, op, right):
                return self.apply(BINARY[type(op)], self.expression(left), self.expression(right))
            case ast.UnaryOp(op, value) if type(op) in UNARY:
                return self.apply(UNARY[type(op)], self.expression(value))
            case ast.Compare(left, [op], [right]) if type(op) in COMPARE:
                return self.apply(COMPARE[type(op)], self.expression(left), self.expression(right))
            case ast.Call(ast.Name(name), arguments, []):
                if name in self.variables or name in self.given or name not in self.names:
                    raise Untranslatable(f"{name} is no function of ours")
                if isinstance(own := self.names[name], ast.FunctionDef):
                    return self.inlined(own, [self.expression(a) for a in arguments])
                return self.apply(self.names[name], *map(self.expression, arguments))
            case ast.Subscript(target, index):
                return self.at(self.element(target, index))
            case ast.Tuple(parts):
                values = [self.expression(part) for part in parts]
                kind = tuple_of([plain(v.kind) for v in values])
                return Value(kind, self.context.make_tuple(self.builder, kind, [v.value for v in values]))
            case ast.IfExp(test, value, other):
                return self.choice(test, value, other)
            case _:
                raise Untranslatable(f"no kernel has an expression such as: {ast.unparse(e)}")

    def inlined(self, function: ast.FunctionDef, values: Sequence[Value]) -> Value:
        """The value that `function`, straight-line code, returns of `values`."""
        given = {a.arg: v for a, v in zip(function.args.args, values, strict=True)}
        inside = replace(self, given=given, variables={}, blocks=[])
        *steps, last = function.body
        inside.statements(steps)
        if not isinstance(last, ast.Return) or last.value is None:
            raise Untranslatable(f"{function.name} returns nothing")
        return inside.expression(last.value)

    def constant(self, number: bool | int | float) -> Value:
        kind = literal_of(number) if isinstance(number, int) else types.float64
        return Value(kind, self.context.get_constant(plain(kind), number))

    def read(self, name: str) -> Value:
        if name in self.variables:
            for block in reversed(self.blocks):
                if name in block.assigned:
                    break
                block.exposed.add(name)
            slot = self.variables[name]
            return Value(slot.kind, self.builder.load(slot.value))
        if name in self.given:
            return self.given[name]
        if isinstance(self.names.get(name), float):  # inf and nan
            return self.constant(self.names[name])
        raise Untranslatable(f"{name} is read before it has a value")

    def assign(self, name: str, value: Value) -> None:
        """Store `value`. Another type than before makes it another variable of the same name, as long as no value can
        come from the one into the other: around a loop, or from a branch.
        """
        if name in self.given:
            raise Untranslatable(f"the parameter {name} is assigned to")
        kind, known = plain(value.kind), self.variables.get(name)
        if known is not None and known.kind != kind and any(name in block.exposed for block in self.blocks):
            raise Untranslatable(f"{name} is {known.kind}, and becomes {kind}")
        if known is None or known.kind != kind:
            self.variables[name] = Value(kind, self.slot(self.context.get_value_type(kind)))
        if self.blocks:
            self.blocks[-1].assigned.add(name)
        self.builder.store(value.value, self.variables[name].value)

    def unpack(self, names: Sequence[ast.expr], value: Value) -> None:
        """``a, b = value``, each part to its name."""
        kinds = getattr(value.kind, "types", ())
        if len(kinds) != len(names):
            raise Untranslatable(f"{len(names)} names for the {len(kinds)} parts of a {value.kind}")
        for k, (target, kind) in enumerate(zip(names, kinds, strict=True)):
            if not isinstance(target, ast.Name):
                raise Untranslatable(f"no kernel unpacks into {ast.unparse(target)}")
            self.assign(target.id, Value(kind, self.builder.extract_value(value.value, k)))

    @contextmanager
    def inside(self, block: ir.Block) -> Iterator[None]:
        """What follows stands in `block`, a loop's or a branch's: what it makes of another type is unknown after it."""
        before = dict(self.variables)
        self.builder.position_at_end(block)
        self.blocks.append(Block())
        yield
        self.blocks.pop()
        for name, slot in before.items():
            if self.variables.get(name) is not slot:
                self.variables.pop(name, None)

    def element(self, target: ast.expr, index: ast.expr) -> Value:
        """The address of ``target[index]``, of the element's type."""
        view = self.expression(target)
        if not isinstance(view.kind, View):
            raise Untranslatable(f"{ast.unparse(target)} is no view")
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        places = [self.cast(self.expression(part), types.int64) for part in parts]
        whole = isinstance(index, ast.Tuple)
        return Value(view.kind.element, element_at(self.builder, view.kind, view.value, places, whole))

    def at(self, place: Value) -> Value:
        return Value(place.kind, self.context.unpack_value(self.builder, place.kind, place.value))

    def write(self, place: Value, value: Value) -> None:
        self.context.pack_value(self.builder, place.kind, self.cast(value, place.kind), place.value)

    def slot(self, kind: ir.Type) -> ir.Value:
        """Memory for one value, which LLVM turns into a register."""
        self.slots.position_at_end(self.slots.function.entry_basic_block)
        return self.slots.alloca(kind)

    def apply(self, function: Operator, *values: Value) -> Value:
        """`function` of `values`, each cast to the type that it asks for."""
        signature, emit = typed(self.context, function, tuple(v.kind for v in values))
        given = [self.cast(v, kind) for v, kind in zip(values, signature.args, strict=True)]
        return Value(signature.return_type, emit(self.builder, given))

    def cast(self, v: Value, kind: types.Type) -> Any:
        of = plain(v.kind)
        return v.value if of == plain(kind) else self.context.cast(self.builder, v.value, of, kind)

    def truth(self, e: ast.expr) -> ir.Value:
        return self.cast(self.expression(e), types.boolean)

    def choose(self, test: ast.expr, body: Sequence[ast.stmt], other: Sequence[ast.stmt]) -> None:
        """``if test: body``, and ``else: other``."""
        b, condition, start = self.builder, self.truth(test), self.builder.block
        firsts, lasts = [], []
        for branch in (body, other):
            firsts.append(b.append_basic_block())
            with self.inside(firsts[-1]):
                self.statements(branch)
            lasts.append(b.block)
        end = b.append_basic_block()
        for last in lasts:
            self.go(last, end)
        b.position_at_end(start)
        b.cbranch(condition, *firsts)
        b.position_at_end(end)

    def go(self, last: ir.Block, to: ir.Block) -> None:
        """From the end of one block to another, unless it ends otherwise."""
        if not last.is_terminated:
            ir.IRBuilder(last).branch(to)

    def choice(self, test: ast.expr, value: ast.expr, other: ast.expr) -> Value:
        """One of two values; the other one is not computed."""
        b, condition, start = self.builder, self.truth(test), self.builder.block
        firsts, found = [], []
        for chosen in (value, other):
            firsts.append(b.append_basic_block())
            b.position_at_end(firsts[-1])
            found.append((self.expression(chosen), b.block))
        kind = plain(found[0][0].kind)
        if kind != plain(found[1][0].kind):
            raise Untranslatable(f"{ast.unparse(value)} and {ast.unparse(other)} have different types")
        b.position_at_end(start)
        b.cbranch(condition, *firsts)
        slot, end = self.slot(self.context.get_value_type(kind)), b.append_basic_block()
        for made, last in found:
            at = ir.IRBuilder(last)
            at.store(made.value, slot)
            at.branch(end)
        b.position_at_end(end)
        return Value(kind, b.load(slot))

    def loop(self, name: str, bounds: Sequence[ast.expr], body: Sequence[ast.stmt]) -> None:
        """``for name in range(...)``: a count goes down, a value goes up.

        Both are reached through a value that holds their addresses, as in Numba's ranges, so that LLVM learns a loop's
        known length only after its first passes. Told at once, it unrolls the loops around tiles, and kernels of
        products become half as long again.
        """
        b = self.builder
        count, value, places = self.slot(I64), self.slot(I64), self.slot(PLACES)
        start, step = self.start(bounds, count)
        b.store(start, value)
        b.store(b.insert_value(b.insert_value(ir.Constant(PLACES, ir.Undefined), count, 0), value, 1), places)
        head = b.append_basic_block()
        b.branch(head)
        b.position_at_end(head)
        both = b.load(places)
        count, value = b.extract_value(both, 0), b.extract_value(both, 1)
        left = b.load(count)
        more, first = b.icmp_signed(">", left, ZERO), b.append_basic_block()
        with self.inside(first):
            now = b.load(value)
            b.store(b.sub(left, ONE, flags=("nsw",)), count)
            b.store(b.add(now, step), value)
            self.assign(name, Value(types.int64, now))
            self.statements(body)
            self.go(b.block, head)
        end = b.append_basic_block()
        b.position_at_end(head)
        b.cbranch(more, first, end)
        b.position_at_end(end)

    def start(self, bounds: Sequence[ast.expr], count: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Where a range starts, and its step; how many values it has goes to `count`, in Numba's way."""
        number = literal(bounds[2]) if len(bounds) == 3 else 1
        if not isinstance(number, int) or number < 1 or len(bounds) > 3:
            raise Untranslatable("a range's step is a positive number")
        b, step = self.builder, ir.Constant(I64, number)
        *first, stop = [self.cast(self.expression(bound), types.int64) for bound in bounds[:2]]
        start = first[0] if first else ZERO
        distance = b.sub(stop, start)
        some = b.icmp_signed(">", distance, ZERO)
        with b.if_else(some) as (then, otherwise):
            with then:
                uneven = b.icmp_signed(">", b.srem(distance, step), ZERO)
                b.store(b.add(b.sdiv(distance, step), b.select(uneven, ONE, ZERO)), count)
            with otherwise:
                b.store(ZERO, count)
        return start, step


def literal(e: ast.expr) -> bool | int | float | None:
    """The number that `e` is, if it is written out."""
    match e:
        case ast.Constant(bool() | int() | float() as number):
            return number
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case _:
            return None


@cache
def typed(context: Any, function: Operator, kinds: tuple[types.Type, ...]) -> tuple[Any, Callable[..., Any]]:
    """The signature that Numba finds for `function` of these types, and what emits it. Raises numba's TypingError."""
    known = context.typing_context.resolve_value_type(function)
    signature = known.get_call_type(context.typing_context, kinds, {})
    return signature, context.get_function(known, signature)
