"""Symbolic tensors: each operation in Python records one statement of the language, with its caller's place.

Nothing is parsed or checked here, so a model written in Python starts as fast as one in a file; the recorded text
is elaborated behind the compiler's door, and errors point at the line of Python that recorded the statement.
"""

from __future__ import annotations

import itertools
import linecache
import numbers
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from chainrule import build
from chainrule.errors import ChainruleError, Span, nearest
from chainrule.options import Options
from chainrule.source import LIBRARY, Argument, Source

_HERE = str(Path(__file__).parent)
_NAME = re.compile(r"[A-Za-z\u0370-\u03ff][A-Za-z0-9_\u0370-\u03ff]*\Z")
_order = itertools.count()


@dataclass(frozen=True)
class Dim:
    """A named size, bound when data come in."""

    name: str
    place: Span
    declaration: str  # as the language has it: ``1 <= time <= 256``

    def __repr__(self) -> str:
        return f"dim {self.declaration}"


Size = int | Dim

DTYPES = ("float", "int", "bool")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that a model will compute: one statement of the language, with the tensors that it reads in place.

    parts: the statement's text; None stands for this tensor's own name. Names are given when a model is made, so
    that they depend on the model alone: `stem`, numbered where a model has it twice.

    Arithmetic works on whole tensors of equal shape and on numbers, as a statement without indices does; anything
    else is written with indices, in `formula`.
    """

    stem: str
    parts: tuple[str | Tensor | None, ...]
    place: Span
    dims: tuple[Dim, ...] = ()
    given: bool = False  # an input or param: its name is the user's, and is not numbered
    order: int = field(default_factory=lambda: next(_order))

    @property
    def parents(self) -> tuple[Tensor, ...]:
        return tuple(part for part in self.parts if isinstance(part, Tensor))

    def statement(self, names: Mapping[int, str]) -> str:
        """The text, where each tensor has the name `names[order]`."""
        return "".join(
            part if isinstance(part, str) else names[self.order if part is None else part.order] for part in self.parts
        )

    def __repr__(self) -> str:
        return f"Tensor({self.statement({t.order: t.stem for t in (self, *self.parents)})})"

    def __add__(self, other: Operand) -> Tensor:
        return _operate(" + ", self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return _operate(" + ", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return _operate(" - ", self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return _operate(" - ", other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return _operate(" * ", self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return _operate(" * ", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return _operate(" / ", self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return _operate(" / ", other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return _operate(" ^ ", self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return _operate(" ^ ", other, self)

    def __floordiv__(self, other: Operand) -> Tensor:
        return _operate(" // ", self, other)

    def __rfloordiv__(self, other: Operand) -> Tensor:
        return _operate(" // ", other, self)

    def __mod__(self, other: Operand) -> Tensor:
        return _operate(" % ", self, other)

    def __rmod__(self, other: Operand) -> Tensor:
        return _operate(" % ", other, self)

    def __neg__(self) -> Tensor:
        return _operate("-", self)

    def __abs__(self) -> Tensor:
        return call("abs", self)

    def __lt__(self, other: Operand) -> Tensor:
        return _operate(" < ", self, other)

    def __le__(self, other: Operand) -> Tensor:
        return _operate(" <= ", self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return _operate(" > ", self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return _operate(" >= ", self, other)

    def __eq__(self, other: Operand) -> Tensor:  # type: ignore[override]  # element by element, as arrays compare
        return _operate(" == ", self, other)

    def __ne__(self, other: Operand) -> Tensor:  # type: ignore[override]
        return _operate(" != ", self, other)

    __hash__ = object.__hash__

    def __matmul__(self, other: object) -> Tensor:
        raise ChainruleError(
            '@ does not say which axes meet\n  Way out: cr.formula("y[n, o] = sum[i] x[n, i] * W[i, o]", x=x, W=W)'
        )

    def __getitem__(self, index: object) -> Tensor:
        raise ChainruleError(
            f"{self.stem} is symbolic, and has no elements yet"
            f'\n  Way out: read it in a formula: cr.formula("y[n] = x[n, 0]", x={self.stem})'
        )

    def __bool__(self) -> bool:
        raise ChainruleError(
            f"{self.stem} has no truth value: it is computed later\n"
            "  Way out: choose inside a formula, with if … then … else"
        )

    def __array__(self, *_: object, **__: object) -> object:
        raise ChainruleError(
            f"{self.stem} is symbolic, and has no values yet\n  Way out: cr.Model({self.stem}={self.stem}).predict(…)"
        )

    __array_ufunc__ = None  # `np.float32(2) * x` is ours to record, not NumPy's to spread over elements

    def _repr_html_(self) -> str:
        """All that it is computed from, as SVG; where it cannot be drawn, why."""
        return build.html(recorded_source("tensor", {self.stem: self}), Options("predict"), "forward")


Operand = Tensor | int | float | np.number[Any]


def caller() -> Span:
    """The place of the first frame outside this package: the expression that it evaluates just now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    if frame is None:
        return Span("<python>", 1)
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line).rstrip("\n")
    first, last, start, end = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    if first != line or start is None or end is None or not text:  # python -X no_debug_ranges
        return Span(file, line, len(text) - len(text.lstrip()) + 1, max(len(text.strip()), 1), text)
    data = text.encode()  # positions count bytes
    stop = end if last == line else len(data)
    return Span(file, line, len(data[:start].decode()) + 1, max(len(data[start:stop].decode()), 1), text)


