"""Points where a derivative is a convention, and PyTorch's is another than the language's; see docs/language.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kink:
    """A stated difference. `holds` says of an input, its gradient here and PyTorch's that the sample sits on it."""

    why: str
    holds: Callable[[Any, Any, Any], bool]


KINKS: dict[str, Kink] = {}
