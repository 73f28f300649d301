"""What the command's texts mean: arguments of a model, and what is asked of the compiler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from chainrule.api.place import CPU, Place
from chainrule.errors import ChainruleError
from chainrule.options import Options
from chainrule.source import Source, read_source

Value = bool | int | float

WORDS: dict[str, Value] = {"true": True, "false": False}


def arguments(settings: Sequence[str]) -> dict[str, Value]:
    """``["hidden=256", "causal=true"]`` as names and values. Raises ChainruleError."""
    found: dict[str, Value] = {}
    for setting in settings:
        name, sign, text = (part.strip() for part in setting.partition("="))
        if not sign or not name.isidentifier():
            raise ChainruleError(f"--set {setting} sets nothing\n  Way out: --set NAME=VALUE, as in --set hidden=256")
        found[name] = value(name, text)
    return found


def value(name: str, text: str) -> Value:
    """The number or truth value that `text` is."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", text, re.ASCII | re.IGNORECASE):
        return float(text)
    raise ChainruleError(f"--set {name}={text}: that is no number\n  Way out: a number, true or false")


def source(model: str, settings: Sequence[str]) -> Source:
    """The model in a file, with its arguments."""
    return read_source(model, {**arguments(settings)})


def options(optimizer: str | None, dtype: Literal["float32", "float64"], place: Place = CPU) -> Options:
    """A training step; without an optimizer (``none``), its loss and gradients."""
    place.check(dtype, None)
    where: dict[str, Any] = {"target": place.target, "precision": place.precision}
    if optimizer in (None, "none"):
        return Options("gradient", dtype=dtype, **where)
    return Options("train", optimizer=optimizer, dtype=dtype, **where)