def dim(name: str, minimum: int = 0, maximum: int | None = None) -> Dim:
    """A named size; what it may be is checked at each call: ``cr.dim("time", maximum=256)``."""
    least = f"{_size(minimum)} <= " if minimum else ""
    most = f" <= {_size(maximum)}" if maximum is not None else ""
    declaration = f"{name} >= {_size(minimum)}" if least and not most else f"{least}{name}{most}"
    return Dim(_checked(name), caller(), declaration)


def input(name: str, shape: Sequence[Size] = (), dtype: str = "float", *, index: Size | None = None) -> Tensor:
    """A tensor that every call is given; dtype: float, int or bool.

    index: its values are integers v with 0 <= v < index. How many bits a float has is chosen when a program is
    compiled; arrays of other dtypes are cast as they come in, where no value is lost.
    """
    if dtype not in DTYPES:
        way_out = "'float', 'int' or 'bool'; float32 or float64 is said in Model.compile(dtype=…)"
        raise ChainruleError(f"{dtype!r} is no dtype of an input\n  Way out: {way_out}")
    kind = f" : index {_size(index)}" if index is not None else "" if dtype == "float" else f" : {dtype}"
    text = f"input {_checked(name)}{_shape(shape)}{kind}"
    return Tensor(name, (text,), caller(), _dims((*shape, index)), given=True)


def param(name: str, shape: Sequence[int] = (), init: str = "zeros") -> Tensor:
    """A trained tensor; `init` is a law of the library: ``"zeros"``, ``"normal(0.02)"``, ``"glorot_uniform"``."""
    if not isinstance(init, str) or not re.fullmatch(r"[a-z_]+(\([-+0-9a-z_=., ]*\))?", init):
        raise ChainruleError(f"init {init!r} is no initialiser\n  Way out: write one such as 'normal(0.02)'")
    text = f"param {_checked(name)}{_shape(shape)} ~ {init}"
    return Tensor(name, (text,), caller(), _dims(shape), given=True)


def formula(text: str, /, *, name: str | None = None, **reads: Operand) -> Tensor:
    """One statement of the language over the tensors and numbers that it reads, each under its name in the text.

    >>> h = formula("h[n, o] = a * sum[i] x[n, i] * W[i, o]", x=x, W=W, a=0.5)

    Errors in the text are found when the model is compiled, and point at this call.
    """
    if not isinstance(text, str) or "\n" in text.strip() or "\r" in text:
        raise ChainruleError("a formula is one line\n  Way out: record several, or write a layer in a .graph file")
    head = re.match(r"\s*(?:stop\s+)?([^\W\d]\w*)\s*(\[|:|=)", text)
    if head is None:
        raise ChainruleError(f"{text!r} defines no tensor\n  Way out: begin with its name: 'y[n, o] = …'")
    # whole words only; split keeps the words, which stand at the odd places
    words = re.split(r"([^\W\d]\w*)", text.strip())
    for read in reads:
        if read not in words[1::2] or read == head[1]:
            what = "is what the formula defines" if read == head[1] else "stands nowhere in the formula"
            raise ChainruleError(f"{read} {what}\n  {text.strip()}\n  Way out: {read}=… names a tensor that it reads")
    places: dict[str, Tensor | str | None] = {name: _operand(read) for name, read in reads.items()}
    places[head[1]] = None
    parts = (places[word] if k % 2 and word in places else word for k, word in enumerate(words))
    return Tensor(_checked(head[1] if name is None else name), tuple(parts), caller())


