"""What is chosen for a product, and by what name: the table that `chainrule tune` measures and the compiler looks into.

A product's name is its canonical form: the float, the extents, the strides; what is known at run time only is a `?`.
Two products of one name are computed alike, whichever models they are in; so are two convolutions. What the table does
not have, the cost model chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

Method = Literal["direct", "tile", "blas", "sums", "winograd"]


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a product is computed: by plain loops, by a tile in registers, by OpenBLAS. A convolution: by its sums, which
    are products, or by Winograd's fewer multiplications, with tiles of `rows` by `rows` places.

    rows, vectors: of the tile. packed: its right operand is copied, panel by panel. strip: the left one as well.
    depth: so many inner indices at a time (None: all).
    """

    method: Method
    rows: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    vectors: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    packed: bool = False
    strip: bool = False
    depth: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] | None = None

    def __str__(self) -> str:
        if self.method == "winograd":
            return f"Winograd {self.rows}×{self.rows}"
        if self.method != "tile":
            return {"direct": "loops", "blas": "OpenBLAS", "sums": "sums"}[self.method]
        words = [f"{self.rows}×{self.vectors}"]
        words += ["packed"] * self.packed + ["strips"] * self.strip
        return " ".join(words + ([f"by {self.depth}"] if self.depth else []))


Choices: TypeAlias = Mapping[str, Choice]

COST_MODEL: Choices = {}
"""Nothing was measured."""


def encode(choices: Choices) -> bytes:
    """The table as JSON, in the order of names."""
    return msgspec.json.encode({name: choices[name] for name in sorted(choices)})
