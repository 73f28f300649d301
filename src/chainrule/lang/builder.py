"""What the parser makes of each rule: the nodes of the tree, their spans, and the limits on them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeVar

import lark
from lark.visitors import Transformer_NonRecursive

from chainrule.errors import SourceError, Span
from chainrule.lang import scan
from chainrule.lang import syntax as s

_WORDS = """
    model layer fn optimizer init law use dim input param state scalar random let repeat as output stop where if then
    else and or not sum prod max min argmax argmin mean any all true false inf nan pi training size from fixed_point
    within steps
"""
RESERVED = frozenset(_WORDS.split())
"""The words that no tensor, index, size or layer may be called."""

_LETTERS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon phi
    chi psi omega
"""
_GREEK = _LETTERS.split()
GREEK = {chr(0x3B1 + k): name for k, name in enumerate(_GREEK)}
GREEK |= {chr(0x391 + k): name.capitalize() for k, name in enumerate(_GREEK) if k != 17}

Node = TypeVar("Node")


class Text:
    """What is being parsed: where its spans point, and how much of the limits is used."""

    def __init__(self, text: str, file: str, at: Span | None = None) -> None:
        self.text, self.file, self.at = text, file, at
        self.lines = text.split("\n")
        self.limit = scan.FORMULAS if text.startswith(scan.PRINTED) else scan.STATEMENTS
        self.statements = 0
        self.weights: dict[int, tuple[int, int]] = {}  # of each node: its depth, its number of nodes

    def span(self, line: int, column: int, end_line: int, end_column: int) -> Span:
        shown = self.lines[line - 1] if line <= len(self.lines) else ""
        # a span of several lines shows the first
        end = end_column if end_line == line else len(shown) + 1
        span = Span(self.file, line, column, max(end - column, 1), shown)
        return span if self.at is None else replace(span, file=self.at.file, line=self.at.line + line - 1)


