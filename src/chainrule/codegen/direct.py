"""One function for a composition: x tanh(log(1 + exp x)) as a quotient of polynomials in exp x, fitted when it is met.

Which functions a law holds does not matter, only its values (`behaviour`). Of the forms that `forms` knows the
cheapest counts whose error is nowhere above 4 ulp of the result, or above that of the composition in float32 nearby
where this is more, among some ten thousand floats of all binades. NaN, infinities and signed zeros give what they give
the composition, or the limit. It is taken where it costs less by `weights`; else the composition stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sympy as sp

from chainrule.codegen.behaviour import SPECIAL, Behaviour, Values, samples
from chainrule.codegen.forms import Lines, forms
from chainrule.codegen.objects import plain
from chainrule.codegen.weights import distinct

CALL = re.compile(r"\b([a-z]\w*)\(")

GAIN = 0.8
"""The part of a composition's cost that its function may take."""


@dataclass(frozen=True)
class Direct:
    """The lines of a function of ``u``, and what it costs.

    ulps: its greatest error among the samples, in ulp of the result, where the composition may lose no more than 8.
    part: of what the composition may lose, elsewhere.
    """

    lines: Lines
    cost: float
    ulps: float
    part: float

    @property
    def calls(self) -> set[str]:
        """The functions that it is made of."""
        return {name for line in self.lines for name in CALL.findall(line)}

    def source(self, name: str, law: str) -> str:
        """The function as text."""
        error = f"off by at most {self.ulps:.1f} ulp"
        if self.part:
            error += f", or {self.part:.2f} of what the composition may be where that is more than 8"
        body = "\n".join(f"    {line}" for line in self.lines)
        return f'def {name}(u):\n    """{law}: {error}."""\n{body}\n'


@lru_cache(maxsize=1024)
def direct(law: sp.Expr) -> Direct | None:
    """The cheapest function that computes `law`, of `behaviour.X` alone, in float32; None where none wins."""
    budget, b = GAIN * distinct((law,)), Behaviour(law)
    for form in sorted(forms(b), key=lambda f: f.cost):
        if form.cost > budget:
            return None
        lines = form.make()
        if lines is None:
            continue
        found = computed(lines)
        errors = b.judged(found(samples()), found(SPECIAL))
        if errors is not None:
            return Direct(lines, form.cost, *errors)
    return None


def computed(lines: Lines) -> Callable[[Values], Values]:
    """The function of these lines on arrays."""
    function = plain("def direct(u):\n" + "\n".join(f"    {line}" for line in lines) + "\n", "direct")

    def call(u: Values) -> Values:
        with np.errstate(all="ignore"):
            return np.asarray(function(u))

    return call
