"""All rows by ONNX's names, and what is left out, and why."""

from __future__ import annotations

from tests.conformance.nodes import maps, places, resizing, sequences, sums, windows

FAMILIES = {module.__name__.rpartition(".")[2]: module for module in (maps, places, sums, windows, resizing, sequences)}
ROWS = {name: row for module in FAMILIES.values() for name, row in module.ROWS.items()}

SHAPE = "a shape that depends on the data"
GRAPHS = "out of scope: a graph inside an operator"
TEXT = "out of scope: text"
LISTS = "out of scope: sequences, maps and optional values"

UNSAID: dict[str, str] = {
    **dict.fromkeys(("NonZero", "Unique", "NonMaxSuppression"), SHAPE),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), GRAPHS),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "ml.LabelEncoder"),
        TEXT,
    ),
    **dict.fromkeys(("OptionalGetElement", "OptionalHasElement", "SequenceInsert", "SplitToSequence"), LISTS),
    "ImageDecoder": "out of scope: files of pictures",
    "Bernoulli": "out of scope: ONNX's own random numbers",
    "BitCast": "out of scope: how a number lies in memory",
    "ml.TreeEnsemble": "out of scope: trees of decisions",
}

TIES: dict[str, str] = {
    "test_dynamicquantizelinear": "a tie of rounding, which the last bit of float32's 5 / 255 decides: off by one"
}
"""Cases whose integers may be off by one, and why."""

__all__ = ["FAMILIES", "ROWS", "TIES", "UNSAID"]
