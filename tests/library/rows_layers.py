"""Normalisation, attention, positions and graph networks: one row an operation."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.library.oracle import Case
from tests.library.rows_shapes import integer

F = torch.nn.functional
Draw = Any


def of_images(call: str, oracle: Any, **more: Any) -> Any:
    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 1, 3), "h": integer(draw, 1, 3)}
        return Case("dim n >= 1; dim h >= 1; input x[n, 4, h, 2]", call, oracle, sizes, **more)

    return row


def of_features(call: str, oracle: Any, least: int = 0, **more: Any) -> Any:
    def row(draw: Draw) -> Case:
        return Case("dim n; input x[n, 4]", call, oracle, {"n": integer(draw, least, 3)}, **more)

    return row


def grouped(draw: Draw) -> Case:
    groups = (1, 2, 4)[integer(draw, 0, 2)]
    sizes = {"n": integer(draw, 1, 3), "h": integer(draw, 1, 3)}
    oracle = lambda x, g, b: F.group_norm(x, groups, g, b)  # noqa: E731
    return Case("dim n, h; input x[n, 4, h, 2]", f"group_norm(x, {groups})", oracle, sizes)


def attend(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    """The textbook's; rows that see nothing are 0."""
    score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        score = score + mask
    dead = torch.isinf(score).all(-1, keepdim=True) if score.numel() else torch.zeros(1, dtype=torch.bool)
    return torch.where(dead, 0.0, torch.softmax(torch.where(dead, 0.0, score), -1)) @ v


def above(t: int, s: int) -> Any:
    return torch.where(torch.arange(s)[None] > torch.arange(t)[:, None], -math.inf, 0.0).double()


def hidden(keep: Any) -> Any:
    return torch.where(keep > 0, 0.0, -math.inf).double()


def attention(causal: bool) -> Any:
    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 3), "s": integer(draw, 1, 4)}
        text = "dim n, t, s; input q[n, t, 3]; input k[n, s, 3]; input v[n, s, 2]"
        mask = above(sizes["t"], sizes["s"]) if causal else None
        call = f"attention(q, k, v, causal = {str(causal).lower()})"
        return Case(text, call, lambda q, k, v: attend(q, k, v, mask), sizes)

    return row


def biased(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 3), "s": integer(draw, 1, 4)}
    text = "dim n, t, s; input q[n, t, 3]; input k[n, s, 3]; input v[n, s, 2]; input b[n, t, s]"
    return Case(text, "attention_bias(q, k, v, b)", attend, sizes)


def padded(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 3), "t": integer(draw, 1, 3), "s": integer(draw, 1, 4)}
    causal = integer(draw, 0, 1) == 1
    text = "dim n, t, s; input q[n, 2, t, 3]; input k[n, 2, s, 3]; input v[n, 2, s, 2]; input keep[n, s] : bool"
    mask = above(sizes["t"], sizes["s"]) if causal else 0.0
    call = f"attention_mask(q, k, v, keep, causal = {str(causal).lower()})"
    return Case(text, call, lambda q, k, v, keep: attend(q, k, v, hidden(keep)[:, None, None] + mask), sizes)


def heads(x: Any, z: Any, Q: Any, K: Any, V: Any, O: Any, mask: Any = None) -> Any:
    q = torch.einsum("ntc,chd->nhtd", x, Q)
    k, v = (torch.einsum("ntc,chd->nhtd", z, w) for w in (K, V))
    return torch.einsum("nhtd,hdo->nto", attend(q, k, v, mask), O)


def multi_head(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 4)}
    oracle = lambda x, *w: heads(x, x, *w, mask=above(sizes["t"], sizes["t"]))  # noqa: E731
    return Case("dim n, t; input x[n, t, 4]", "multi_head(x, heads = 2)", oracle, sizes)


def masked_multi_head(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 4)}
    oracle = lambda x, keep, *w: heads(x, x, *w, mask=hidden(keep)[:, None, None])  # noqa: E731
    text = "dim n, t; input x[n, t, 4]; input keep[n, t] : bool"
    return Case(text, "masked_multi_head(x, keep, heads = 2)", oracle, sizes)


