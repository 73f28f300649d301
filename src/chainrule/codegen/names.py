"""What a user's text becomes before it may stand in generated source: identifiers, comments, docstrings.

Nothing of a user's reaches a kernel raw. A name is mangled to ``[a-z][a-z0-9_]*`` and made unique among the names of
its function; a comment or docstring is printable ASCII on one line, without quotes or backslashes.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable

LONGEST = 48  # of an identifier: a path of forty layers reads no better in full

GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
}  # fmt: skip

READABLE = {
    "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≠": "!=", "…": "...", "Σ": "sum",
    "∂": "d", "→": "->", "²": "^2", "ᵀ": "^T", '"': "'", "\\": "/", **GREEK,
}  # fmt: skip
"""How a comment spells what ASCII lacks; quotes and backslashes could end the text that they stand in."""

TAKEN = frozenset((*keyword.kwlist, *keyword.softkwlist, *dir(builtins)))


def identifier(text: str) -> str:
    """`text` as an identifier, ``[a-z][a-z0-9_]*``: not yet unique, and perhaps a word that is taken.

    `h.linear.W` becomes `h_linear_w`.
    """
    spelt = "".join(GREEK.get(c, c) for c in text[: 4 * LONGEST])
    mangled = re.sub(r"[^a-z0-9]+", "_", spelt.lower()).strip("_")[:LONGEST].rstrip("_")
    return mangled if mangled[:1].isalpha() else f"v{mangled}"


class Names:
    """The identifiers of one function: each is given out once, and never one that is taken."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {*TAKEN, *taken}
        self._ever = set(self._taken)  # those released too

    def fresh(self, text: str, never_had: bool = False) -> str:
        """An identifier like `text` that no one has: `n`, then `n2`, `n3` … never_had: nor has had."""
        base = name = identifier(text)
        k = 2
        while name in (self._ever if never_had else self._taken):
            # n1 and a number would read as n12
            name, k = f"{base}{'_' if base[-1].isdigit() else ''}{k}", k + 1
        self._taken.add(name)
        self._ever.add(name)
        return name

    def prefix(self, text: str, endings: Iterable[str]) -> str:
        """An identifier like `text` such that it, followed by ``_`` and any of `endings`, is no one's."""
        endings = tuple(endings)
        base = name = identifier(text)
        k = 2
        while any(f"{name}_{ending}" in self._taken for ending in endings):
            name, k = f"{base}_{k}", k + 1
        self._taken |= {f"{name}_{ending}" for ending in endings}
        self._ever |= self._taken
        return name

    def release(self, name: str) -> None:
        """`name` may be given out again: the loop that had it is closed."""
        self._taken.discard(name)


def plain(text: str, longest: int = 200) -> str:
    """`text` on one line of printable ASCII, for a comment or a docstring: what could end either is replaced.

    No backslash and no double quote is left, so that neither an escape nor the end of a string can be written.
    """
    spelt = "".join(READABLE.get(c, c) for c in text[: 4 * longest])
    shown = re.sub(r"[^ -~]+", "?", re.sub(r"\s+", " ", spelt)).strip()
    return shown if len(shown) <= longest else f"{shown[: longest - 3].rstrip()}..."
