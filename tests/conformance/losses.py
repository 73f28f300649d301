"""Losses: one line for each example, then the mean or the sum of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance.elementwise import spread
from tests.conformance.indexing import places
from tests.conformance.page import OutOfScope, Page, Value, broadcast, number
from tests.conformance.reductions import mean, norm_of, total
from tests.conformance.shapes import reshape

Index = tuple[str, ...]


def reduced(w: Page, x: Value, reduction: str) -> Value:
    if reduction == "none" or not x.rank:
        return x
    return mean(w, x) if reduction == "mean" else total(w, x)


def pointwise(template: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, y: Value, reduction: str = "mean", weight: Any = None, **_: Any) -> Value:
        factor = {"v": weight} if weight is not None else {}
        return reduced(w, spread(w, f"{{v}} * ({template})" if factor else template, x=x, y=y, **factor), reduction)

    return row


def smooth_l1(w: Page, x: Value, y: Value, reduction: str = "mean", beta: float = 1.0) -> Value:
    r = spread(w, "{x} - {y}", x=x, y=y)
    e = spread(
        w, "if abs({x}) < {b} then {x}^2 / (2 * {b}) else abs({x}) - {b} / 2" if beta else "abs({x})", x=r, b=beta
    )
    return reduced(w, e, reduction)


def huber(w: Page, x: Value, y: Value, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Value:
    e = spread(w, f"huber({{x}}, {{y}}, delta = {number(delta)})", x=x, y=y)
    return reduced(w, e if weight is None else spread(w, "{x} * {v}", x=e, v=weight), reduction)


def bce(w: Page, x: Value, y: Value, weight: Any = None, reduction: str = "mean") -> Value:
    e = spread(w, "-({y} * max(log({x}), -100) + (1 - {y}) * max(log1p(-{x}), -100))", x=x, y=y)
    return reduced(w, e if weight is None else spread(w, "{x} * {v}", x=e, v=weight), reduction)


def bce_logits(
    w: Page, x: Value, y: Value, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Value:
    p = 1 if pos_weight is None else pos_weight
    e = spread(w, "(1 - {y}) * {x} + (1 + ({p} - 1) * {y}) * softplus(-{x})", x=x, y=y, p=p)
    return reduced(w, e if weight is None else spread(w, "{x} * {v}", x=e, v=weight), reduction)


def hinge_embedding(w: Page, x: Value, y: Value, margin: float = 1.0, reduction: str = "mean") -> Value:
    e = spread(w, "(if {y} != -1 then {x} else 0) + (if {y} != 1 then max({m} - {x}, 0) else 0)", x=x, y=y, m=margin)
    return reduced(w, e, reduction)


def margin_ranking(w: Page, x: Value, z: Value, y: Value, margin: float = 0.0, reduction: str = "mean") -> Value:
    return reduced(w, spread(w, "max(-{y} * ({x} - {z}) + {m}, 0)", x=x, z=z, y=y, m=margin), reduction)


def kl_div(w: Page, x: Value, y: Value, reduction: str = "mean", log_target: bool = False) -> Value:
    e = spread(
        w, "exp({y}) * ({y} - {x})" if log_target else "(if {y} == 0 then 0 else {y} * log({y})) - {y} * {x}", x=x, y=y
    )
    if reduction == "batchmean":
        s = total(w, e) if e.rank else e
        return spread(w, "{x} / {n}", x=s, n=x.shape[0])
    return reduced(w, e, reduction)


def poisson_nll(
    w: Page,
    x: Value,
    y: Value,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: str = "mean",
    **_: Any,
) -> Value:
    e = spread(w, "exp({x}) - {y} * {x}" if log_input else "{x} - {y} * log({x} + {eps})", x=x, y=y, eps=eps)
    if full:
        e = spread(w, "{e} + (if {y} > 1 then {y} * log({y}) - {y} + log(2 * pi * {y}) / 2 else 0)", e=e, y=y)
    return reduced(w, e, reduction)


def gaussian_nll(
    w: Page, x: Value, y: Value, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Value:
    v = var
    if isinstance(v, Value) and v.shape != x.shape and v.shape == x.shape[:-1]:
        v = reshape(w, v, (*v.shape, 1))
    if isinstance(v, Value):
        v = w(
            v.shape,
            lambda i: f"max({v[i]}, {number(eps)})",
        )
        # no gradient flows through the clamp, as PyTorch has it
    e = spread(w, "(log({v}) + ({x} - {y})^2 / {v}) / 2", x=x, y=y, v=v)
    if full:
        e = spread(w, "{e} + log(2 * pi) / 2", e=e)
    return reduced(w, e, reduction)


def classes(x: Value) -> tuple[int, Callable[[Index, str], Index]]:
    """The axis of classes, and the place of class c for an example's indices."""
    d = 1 if x.rank > 1 else 0
    return d, lambda i, c: (*i[:d], c, *i[d:])