def call(function: str, *arguments: Operand | Dim, name: str | None = None, **options: Argument) -> Tensor:
    """A layer or function applied to tensors: what ``cr.linear(x, 128)`` records. `name`: of the result."""
    given: list[str | Tensor | None] = [None, f" = {function}("]
    for k, argument in enumerate(arguments):
        given += [", " if k else "", argument if isinstance(argument, Tensor) else _literal(argument)]
    for key, value in options.items():
        given.append(f"{', ' if len(given) > 2 else ''}{_checked(key)} = {_literal(value)}")
    dims = _dims((*arguments, *options.values()))
    return Tensor(_checked(_stem(function, arguments) if name is None else name), (*given, ")"), caller(), dims)


def _stem(function: str, arguments: Sequence[object]) -> str:
    """What the result is called unless it is given a name; that of a reduction is a word of the language."""
    if function not in REDUCTIONS:
        return function
    of = next((argument.stem for argument in arguments if isinstance(argument, Tensor)), "all")
    return f"{of}_{function}"


def gradient(of: Tensor, wrt: Tensor, *, name: str | None = None) -> Tensor:
    """The gradient of the number `of` with respect to `wrt`, a tensor of the model like any other.

    It has the shape of `wrt`, may be used in formulas, and has gradients itself: a penalty on a gradient is trained
    as it is written. `wrt`: an input, a param, or a tensor that `of` was computed from.

    >>> penalty = cr.sum(cr.gradient(loss, x) ** 2)
    """
    return call("gradient", of, wrt, name=f"{of.stem}_by_{wrt.stem}" if name is None else name)


def _operate(sign: str, *operands: Operand) -> Tensor:
    """``a sign b``, or ``sign a``."""
    shown = [_operand(operand) for operand in operands]
    return Tensor("t", (None, " = ", *shown[:-1], sign, shown[-1]), caller())


def _operand(value: Operand) -> Tensor | str:
    return value if isinstance(value, Tensor) else f"({_literal(value)})"


def recorded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`tensors` and all that they need, each once, in the order in which they were recorded."""
    found: dict[int, Tensor] = {}
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        if tensor.order not in found:
            found[tensor.order] = tensor
            waiting.extend(tensor.parents)
    return [found[order] for order in sorted(found)]


def name_all(tensors: Sequence[Tensor]) -> dict[int, str]:
    """A name for each, by its order: its stem, numbered from the second on.

    Raises ChainruleError where two inputs or params share a name.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for tensor in sorted(tensors, key=lambda t: (not t.given, t.order)):
        name, k = tensor.stem, 2
        if tensor.given and name in taken:
            raise ChainruleError(f"two inputs or params are named {name} ({tensor.place})\n  Way out: rename one")
        while name in taken:
            name, k = f"{tensor.stem}_{k}", k + 1
        taken.add(name)
        names[tensor.order] = name
    return names


@cache
def library_names() -> frozenset[str]:
    """The layers and functions of the library: its heads, read without parsing."""
    heads = re.compile(r"^(?:layer|fn)\s+(\w+)\s*\(", re.MULTILINE)
    return frozenset(
        itertools.chain.from_iterable(heads.findall(path.read_text("utf-8")) for path in LIBRARY.glob("*.graph"))
    )


REDUCTIONS = ("sum", "prod", "max", "min", "mean", "any", "all", "argmax", "argmin")
"""Reductions over all axes, as functions: ``mean(x)``; ``max(x, y)`` compares element by element."""

BUILTINS = (
    "exp", "log", "expm1", "log1p", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh",
    "asinh", "acosh", "atanh", "erf", "erfc", "lgamma", "digamma", "polygamma", "atan2", "floor", "ceil", "round",
    "sign", "abs", "clip", "float", "int",
)  # fmt: skip
"""The functions of one element that the language itself has; the compiler, which has them too, is not imported."""


