"""How many formulas a body of statements makes, at least, counted before anything is made.

    formulas(body) = Σ 1 for a definition + formulas(f) for each call of f in it + turns · formulas(repeat's block)

Definitions that call the one below twice, forty deep, make 2^40: each definition is counted once for each list of
numbers that it is called with, so the sum takes as long as reading them. What is not known here (a size that a
tensor brings, the branch of a choice on it) counts at its least, so that nothing legal is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from chainrule.errors import SourceError
from chainrule.lang import scan, static
from chainrule.lang import syntax as s
from chainrule.lang.draft import Draft, Scope, Static
from chainrule.lang.ranges import parts

DEPTH = 40  # of calls, as in elaboration, which refuses what is deeper
KEYS = 2_000  # definitions with their numbers; beyond, a call counts as one formula
Known = dict[str, Static]


def check_count(
    statements: tuple[s.Statement, ...],
    numbers: Mapping[str, Static],
    definitions: Mapping[str, s.AnyDefinition],
    own: frozenset[str],
) -> None:
    """Raise at the statement whose formulas are more than a model may have."""
    counter, known, total = _Counter(definitions, own), dict(numbers), 0
    instances: dict[str, s.Call] = {}
    for e in statements:
        made = counter.statement(e, known, instances, 0)
        total += made
        if total > scan.FORMULAS:
            facts = (f"this statement alone makes {made:,}",) if made > scan.FORMULAS else ()
            problem = f"more than {scan.FORMULAS:,} formulas: {total:,} up to here"
            raise SourceError(e.span, problem, facts, "repeat less often, or call fewer layers in layers")


@dataclass
class _Counter:
    definitions: Mapping[str, s.AnyDefinition]
    own: frozenset[str]
    counts: dict[tuple[object, ...], int] = field(default_factory=dict)

    def body(self, statements: Iterable[s.Statement], known: Known, instances: dict[str, s.Call], depth: int) -> int:
        return sum(self.statement(e, known, instances, depth) for e in statements)

    def statement(self, e: s.Statement, known: Known, instances: dict[str, s.Call], depth: int) -> int:
        match e:
            case s.Define(_, _, value, where) | s.UpdateStatement(_, value, where):
                inside = sum(self.expression(x, known, instances, depth) for x in (value, where) if x is not None)
                return max(inside, 1)
            case s.LetStatement(name, value):
                known.pop(name, None)
                if isinstance(value, s.Call) and value.function in self.definitions:
                    instances[name] = value
                elif (number := _known(value, known)) is not None:
                    known[name] = number
                return 0
            case s.FixedPoint(_, _, _, _, body):
                return 4 + self.body(body, known, instances, depth)
            case s.RepeatStatement(count, index, body):
                turns = _known(count, known)
                if index is not None:
                    known.pop(index, None)
                once = self.body(body, known, instances, depth)
                return once if turns is None or isinstance(turns, bool) or not turns.is_Integer else int(turns) * once
            case _:
                return 0

    def expression(self, e: s.Expression, known: Known, instances: dict[str, s.Call], depth: int) -> int:
        if isinstance(e, s.Choice):
            truth = _known(e.condition, known)
            if isinstance(truth, bool):
                return self.expression(e.yes if truth else e.no, known, instances, depth)
            return min(self.expression(x, known, instances, depth) for x in (e.yes, e.no))
        below = sum(self.expression(x, known, instances, depth) for x in parts(e))
        return below + (self.call(e, known, instances, depth) if isinstance(e, s.Call) else 0)

    def call(self, e: s.Call, known: Known, instances: dict[str, s.Call], depth: int) -> int:
        if static.is_builtin(e.function) and e.function not in (*self.own, *instances):
            return 0
        base = instances.get(e.function, e)
        definition = self.definitions.get(base.function)
        if not isinstance(definition, s.Definition) or definition.kind not in ("layer", "fn"):
            return 0
        inner = dict(_numbers(definition, base, known))
        key = (base.function, *inner.items())
        if key not in self.counts:
            if depth >= DEPTH or len(self.counts) >= KEYS:
                return 1
            self.counts[key] = 1  # of a call of itself with the same numbers, which elaboration refuses
            self.counts[key] = max(self.body(definition.body, inner, {}, depth + 1), 1)
        return self.counts[key]


def _numbers(definition: s.Definition, e: s.Call, known: Known) -> Iterator[tuple[str, Static]]:
    """The definition's arguments that are known numbers, defaults included."""
    places = {p.name: k for k, p in enumerate(definition.parameters)}
    given = {a.name if a.name is not None else k: a.value for k, a in enumerate(e.arguments)}
    found: Known = {}
    for p in definition.parameters:
        if p.axes is not None:
            continue
        value = given.get(p.name, given.get(places[p.name]))
        number = _known(value, known) if value is not None else None
        if value is None and p.default is not None:
            number = _known(p.default, found)
        if number is not None:
            found[p.name] = number
            yield p.name, number


def _known(e: s.Expression, known: Known) -> Static | None:
    """The value of `e`, if `known` numbers say it."""
    scope = Scope(Draft(""), {}, numbers=known)
    try:
        value = static.static(e, scope) if static.is_static(e, scope) else None
    except SourceError:
        return None
    return value if value is None or isinstance(value, bool) or not value.free_symbols else None


__all__ = ["check_count"]