def cross(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 3), "s": integer(draw, 1, 3)}
    text = "dim n, t, s; input x[n, t, 4]; input z[n, s, 3]"
    return Case(text, "cross_attention(x, z, heads = 2)", lambda x, z, *w: heads(x, z, *w), sizes)


def grouped_query(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 3)}

    def oracle(x: Any, Q: Any, K: Any, V: Any, O: Any) -> Any:
        q = torch.einsum("ntc,cghd->nghtd", x, Q)
        k, v = (torch.einsum("ntc,cgd->ngtd", x, w)[:, :, None] for w in (K, V))
        return torch.einsum("nghtd,ghdo->nto", attend(q, k, v, above(sizes["t"], sizes["t"])), O)

    return Case("dim n, t; input x[n, t, 8]", "grouped_query(x, heads = 4, groups = 2)", oracle, sizes)


def cached(draw: Draw) -> Case:
    sizes = {"n": integer(draw, 1, 2), "t": integer(draw, 1, 2), "s": integer(draw, 0, 3)}

    def oracle(x: Any, keys: Any, values: Any, Q: Any, K: Any, V: Any, O: Any) -> Any:
        q, k, v = (torch.einsum("ntc,chd->nhtd", x, w) for w in (Q, K, V))
        t, s = sizes["t"], sizes["s"]
        a = attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), above(s + t, s + t)[s:])
        return torch.einsum("nhtd,hdo->nto", a, O)

    text = "dim n, t, s; input x[n, t, 4]; input keys[n, 2, s, 3]; input values[n, 2, s, 3]"
    return Case(text, "cached_multi_head(x, keys, values)", oracle, sizes)