def nll(
    w: Page, x: Value, label: Value, weight: Any = None, reduction: str = "mean", ignore_index: int = -100, **_: Any
) -> Value:
    d, at = classes(x)
    n = x.shape[d]
    if not x.size:
        raise OutOfScope("an empty batch's mean")
    shown = w(label.shape, lambda i: f"{label[i]} != {ignore_index}", dtype="bool")
    safe = w(label.shape, lambda i: f"clip({label[i]}, 0, {n - 1})", dtype=f"index {n}")
    each = w(label.shape, lambda i: f"if {shown[i]} then {weight[safe[i]] if weight is not None else '1'} else 0")
    e = w(label.shape, lambda i: f"-{each[i]} * {x[at(i, safe[i])]}")
    if reduction == "mean" and e.rank:
        a, b = total(w, e), total(w, each)
        return spread(w, "{a} / {b}", a=a, b=b)
    if reduction == "mean":
        return spread(w, "{a} / {b}", a=e, b=each)
    return reduced(w, e, reduction)


def cross_entropy(
    w: Page,
    x: Value,
    y: Value,
    weight: Any = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    **_: Any,
) -> Value:
    d, at = classes(x)
    n = x.shape[d]
    logp = w(x.shape, lambda i: f"{x[i]} - log(sum[r < {n}] exp({x[(*i[:d], 'r', *i[d + 1 :])]}))")
    each = (lambda c: weight[c]) if weight is not None else lambda c: "1"
    if y.dtype == "float":
        soft = w(y.shape, lambda i: f"{number(1 - label_smoothing)} * {y[i]} + {number(label_smoothing / n)}")
        shape = (*x.shape[:d], *x.shape[d + 1 :])
        e = w(shape, lambda i: f"-(sum[c < {n}] {each('c')} * {soft[at(i, 'c')]} * {logp[at(i, 'c')]})")
        if reduction == "mean":
            count = e.size
            return spread(w, "{a} / {n}", a=total(w, e) if e.rank else e, n=count)
        return reduced(w, e, reduction)
    main = nll(w, logp, y, weight, reduction, ignore_index)
    if not label_smoothing:
        return main
    shown = w(y.shape, lambda i: f"if {y[i]} != {ignore_index} then 1 else 0")
    smooth = w(y.shape, lambda i: f"-{shown[i]} * (sum[c < {n}] {each('c')} * {logp[at(i, 'c')]}) / {n}")
    if reduction == "mean":
        safe = w(y.shape, lambda i: f"clip({y[i]}, 0, {n - 1})", dtype=f"index {n}")
        norm = w(y.shape, lambda i: f"{shown[i]} * {each(safe[i])}")
        smooth = spread(
            w, "{a} / {b}", a=total(w, smooth) if smooth.rank else smooth, b=total(w, norm) if norm.rank else norm
        )
    else:
        smooth = reduced(w, smooth, reduction)
    return spread(w, "{s} * {a} + {t} * {b}", s=1 - label_smoothing, a=main, t=label_smoothing, b=smooth)


def soft_margin(w: Page, x: Value, y: Value, reduction: str = "mean") -> Value:
    return reduced(w, spread(w, "softplus(-{y} * {x})", x=x, y=y), reduction)


def multilabel_soft_margin(w: Page, x: Value, y: Value, weight: Any = None, reduction: str = "mean") -> Value:
    e = spread(w, "{y} * softplus(-{x}) + (1 - {y}) * softplus({x})", x=x, y=y)
    e = e if weight is None else spread(w, "{x} * {v}", x=e, v=weight)
    return reduced(w, mean(w, e, -1), reduction)


def multi_margin(
    w: Page, x: Value, y: Value, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean"
) -> Value:
    rank = x.rank
    x = reshape(w, x, (1,) * (2 - rank) + x.shape)
    label = places(w, y, x.shape[1])
    at = (lambda i: label[i]) if y.rank else lambda i: label[()]
    n = x.shape[1]
    v = (lambda i: f"{weight[at(i)]} * ") if weight is not None else lambda i: ""
    e = w(
        (x.shape[0],),
        lambda i: (
            f"{v(i)}(sum[c < {n} where c != {at(i)}] "
            f"max({number(margin)} - {x[i[0], at(i)]} + {x[i[0], 'c']}, 0)^{p}) / {n}"
        ),
    )
    e = reshape(w, e, ()) if not y.rank else e
    return reduced(w, e, reduction)


