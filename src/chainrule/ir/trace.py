"""A step of a derivation: what stood there, by which rule it became what, for pictures and the explain page."""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.ir.formula import Formula


@dataclass(frozen=True)
class Step:
    """By `rule`, `before` became `after`; nothing before: a formula was added; nothing after: it was left out."""

    rule: str
    before: tuple[Formula, ...]
    after: tuple[Formula, ...]