def sinusoidal(x: Any) -> Any:
    t, c = x.shape[1:]
    angle = torch.arange(t).double()[:, None] * 10000.0 ** (-2 * (torch.arange(c) // 2).double() / c)
    return x + torch.where(torch.arange(c) % 2 == 0, angle.sin(), angle.cos())


def rotary(x: Any, start: int) -> Any:
    t, d = x.shape[1:]
    turn = torch.arange(start, start + t).double()[:, None] * 10000.0 ** (-2 * torch.arange(d // 2).double() / d)
    z = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(turn), turn)
    return torch.cat([z.real, z.imag], -1)


def of_places(call: str, oracle: Any) -> Any:
    def row(draw: Draw) -> Case:
        sizes = {"n": integer(draw, 0, 2), "t": integer(draw, 0, 4)}
        return Case("dim n; dim t <= 9; input x[n, t, 6]", call, oracle, sizes)

    return row


# ---------------------------------------------------------------- graphs


def segments(call: str, reduce: str) -> Any:
    def row(draw: Draw) -> Case:
        def oracle(x: Any, group: Any) -> Any:
            start = torch.zeros(3, 2, dtype=x.dtype)
            index = group[:, None].expand(-1, 2)
            found = start.scatter_reduce(0, index, x, reduce, include_self=False)
            if reduce == "amax":
                found = torch.where(torch.bincount(group, minlength=3)[:, None] > 0, found, -math.inf)
            return found

        return Case("dim e; input x[e, 2]; input group[e] : index 3", call, oracle, {"e": integer(draw, 0, 6)})

    return row


def share(x: Any, group: Any, count: int) -> Any:
    """The softmax in each group."""
    w = x.exp()
    return w / torch.zeros(count, x.shape[1], dtype=x.dtype).index_add(0, group, w)[group]


def segment_softmax(draw: Draw) -> Case:
    text = "dim e; input x[e, 2]; input group[e] : index 3"
    return Case(text, "segment_softmax(x, group, 3)", lambda x, g: share(x, g, 3), {"e": integer(draw, 0, 6)})


def arriving(z: Any, source: Any, target: Any) -> Any:
    return torch.zeros_like(z).index_add(0, target, z[source])


def degree(x: Any, target: Any) -> Any:
    return torch.bincount(target, minlength=len(x)).to(x.dtype)[:, None]


def gcn(x: Any, source: Any, target: Any, W: Any, b: Any) -> Any:
    s = (x @ W) / (1 + degree(x, target)).sqrt()
    return (arriving(s, source, target) + s) / (1 + degree(x, target)).sqrt() + b


def sage(x: Any, source: Any, target: Any, W: Any, U: Any, b: Any) -> Any:
    return x @ W + arriving(x, source, target) / degree(x, target).clamp(min=1) @ U + b


def gat(x: Any, source: Any, target: Any, W: Any, a: Any, b: Any, bias: Any) -> Any:
    z = torch.einsum("vi,iho->vho", x, W)
    score = F.leaky_relu((z * a).sum(-1)[source] + (z * b).sum(-1)[target], 0.2)
    m = torch.zeros_like(z).index_add(0, target, share(score, target, len(x))[:, :, None] * z[source])
    return m.reshape(len(x), 6) + bias


def gin(x: Any, source: Any, target: Any, eps: Any, W: Any, b: Any, U: Any, c: Any) -> Any:
    return torch.relu(((1 + eps) * x + arriving(x, source, target)) @ W + b) @ U + c


def messages(x: Any, f: Any, source: Any, target: Any, A: Any, B: Any, C: Any, b: Any) -> Any:
    m = torch.relu((x @ A)[source] + (x @ B)[target] + f @ C + b)
    return torch.zeros(len(x), 2, dtype=x.dtype).index_add(0, target, m)


def network(call: str, oracle: Any, features: str = "") -> Any:
    def row(draw: Draw) -> Case:
        sizes = {"v": integer(draw, 1, 4), "e": integer(draw, 0, 7)}
        text = f"dim v, e; input x[v, 3]{features}; input source[e] : index v; input target[e] : index v"
        return Case(text, call, oracle, sizes)

    return row


def batch_norm(x: Any, g: Any, b: Any) -> Any:
    return F.batch_norm(x, None, None, g, b, True)


def stored(x: Any, g: Any, b: Any) -> Any:
    return F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double(), g, b, False)


ROWS = {
    "layer_norm": of_features("layer_norm(x)", lambda x, g, b: F.layer_norm(x, (4,), g, b)),
    "rms_norm": of_features("rms_norm(x)", lambda x, g: F.rms_norm(x, (4,), g, 1e-6)),
    "l2_normalize": of_features("l2_normalize(x)", lambda x: F.normalize(x)),
    "batch_norm": of_images("batch_norm(x)", batch_norm),
    "batch_norm, eval": of_images("batch_norm(x)", stored, training=False),
    "batch_norm1d": of_features("batch_norm1d(x)", batch_norm, least=2),
    "batch_norm1d, eval": of_features("batch_norm1d(x)", stored, training=False),
    "group_norm": grouped,
    "instance_norm": of_images("instance_norm(x)", lambda x, g, b: F.group_norm(x, 4, g, b)),
    "dropout, eval": of_features("dropout(x)", lambda x: x * 1, training=False),
    "dropout2d, eval": of_images("dropout2d(x)", lambda x: x * 1, training=False),
    "gaussian_noise, eval": of_features("gaussian_noise(x)", lambda x: x * 1, training=False),
    "attention": attention(False),
    "attention, causal": attention(True),
    "attention_bias": biased,
    "attention_mask": padded,
    "multi_head": multi_head,
    "masked_multi_head": masked_multi_head,
    "cross_attention": cross,
    "grouped_query": grouped_query,
    "cached_multi_head": cached,
    "sinusoidal": of_places("sinusoidal(x)", sinusoidal),
    "learned_positions": of_places("learned_positions(x, 9)", lambda x, P: x + P[: x.shape[1]]),
    "rotary": of_places("rotary(x)", lambda x: rotary(x, 0)),
    "rotary, start": of_places("rotary(x, start = 5)", lambda x: rotary(x, 5)),
    "segment_sum": segments("segment_sum(x, group, 3)", "sum"),
    "segment_mean": segments("segment_mean(x, group, 3)", "mean"),
    "segment_max": segments("segment_max(x, group, 3)", "amax"),
    "segment_softmax": segment_softmax,
    "gcn": network("gcn(x, source, target, 2)", gcn),
    "graph_sage": network("graph_sage(x, source, target, 2)", sage),
    "gat": network("gat(x, source, target, 3, heads = 2)", gat),
    "gin": network("gin(x, source, target, 4, 2)", gin),
    "message_passing": network("message_passing(x, f, source, target, 2)", messages, "; input f[e, 2]"),
}
