"""Choices by measuring: each product of a program in several ways, where it runs, beside the one that it has now.

Product after product, the largest first, a choice is changed in one thing at a time while that helps. Candidates take
turns, so that a machine that drifts drifts for all; what counts is the median, and what is kept has beaten the choice
before in a second measurement, for the best of several is partly luck.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from chainrule import build
from chainrule.choices import Choice, Choices
from chainrule.options import Options
from chainrule.runtime.profile import nanoseconds, stopwatch
from chainrule.runtime.step import Runner
from chainrule.runtime.store import Store
from chainrule.source import Source

LEAST = 0.03
"""A choice that saves less than this part is not changed: the next machine minute would change it back."""

ROUNDS = 2  # of changing a product's choice in one thing
TURNS = 9  # of each candidate in a measurement; an odd number has a median

Measure = Callable[[Sequence[Choices], Sequence[int]], list[float]]
"""Nanoseconds of some launches under each of several tables of choices, measured in turns."""


class Product(Protocol):
    """A product of a program: its name, the launches that compute it, how it is computed now, and how it could be."""

    @property
    def key(self) -> str: ...
    @property
    def launches(self) -> tuple[int, ...]: ...
    @property
    def choice(self) -> Choice: ...

    def candidates(self, around: Choice) -> tuple[Choice, ...]: ...


class Verdict(msgspec.Struct, frozen=True):
    """A product's choice before and after, and the nanoseconds of the launches that it is in with either."""

    product: str
    before: Choice
    after: Choice
    before_ns: float
    after_ns: float

    @property
    def ratio(self) -> float:
        """How many times as fast those launches became."""
        return self.before_ns / max(self.after_ns, 1e-9)


Watch = Callable[[int, int, str], None]
"""Told before each product: how many are done, of how many, and its name."""


def tuned(
    products: Sequence[Product], start: Choices, measure: Measure, watch: Watch = lambda done, of, name: None
) -> tuple[Verdict, ...]:
    """The verdict on each product; `start` is the table that its choices come from."""
    chosen, verdicts = dict(start), []
    for done, product in enumerate(products):
        watch(done, len(products), product.key)
        verdict = _judged(product, chosen, measure)
        if verdict.after != verdict.before:
            chosen[product.key] = verdict.after
        verdicts.append(verdict)
    watch(len(products), len(products), "")
    return tuple(verdicts)


def _judged(product: Product, chosen: Choices, measure: Measure) -> Verdict:
    before, now, first = product.choice, product.choice, 0.0
    for _ in range(ROUNDS):
        several = product.candidates(now)
        times = measure([{**chosen, product.key: choice} for choice in several], product.launches)
        first = first or times[0]
        best = min(range(len(several)), key=lambda k: times[k])
        if times[best] > times[0] * (1 - LEAST):
            break
        now = several[best]
    if now == before:
        return Verdict(product.key, before, before, first, first)
    old, new = measure([{**chosen, product.key: choice} for choice in (before, now)], product.launches)
    return Verdict(product.key, before, now if new <= old * (1 - LEAST) else before, old, min(new, old))


class Bench:
    """Measures programs that differ in their choices, on given `inputs`; nothing that they train is moved."""

    def __init__(self, source: Source, options: Options, inputs: Mapping[str, Any], threads: int | None = None) -> None:
        self.trials, self.inputs, self.threads = build.trials(source, options), inputs, threads
        self.store = Store(0)

    def runner(self, choices: Choices) -> Runner:
        """The program with these choices."""
        made = self.trials.compiled(choices)
        runner = Runner(made.executable, made.objects, self.store, build.walker(), self.threads)
        for name in self.store.scalars:
            if name == "rate":
                self.store.scalars[name] = 0.0  # thousands of updates would lead to numbers that take longer
        return runner

    def measure(self, tables: Sequence[Choices], launches: Sequence[int]) -> list[float]:
        """Medians of nanoseconds on one core, all in turns."""
        watches = [stopwatch(self.runner(choices), self.inputs) for choices in tables]
        return in_turns([partial(watch, launches) for watch in watches])

    def steps(self, tables: Sequence[Choices]) -> list[float]:
        """The same of whole steps, on all threads."""
        runners = [self.runner(choices) for choices in tables]
        return in_turns([partial(step_ns, runner, self.inputs) for runner in runners])


def step_ns(runner: Runner, inputs: Mapping[str, Any]) -> float:
    """Nanoseconds of a step."""
    return nanoseconds(lambda: runner.run(inputs), 1)[0]


def in_turns(watches: Sequence[Callable[[], float]], turns: int = TURNS) -> list[float]:
    """The median of each, the order turning from turn to turn."""
    times: list[list[float]] = [[] for _ in watches]
    order = list(range(len(watches)))
    for k in order:
        watches[k]()  # cold
    for _ in range(turns):
        for k in order:
            times[k].append(watches[k]())
        order = order[1:] + order[:1]
    return [statistics.median(each) for each in times]
