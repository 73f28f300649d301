"""The indices of one statement and their ranges: the first of its two passes.

A walk over the statement finds what each index is used for. Its range is the one that is written with it, else the
extent of its plain accesses, which must agree, else the extent of the signature's axis of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import sympy as sp

from chainrule.errors import SourceError, Span
from chainrule.ir.expression import index_symbol
from chainrule.ir.formula import Extent, Index
from chainrule.ir.graph import Tensor
from chainrule.lang import static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Caller, Scope, described

LETTERS = "nmpqrstuvwxyzabcdefghijkl"


@dataclass(eq=False)
class Var:
    """An index of a statement; `order` sorts a statement's indices as they were bound."""

    name: str
    symbol: sp.Symbol
    order: tuple[int, ...]
    span: Span
    written: bool = False  # its range stands in the text
    extent: Extent | None = None
    meets: list[tuple[Extent, Tensor, Span]] = field(default_factory=list)  # its plain accesses

    @property
    def index(self) -> Index:
        assert self.extent is not None
        return Index(self.symbol, self.extent, self.name)


@dataclass(eq=False)
class Frame:
    """The indices that a statement, a reduction or ``mean(e)`` binds; `open`: ``*`` and whole tensors end here."""

    number: int
    parent: Frame | None
    names: dict[str, Var] = field(default_factory=dict)
    open: bool = False
    star: tuple[Var, ...] | None = None  # the axes that `*` stands for
    whole: tuple[Var, ...] | None = None  # the axes of tensors without indices
    whole_tensor: Tensor | None = None

    def find(self, name: str) -> Var | None:
        frame: Frame | None = self
        while frame is not None:
            if name in frame.names:
                return frame.names[name]
            frame = frame.parent
        return None

    @property
    def around(self) -> list[Frame]:
        """This frame and those around it, from the outermost."""
        return [*(self.parent.around if self.parent is not None else ()), self]

    @property
    def visible(self) -> list[Var]:
        """The indices of all of them, as they were bound."""
        found = [v for f in self.around for v in (*f.names.values(), *(f.star or ()), *(f.whole or ()))]
        return sorted(found, key=lambda var: var.order)

    @property
    def nearest_open(self) -> Frame:
        frame = self
        while not frame.open:
            assert frame.parent is not None
            frame = frame.parent
        return frame


