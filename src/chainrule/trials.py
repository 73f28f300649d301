"""One program compiled with many choices, for `tuning` to time: derived once, scheduled once for the same ways of its
convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from chainrule import codegen
from chainrule.choices import COST_MODEL, Choice, Choices, encode
from chainrule.codegen.choices import Case, candidates
from chainrule.codegen.target import host
from chainrule.compiler import derive, emitted, program
from chainrule.ir.program import Program
from chainrule.options import Options
from chainrule.runtime.cache import Compiled
from chainrule.schedule.winograd import SUMS, TILES
from chainrule.source import Source


@dataclass(frozen=True)
class Product:
    """A product of a program: its name, the launches that compute it, how it is computed now."""

    case: Case
    launches: tuple[int, ...]
    choice: Choice

    @property
    def key(self) -> str:
        return self.case.key

    def candidates(self, around: Choice) -> tuple[Choice, ...]:
        """`around` first, then what differs from it in one thing."""
        return candidates(self.case, host(), around)


@dataclass(frozen=True)
class Convolution:
    """A convolution of a program that fewer multiplications can compute. It is no launch's alone: the step tells."""

    key: str
    choice: Choice
    launches: tuple[int, ...] = ()

    def candidates(self, around: Choice) -> tuple[Choice, ...]:
        """`around` first, then the other ways."""
        return tuple(dict.fromkeys((around, SUMS, *(Choice("winograd", m) for m in TILES))))


class Trials:
    """The program that `options` ask of `source`; kept: where compiled kernels are."""

    def __init__(self, source: Source, options: Options, kept: codegen.Kept) -> None:
        self.options, self.kept = options, kept
        self.derived = derive(source, options)
        self.programs: dict[bytes, Program] = {}

    def program(self, choices: Choices) -> Program:
        """The program with these choices of its convolutions."""
        own = {key: choice for key, choice in choices.items() if choice.method in ("sums", "winograd")}
        found = self.programs.get(encode(own))
        if found is None:
            found = self.programs[encode(own)] = program(self.derived, self.options, own)
        return found

    def convolutions(self, choices: Choices = COST_MODEL) -> tuple[Convolution, ...]:
        """Those that tiles can compute, as `choices` have them."""
        return tuple(Convolution(key, choice) for key, choice in self.program(choices).convolutions)

    def products(self, choices: Choices = COST_MODEL) -> tuple[Product, ...]:
        """Its products as `choices` have them, the largest first."""
        found: dict[str, tuple[Case, Choice, list[int]]] = {}
        written = codegen.printed(self.program(choices), self.options.dtype, host(), choices, self.options.accurate)
        for k, source in enumerate(written):
            for case, choice in source.products:
                found.setdefault(case.key, (case, choice, []))[2].append(k)
        products = (Product(case, tuple(launches), choice) for case, choice, launches in found.values())
        return tuple(sorted(products, key=lambda p: -p.case.multiplications * len(p.launches)))

    def compiled(self, choices: Choices) -> Compiled:
        """The program with these choices."""
        return Compiled(*emitted(self.derived, self.program(choices), self.options, self.kept, choices))