@lark.v_args(meta=True)
class Builder(Transformer_NonRecursive):  # type: ignore[type-arg]
    """Each rule's node, made from the leaves up with a stack of its own: deep input overflows nothing."""

    def __init__(self, source: Text) -> None:
        super().__init__(visit_tokens=False)
        self.source = source

    # ------------------------------------------------------------ helpers

    def at(self, meta: Any) -> Span:
        return self.source.span(meta.line, meta.column, meta.end_line, meta.end_column)

    def of(self, token: Any) -> Span:
        return self.source.span(token.line, token.column, token.end_line, token.end_column)

    def name(self, token: lark.Token, free: bool = False) -> str:
        """The token's name in ASCII; `free`: it is being given to something, so it may not be reserved."""
        name = str(token)
        if not name.isascii():
            if unknown := [c for c in name if not c.isascii() and c not in GREEK]:
                raise SourceError(self.of(token), f"'{unknown[0]}' cannot stand in a name", (), "use ASCII letters")
            name = "".join(GREEK.get(c, c) for c in name)
        if free and (name in RESERVED or name == "_"):
            raise SourceError(self.of(token), f"'{name}' is a reserved word", (), f"call it '{name}_'" * (name != "_"))
        if free and name.startswith("_"):
            way_out = f"call it '{name.lstrip('_') or 'x'}'"
            raise SourceError(self.of(token), "a name may not start with an underscore", (), way_out)
        if len(name) > 240:
            raise SourceError(self.of(token), "a name of more than 240 characters", (), "shorten it")
        return name

    def plain(self, token: lark.Token) -> str:
        name = self.name(token, free=True)
        if "." in name:
            raise SourceError(self.of(token), f"'{name}' has a dot: only tensors' names do", (), "leave the dot out")
        return name

    def node(self, made: Node, *parts: Any) -> Node:
        """`made`, if it is not too deep or large; `parts`: the nodes right below it."""
        weights = self.source.weights
        below = [weights.get(id(part), (0, 0)) for part in parts]
        depth, size = 1 + max((d for d, _ in below), default=0), 1 + sum(n for _, n in below)
        if depth > scan.NESTING or size > scan.NODES:
            limit = f"nests deeper than {scan.NESTING}" if depth > scan.NESTING else f"has more than {scan.NODES} nodes"
            span: Span = made.span  # type: ignore[attr-defined]
            raise SourceError(span, f"the expression {limit}", (), "give a part of it a name of its own")
        weights[id(made)] = depth, size
        return made

    def ranked(self, meta: Any, items: list[Any]) -> tuple[Any, ...]:
        if len(items) > scan.RANK:
            raise SourceError(self.at(meta), f"more than {scan.RANK} axes", (), "put some axes together")
        return tuple(items)

    def statement(self, made: Node, meta: Any) -> Node:
        self.source.statements += 1
        if self.source.statements > self.source.limit:
            problem = f"more than {self.source.limit:,} statements"
            raise SourceError(self.at(meta), problem, (), "use repeat, or a layer")
        return made

    # ------------------------------------------------------------ expressions

    def number(self, meta: Any, c: list[Any]) -> s.Number:
        text = str(c[0])
        mantissa, _, exponent = text.lower().partition("e")
        span = self.of(c[0])
        if len(mantissa) - mantissa.count(".") > scan.DIGITS:
            raise SourceError(span, f"a number of more than {scan.DIGITS} digits", (), "a double keeps 17")
        if len(exponent) > 5 or abs(int(exponent or "0")) > scan.EXPONENT:
            raise SourceError(span, f"an exponent beyond {scan.EXPONENT}", (), "a double ends at 1e308")
        return self.node(s.Number(Fraction(text), span))

    def path(self, meta: Any, c: list[Any]) -> s.Name:
        return self.node(s.Name(self.name(c[0]), self.of(c[0])))

    def star(self, meta: Any, c: list[Any]) -> s.Star:
        return s.Star(self.of(c[0]))

    def argument(self, meta: Any, c: list[Any]) -> s.Argument:
        return self.node(s.Argument(None, c[0], self.at(meta)), c[0])

    def named_argument(self, meta: Any, c: list[Any]) -> s.Argument:
        return self.node(s.Argument(self.name(c[0]), c[1], self.at(meta)), c[1])

    def call(self, meta: Any, c: list[Any]) -> s.Call:
        arguments = tuple(a for a in c[1:] if a is not None)
        return self.node(s.Call(self.name(c[0]), arguments, self.at(meta)), *arguments)

    def distribution(self, meta: Any, c: list[Any]) -> s.Call:
        return self.call(meta, c)

    def indexed(self, meta: Any, c: list[Any]) -> s.Indexed:
        base, *indices, outside = c
        ranked = self.ranked(meta, indices)
        return self.node(s.Indexed(base, ranked, outside, self.at(meta)), *c)

    def sum(self, meta: Any, c: list[Any]) -> s.Sum:
        signs = [1] + [1 if token == "+" else -1 for token in c[1::2]]
        return self.node(s.Sum(tuple(zip(signs, c[::2], strict=True)), self.at(meta)), *c[::2])

    def product(self, meta: Any, c: list[Any]) -> s.Product:
        signs = ["*"] + [str(token) for token in c[1::2]]
        return self.node(s.Product(tuple(zip(signs, c[::2], strict=True)), self.at(meta)), *c[::2])

    def negate(self, meta: Any, c: list[Any]) -> s.Negate:
        return self.node(s.Negate(c[1], self.at(meta)), c[1])

    negated_reduction = negate

    def power(self, meta: Any, c: list[Any]) -> s.Power:
        return self.node(s.Power(c[0], c[1], self.at(meta)), *c)

    def compare(self, meta: Any, c: list[Any]) -> s.Compare:
        return self.node(s.Compare(str(c[1]), c[0], c[2], self.at(meta)), c[0], c[2])

    def conjunction(self, meta: Any, c: list[Any]) -> s.Junction:
        return self.node(s.Junction("and", tuple(c), self.at(meta)), *c)

    def disjunction(self, meta: Any, c: list[Any]) -> s.Junction:
        return self.node(s.Junction("or", tuple(c), self.at(meta)), *c)

    def negation(self, meta: Any, c: list[Any]) -> s.Not:
        return self.node(s.Not(c[0], self.at(meta)), c[0])

    def choice(self, meta: Any, c: list[Any]) -> s.Choice:
        return self.node(s.Choice(c[0], c[1], c[2], self.at(meta)), *c)

    def range(self, meta: Any, c: list[Any]) -> s.Range:
        name = "*" if c[0] == "*" else self.plain(c[0])
        return self.node(s.Range(name, c[1] if len(c) > 1 else None, self.at(meta)), *c[1:])

    def reduction(self, meta: Any, c: list[Any]) -> s.Reduction:
        kind, *over, where, body = c
        ranked = self.ranked(meta, over)
        return self.node(s.Reduction(str(kind), ranked, where, body, self.at(meta)), *over, where, body)

    # ------------------------------------------------------------ statements

    def left(self, meta: Any, c: list[Any]) -> s.Left:
        axes = None if c[1] is None else self.ranked(meta, c[1:])
        return s.Left(self.name(c[0], free=True), axes, self.at(meta))

    def type(self, meta: Any, c: list[Any]) -> s.Type:
        return s.Type(self.name(c[0]), c[1], self.at(meta))

    def axes(self, meta: Any, c: list[Any]) -> tuple[Any, ...]:
        return self.ranked(meta, c)

    def declaration(self, meta: Any, c: list[Any]) -> s.Declaration:
        return s.Declaration(self.name(c[0], free=True), c[1] or (), self.at(meta))

    def dim_free(self, meta: Any, c: list[Any]) -> s.DimStatement:
        name, span = self.name(c[0], free=True), self.at(meta)
        if c[1] is None:
            return self.statement(s.DimStatement(name, None, None, None, span), meta)
        low, high = (c[2], None) if c[1] == ">=" else (None, c[2])
        return self.statement(s.DimStatement(name, low, high, None, span), meta)

    def dim_between(self, meta: Any, c: list[Any]) -> s.DimStatement:
        low, name, high = c[0], self.name(c[2], free=True), c[4]
        return self.statement(s.DimStatement(name, low, high, None, self.at(meta)), meta)

    def dim_defined(self, meta: Any, c: list[Any]) -> s.DimStatement:
        name = self.name(c[0], free=True)
        return self.statement(s.DimStatement(name, None, None, c[1], self.at(meta)), meta)

    def dim(self, meta: Any, c: list[Any]) -> tuple[s.DimStatement, ...]:
        return tuple(c)

    def input(self, meta: Any, c: list[Any]) -> s.InputStatement:
        return self.statement(s.InputStatement(c[0], c[1], self.at(meta)), meta)

    def param(self, meta: Any, c: list[Any]) -> s.ParamStatement:
        return self.statement(s.ParamStatement(c[0], c[1], self.at(meta)), meta)

    def state(self, meta: Any, c: list[Any]) -> s.StateStatement:
        return self.statement(s.StateStatement(c[0], c[1], self.at(meta)), meta)

    def scalar(self, meta: Any, c: list[Any]) -> s.ScalarStatement:
        return self.statement(s.ScalarStatement(self.name(c[0], free=True), c[1], self.at(meta)), meta)

    def random(self, meta: Any, c: list[Any]) -> s.RandomStatement:
        return self.statement(s.RandomStatement(c[0], c[1], self.at(meta)), meta)

    def let(self, meta: Any, c: list[Any]) -> s.LetStatement:
        return self.statement(s.LetStatement(self.plain(c[0]), c[1], self.at(meta)), meta)

    def define(self, meta: Any, c: list[Any]) -> s.Define:
        word, left, kind, value, where = c
        made = s.Define(left, kind, value, where, word == "stop", word == "output", self.at(meta))
        return self.statement(made, meta)

    def update(self, meta: Any, c: list[Any]) -> s.UpdateStatement:
        return self.statement(s.UpdateStatement(c[0], c[1], c[2], self.at(meta)), meta)

    def repeat(self, meta: Any, c: list[Any]) -> s.RepeatStatement:
        count, index, body = c
        name = None if index is None else self.plain(index)
        span = self.source.span(meta.line, meta.column, meta.line, meta.column + len("repeat"))
        return self.statement(s.RepeatStatement(count, name, body, span), meta)

    def output(self, meta: Any, c: list[Any]) -> s.OutputStatement:
        names = tuple(name for name in c[1:] if name is not None)
        return self.statement(s.OutputStatement(names, self.at(meta)), meta)

    def fixed_point(self, meta: Any, c: list[Any]) -> s.FixedPoint:
        span = self.source.span(meta.line, meta.column, meta.line, meta.column + len("fixed_point"))
        return self.statement(s.FixedPoint(c[0], c[1], c[2], c[3], c[4], None, span), meta)

    def fixed_point_of(self, meta: Any, c: list[Any]) -> s.FixedPoint:
        return self.statement(s.FixedPoint(c[0], c[2], c[3], c[4], (), str(c[1]), self.at(meta)), meta)

    # ------------------------------------------------------------ definitions

    def block(self, meta: Any, c: list[Any]) -> tuple[s.Statement, ...]:
        flat: list[s.Statement] = []
        for item in c:
            flat.extend(item if isinstance(item, tuple) else (item,))
        return tuple(flat)

    def parameter(self, meta: Any, c: list[Any]) -> s.Parameter:
        name, axes, default = c
        span = self.of(name)
        return s.Parameter(self.plain(name), axes, default, span)

    def parameters(self, meta: Any, c: list[Any]) -> tuple[s.Parameter, ...]:
        seen: set[str] = set()
        for parameter in (found := tuple(p for p in c if p is not None)):
            if parameter.name in seen:
                raise SourceError(parameter.span, f"two arguments are called '{parameter.name}'", (), "rename one")
            seen.add(parameter.name)
        return found

    def definition(self, meta: Any, c: list[Any]) -> s.Definition:
        kind, name, parameters, body = c
        return s.Definition(str(kind), self.name(name, free=True), parameters or (), body, self.of(name))

    def function(self, meta: Any, c: list[Any]) -> s.Definition:
        kind, name, parameters, value = c
        span = self.at(meta)
        body = self.statement(s.Define(s.Left("y", None, self.of(name)), None, value, None, False, False, span), meta)
        return s.Definition(str(kind), self.plain(name), parameters or (), (body,), self.of(name))

    def initialiser(self, meta: Any, c: list[Any]) -> s.Initialiser:
        return s.Initialiser(self.plain(c[0]), c[1] or (), c[2], self.of(c[0]))

    def names(self, meta: Any, c: list[Any]) -> tuple[str, ...]:
        return tuple(self.plain(name) for name in c)

    def law(self, meta: Any, c: list[Any]) -> s.Law:
        return s.Law(self.plain(c[0]), c[1] or (), c[2], c[3], self.of(c[0]))

    def use(self, meta: Any, c: list[Any]) -> s.Use:
        return s.Use(str(c[0])[1:-1], self.of(c[0]))

    def file(self, meta: Any, c: list[Any]) -> s.File:
        uses = tuple(item for item in c if isinstance(item, s.Use))
        return s.File(self.source.file, tuple(item for item in c if not isinstance(item, s.Use)), uses)

    def single(self, meta: Any, c: list[Any]) -> tuple[s.Statement, ...]:
        return self.block(meta, c)
