"""The tree of a parsed text: small frozen nodes, each with the span where it was written.

A sum and a product keep all their terms side by side, so that the tree is as deep as a person nests, no deeper.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from chainrule.errors import Span

# ---------------------------------------------------------------- expressions


@dataclass(frozen=True)
class Number:
    value: Fraction
    span: Span


@dataclass(frozen=True)
class Name:
    """A tensor, an index, a size or one of the words ``true false inf nan pi training``, by its place."""

    path: str
    span: Span


@dataclass(frozen=True)
class Star:
    """The leading axes, ``*`` in ``x[*, i]``."""

    span: Span


@dataclass(frozen=True)
class Argument:
    """One of a call's arguments; `name`: of ``stride = 2``."""

    name: str | None
    value: Expression
    span: Span


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple[Argument, ...]
    span: Span


@dataclass(frozen=True)
class Indexed:
    """``x[n, i + 1; 0]`` or ``f(x)[n, i]``."""

    base: Name | Call
    indices: tuple[Expression | Star, ...]
    outside: Expression | None
    span: Span


@dataclass(frozen=True)
class Sum:
    """The sum of `terms`; each is with its sign, 1 or -1."""

    terms: tuple[tuple[int, Expression], ...]
    span: Span


@dataclass(frozen=True)
class Product:
    """From the left: the first factor is with ``*``, the others with ``*``, ``/``, ``//`` or ``%``."""

    factors: tuple[tuple[str, Expression], ...]
    span: Span


@dataclass(frozen=True)
class Negate:
    value: Expression
    span: Span


@dataclass(frozen=True)
class Power:
    base: Expression
    exponent: Expression
    span: Span


@dataclass(frozen=True)
class Compare:
    sign: str
    left: Expression
    right: Expression
    span: Span


@dataclass(frozen=True)
class Junction:
    """``a and b and c``, ``a or b``."""

    word: Literal["and", "or"]
    parts: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True)
class Not:
    value: Expression
    span: Span


@dataclass(frozen=True)
class Choice:
    """``if condition then yes else no``."""

    condition: Expression
    yes: Expression
    no: Expression
    span: Span


@dataclass(frozen=True)
class Range:
    """An index where it is bound: ``i``, ``i < extent``, or ``*`` (the name is then ``*``)."""

    name: str
    extent: Expression | None
    span: Span


@dataclass(frozen=True)
class Reduction:
    """``sum[i, j < n where c] body``."""

    kind: str
    over: tuple[Range, ...]
    where: Expression | None
    body: Expression
    span: Span


Expression = (
    Number | Name | Call | Indexed | Sum | Product | Negate | Power | Compare | Junction | Not | Choice | Reduction
)

# ---------------------------------------------------------------- statements


@dataclass(frozen=True)
class Left:
    """What a statement defines: ``y[*, o]``; `axes` None: without brackets."""

    name: str
    axes: tuple[Range, ...] | None
    span: Span


@dataclass(frozen=True)
class Type:
    """``: index n``, ``: int``, ``: bool``, ``: float``."""

    name: str
    bound: Expression | None
    span: Span


@dataclass(frozen=True)
class DimStatement:
    """``dim t``, ``dim t >= 1``, ``dim 1 <= t <= 256``, ``dim rows = (h - 1) // 2 + 1``."""

    name: str
    minimum: Expression | None
    maximum: Expression | None
    definition: Expression | None
    span: Span


@dataclass(frozen=True)
class Declaration:
    """``x[batch, 64]``: a name with its sizes."""

    name: str
    sizes: tuple[Expression | Star, ...]
    span: Span


@dataclass(frozen=True)
class InputStatement:
    tensor: Declaration
    type: Type | None
    span: Span


@dataclass(frozen=True)
class ParamStatement:
    """``param W[i, o] ~ kaiming_uniform``."""

    tensor: Declaration
    law: Call
    span: Span


@dataclass(frozen=True)
class StateStatement:
    tensor: Declaration
    value: Expression
    span: Span


@dataclass(frozen=True)
class ScalarStatement:
    """``scalar rate = 0.001``: a run-time number; the printer writes it."""

    name: str
    value: Expression
    span: Span


@dataclass(frozen=True)
class RandomStatement:
    """``random keep[*] ~ bernoulli(1 - rate)``."""

    left: Left
    law: Call
    span: Span


@dataclass(frozen=True)
class LetStatement:
    name: str
    value: Expression
    span: Span


@dataclass(frozen=True)
class Define:
    """``stop y[*, o] : int = value where condition``."""

    left: Left
    type: Type | None
    value: Expression
    where: Expression | None
    stop: bool
    output: bool
    span: Span


@dataclass(frozen=True)
class UpdateStatement:
    """``m[*] <- value``."""

    left: Left
    value: Expression
    where: Expression | None
    span: Span


@dataclass(frozen=True)
class RepeatStatement:
    count: Expression
    index: str | None
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True)
class OutputStatement:
    """``output a, b``: exactly these, in this order."""

    names: tuple[Name, ...]
    span: Span


@dataclass(frozen=True)
class FixedPoint:
    """``fixed_point left from start within tolerance steps count:`` and what z is once more; or, as it is printed,
    ``fixed_point left = value …``, with the name of the tensor that is z once more and stands below."""

    left: Left
    start: Expression
    within: Expression
    steps: Expression
    body: tuple[Statement, ...]
    value: str | None
    span: Span


Statement = (
    DimStatement
    | InputStatement
    | ParamStatement
    | StateStatement
    | ScalarStatement
    | RandomStatement
    | LetStatement
    | Define
    | UpdateStatement
    | RepeatStatement
    | OutputStatement
    | FixedPoint
)

# ---------------------------------------------------------------- definitions


@dataclass(frozen=True)
class Parameter:
    """One of a definition's arguments: ``x[*, i]`` is a tensor, ``kernel = 3`` a number; ``x`` is either."""

    name: str
    axes: tuple[Expression | Star, ...] | None
    default: Expression | None
    span: Span


@dataclass(frozen=True)
class Definition:
    """A ``model``, ``layer``, ``fn`` or ``optimizer``."""

    kind: str
    name: str
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True)
class Initialiser:
    """``init kaiming_uniform ~ uniform(-sqrt(6 / fan_in), sqrt(6 / fan_in))``: the right side is a base law."""

    name: str
    parameters: tuple[Parameter, ...]
    law: Call
    span: Span

    kind = "init"


@dataclass(frozen=True)
class Law:
    """``law bernoulli(p) from u = if u < p then 1 else 0``: a distribution as a formula of uniform draws."""

    name: str
    parameters: tuple[Parameter, ...]
    draws: tuple[str, ...]
    value: Expression
    span: Span

    kind = "law"


@dataclass(frozen=True)
class Use:
    """``use "blocks.graph"``."""

    path: str
    span: Span


AnyDefinition = Definition | Initialiser | Law


@dataclass(frozen=True)
class File:
    """One text: its definitions in order, and the files that it uses."""

    name: str
    definitions: tuple[AnyDefinition, ...]
    uses: tuple[Use, ...] = ()