class Ranges:
    """The frames of a statement, with every index's extent once `resolve` has run."""

    def __init__(self, scope: Scope, statement: str, caller: Caller) -> None:
        self.scope, self.statement, self.caller = scope, statement, caller
        self.frames: dict[int, Frame] = {}  # of reductions, by id of their node
        self.values: dict[int, Tensor] = {}  # of calls, by id of their node
        self.pending: list[Var] = []
        self.kept: list[object] = []  # nodes made here stay alive, so that ids stay theirs
        self.count = 0

    # ------------------------------------------------------------ binding

    def frame(self, parent: Frame | None, open_: bool) -> Frame:
        self.count += 1
        return Frame(self.count, parent, open=open_)

    def bind(self, frame: Frame, range_: s.Range, place: int) -> None:
        if range_.name in frame.names:
            raise SourceError(range_.span, f"index {range_.name} is bound twice here", (), "rename one of them")
        if range_.name in static.WORDS or range_.name == "training":
            raise SourceError(range_.span, f"'{range_.name}' is a reserved word", (), "take another name")
        var = self.var(range_.name, (frame.number, place), range_.span)
        if range_.extent is not None:
            value = static.size(range_.extent, self.scope)
            name = self.scope.qualified(f"{self.statement}_{range_.name}")
            var.extent, var.written = self.scope.draft.extent(value, name, range_.span), True
        else:
            self.pending.append(var)
        frame.names[range_.name] = var

    def var(self, name: str, order: tuple[int, ...], span: Span) -> Var:
        # a name of its own, so that an index that shadows another is another symbol
        return Var(name, index_symbol(f"{name}.{'.'.join(map(str, order))}"), order, span)

    def axes(
        self, frame: Frame, extents: tuple[Extent, ...], span: Span, group: int, names: tuple[str, ...] = ()
    ) -> tuple[Var, ...]:
        """Indices for the axes of a star (group 0) or of whole tensors (group 1); `names`: what to call them."""
        found: list[Var] = []
        for k, extent in enumerate(extents):
            name = names[k] if k < len(names) else ""
            if not name or name in self.bound_names or any(var.name == name for var in found):
                name = self._letter(extent, found)
            var = self.var(name, (frame.number, -1, group, k), span)
            var.extent = extent
            found.append(var)
        return tuple(found)

    def _letter(self, extent: Extent, taken: list[Var]) -> str:
        """A name for an axis that has none: its dim's first letter, if that is free."""
        used = {var.name for var in taken} | set(self.bound_names)
        first = str(extent.name).split(".")[-1][0] if isinstance(extent, sp.Symbol) else ""
        return next(str(c) for c in (first, *LETTERS, "n") if c and (c not in used or (c == "n" and len(used) > 25)))

    bound_names: frozenset[str] = frozenset()

    # ------------------------------------------------------------ the walk

    def walk(self, e: s.Expression, frame: Frame) -> None:
        match e:
            case s.Number():
                pass
            case s.Name():
                self.name(e, frame)
            case s.Indexed():
                self.access(e, frame)
            case s.Call():
                self.call(e, frame)
            case s.Reduction():
                self.reduction(e, frame)
            case s.Choice():
                for part in self.branches(e, frame):
                    self.walk(part, frame)
            case _:
                for part in parts(e):
                    self.walk(part, frame)

    def branches(self, e: s.Choice, frame: Frame) -> tuple[s.Expression, ...]:
        """What of a choice counts: the branch that is taken, where that is known now, else all of it."""
        known = self.decided(e.condition, frame)
        if known is None:
            return (e.condition, e.yes, e.no)
        return (e.yes,) if known else (e.no,)

    def decided(self, e: s.Expression, frame: Frame) -> bool | None:
        """The truth of a condition on sizes and arguments alone, an optimizer's run-time arguments included."""
        if any(frame.find(name.path) is not None for name in names_in(e)):
            return None
        sizes = {**self.scope.axes, **self.scope.numbers, **self.scope.structure}
        numbers = {name: n for name, n in sizes.items() if isinstance(n, bool) or not n.free_symbols}
        known = Scope(self.scope.draft, self.scope.definitions, numbers=numbers)
        try:
            return static.truth(e, known) if static.is_static(e, known) else None
        except SourceError:
            return None  # it depends on a dim

    def name(self, e: s.Name, frame: Frame) -> None:
        if frame.find(e.path) is not None:
            return
        tensor = self.scope.find(e.path)
        if tensor is None and not self.is_number(e.path):
            raise self.scope.unknown(e.path, e.span)
        if tensor is not None and tensor.shape:
            self.whole(tensor, e.span, frame)

    def is_number(self, name: str) -> bool:
        known = name in self.scope.numbers or name in self.scope.axes or name in static.WORDS
        return known or name in ("training", "_")

    def whole(self, tensor: Tensor, span: Span, frame: Frame) -> None:
        """A read of all of `tensor`, without indices."""
        target = frame.nearest_open
        if target.names:
            way_out = f"write {tensor.name}[{', '.join('ijklmnopqrstuvwx'[: len(tensor.shape)])}]"
            problem = f"'{tensor.name}' is read without indices in a statement with indices"
            raise SourceError(span, problem, (described(tensor),), way_out)
        if target.whole is None:
            names = self.scope.draft.axis_names.get(tensor.name, ())
            target.whole = self.axes(target, tensor.shape, span, 1, names)
            target.whole_tensor = tensor
        elif (shape := tuple(var.extent for var in target.whole)) != tensor.shape:
            assert target.whole_tensor is not None
            facts = (described(target.whole_tensor), described(tensor))
            way_out = "write the statement with indices: there is no silent broadcasting"
            raise SourceError(span, f"shapes {_shape(shape)} and {_shape(tensor.shape)} are not equal", facts, way_out)

    def access(self, e: s.Indexed, frame: Frame) -> None:
        tensor = self.base(e, frame)
        positions = self.positions(e, tensor, frame)
        for item, axis in positions:
            if isinstance(item, s.Name) and (var := frame.find(item.path)) is not None:
                var.meets.append((tensor.shape[axis], tensor, item.span))
            elif not isinstance(item, Var):
                self.walk(item, frame)

    def base(self, e: s.Indexed, frame: Frame) -> Tensor:
        """The tensor that `e` reads."""
        if isinstance(e.base, s.Call):
            if id(e.base) not in self.values:
                self.values[id(e.base)] = self.caller(self.scope, e.base, self.statement, None)
            return self.values[id(e.base)]
        tensor = self.scope.find(e.base.path)
        if tensor is None:
            if e.base.path in self.scope.numbers or e.base.path in self.scope.axes:
                raise SourceError(e.base.span, f"'{e.base.path}' is a size, not a tensor", (), "leave the indices out")
            raise self.scope.unknown(e.base.path, e.base.span)
        return tensor

    def positions(self, e: s.Indexed, tensor: Tensor, frame: Frame) -> list[tuple[s.Expression | Var, int]]:
        """Each index of an access with its axis; the star is spread out into its indices."""
        stars = [item for item in e.indices if isinstance(item, s.Star)]
        if len(stars) > 1:
            raise SourceError(stars[1].span, "two stars in one access", (), "one * stands for all leading axes")
        spread = len(tensor.shape) - (len(e.indices) - len(stars))
        if spread < 0 or (spread and not stars):
            problem = f"{tensor.name} has {len(tensor.shape)} axes and is read with {len(e.indices) - len(stars)}"
            raise SourceError(e.span, problem, (described(tensor),), "write one index for each axis")
        found: list[tuple[s.Expression | Var, int]] = []
        for item in e.indices:
            if isinstance(item, s.Star):
                at = len(found)
                star = self.star(frame, tensor.shape[at : at + spread], tensor, item.span)
                found.extend((var, at + k) for k, var in enumerate(star))
            else:
                found.append((item, len(found)))
        return found

    def star(self, frame: Frame, extents: tuple[Extent, ...], tensor: Tensor, span: Span) -> tuple[Var, ...]:
        """The indices of `*`, bound by the layer's signature or by this, the statement's first read."""
        target = frame.nearest_open
        expected = self.scope.star
        if target.star is not None:
            expected = tuple(var.extent for var in target.star if var.extent is not None)
        if expected is not None and expected != extents:
            origin = self.scope.star_origin or "the statement's first read"
            facts = (f"* stands for {_shape(expected)} ({origin})", described(tensor))
            problem = f"* stands for two lists of axes: {_shape(expected)} and {_shape(extents)}"
            raise SourceError(span, problem, facts, "write the axes out")
        if target.star is None:
            names = self.scope.draft.axis_names.get(tensor.name, ())
            target.star = self.axes(target, extents, span, 0, names)
        return target.star

    def call(self, e: s.Call, frame: Frame) -> None:
        if e.function in ("size", "norm"):
            return  # their arguments are no tensors
        if self.reduces_all(e):
            inner = self.frame(frame, open_=True)
            self.frames[id(e)] = inner
            self.walk(e.arguments[0].value, inner)
            return
        if self.is_builtin(e.function) or (self.is_elementwise(e) and self.is_indexed(e, frame)):
            for argument in e.arguments:
                self.walk(argument.value, frame)
            return
        if id(e) not in self.values:
            self.values[id(e)] = self.caller(self.scope, e, self.statement, None)
        if self.values[id(e)].shape:
            self.whole(self.values[id(e)], e.span, frame)

    def reduces_all(self, e: s.Call) -> bool:
        return e.function in static.REDUCTIONS and len(e.arguments) == 1

    def is_builtin(self, function: str) -> bool:
        if function in self.scope.own or function in self.scope.instances:
            return False
        return static.is_builtin(function)

    def is_elementwise(self, e: s.Call) -> bool:
        definition = self.scope.definitions.get(e.function)
        return isinstance(definition, s.Definition) and all(p.axes is None for p in definition.parameters)

    def is_indexed(self, e: s.Expression, frame: Frame) -> bool:
        """Whether `e` mentions an index of `frame`, or a star: then its value has no shape of its own."""
        match e:
            case s.Name(path):
                return frame.find(path) is not None
            case s.Indexed(_, indices, _):
                return any(isinstance(i, s.Star) or self.is_indexed(i, frame) for i in indices)
            case s.Call() if self.reduces_all(e):
                return False
            case s.Reduction(_, over, _, body):
                own = {r.name for r in over}
                named = any(frame.find(n.path) is not None and n.path not in own for n in names_in(body))
                return named or ("*" not in own and any(True for _ in stars_in(body)))
            case _:
                return any(self.is_indexed(part, frame) for part in parts(e))

    def reduction(self, e: s.Reduction, frame: Frame) -> None:
        inner = self.frame(frame, open_=any(r.name == "*" for r in e.over))
        self.frames[id(e)] = inner
        for place, range_ in enumerate(e.over):
            if range_.name != "*":
                self.bind(inner, range_, place)
        if e.where is not None:
            self.walk(e.where, inner)
        self.walk(e.body, inner)

    def free(self, e: s.Expression, frame: Frame) -> tuple[Var, ...]:
        """The indices of `frame` and of those around it that `e` mentions, in the order of their binding."""
        found: set[Var] = set()
        self._free(e, frame, found)
        visible = set(frame.visible)
        return tuple(sorted((var for var in found if var in visible), key=lambda var: var.order))

    def _free(self, e: s.Expression, frame: Frame, found: set[Var]) -> None:
        match e:
            case s.Name(path):
                if (var := frame.find(path)) is not None:
                    found.add(var)
                elif (tensor := self.scope.find(path)) is not None and tensor.shape:
                    found.update(frame.nearest_open.whole or ())
            case s.Indexed(_, indices, _):
                for item in indices:
                    if isinstance(item, s.Star):
                        found.update(frame.nearest_open.star or ())
                    else:
                        self._free(item, frame, found)
            case s.Call() if id(e) in self.values:
                if self.values[id(e)].shape:
                    found.update(frame.nearest_open.whole or ())
            case s.Call(function, _) if function == "size":
                pass
            case s.Reduction() | s.Call():
                inner = self.frames.get(id(e), frame)
                for part in parts(e):
                    self._free(part, inner, found)
            case s.Choice():
                for part in self.branches(e, frame):
                    self._free(part, frame, found)
            case _:
                for part in parts(e):
                    self._free(part, frame, found)

    # ------------------------------------------------------------ ranges

    def resolve(self) -> None:
        """Give each index without a written range its extent."""
        for var in self.pending:
            if var.meets:
                var.extent = self._agreed(var)
            elif var.name in self.scope.axes:
                var.extent = self.scope.axes[var.name]
            else:
                way_out = f"write its range: {var.name} < 10, or use it to read an axis"
                raise SourceError(var.span, f"nothing says how far index {var.name} runs", (), way_out)
        self.pending.clear()

    def _agreed(self, var: Var) -> Extent:
        first, origin, _ = var.meets[0]
        for extent, other, span in var.meets[1:]:
            if extent != first:
                facts = (f"{described(origin)}: {var.name} < {first}", f"{described(other)}: {var.name} < {extent}")
                way_out = f"make the two axes equal, or write the range: {var.name} < {first}"
                raise SourceError(span, f"index {var.name} runs over two extents", facts, way_out)
        return first