def multilabel_margin(w: Page, x: Value, y: Value, reduction: str = "mean") -> Value:
    rank = x.rank
    x, y = (reshape(w, v, (1,) * (2 - rank) + v.shape) if v.dtype == "float" else relabel(w, v) for v in (x, y))
    n = x.shape[1]
    # labels stand before the first -1
    shown = w(y.shape, lambda i: f"all[r < {n}] (r > {i[1]} or {y[i[0], 'r']} >= 0)", dtype="bool")
    at = w(y.shape, lambda i: f"clip({y[i]}, 0, {n - 1})", dtype=f"index {n}")
    isa = w(x.shape, lambda i: f"any[t < {n}] ({shown[i[0], 't']} and {at[i[0], 't']} == {i[1]})", dtype="bool")
    e = w(
        (x.shape[0],),
        lambda i: (
            f"(sum[t < {n}, c < {n} where {shown[i[0], 't']} and not {isa[i[0], 'c']}] "
            f"max(1 - {x[i[0], at[i[0], 't']]} + {x[i[0], 'c']}, 0)) / {n}"
        ),
    )
    e = reshape(w, e, ()) if rank < 2 else e
    return reduced(w, e, reduction)


def relabel(w: Page, y: Value) -> Value:
    if y.rank == 2:
        return y
    return w((1, y.size), lambda i: y[(i[1],) if y.rank else ()], dtype="int")


def pairwise(w: Page, x: Value, y: Value, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Value:
    d = spread(w, "{x} - {y} + {e}", x=x, y=y, e=eps)
    return norm_of(w, d, p, -1, keepdim)


def triplet(
    w: Page,
    a: Value,
    p: Value,
    n: Value,
    margin: float = 1.0,
    p_: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
    distance_function: Any = None,
    **named: Any,
) -> Value:
    near, far = pairwise(w, a, p, named.get("p", p_), eps), pairwise(w, a, n, named.get("p", p_), eps)
    if swap:
        other = pairwise(w, p, n, named.get("p", p_), eps)
        far = spread(w, "min({x}, {y})", x=far, y=other)
    return reduced(w, spread(w, "max({x} - {y} + {m}, 0)", x=near, y=far, m=margin), reduction)


def cosine_similarity(w: Page, x: Value, y: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    shape = broadcast(x.shape, y.shape)
    x, y = (w(shape, lambda i, v=v: v.wide(i)) for v in (x, y))
    if not x.rank:
        x, y, dim = reshape(w, x, (1,)), reshape(w, y, (1,)), 0
    a, b = (norm_of(w, v, 2, dim, True) for v in (x, y))
    u, v = (w(z.shape, lambda i, z=z, m=m: f"{z[i]} / max({m.wide(i)}, {number(eps)})") for z, m in ((x, a), (y, b)))
    return (
        total(w, spread(w, "{x} * {y}", x=u, y=v), dim) if shape else reshape(w, spread(w, "{x} * {y}", x=u, y=v), ())
    )


def cosine_embedding(w: Page, x: Value, z: Value, y: Value, margin: float = 0.0, reduction: str = "mean") -> Value:
    def along(a: Value, b: Value) -> Value:
        return total(w, spread(w, "{a} * {b}", a=a, b=b), -1)

    e = 1e-12
    c = spread(w, "{p} / sqrt(({q} + {e}) * ({r} + {e}))", p=along(x, z), q=along(x, x), r=along(z, z), e=e)
    f = spread(
        w, "(if {y} == 1 then 1 - {c} else 0) + (if {y} == -1 then max({c} - {m}, 0) else 0)", y=y, c=c, m=margin
    )
    return reduced(w, f, reduction)


ROWS: dict[str, Callable[..., Any]] = {
    "nn.functional.mse_loss": pointwise("({x} - {y})^2"),
    "nn.functional.l1_loss": pointwise("abs({x} - {y})"),
    "nn.functional.smooth_l1_loss": smooth_l1,
    "nn.functional.huber_loss": huber,
    "nn.functional.binary_cross_entropy": bce,
    "nn.functional.binary_cross_entropy_with_logits": bce_logits,
    "nn.functional.hinge_embedding_loss": hinge_embedding,
    "nn.functional.margin_ranking_loss": margin_ranking,
    "nn.functional.kl_div": kl_div,
    "nn.functional.poisson_nll_loss": poisson_nll,
    "nn.functional.gaussian_nll_loss": gaussian_nll,
    "nn.functional.nll_loss": nll,
    "nn.functional.cross_entropy": cross_entropy,
    "nn.functional.soft_margin_loss": soft_margin,
    "nn.functional.multilabel_soft_margin_loss": multilabel_soft_margin,
    "nn.functional.multi_margin_loss": multi_margin,
    "nn.functional.multilabel_margin_loss": multilabel_margin,
    "nn.functional.pairwise_distance": pairwise,
    "nn.functional.triplet_margin_loss": triplet,
    "nn.functional.triplet_margin_with_distance_loss": triplet,
    "nn.functional.cosine_similarity": cosine_similarity,
    "nn.functional.cosine_embedding_loss": cosine_embedding,
}
