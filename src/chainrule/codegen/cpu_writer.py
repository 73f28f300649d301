"""A kernel for the CPU while it is written: a `Writer` that knows the target, and how its products are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy as sp

from chainrule.choices import Choice, Choices
from chainrule.codegen.choices import Case, choice_of, way_of
from chainrule.codegen.expressions import Symbol
from chainrule.codegen.kernel import Writer
from chainrule.codegen.operand import Way
from chainrule.codegen.target import Target
from chainrule.ir.program import Range


@dataclass
class CpuWriter(Writer):
    """choices: what was measured. products: by key, each case that was met, and how it is computed."""

    target: Target = field(kw_only=True)
    choices: Choices = field(default_factory=dict)
    products: dict[str, tuple[Case, Choice]] = field(default_factory=dict)

    def way(self, case: Case) -> Way:
        """How a product is computed."""
        way = way_of(case, self.target, self.choices)
        self.products[case.key] = case, choice_of(way)
        return way

    @contextmanager
    def collapsed(self, ranges: list[Range]) -> Iterator[None]:
        """One loop for several that nest perfectly: CPython refuses more than 20 of them."""
        counts = [sp.Add(r.stop, -r.start) for r in ranges]
        # of an empty range nothing may be a factor below nothing
        lengths = [
            f"{self.call('maximum')}(0, {self.integer(c)})" if not c.is_nonnegative else f"({self.integer(c)})"
            for c in counts
        ]
        flat = self.names.fresh("flat")
        with self.inside(f"for {flat} in range({' * '.join(lengths)}):"):
            rest = flat
            for k, r in reversed(list(enumerate(ranges))):
                name = self.names.fresh(r.pretty or "i")
                start = self.integer(r.start)
                place = rest if k == 0 else f"{rest} % {lengths[k]}"
                self.line(f"{name} = {place}" if start == "0" else f"{name} = {start} + {place}")
                if k:
                    following = self.names.fresh("rest")
                    self.line(f"{following} = {rest} // {lengths[k]}")
                    rest = following
                self.symbols[r.symbol] = Symbol(name, "integer", frozenset({r.symbol}))
                self.ranges[r.symbol] = r
            self.open.append(ranges[-1].symbol)
            yield
            self.open.pop()