def _shape(extents: tuple[Extent | None, ...]) -> str:
    return f"[{', '.join(map(str, extents))}]"


def parts(e: s.Expression) -> tuple[s.Expression, ...]:
    """The expressions right below `e`, for nodes that bind nothing."""
    match e:
        case s.Sum(terms):
            return tuple(t for _, t in terms)
        case s.Product(factors):
            return tuple(f for _, f in factors)
        case s.Negate(value) | s.Not(value):
            return (value,)
        case s.Power(base, exponent):
            return (base, exponent)
        case s.Compare(_, left, right):
            return (left, right)
        case s.Junction(_, claims):
            return claims
        case s.Choice(condition, yes, no):
            return (condition, yes, no)
        case s.Call(_, arguments):
            return tuple(a.value for a in arguments)
        case s.Indexed(base, indices, _):
            below = tuple(i for i in indices if not isinstance(i, s.Star))
            return (*below, base) if isinstance(base, s.Call) else below
        case s.Reduction(_, _, where, body):
            return (body,) if where is None else (where, body)
        case _:
            return ()


def below(e: s.Expression) -> Iterator[s.Expression]:
    """`e` and every expression in it."""
    stack = [e]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(parts(top))


def reads_in(e: s.Expression) -> Iterator[str]:
    """The names that `e` reads, with indices or without."""
    for x in below(e):
        if isinstance(x, s.Name):
            yield x.path
        elif isinstance(x, s.Indexed) and isinstance(x.base, s.Name):
            yield x.base.path


def names_in(e: s.Expression) -> Iterator[s.Name]:
    return (x for x in below(e) if isinstance(x, s.Name))


def stars_in(e: s.Expression) -> Iterator[s.Star]:
    for x in below(e):
        if isinstance(x, s.Indexed):
            yield from (i for i in x.indices if isinstance(i, s.Star))
