"""Shapes, contractions and graphs: one row an operation, with attributes drawn and PyTorch's own expression."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.library.oracle import Case

F = torch.nn.functional
Draw = Any


def integer(draw: Draw, low: int, high: int) -> int:
    return int(draw(st.integers(low, high)))


def last(call: str, oracle: Any, least: int = 0, **more: Any) -> Any:
    """An operation of the last axis of x[n, i], of any size."""

    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 0, 2), "i": integer(draw, least, 5)}
        return Case(f"dim n; dim i >= {least}; input x[n, i]", call, oracle, sizes, **more)

    return row


def slices(draw: Draw) -> Case:
    start, step = integer(draw, 0, 3), integer(draw, 1, 3)
    end = integer(draw, start, 6)
    call = f"slice(x, {start}, {end}, {step})"
    return Case("dim n; input x[n, 6]", call, lambda x: x[:, start:end:step], {"n": integer(draw, 0, 2)})


def concats(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3), "j": integer(draw, 0, 3)}
    return Case("dim n, i, j; input a[n, i]; input b[n, j]", "concat(a, b)", lambda a, b: torch.cat([a, b], -1), sizes)


def channels(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 0, 2), "h": integer(draw, 0, 3)}
    text = "dim n, h; input a[n, 3, h, 2]; input b[n, 2, h, 2]"
    return Case(text, "concat_channels(a, b)", lambda a, b: torch.cat([a, b], 1), sizes)


def times(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 0, 2), "t": integer(draw, 0, 3), "s": integer(draw, 0, 3)}
    text = "dim n, t, s; input a[n, t, 2]; input b[n, s, 2]"
    return Case(text, "concat_time(a, b)", lambda a, b: torch.cat([a, b], 1), sizes)


def pads(name: str, mode: str, most: int) -> Any:
    def row(draw: Draw) -> Case:
        before, after = integer(draw, 0, most), integer(draw, 0, most)
        sizes = {"n": integer(draw, 1, 2), "i": integer(draw, 3, 5)}
        text = "dim n; dim i >= 3; input x[n, i]"
        return Case(text, f"{name}(x, {before}, {after})", lambda x: F.pad(x, (before, after), mode=mode), sizes)

    return row


def constants(draw: Draw) -> Case:
    before, after = integer(draw, 0, 3), integer(draw, 0, 3)
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3)}
    call = f"pad(x, {before}, {after}, value = 2.5)"
    return Case("dim n, i; input x[n, i]", call, lambda x: F.pad(x, (before, after), value=2.5), sizes)


def frames(draw: Draw) -> Case:
    t, b, l, r = (integer(draw, 0, 2) for _ in range(4))
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3)}
    return Case(
        "dim n, i; input x[n, 2, i, 3]", f"pad2d(x, {t}, {b}, {l}, {r})", lambda x: F.pad(x, (l, r, t, b)), sizes
    )


def rolls(draw: Draw) -> Case:
    shift = integer(draw, -3, 3)
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 3, 5)}
    return Case("dim n; dim i >= 3; input x[n, i]", f"roll(x, {shift})", lambda x: torch.roll(x, shift, -1), sizes)


def counted(call: str, oracle: Any) -> Any:
    """An operation with a small number k."""

    def row(draw: Draw) -> Case:
        k = integer(draw, 1, 3)
        sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 4)}
        return Case("dim n, i; input x[n, i]", call.format(k=k), lambda x: oracle(x, k), sizes)

    return row


def indexed(call: str, oracle: Any, index: str = "index[n, j]") -> Any:
    """An operation with numbers below 4 of places."""

    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 0, 3), "j": integer(draw, 0, 4)}
        x = "x[n, j]" if "scatter" in call else "x[4, 3]" if "rows" in call else "x[n, 4]"
        return Case(f"dim n, j; input {x}; input {index} : index 4", call, oracle, sizes)

    return row


def square(call: str, oracle: Any) -> Any:
    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 4)}
        return Case("dim n, i; input x[n, i, i]", call, oracle, sizes)

    return row


def triangles(name: str, oracle: Any) -> Any:
    def row(draw: Draw) -> Case:
        k = integer(draw, -2, 2)
        sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3), "j": integer(draw, 0, 3)}
        return Case("dim n, i, j; input x[n, i, j]", f"{name}(x, offset = {k})", lambda x: oracle(x, k), sizes)

    return row


def products(declarations: str, call: str, formula: str) -> Any:
    def row(draw: Draw) -> Case:
        sizes = {d: integer(draw, 0, 3) for d in "nijk"}
        return Case(f"dim n, i, j, k; {declarations}", call, lambda *t: torch.einsum(formula, *t), sizes)

    return row


def bilinear(draw: Draw) -> Case:
    text = "dim n; input x[n, 3]; input z[n, 2]"
    return Case(text, "bilinear(x, z, 4)", lambda x, z, W, b: F.bilinear(x, z, W, b), {"n": integer(draw, 0, 3)})


def image(call: str, oracle: Any, shape: str = "x[n, 4, 4, 6]", least: int = 0) -> Any:
    def row(draw: Draw) -> Case:
        return Case(f"dim n; input {shape}", call, oracle, {"n": integer(draw, least, 2)})

    return row


ROWS = {
    "transpose": products("input x[n, i, j]", "transpose(x)", "nij->nji"),
    "merge": products("input x[n, i, j]", "merge(x)", "nij->nij"),
    "unmerge": image("unmerge(x, 3)", lambda x: x.reshape(*x.shape[:-1], 2, 3)),
    "flatten": image("flatten(x)", lambda x: x.reshape(x.shape[0], 96)),
    "unflatten": image("unflatten(x, 2, 3)", lambda x: x.reshape(x.shape[0], 4, 2, 3), "x[n, 24]"),
    "unsqueeze": last("unsqueeze(x)", lambda x: x[..., None]),
    "squeeze": image("squeeze(x)", lambda x: x.squeeze(-1), "x[n, 3, 1]"),
    "expand": counted("expand(x, {k})", lambda x, k: x[..., None].expand(*x.shape, k)),
    "slice": slices,
    "narrow": image("narrow(x, 1, 3)", lambda x: x.narrow(-1, 1, 3)),
    "concat": concats,
    "concat_channels": channels,
    "concat_time": times,
    "stack": products("input a[n, i]; input b[n, i]", "stack(a, b)", ""),
    "pad": constants,
    "pad2d": frames,
    "pad_reflect": pads("pad_reflect", "reflect", 2),
    "pad_replicate": pads("pad_replicate", "replicate", 4),
    "pad_circular": pads("pad_circular", "circular", 3),
    "roll": rolls,
    "flip": last("flip(x)", lambda x: x.flip(-1)),
    "tile": counted("tile(x, {k})", lambda x, k: x.repeat(1, k)),
    "repeat_each": counted("repeat_each(x, {k})", lambda x, k: x.repeat_interleave(k, -1)),
    "take_along": indexed("take_along(x, index)", lambda x, index: torch.take_along_dim(x, index, -1)),
    "take_rows": indexed("take_rows(x, index)", lambda x, index: x[index]),
    "scatter_add": indexed(
        "scatter_add(x, index, 4)", lambda x, i: torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter_add(1, i, x)
    ),
    "one_hot": indexed("one_hot(index, 4)", lambda x, i: F.one_hot(i, 4) + 0 * x.sum()),
    "diag": last("diag(x)", lambda x: torch.diag_embed(x)),
    "diagonal": square("diagonal(x)", lambda x: torch.diagonal(x, 0, -2, -1)),
    "trace": square("trace(x)", lambda x: torch.diagonal(x, 0, -2, -1).sum(-1)),
    "tril": triangles("tril", torch.tril),
    "triu": triangles("triu", torch.triu),
    "masked_fill": indexed("masked_fill(x, index, 7)", lambda x, i: x.masked_fill(i <= 0, 7.0), "index[n, 4]"),
    "matmul": products("input a[n, i, k]; input b[n, k, j]", "matmul(a, b)", "nik,nkj->nij"),
    "matmul_by": products("input a[n, i, k]; input b[k, j]", "matmul_by(a, b)", "nik,kj->nij"),
    "matvec": products("input a[n, i, k]; input b[n, k]", "matvec(a, b)", "nik,nk->ni"),
    "dot": products("input a[n, k]; input b[n, k]", "dot(a, b)", "nk,nk->n"),
    "outer": products("input a[n, i]; input b[n, j]", "outer(a, b)", "ni,nj->nij"),
    "bilinear": bilinear,
    "pixel_shuffle": image("pixel_shuffle(x, 2)", lambda x: F.pixel_shuffle(x, 2), least=1),
    "pixel_unshuffle": image("pixel_unshuffle(x, 2)", lambda x: F.pixel_unshuffle(x, 2), least=1),
}


def merged(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3), "j": integer(draw, 0, 3)}
    return Case("dim n, i, j; input x[n, i, j]", "merge(x)", lambda x: x.reshape(x.shape[0], -1) if x.numel() else
                x.reshape(x.shape[0], x.shape[1] * x.shape[2]), sizes)  # fmt: skip


def stacked(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 0, 2), "i": integer(draw, 0, 3)}
    return Case("dim n, i; input a[n, i]; input b[n, i]", "stack(a, b)", lambda a, b: torch.stack([a, b], -1), sizes)


def bags(draw: Draw) -> Case:
    mean = integer(draw, 0, 1) == 1
    call = f"embedding_bag(index, table{'' if mean else ', average = false'})"
    oracle = lambda i, table: table[i].mean(1) if mean else table[i].sum(1)  # noqa: E731
    return Case("dim n; input index[n, 3] : index 4; input table[4, 2]", call, oracle, {"n": integer(draw, 0, 2)})


ROWS |= {"merge": merged, "stack": stacked, "embedding_bag": bags}