def function(name: str) -> Callable[..., Tensor]:
    """A function of the language or a layer of its library as a Python function that records its call.

    Raises AttributeError if there is none.
    """
    known = library_names().union(REDUCTIONS, BUILTINS)
    if name not in known:
        raise AttributeError(f"chainrule has no {name!r}: {nearest(name, known)}")

    def apply(*arguments: Operand | Dim, name: str | None = None, **options: Argument) -> Tensor:
        return call(apply.__name__, *arguments, name=name, **options)

    apply.__name__ = apply.__qualname__ = name
    owner = "library" if name in library_names() else "language"
    apply.__doc__ = f"The {owner}'s `{name}`, recorded as a statement; `name` names the result."
    return apply


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise ChainruleError(f"{name!r} is no name\n  Way out: use letters, digits and underscores, a letter first")
    return name


def _size(size: Size) -> str:
    if isinstance(size, Dim):
        return size.name
    try:
        number = operator.index(size)
    except TypeError:
        raise ChainruleError(f"{size!r} is no size\n  Way out: an integer, or cr.dim({str(size)!r})") from None
    if number < 0:
        raise ChainruleError(f"the size {number} is negative\n  Way out: sizes are 0 or more")
    return str(number)


def _shape(shape: Sequence[Size]) -> str:
    if not isinstance(shape, list | tuple):
        raise ChainruleError(f"{shape!r} is no shape\n  Way out: a list of sizes: [batch, 64]")
    return f"[{', '.join(map(_size, shape))}]" if shape else ""


def _dims(values: Sequence[object]) -> tuple[Dim, ...]:
    return tuple(v for v in values if isinstance(v, Dim))


def plain(value: object) -> Argument:
    """A Python number, truth value or word for `value`, which may be NumPy's. Raises ChainruleError for all else."""
    match value:
        case str():
            return str(value)
        case bool() | np.bool():
            return bool(value)
        case numbers.Integral():
            return int(value)
        case numbers.Real():  # np.float64 is a float too, and reads np.float64(0.5)
            return float(value)
        case _:
            raise ChainruleError(f"{value!r} is neither a tensor nor a number\n  Way out: make it an input or a param")


def _literal(value: object) -> str:
    if isinstance(value, Dim):
        return value.name
    match plain(value):
        case bool() as truth:
            return str(truth).lower()
        case int() as number:
            return str(number)
        case float() as number:
            return _decimal(number)
        case word:
            return _checked(word)  # a mode or a law's name


def _decimal(value: float) -> str:
    if value != value:
        raise ChainruleError("NaN is no literal\n  Way out: compute it in a formula")
    return repr(value) if abs(value) != float("inf") else "inf" if value > 0 else "-inf"


def every_dim(tensors: Sequence[Tensor]) -> dict[str, Dim]:
    """The dims that `tensors` name, by name. Raises ChainruleError where two different ones share it."""

    def add(known: dict[str, Dim], dim: Dim) -> dict[str, Dim]:
        if known.setdefault(dim.name, dim).declaration != dim.declaration:
            raise ChainruleError(f"two dims are named {dim.name}: {known[dim.name]!r} and {dim!r}")
        return known

    return reduce(add, (d for t in tensors for d in t.dims), {})


def recorded_source(name: str, roots: Mapping[str, Tensor]) -> Source:
    """The text of a model made of recorded statements, one a line, with the caller's place of each."""
    if not roots:
        raise ChainruleError("a model without outputs computes nothing\n  Way out: cr.Model(loss, logits=logits)")
    for root, tensor in roots.items():
        _checked(root)
        if not isinstance(tensor, Tensor):
            way_out = "make it of inputs and params: cr.mean(…)"  # type: ignore[unreachable]
            raise ChainruleError(f"{root} of the model is {tensor!r}, no symbolic tensor\n  Way out: {way_out}")
    tensors = recorded(tuple(roots.values()))
    names = name_all(tensors)
    for root, tensor in roots.items():  # the loss is called loss, whatever made it
        if not tensor.given and root not in names.values():
            names[tensor.order] = root
    first = tensors[0].place
    lines: list[tuple[str, Span]] = [(f"model {_checked(name)}:", first)]
    lines += [(f"    dim {dim.declaration}", dim.place) for dim in every_dim(tensors).values()]
    lines += [(f"    {tensor.statement(names)}", tensor.place) for tensor in tensors]
    lines += [
        (f"    {root} = {names[tensor.order]}", tensor.place)
        for root, tensor in roots.items()
        if names[tensor.order] != root
    ]
    lines.append((f"    output {', '.join(roots)}", first))
    text = "".join(f"{line}\n" for line, _ in lines)
    return Source(text, f"<{name}>", name, places=tuple(place for _, place in lines))
